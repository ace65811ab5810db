//! A part of a picture, worked on by itself and laid back into the whole.
//!
//! For inpainting at the full resolution of a model: [`Region::around`] a mask,
//! [`Region::cut`] out and [`fill`]ed into the model's size, and afterwards
//! [`overlay`].
//!
//! Source: diffusers 0.42.1, `VaeImageProcessor` (`get_crop_region`,
//! `_resize_and_fill`, `_resize_and_crop`, `apply_overlay`); Pillow 13.0 for the
//! rounding of what lies over each other. Their integer divisions are kept.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sides are below 2^31 and never negative where they are cast; Python's int() truncates"
)]

use super::resample::{Edge, Resampler, divide, multiply, resize, resize_grey};
use super::resample::{stretch_edge_column, stretch_edge_row};
use crate::domain::{GreyImage, RgbImage};

/// A rectangle of pixels: from `left` and `top` up to, but without, `right` and `bottom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Behind the last column.
    pub right: usize,
    /// Behind the last row.
    pub bottom: usize,
}

impl Region {
    /// The smallest region with all that is not black in `mask`, `padding` pixels
    /// wider on each side, and then widened along one axis towards the shape of
    /// `width` by `height`. `None` if all is black.
    #[must_use]
    pub fn around(mask: &GreyImage, width: usize, height: usize, padding: usize) -> Option<Self> {
        let (columns, rows) = (mask.width(), mask.height());
        let row_is_marked =
            |row: usize| mask.pixels()[row * columns..(row + 1) * columns].iter().any(|p| *p > 0);
        let column_is_marked =
            |column: usize| mask.pixels()[column..].iter().step_by(columns).any(|p| *p > 0);
        let first_row = (0..rows).find(|row| row_is_marked(*row))?;
        let last_row = (0..rows).rfind(|row| row_is_marked(*row))?;
        let first_column = (0..columns).find(|column| column_is_marked(*column))?;
        let last_column = (0..columns).rfind(|column| column_is_marked(*column))?;
        let padded = |first: usize, last: usize, limit: usize| {
            (first.saturating_sub(padding), (last + 1).saturating_add(padding).min(limit))
        };
        let (mut left, mut right) = padded(first_column, last_column, columns);
        let (mut top, mut bottom) = padded(first_row, last_row, rows);
        let ratio = (right - left) as f64 / (bottom - top) as f64;
        let wanted_ratio = width as f64 / height as f64;
        if ratio > wanted_ratio {
            let wanted = (right - left) as f64 / wanted_ratio;
            (top, bottom) = widened(top, bottom, wanted, rows);
        } else {
            let wanted = (bottom - top) as f64 * wanted_ratio;
            (left, right) = widened(left, right, wanted, columns);
        }
        Some(Self { left, top, right, bottom })
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(self) -> usize {
        self.right - self.left
    }

    /// Rows.
    #[must_use]
    pub fn height(self) -> usize {
        self.bottom - self.top
    }

    /// This part of `image`.
    #[must_use]
    pub fn cut(self, image: &RgbImage) -> RgbImage {
        let pixels = self.cut_bytes(image.pixels(), image.width(), 3);
        RgbImage::new(self.width(), self.height(), pixels).unwrap_or_else(|_| image.clone())
    }

    /// This part of `mask`.
    #[must_use]
    pub fn cut_grey(self, mask: &GreyImage) -> GreyImage {
        let pixels = self.cut_bytes(mask.pixels(), mask.width(), 1);
        GreyImage::new(self.width(), self.height(), pixels).unwrap_or_else(|_| mask.clone())
    }

    fn cut_bytes(self, pixels: &[u8], width: usize, channels: usize) -> Vec<u8> {
        let rows = pixels.chunks_exact(width * channels).take(self.bottom).skip(self.top);
        rows.flat_map(|row| &row[self.left * channels..self.right * channels]).copied().collect()
    }
}

/// An interval brought to the length `wanted` about its middle, and moved or cut
/// to stay within 0 to `limit`.
fn widened(start: usize, end: usize, wanted: f64, limit: usize) -> (usize, usize) {
    let (mut start, mut end, limit) = (start as i64, end as i64, limit as i64);
    let more = (wanted - (end - start) as f64) as i64;
    start -= more.div_euclid(2);
    end += more - more.div_euclid(2);
    if end >= limit {
        start -= end - limit;
        end = limit;
    }
    if start < 0 {
        end -= start;
        start = 0;
    }
    (start as usize, end.min(limit) as usize)
}

/// `image` scaled to fit into `width` by `height`, centred; what stays free is
/// filled with its stretched edges.
#[must_use]
pub fn fill(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let fit = Fit::inside((image.width(), image.height()), (width, height));
    let scaled = resize(image, fit.width, fit.height, Resampler::PillowLanczos);
    let pixels = fit.fill::<3>(scaled.pixels(), width, height);
    RgbImage::new(width, height, pixels).unwrap_or(scaled)
}

/// As [`fill`], of one byte a pixel.
#[must_use]
pub fn fill_grey(mask: &GreyImage, width: usize, height: usize) -> GreyImage {
    let fit = Fit::inside((mask.width(), mask.height()), (width, height));
    let scaled = resize_grey(mask, fit.width, fit.height, Resampler::PillowLanczos);
    let pixels = fit.fill::<1>(scaled.pixels(), width, height);
    GreyImage::new(width, height, pixels).unwrap_or(scaled)
}

/// The size that a picture is scaled to.
struct Fit {
    width: usize,
    height: usize,
}

impl Fit {
    /// As large as fits inside.
    fn inside(from: (usize, usize), to: (usize, usize)) -> Self {
        let wider = wider_than(from, to);
        let width = if wider { to.0 } else { from.0 * to.1 / from.1 };
        let height = if wider { from.1 * to.0 / from.0 } else { to.1 };
        Self { width: width.max(1), height: height.max(1) }
    }

