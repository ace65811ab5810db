//! Resizing pictures exactly as the reference does.
//!
//! Two resamplers follow each other there: Pillow's Lanczos brings a picture to
//! the pipeline's size, and torchvision's antialiased bicubic brings it to the
//! encoder's. Both convolve in integers, one axis after the other, with 8-bit
//! pixels in between; they differ in the kernel, in the number of bits of the
//! weights and in the order of the axes.
//!
//! Sources: Pillow 13.0 `Resample.c`; torchvision 0.26 on torch 2.11
//! `UpSampleKernel.cpp` (uint8, antialias). `tests/it/golden_components.rs`
//! holds both against pictures that these libraries made: no value differs.

#![expect(
    clippy::cast_possible_truncation,
    reason = "positions and weights of pictures of at most 2^31 pixels; C's casts are the reference"
)]

use rayon::prelude::*;

use crate::domain::{GreyImage, Picture, RgbImage};

/// Which library's resampling to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampler {
    /// `PIL.Image.resize(size, Image.LANCZOS)`.
    PillowLanczos,
    /// `PIL.Image.resize(size, Image.BICUBIC)`.
    PillowBicubic,
    /// `torchvision.transforms.v2.functional.resize(..., BICUBIC, antialias=True)` on uint8.
    TorchvisionBicubic,
}

/// Brings `image` to `width` by `height` pixels, both at least 1.
#[must_use]
pub fn resize(image: &RgbImage, width: usize, height: usize, resampler: Resampler) -> RgbImage {
    let raster = Raster::<3>::of(image.width(), image.height(), image.pixels());
    let (width, height) = (width.max(1), height.max(1));
    let pixels = raster.resize(width, height, resampler);
    // The two passes make exactly width · height · 3 bytes.
    RgbImage::new(width, height, pixels).unwrap_or_else(|_| image.clone())
}

/// As [`resize`], of one byte a pixel.
#[must_use]
pub fn resize_grey(
    image: &GreyImage,
    width: usize,
    height: usize,
    resampler: Resampler,
) -> GreyImage {
    let raster = Raster::<1>::of(image.width(), image.height(), image.pixels());
    let (width, height) = (width.max(1), height.max(1));
    let pixels = raster.resize(width, height, resampler);
    GreyImage::new(width, height, pixels).unwrap_or_else(|_| image.clone())
}

/// As [`resize`]; where a picture has transparency, colours count as much as
/// they are seen, as in Pillow: they are multiplied by it and divided again.
#[must_use]
pub fn resize_picture(
    picture: &Picture,
    width: usize,
    height: usize,
    resampler: Resampler,
) -> Picture {
    let Some(alpha) = picture.alpha() else {
        return resize(picture.colour(), width, height, resampler).into();
    };
    if (picture.width(), picture.height()) == (width, height) {
        return picture.clone();
    }
    let premultiplied: Vec<u8> = picture
        .colour()
        .pixels()
        .chunks_exact(3)
        .zip(alpha.pixels())
        .flat_map(|(colour, &alpha)| {
            let times_alpha = |channel: usize| multiply(colour[channel], alpha);
            [times_alpha(0), times_alpha(1), times_alpha(2), alpha]
        })
        .collect();
    let raster = Raster::<4>::of(picture.width(), picture.height(), &premultiplied);
    let (width, height) = (width.max(1), height.max(1));
    let pixels = raster.resize(width, height, resampler);
    let alpha: Vec<u8> = pixels.iter().skip(3).step_by(4).copied().collect();
    let colour = pixels.chunks_exact(4).flat_map(|pixel| {
        let [red, green, blue, alpha] = [pixel[0], pixel[1], pixel[2], pixel[3]];
        [red, green, blue].map(|value| divide(value, alpha))
    });
    let colour = RgbImage::new(width, height, colour.collect());
    let alpha = GreyImage::new(width, height, alpha);
    match (colour, alpha) {
        (Ok(colour), Ok(alpha)) => {
            Picture::with_alpha(colour, alpha).unwrap_or_else(|_| picture.clone())
        }
        _ => picture.clone(),
    }
}

