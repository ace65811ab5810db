//! Picture files: PNG, JPEG and WebP bytes to pixels and back.
//!
//! The format is found in the bytes, never in a name or a media type. Sizes are
//! read from the header and held against the limits before a pixel is decoded,
//! and a decoder that panics fails one picture only.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits,
};

use crate::domain::{GreyImage, ImageError, Picture, RgbImage};

/// Bytes that a decoder may take besides the pixels: tables, metadata, rows.
const WORKING_BYTES: u64 = 64 << 20;

/// Bytes of the widest pixel that a decoder makes: four channels of 16 bits.
const MAX_PIXEL_BYTES: u64 = 8;

/// How large a picture [`decode`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// The longest side, in pixels.
    pub max_side: usize,
    /// Width times height.
    pub max_pixels: usize,
}

/// Why bytes were not decoded. The texts are fit for clients.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file is larger than is allowed.
    #[error("the file has {bytes} bytes, at most {max_bytes} are allowed")]
    TooManyBytes {
        /// Bytes of the file.
        bytes: usize,
        /// What is allowed.
        max_bytes: usize,
    },
    /// The bytes begin like none of the formats.
    #[error("the file is not a PNG, JPEG or WebP picture")]
    UnknownFormat,
    /// The header tells of more pixels than are allowed.
    #[error(
        "the picture is {width}x{height} pixels; at most {} pixels in all and {} on a side are \
         allowed",
        limits.max_pixels,
        limits.max_side
    )]
    TooLarge {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// What is allowed.
        limits: DecodeLimits,
    },
    /// The decoder would have taken more memory than such a picture needs.
    #[error("the picture takes too much memory to decode")]
    TooMuchMemory,
    /// The file ends before the picture does.
    #[error("the file is truncated")]
    Truncated,
    /// The file breaks the rules of its format.
    #[error("the file is damaged")]
    Damaged(#[source] image::ImageError),
    /// The decoder panicked.
    #[error("the file is damaged beyond what the decoder understands")]
    DecoderPanicked,
    /// The decoder gave a picture without pixels.
    #[error("the file holds no pixels")]
    NoPixels(#[from] ImageError),
}

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

/// Reads a PNG, JPEG or WebP file as it is meant to be seen: EXIF orientation
/// applied, any colour type turned into RGB. Transparency is kept beside the
/// colours if any pixel has some.
///
/// # Errors
/// [`DecodeError`] says what is wrong with the bytes.
pub fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Picture, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), max_bytes: limits.max_bytes });
    }
    // The maintainers of `image` warn that decoders may panic on hostile input.
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, limits)))
        .unwrap_or(Err(DecodeError::DecoderPanicked))
}

fn decode_unguarded(bytes: &[u8], limits: DecodeLimits) -> Result<Picture, DecodeError> {
    let format = sniff(bytes)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation_limits(limits));
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) as usize > limits.max_side || pixels > limits.max_pixels as u64 {
        return Err(DecodeError::TooLarge { width, height, limits });
    }
    if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
        return Err(DecodeError::Truncated);
    }
    // A picture with unreadable metadata is shown as it is stored.
    let orientation = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let alpha = alpha_bytes(&image);
    let colour = RgbImage::new(width, height, rgb_bytes(image))?;
    Ok(match alpha {
        Some(alpha) => Picture::with_alpha(colour, GreyImage::new(width, height, alpha)?)?,
        None => colour.into(),
    })
}

/// How opaque each pixel is; `None` if all are wholly so.
fn alpha_bytes(image: &DynamicImage) -> Option<Vec<u8>> {
    if !image.color().has_alpha() {
        return None;
    }
    let alpha: Vec<u8> = image.to_rgba8().pixels().map(|pixel| pixel.0[3]).collect();
    alpha.iter().any(|alpha| *alpha != u8::MAX).then_some(alpha)
}

fn sniff(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    image::guess_format(bytes)
        .ok()
        .filter(|format| known.contains(format))
        .ok_or(DecodeError::UnknownFormat)
}

/// Bounds what a decoder may allocate. Sides are checked by [`decode`] itself,
/// so that the error can name them.
fn allocation_limits(limits: DecodeLimits) -> Limits {
    let mut allocation = Limits::no_limits();
    allocation.max_alloc = Some(limits.max_pixels as u64 * MAX_PIXEL_BYTES + WORKING_BYTES);
    allocation
}

fn explain(error: image::ImageError) -> DecodeError {
    if matches!(error, image::ImageError::Limits(_)) {
        DecodeError::TooMuchMemory
    } else {
        DecodeError::Damaged(error)
    }
}

/// Whether an end-of-image marker follows the last scan. The JPEG decoder
/// paints missing rows grey instead of refusing the file.
fn has_end_of_image(jpeg: &[u8]) -> bool {
    let last_marker = |marker: u8| jpeg.windows(2).rposition(|pair| pair == [0xff, marker]);
    last_marker(0xd9) > last_marker(0xda)
}

/// The pixels as 8-bit RGB. Of 16 bits the upper eight are kept, as PIL does.
fn rgb_bytes(image: DynamicImage) -> Vec<u8> {
    let color = image.color();
    if color.bytes_per_pixel() / color.channel_count() == 1 {
        return image.into_rgb8().into_raw();
    }
    let samples = image.into_rgb16().into_raw();
    samples.into_iter().map(|sample| sample.to_be_bytes()[0]).collect()
}