    /// As small as covers all.
    fn outside(from: (usize, usize), to: (usize, usize)) -> Self {
        let narrower = wider_than(to, from);
        let width = if narrower { to.0 } else { from.0 * to.1 / from.1 };
        let height = if narrower { from.1 * to.0 / from.0 } else { to.1 };
        Self { width: width.max(1), height: height.max(1) }
    }

    fn fill<const CHANNELS: usize>(&self, scaled: &[u8], width: usize, height: usize) -> Vec<u8> {
        let mut canvas = Canvas::<CHANNELS>::black(width, height);
        let (free_columns, free_rows) =
            (half_of_rest(width, self.width), half_of_rest(height, self.height));
        canvas.paste(scaled, self.width, (free_columns, free_rows));
        if self.width == width && free_rows > 0 {
            let rows = free_rows as usize;
            let stretched = |edge| stretch_edge_row::<CHANNELS>(scaled, width, rows, edge);
            canvas.paste(&stretched(Edge::First), width, (0, 0));
            let below = free_rows + self.height as i64;
            canvas.paste(&stretched(Edge::Last), width, (0, below));
        } else if free_columns > 0 {
            let columns = free_columns as usize;
            let stretched =
                |edge| stretch_edge_column::<CHANNELS>(scaled, self.width, columns, edge);
            canvas.paste(&stretched(Edge::First), columns, (0, 0));
            let behind = free_columns + self.width as i64;
            canvas.paste(&stretched(Edge::Last), columns, (behind, 0));
        }
        canvas.pixels
    }
}

/// Whether width through height of the first size is larger.
fn wider_than(first: (usize, usize), second: (usize, usize)) -> bool {
    first.0 as f64 / first.1 as f64 > second.0 as f64 / second.1 as f64
}

/// Where something of length `part` begins that is centred in `whole`.
fn half_of_rest(whole: usize, part: usize) -> i64 {
    (whole / 2) as i64 - (part / 2) as i64
}

/// Scales `image` so that it covers `width` by `height`, and cuts off the rest.
fn cover(image: &RgbImage, width: usize, height: usize) -> Canvas<3> {
    let fit = Fit::outside((image.width(), image.height()), (width, height));
    let scaled = resize(image, fit.width, fit.height, Resampler::PillowLanczos);
    let mut canvas = Canvas::black(width, height);
    let place = (half_of_rest(width, fit.width), half_of_rest(height, fit.height));
    canvas.paste(scaled.pixels(), fit.width, place);
    canvas
}

/// A picture in the making.
struct Canvas<const CHANNELS: usize> {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl<const CHANNELS: usize> Canvas<CHANNELS> {
    fn black(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * CHANNELS] }
    }

    /// Lays rows of `width` pixels at `place` (column, row); what reaches beyond
    /// the canvas is cut off.
    fn paste(&mut self, pixels: &[u8], width: usize, (column, row): (i64, i64)) {
        let skipped = (-column).max(0) as usize;
        let column = column.max(0) as usize;
        let kept = width.saturating_sub(skipped).min(self.width.saturating_sub(column));
        for (source, target) in pixels.chunks_exact(width * CHANNELS).zip(row..) {
            if !(0..self.height as i64).contains(&target) {
                continue;
            }
            let start = (target as usize * self.width + column) * CHANNELS;
            let part = &source[skipped * CHANNELS..(skipped + kept) * CHANNELS];
            self.pixels[start..start + part.len()].copy_from_slice(part);
        }
    }
}

/// Lays `repainted` into `region` of `original`, where `mask` (of the size of
/// `original`) is bright; half bright: mixed.
#[must_use]
pub fn overlay(
    original: &RgbImage,
    mask: &GreyImage,
    repainted: &RgbImage,
    region: Region,
) -> RgbImage {
    let (width, height) = (original.width(), original.height());
    let part = cover(repainted, region.width(), region.height());
    let mut base = Canvas::<3>::black(width, height);
    base.paste(&part.pixels, part.width, (region.left as i64, region.top as i64));
    let pixels = original
        .pixels()
        .iter()
        .zip(&base.pixels)
        .zip(mask.pixels().iter().flat_map(|bright| [*bright; 3]))
        .map(|((&over, &under), bright)| lay_over(over, 255 - bright, under));
    RgbImage::new(width, height, pixels.collect()).unwrap_or_else(|_| original.clone())
}

/// `over`, as opaque as `alpha` says, over an opaque `under`: Pillow's
/// `alpha_composite`, after the way there by way of `RGBa`.
fn lay_over(over: u8, alpha: u8, under: u8) -> u8 {
    if alpha == 0 {
        return under;
    }
    let over = divide(multiply(over, alpha), alpha);
    let weight = u32::from(alpha) << 7;
    let rest = (255 << 7) - weight;
    let sum = u32::from(over) * weight + u32::from(under) * rest + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}