/// value · alpha / 255, rounded: Pillow's `MULDIV255`.
pub(super) fn multiply(value: u8, alpha: u8) -> u8 {
    let product = u32::from(value) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// The inverse as far as there is one: Pillow's `RGBa` → `RGBA`.
pub(super) fn divide(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => value,
        _ => (255 * u32::from(value) / u32::from(alpha)).min(255) as u8,
    }
}

/// Stretches the first or the last row of a picture (with what the filter sees
/// beside it) to `height` rows: Pillow's bicubic resizing of a box without height
/// at that edge.
pub(super) fn stretch_edge_row<const CHANNELS: usize>(
    pixels: &[u8],
    width: usize,
    height: usize,
    edge: Edge,
) -> Vec<u8> {
    let rows = pixels.len() / (width * CHANNELS);
    let taps = Taps::of_box(rows, height, edge.of(rows), 0.0, Resampler::PillowBicubic);
    resize_columns::<CHANNELS>(pixels, width, height, &taps)
}

/// As [`stretch_edge_row`], to `width` columns.
pub(super) fn stretch_edge_column<const CHANNELS: usize>(
    pixels: &[u8],
    in_width: usize,
    width: usize,
    edge: Edge,
) -> Vec<u8> {
    let taps = Taps::of_box(in_width, width, edge.of(in_width), 0.0, Resampler::PillowBicubic);
    resize_rows::<CHANNELS>(pixels, in_width, width, &taps)
}

/// The beginning or the end of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    First,
    Last,
}

impl Edge {
    fn of(self, size: usize) -> f64 {
        match self {
            Self::First => 0.0,
            Self::Last => size as f64,
        }
    }
}

/// Pixels of `CHANNELS` bytes, row by row.
struct Raster<'a, const CHANNELS: usize> {
    width: usize,
    height: usize,
    pixels: &'a [u8],
}

impl<'a, const CHANNELS: usize> Raster<'a, CHANNELS> {
    fn of(width: usize, height: usize, pixels: &'a [u8]) -> Self {
        Self { width, height, pixels }
    }

    fn resize(&self, width: usize, height: usize, resampler: Resampler) -> Vec<u8> {
        let horizontal = |rows: &[u8]| {
            if width == self.width {
                return rows.to_vec();
            }
            let taps = Taps::new(self.width, width, resampler);
            resize_rows::<CHANNELS>(rows, self.width, width, &taps)
        };
        let vertical = |pixels: &[u8], width: usize| {
            if height == self.height {
                return pixels.to_vec();
            }
            let taps = Taps::new(self.height, height, resampler);
            resize_columns::<CHANNELS>(pixels, width, height, &taps)
        };
        let lost = |before: usize, after: usize| before as i64 - after as i64;
        let (lost_width, lost_height) = (lost(self.width, width), lost(self.height, height));
        if resampler.starts_vertically(lost_width, lost_height) {
            horizontal(&vertical(self.pixels, self.width))
        } else {
            vertical(&horizontal(self.pixels), width)
        }
    }
}

impl Resampler {
    /// Half the kernel's width, in pixels of the coarser picture.
    fn support(self) -> f64 {
        match self {
            Self::PillowLanczos => 3.0,
            Self::PillowBicubic | Self::TorchvisionBicubic => 2.0,
        }
    }

    fn kernel(self, x: f64) -> f64 {
        match self {
            Self::PillowLanczos => lanczos(x),
            Self::PillowBicubic | Self::TorchvisionBicubic => bicubic(x),
        }
    }

    /// Pillow 13 (its change 9549) goes vertically first where the picture loses
    /// more than twice as much height as width; torchvision never does.
    fn starts_vertically(self, lost_width: i64, lost_height: i64) -> bool {
        match self {
            Self::TorchvisionBicubic => false,
            Self::PillowLanczos | Self::PillowBicubic => {
                lost_height > 0 && lost_height > 2 * lost_width
            }
        }
    }