/// Writes a picture as a file of `format`. JPEG knows no transparency and gets
/// the colours alone.
///
/// # Errors
/// [`EncodeError`] if the format cannot hold it: a side of WebP has at most
/// 16,384 pixels, of JPEG 65,535.
pub fn encode(image: &Picture, format: OutputFormat) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    let written = match format {
        OutputFormat::Png => write(image, PngEncoder::new(&mut bytes)),
        OutputFormat::Jpeg { quality } => write(
            &image.colour().clone().into(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DecodeLimits =
        DecodeLimits { max_bytes: 1 << 20, max_side: 1000, max_pixels: 10_000 };

    fn gradient(width: usize, height: usize) -> Picture {
        let pixels =
            (0..width * height * 3).map(|index| u8::try_from(index % 251).unwrap()).collect();
        RgbImage::new(width, height, pixels).unwrap().into()
    }

    fn png_of(width: u32, height: u32, samples: &[u8], color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(samples, width, height, color).unwrap();
        bytes
    }

    #[test]
    fn lossless_formats_give_back_the_very_pixels() {
        let image = gradient(7, 5);

        let alpha = GreyImage::new(7, 5, (0..35).collect()).unwrap();
        let glassy = Picture::with_alpha(image.colour().clone(), alpha).unwrap();

        for format in [OutputFormat::Png, OutputFormat::Webp { quality: 100 }] {
            for image in [&image, &glassy] {
                let bytes = encode(image, format).unwrap();
                assert_eq!(decode(&bytes, LIMITS).unwrap(), *image, "{format:?}");
            }
        }
    }

    #[test]
    fn quality_trades_size_for_likeness() {
        let image = gradient(64, 64);
        let jpeg: fn(u8) -> OutputFormat = |quality| OutputFormat::Jpeg { quality };
        let webp: fn(u8) -> OutputFormat = |quality| OutputFormat::Webp { quality };

        for format in [jpeg, webp] {
            let sizes = [0, 10, 99].map(|quality| {
                let bytes = encode(&image, format(quality)).unwrap();
                assert_eq!(decode(&bytes, LIMITS).unwrap().width(), 64);
                bytes.len()
            });
            assert!(sizes[0] < sizes[1] && sizes[1] < sizes[2], "{sizes:?}");
        }
    }

    #[test]
    fn alpha_is_set_apart_and_grey_is_spread() {
        let rgba = png_of(1, 1, &[10, 20, 30, 0], ExtendedColorType::Rgba8);
        let opaque = png_of(1, 1, &[10, 20, 30, 255], ExtendedColorType::Rgba8);
        let grey = png_of(1, 1, &[77], ExtendedColorType::L8);
        let deep = png_of(1, 1, &[0x12, 0xff, 0x34, 0x00, 0x56, 0x80], ExtendedColorType::Rgb16);

        let rgba = decode(&rgba, LIMITS).unwrap();
        assert_eq!(
            (rgba.colour().pixels(), rgba.alpha().unwrap().pixels()),
            ([10, 20, 30].as_slice(), [0].as_slice())
        );
        assert_eq!(decode(&opaque, LIMITS).unwrap().alpha(), None);
        assert_eq!(decode(&grey, LIMITS).unwrap().colour().pixels(), [77, 77, 77]);
        // The encoder takes samples in this machine's byte order.
        let upper =
            if cfg!(target_endian = "little") { [0xff, 0x00, 0x80] } else { [0x12, 0x34, 0x56] };
        assert_eq!(decode(&deep, LIMITS).unwrap().colour().pixels(), upper);
    }

    #[test]
    fn exif_orientation_turns_the_picture() {
        // TIFF header, one entry: tag 0x0112 (orientation), SHORT, 1 value: 6, a quarter turn.
        let exif =
            [b"II*\0\x08\0\0\0\x01\0".as_slice(), b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"]
                .concat();
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif).unwrap();
        write(&gradient(4, 2), encoder).unwrap();

        let turned = decode(&bytes, LIMITS).unwrap();

        assert_eq!((turned.width(), turned.height()), (2, 4));
    }

    #[test]
    fn sizes_are_refused_by_the_header_alone() {
        let mut bomb = encode(&gradient(8, 8), OutputFormat::Png).unwrap();
        // Width and height stand at bytes 16 to 24, their checksum at 29.
        bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        bomb[29..33].copy_from_slice(&0x0fb0_e215_u32.to_be_bytes());
        let wide = encode(&gradient(1001, 1), OutputFormat::Png).unwrap();
        let large = encode(&gradient(101, 100), OutputFormat::Jpeg { quality: 50 }).unwrap();

        for file in [bomb, wide, large] {
            assert!(matches!(decode(&file, LIMITS), Err(DecodeError::TooLarge { .. })));
        }
    }

    #[test]
    fn damaged_truncated_and_foreign_files_are_refused() {
        assert!(matches!(decode(b"", LIMITS), Err(DecodeError::Empty)));
        for foreign in [b"GIF89a\x01\0\x01\0".as_slice(), b"hello", b"<svg/>"] {
            assert!(matches!(decode(foreign, LIMITS), Err(DecodeError::UnknownFormat)));
        }
        let webp = OutputFormat::Webp { quality: 100 };
        for format in [OutputFormat::Png, OutputFormat::Jpeg { quality: 90 }, webp] {
            let bytes = encode(&gradient(60, 60), format).unwrap();
            for length in (4..bytes.len() - 16).step_by(bytes.len() / 50) {
                let cut = decode(&bytes[..length], LIMITS);
                assert!(cut.is_err(), "{format:?} cut to {length} bytes");
            }
        }
    }
}
