//! Much smaller pictures, at the cost of one look at every pixel and of no memory but the
//! result's: what Pillow calls the reducing gap.

use crate::domain::{GreyImage, Picture, RgbImage};

/// `picture` with every `factor` by `factor` pixels averaged into one, fewer at the right
/// and lower edges. Colours count as much as they are seen.
///
/// Source: Pillow 13.0, `Image.reduce` (`Reduce.c`), in rows.
#[must_use]
pub(crate) fn reduce(picture: Picture, factor: usize) -> Picture {
    let factor = factor.max(1);
    let (width, height) = (picture.width().div_ceil(factor), picture.height().div_ceil(factor));
    let mut colours = Vec::with_capacity(width * height * 3);
    let mut alphas = Vec::with_capacity(picture.alpha().map_or(0, |_| width * height));
    for top in (0..picture.height()).step_by(factor) {
        for sums in Sums::of_rows(&picture, top, factor) {
            colours.extend(sums.colour());
            if picture.alpha().is_some() {
                alphas.push(sums.alpha());
            }
        }
    }
    // The sides follow from the picture's: both fit.
    let Ok(colour) = RgbImage::new(width, height, colours) else {
        return picture;
    };
    let alpha = picture.alpha().and_then(|_| GreyImage::new(width, height, alphas).ok());
    match alpha {
        Some(alpha) => Picture::with_alpha(colour, alpha).unwrap_or(picture),
        None => colour.into(),
    }
}

/// What the pixels of one square add up to.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Each times its alpha.
    seen: [u64; 3],
    /// As they are: where nothing is seen, a picture still has colours.
    stored: [u64; 3],
    alpha: u64,
    pixels: u64,
}

impl Sums {
    /// Those of `factor` rows from `top` on, from left to right.
    fn of_rows(picture: &Picture, top: usize, factor: usize) -> Vec<Self> {
        let width = picture.width();
        let mut all = vec![Self::default(); width.div_ceil(factor)];
        for y in top..(top + factor).min(picture.height()) {
            let row = &picture.colour().pixels()[3 * y * width..3 * (y + 1) * width];
            let alpha = picture.alpha().map(|alpha| &alpha.pixels()[y * width..(y + 1) * width]);
            for (square, (sums, pixels)) in all.iter_mut().zip(row.chunks(3 * factor)).enumerate() {
                for (x, pixel) in pixels.chunks_exact(3).enumerate() {
                    let alpha = alpha.map_or(u8::MAX, |alpha| alpha[square * factor + x]);
                    sums.add(pixel, alpha);
                }
            }
        }
        all
    }

    fn add(&mut self, pixel: &[u8], alpha: u8) {
        for (channel, value) in pixel.iter().take(3).enumerate() {
            self.seen[channel] += u64::from(*value) * u64::from(alpha);
            self.stored[channel] += u64::from(*value);
        }
        self.alpha += u64::from(alpha);
        self.pixels += 1;
    }

    fn colour(&self) -> [u8; 3] {
        match self.alpha {
            0 => self.stored.map(|sum| mean(sum, self.pixels)),
            alpha => self.seen.map(|sum| mean(sum, alpha)),
        }
    }

    fn alpha(&self) -> u8 {
        mean(self.alpha, self.pixels)
    }
}

fn mean(sum: u64, count: u64) -> u8 {
    u8::try_from((sum + count / 2) / count.max(1)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_averaged_and_the_edges_have_what_is_left() {
        let grey = |value: u8| [value; 3];
        let rows = [[10, 20, 50], [30, 40, 70], [1, 3, 9]];
        let pixels = rows.into_iter().flatten().flat_map(grey).collect();
        let picture = RgbImage::new(3, 3, pixels).unwrap();

        let reduced = reduce(picture.into(), 2);

        let expected: Vec<u8> = [25, 60, 2, 9].into_iter().flat_map(grey).collect();
        assert_eq!(reduced.colour().pixels(), expected);
        assert_eq!((reduced.width(), reduced.height(), reduced.alpha()), (2, 2, None));
    }

    #[test]
    fn what_is_transparent_lends_no_colour() {
        let colour = RgbImage::new(2, 1, vec![200, 100, 0, 9, 9, 9]).unwrap();
        let alpha = GreyImage::new(2, 1, vec![255, 0]).unwrap();
        let picture = Picture::with_alpha(colour, alpha).unwrap();

        let reduced = reduce(picture, 2);

        assert_eq!(reduced.colour().pixels(), [200, 100, 0]);
        assert_eq!(reduced.alpha().unwrap().pixels(), [128]);
    }
}
