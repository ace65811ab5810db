//! The input that shows through where a mask spares it.

use crate::domain::{GreyImage, Picture, RgbImage};

/// A mask is bright where a picture is made anew; the reference's threshold.
const THRESHOLD: u8 = 128;

/// Pixels of the seam for every pixel of the shorter side …
const SEAM_SHARE: usize = 64;
/// … but at least these.
const MIN_SEAM: usize = 2;

/// An input picture, and how much of a new one is seen over it.
///
/// Outside the mask nothing of the new picture is seen: those pixels come back
/// bit by bit. Inside, it fades in over a few pixels from the mask's edge.
#[derive(Debug)]
pub(super) struct MaskBlend {
    input: Picture,
    /// Of the new picture, per pixel: 0 to 255.
    share: Vec<u8>,
}

impl MaskBlend {
    /// `mask` has the size of `input`.
    pub(super) fn new(input: Picture, mask: &GreyImage) -> Self {
        let (width, height) = (mask.width(), mask.height());
        let seam = (width.min(height) / SEAM_SHARE).max(MIN_SEAM);
        let distances = distances_to_kept(mask);
        let share = |distance| u8::try_from(usize::from(distance) * 255 / seam).unwrap_or(u8::MAX);
        Self { input, share: distances.into_iter().map(share).collect() }
    }

    /// Bytes of the input and its mask.
    pub(super) fn held_bytes(&self) -> usize {
        self.input.bytes() + self.share.len()
    }

    /// `made` has the size of the input; of another one it is given back as it is.
    pub(super) fn lay_over(&self, made: Picture) -> Picture {
        if (made.width(), made.height()) != (self.input.width(), self.input.height()) {
            return made;
        }
        let (old, new) = (self.input.colour().pixels(), made.colour().pixels());
        let alpha = self.input.alpha().map(GreyImage::pixels);
        let mut pixels = Vec::with_capacity(old.len());
        let mut opacities = Vec::with_capacity(self.share.len());
        for (at, share) in self.share.iter().enumerate() {
            let weights = Weights::of(alpha.map_or(u8::MAX, |alpha| alpha[at]), *share);
            let channels = old[3 * at..].iter().zip(&new[3 * at..]).take(3);
            pixels.extend(channels.map(|(old, new)| weights.mix(*old, *new)));
            opacities.push(weights.opacity());
        }
        let (width, height) = (made.width(), made.height());
        let colour = RgbImage::new(width, height, pixels);
        let colour = colour.unwrap_or_else(|_| made.colour().clone());
        let opacities = GreyImage::new(width, height, opacities).ok();
        let opacities = opacities.filter(|all| all.pixels().iter().any(|one| *one != u8::MAX));
        let whole = |alpha| Picture::with_alpha(colour.clone(), alpha).ok();
        opacities.and_then(whole).unwrap_or_else(|| colour.into())
    }
}

/// How much the two pictures count in a pixel, each of 255 times 255.
///
/// The old one counts as much as it is seen: a colour that is hidden by transparency
/// does not come out where the new picture, which is opaque, fades in.
#[derive(Debug, Clone, Copy)]
struct Weights {
    old: u32,
    new: u32,
}

impl Weights {
    fn of(opacity: u8, share: u8) -> Self {
        Self {
            old: u32::from(opacity) * u32::from(u8::MAX - share),
            new: u32::from(u8::MAX) * u32::from(share),
        }
    }

    fn mix(self, old: u8, new: u8) -> u8 {
        let whole = self.old + self.new;
        if whole == 0 {
            return old;
        }
        let sum = u32::from(old) * self.old + u32::from(new) * self.new;
        u8::try_from((sum + whole / 2) / whole).unwrap_or(u8::MAX)
    }

    fn opacity(self) -> u8 {
        u8::try_from((self.old + self.new + 127) / 255).unwrap_or(u8::MAX)
    }
}

