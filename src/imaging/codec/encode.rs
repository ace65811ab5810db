//! Pictures to files: PNG, JPEG and WebP.

use std::str::FromStr;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::domain::{Picture, UnknownChoice};

/// What is seen behind a transparent picture in a format that knows no transparency.
const BACKGROUND: [u8; 3] = [255; 3];

/// A file format to [`encode`] to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lossless.
    Png,
    /// Lossy.
    Jpeg {
        /// From 1 (smallest file) to 100 (best picture); 0 counts as 1.
        quality: u8,
    },
    /// Lossy below 100, lossless at 100.
    Webp {
        /// From 0 (smallest file) to 100 (the very pixels).
        quality: u8,
    },
}

/// How much time goes into making a PNG small. The pixels are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PngCompression {
    /// Hardly any.
    #[default]
    Fast,
    /// Ten times as much.
    Balanced,
    /// As much as ever helps.
    Best,
}

impl FromStr for PngCompression {
    type Err = UnknownChoice;

    /// Reads the choice's name, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "fast" => Ok(Self::Fast),
            "balanced" => Ok(Self::Balanced),
            "best" => Ok(Self::Best),
            _ => Err(UnknownChoice { expected: Self::CHOICES }),
        }
    }
}

impl PngCompression {
    /// The ways to write one.
    pub const CHOICES: &str = "fast, balanced or best";

    fn level(self) -> CompressionType {
        match self {
            Self::Fast => CompressionType::Fast,
            Self::Balanced => CompressionType::Level(4),
            Self::Best => CompressionType::Best,
        }
    }
}

impl OutputFormat {
    /// The media type of its files.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg { .. } => "image/jpeg",
            Self::Webp { .. } => "image/webp",
        }
    }

    /// OpenAI's word for the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg { .. } => "jpeg",
            Self::Webp { .. } => "webp",
        }
    }
}

/// A picture could not be written in a format.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode a {width}x{height} picture as {format}")]
pub struct EncodeError {
    width: usize,
    height: usize,
    format: &'static str,
    source: image::ImageError,
}

/// Writes a picture as a file of `format`, a PNG as fast as can be.
///
/// # Errors
/// As [`encode_with`].
pub fn encode(image: &Picture, format: OutputFormat) -> Result<Vec<u8>, EncodeError> {
    encode_with(image, format, PngCompression::Fast)
}

/// Writes a picture as a file of `format`, a PNG compressed as `png` says. JPEG knows no transparency: there it
/// lies on white.
///
/// # Errors
/// [`EncodeError`] if the format cannot hold it: a side of WebP has at most
/// 16,384 pixels, of JPEG 65,535.
pub fn encode_with(
    image: &Picture,
    format: OutputFormat,
    png: PngCompression,
) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    let written = match format {
        OutputFormat::Png => write_png(image, png, &mut bytes),
        OutputFormat::Jpeg { quality } => write(
            &image.over(BACKGROUND).into(),
            JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100)),
        ),
        OutputFormat::Webp { quality: 100.. } => {
            write(image, WebPEncoder::new_lossless(&mut bytes))
        }
        OutputFormat::Webp { quality } => write_lossy_webp(image, quality, &mut bytes),
    };
    written.map_err(|source| EncodeError {
        width: image.width(),
        height: image.height(),
        format: format.name(),
        source,
    })?;
    Ok(bytes)
}

/// Of noisy pictures the fast way makes the smaller file: whoever pays for more than that
/// gets the smaller of two.
fn write_png(
    image: &Picture,
    compression: PngCompression,
    bytes: &mut Vec<u8>,
) -> Result<(), image::ImageError> {
    let encoder = |bytes, level: PngCompression| {
        PngEncoder::new_with_quality(bytes, level.level(), FilterType::Adaptive)
    };
    write(image, encoder(&mut *bytes, PngCompression::Fast))?;
    if compression != PngCompression::Fast {
        let mut small = Vec::new();
        write(image, encoder(&mut small, compression))?;
        if small.len() < bytes.len() {
            *bytes = small;
        }
    }
    Ok(())
}

/// The `image` crate writes WebP without loss only; this is libwebp.
fn write_lossy_webp(
    image: &Picture,
    quality: u8,
    bytes: &mut Vec<u8>,
) -> Result<(), image::ImageError> {
    let too_large = || {
        let kind = image::error::ParameterErrorKind::DimensionMismatch;
        image::ImageError::Parameter(image::error::ParameterError::from_kind(kind))
    };
    let side = |side: usize| u32::try_from(side).map_err(|_| too_large());
    let (width, height) = (side(image.width())?, side(image.height())?);
    let pixels = interleaved(image);
    let encoder = match image.alpha() {
        Some(_) => webp::Encoder::from_rgba(&pixels, width, height),
        None => webp::Encoder::from_rgb(&pixels, width, height),
    };
    let encoded = encoder.encode_simple(false, f32::from(quality)).map_err(|_| too_large())?;
    bytes.extend_from_slice(&encoded);
    Ok(())
}

/// Three bytes a pixel, or four if it has transparency.
fn interleaved(image: &Picture) -> std::borrow::Cow<'_, [u8]> {
    let colours = image.colour().pixels();
    let Some(alpha) = image.alpha() else {
        return colours.into();
    };
    let pixels = colours.chunks_exact(3).zip(alpha.pixels());
    pixels.flat_map(|(colour, alpha)| colour.iter().chain([alpha])).copied().collect()
}

fn write(image: &Picture, encoder: impl ImageEncoder) -> Result<(), image::ImageError> {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let (width, height) = (side(image.width()), side(image.height()));
    let colour_type = match image.alpha() {
        Some(_) => ExtendedColorType::Rgba8,
        None => ExtendedColorType::Rgb8,
    };
    encoder.write_image(&interleaved(image), width, height, colour_type)
}