    /// Fractional bits of the integer weights.
    fn precision_bits(self, weights: &[Vec<f64>]) -> u32 {
        match self {
            // 32 bits less 8 of the pixel and 2 for the sum's overshoot.
            Self::PillowLanczos | Self::PillowBicubic => 22,
            // The largest that keeps every weight in 16 bits.
            Self::TorchvisionBicubic => {
                let largest = weights.iter().flatten().copied().fold(0.0_f64, f64::max);
                let fits = |bits: u32| (0.5 + largest * f64::from(1_u32 << (bits + 1))) as i64;
                (0..22).find(|&bits| fits(bits) >= 1 << 15).unwrap_or(22)
            }
        }
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// What one output pixel is made of along one axis.
struct Tap {
    first: usize,
    weights: Vec<i64>,
}

struct Taps {
    taps: Vec<Tap>,
    precision_bits: u32,
}

impl Taps {
    fn new(in_size: usize, out_size: usize, resampler: Resampler) -> Self {
        Self::of_box(in_size, out_size, 0.0, in_size as f64, resampler)
    }

    /// From the `length` pixels behind `start` alone (but the filter may see what
    /// lies beside them).
    fn of_box(
        in_size: usize,
        out_size: usize,
        start: f64,
        length: f64,
        resampler: Resampler,
    ) -> Self {
        let scale = length / out_size as f64;
        let filter_scale = scale.max(1.0);
        let support = resampler.support() * filter_scale;
        let (firsts, weights): (Vec<usize>, Vec<Vec<f64>>) = (0..out_size)
            .map(|out| {
                let centre = start + (out as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let last = ((centre + support + 0.5) as usize).min(in_size);
                let mut weights: Vec<f64> = (first..last)
                    .map(|x| resampler.kernel((x as f64 - centre + 0.5) / filter_scale))
                    .collect();
                let sum: f64 = weights.iter().sum();
                if sum != 0.0 {
                    weights.iter_mut().for_each(|weight| *weight /= sum);
                }
                (first, weights)
            })
            .unzip();
        let precision_bits = resampler.precision_bits(&weights);
        let one = f64::from(1_u32 << precision_bits);
        // Away from zero at one half: f64::round does so.
        let integers = |row: Vec<f64>| row.iter().map(|w| (w * one).round() as i64).collect();
        let taps = firsts
            .into_iter()
            .zip(weights)
            .map(|(first, row)| Tap { first, weights: integers(row) })
            .collect();
        Self { taps, precision_bits }
    }

    /// One output value from the input values at `at(index)`.
    fn apply(&self, tap: &Tap, at: impl Fn(usize) -> u8) -> u8 {
        let half = 1_i64 << (self.precision_bits - 1);
        let sum = tap
            .weights
            .iter()
            .enumerate()
            .fold(half, |sum, (index, weight)| sum + weight * i64::from(at(tap.first + index)));
        (sum >> self.precision_bits).clamp(0, 255) as u8
    }
}

/// Changes the width of rows of `in_width` pixels.
fn resize_rows<const CHANNELS: usize>(
    pixels: &[u8],
    in_width: usize,
    out_width: usize,
    taps: &Taps,
) -> Vec<u8> {
    let height = pixels.len() / (in_width * CHANNELS);
    let mut out = vec![0; out_width * height * CHANNELS];
    out.par_chunks_mut(out_width * CHANNELS).zip(pixels.par_chunks(in_width * CHANNELS)).for_each(
        |(out_row, row)| {
            for (pixel, tap) in out_row.chunks_exact_mut(CHANNELS).zip(&taps.taps) {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = taps.apply(tap, |x| row[x * CHANNELS + channel]);
                }
            }
        },
    );
    out
}

/// Changes the height of a picture of `width` pixels a row.
fn resize_columns<const CHANNELS: usize>(
    pixels: &[u8],
    width: usize,
    out_height: usize,
    taps: &Taps,
) -> Vec<u8> {
    let row_bytes = width * CHANNELS;
    let mut out = vec![0; row_bytes * out_height];
    out.par_chunks_mut(row_bytes).zip(taps.taps.par_iter()).for_each(|(out_row, tap)| {
        for (x, value) in out_row.iter_mut().enumerate() {
            *value = taps.apply(tap, |y| pixels[y * row_bytes + x]);
        }
    });
    out
}