/// For every pixel, how many steps (also diagonal ones) the nearest pixel is away
/// that the mask spares; 0 for those. Past the picture's edge nothing is spared.
fn distances_to_kept(mask: &GreyImage) -> Vec<u16> {
    let (width, height) = (mask.width(), mask.height());
    let far = u16::try_from(width.max(height)).unwrap_or(u16::MAX);
    let start = |value: &u8| if *value < THRESHOLD { 0 } else { far };
    let mut distances: Vec<u16> = mask.pixels().iter().map(start).collect();
    let mut relax = |at: usize, neighbour: usize| {
        distances[at] = distances[at].min(distances[neighbour].saturating_add(1));
    };
    for y in 0..height {
        for x in 0..width {
            let at = y * width + x;
            if x > 0 {
                relax(at, at - 1);
            }
            if y > 0 {
                for neighbour in
                    at - width - usize::from(x > 0)..=at - width + usize::from(x + 1 < width)
                {
                    relax(at, neighbour);
                }
            }
        }
    }
    for y in (0..height).rev() {
        for x in (0..width).rev() {
            let at = y * width + x;
            if x + 1 < width {
                relax(at, at + 1);
            }
            if y + 1 < height {
                for neighbour in
                    at + width - usize::from(x > 0)..=at + width + usize::from(x + 1 < width)
                {
                    relax(at, neighbour);
                }
            }
        }
    }
    distances
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 9x9, bright in the middle 5x5.
    fn mask() -> GreyImage {
        let inside = |index: usize| (2..7).contains(&(index % 9)) && (2..7).contains(&(index / 9));
        GreyImage::new(9, 9, (0..81).map(|index| if inside(index) { 255 } else { 0 }).collect())
            .unwrap()
    }

    #[test]
    fn outside_the_mask_the_input_comes_back_bit_by_bit_and_inside_it_fades() {
        let input = Picture::from(RgbImage::filled(9, 9, [10, 20, 30]));
        let made = Picture::from(RgbImage::filled(9, 9, [210, 120, 130]));

        let whole = MaskBlend::new(input, &mask()).lay_over(made);

        let red = |x: usize, y: usize| whole.colour().pixels()[(y * 9 + x) * 3];
        assert_eq!((red(1, 1), red(4, 1), red(7, 4), red(0, 8)), (10, 10, 10, 10));
        assert_eq!(red(4, 4), 210);
        assert!((60..200).contains(&red(2, 4)), "{}", red(2, 4));
    }

    #[test]
    fn transparency_stays_outside_the_mask_and_hidden_colours_never_come_out() {
        let made = || Picture::from(RgbImage::filled(9, 9, [210, 120, 130]));
        let hidden = |colour: [u8; 3]| {
            let alpha = GreyImage::new(9, 9, vec![0; 81]).unwrap();
            Picture::with_alpha(RgbImage::filled(9, 9, colour), alpha).unwrap()
        };
        let whole = |input| MaskBlend::new(input, &mask()).lay_over(made());

        let (red, black) = (whole(hidden([255, 0, 0])), whole(hidden([0; 3])));

        assert_eq!(red.colour().pixels()[..3], [255, 0, 0]);
        let alpha = red.alpha().unwrap().pixels();
        assert_eq!((alpha[0], alpha[4 * 9 + 4]), (0, 255));
        assert!((1..255).contains(&alpha[2 * 9 + 4]), "{}", alpha[2 * 9 + 4]);
        for at in (0..81).filter(|at| alpha[*at] > 0) {
            let of = |picture: &Picture| picture.colour().pixels()[3 * at..3 * at + 3].to_vec();
            assert_eq!((of(&red), of(&black)), (vec![210, 120, 130], vec![210, 120, 130]));
        }
    }

    #[test]
    fn distances_count_steps_to_the_nearest_kept_pixel() {
        let distances = distances_to_kept(&mask());

        assert_eq!(&distances[4 * 9..5 * 9], &[0, 0, 1, 2, 3, 2, 1, 0, 0]);
        let all = GreyImage::new(3, 2, vec![255; 6]).unwrap();
        assert!(distances_to_kept(&all).iter().all(|distance| *distance == 3));
    }
}
