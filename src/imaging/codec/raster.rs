//! Pixels as a file holds them, and how they become a picture.

use super::error::DecodeError;
use crate::domain::{GreyImage, Picture, RgbImage};

/// What the numbers of a pixel stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColourSpace {
    Grey,
    Rgb,
    /// Inks: 0 is none of it.
    Cmyk,
}

impl ColourSpace {
    pub(super) fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grey => "grey",
            Self::Rgb => "RGB",
            Self::Cmyk => "CMYK",
        }
    }
}

/// Numbers of colours, pixel by pixel.
#[derive(Debug)]
pub(super) enum Samples {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

/// A picture before its colour profile is applied. Colours are not premultiplied.
#[derive(Debug)]
pub(super) struct Raster {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) space: ColourSpace,
    /// Of each pixel as many as `space` has channels.
    pub(super) colours: Samples,
    /// One byte a pixel; 255: opaque.
    pub(super) alpha: Option<Vec<u8>>,
}

impl Raster {
    /// Takes apart the pixels of a file, those of 8 bits where they are. With `extra` channels behind the colours the
    /// first of them is the transparency.
    pub(super) fn interleaved(
        (width, height): (usize, usize),
        space: ColourSpace,
        samples: Samples,
        extra: usize,
    ) -> Self {
        let channels = space.channels();
        let (colours, alpha) = match samples {
            Samples::Eight(samples) if extra == 0 => (Samples::Eight(samples), None),
            Samples::Sixteen(samples) if extra == 0 => (Samples::Sixteen(samples), None),
            Samples::Eight(samples) => {
                let pixels = samples.chunks_exact(channels + extra);
                let alpha = pixels.map(|pixel| pixel[channels]).collect();
                (Samples::Eight(compacted(samples, channels, extra)), Some(alpha))
            }
            Samples::Sixteen(samples) => {
                let (colours, alpha) = split(&samples, channels, extra);
                (Samples::Sixteen(colours), Some(alpha.into_iter().map(upper).collect()))
            }
        };
        Self { width, height, space, colours, alpha }
    }

    /// 8-bit RGB, whatever the file holds. Of 16 bits the upper eight are kept, as
    /// Pillow does of colours. (Of grey it keeps the lower end, and makes white of
    /// nearly all else; nobody means that.) Inks are mixed as Pillow mixes them.
    pub(super) fn into_picture(self) -> Result<Picture, DecodeError> {
        let (width, height) = (self.width, self.height);
        let colours = match self.colours {
            Samples::Eight(samples) => samples,
            Samples::Sixteen(samples) => samples.into_iter().map(upper).collect(),
        };
        let pixels = match self.space {
            ColourSpace::Grey => colours.into_iter().flat_map(|grey| [grey; 3]).collect(),
            ColourSpace::Rgb => colours,
            ColourSpace::Cmyk => mixed_inks(colours),
        };
        let colour = RgbImage::new(width, height, pixels)?;
        match self.alpha {
            Some(alpha) if alpha.iter().any(|alpha| *alpha != u8::MAX) => {
                Ok(Picture::with_alpha(colour, GreyImage::new(width, height, alpha)?)?)
            }
            Some(_) | None => Ok(colour.into()),
        }
    }
}

/// The first `channels` of each pixel alone, where the samples are.
pub(super) fn compacted(mut samples: Vec<u8>, channels: usize, extra: usize) -> Vec<u8> {
    let pixels = samples.len() / (channels + extra);
    for at in 0..pixels {
        let from = at * (channels + extra);
        samples.copy_within(from..from + channels, at * channels);
    }
    samples.truncate(pixels * channels);
    samples.shrink_to_fit();
    samples
}

/// Inks to light, where they are.
fn mixed_inks(mut inks: Vec<u8>) -> Vec<u8> {
    for at in 0..inks.len() / 4 {
        let light = mix_inks(&inks[4 * at..4 * at + 4]);
        inks[4 * at..4 * at + 3].copy_from_slice(&light);
    }
    compacted(inks, 3, 1)
}

fn split<T: Copy>(samples: &[T], channels: usize, extra: usize) -> (Vec<T>, Vec<T>) {
    let pixels = || samples.chunks_exact(channels + extra);
    let colours = pixels().flat_map(|pixel| &pixel[..channels]).copied().collect();
    (colours, pixels().map(|pixel| pixel[channels]).collect())
}

fn upper(sample: u16) -> u8 {
    sample.to_be_bytes()[0]
}

/// Source: Pillow 13.0, `Convert.c`, `cmyk2rgb`.
fn mix_inks(inks: &[u8]) -> [u8; 3] {
    let light = u8::MAX - inks[3];
    [0, 1, 2].map(|ink| light.saturating_sub(times(inks[ink], light)))
}

/// value · share / 255, rounded: Pillow's `MULDIV255`.
fn times(value: u8, share: u8) -> u8 {
    let product = u32::from(value) * u32::from(share) + 128;
    u8::try_from(((product >> 8) + product) >> 8).unwrap_or(u8::MAX)
}
