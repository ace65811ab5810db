//! Picture files: bytes to pixels and back.
//!
//! The format is found in the bytes, never in a name or a media type. Sizes are
//! read from the header and held against the limits before a pixel is decoded,
//! and a decoder that panics fails one picture only. What comes out is what is meant
//! to be seen: turned as the metadata say, and in sRGB.

mod encode;
mod error;
mod format;
mod jpeg;
mod orientation;
mod plain;
mod png;
mod profile;
mod raster;
mod tiff;

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;

pub use encode::{EncodeError, OutputFormat, PngCompression, encode, encode_with};
pub use error::{DecodeError, DroppedProfile, ProfileFault};

use crate::domain::Picture;
use format::Format;
use raster::Raster;

/// Bytes that a decoder may take besides the pixels: tables, metadata, rows.
const WORKING_BYTES: usize = 64 << 20;

/// Bytes that reading takes whatever the picture: tables, bands of rows.
const OVERHEAD: usize = 2 << 20;

/// Bytes of the widest pixel that a decoder makes: four channels of 16 bits.
const MAX_PIXEL_BYTES: usize = 8;

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

impl DecodeLimits {
    /// What the header says, before memory is taken for it.
    fn check(self, width: u64, height: u64) -> Result<(), DecodeError> {
        let (max_side, max_pixels) = (self.max_side as u64, self.max_pixels as u64);
        if width.max(height) <= max_side && width.saturating_mul(height) <= max_pixels {
            return Ok(());
        }
        let shown = |side: u64| u32::try_from(side).unwrap_or(u32::MAX);
        let (width, height) = (shown(width), shown(height));
        Err(DecodeError::TooLarge { width, height, limits: self })
    }

    /// Bytes of the largest picture.
    fn decoded_bytes(self) -> usize {
        self.max_pixels.saturating_mul(MAX_PIXEL_BYTES)
    }
}

/// A file that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// What is to be seen, in sRGB.
    pub picture: Picture,
    /// The colour profile that could not be used, if there was one.
    pub dropped_profile: Option<DroppedProfile>,
}

/// What a format's reader found in a file.
struct Source {
    raster: Raster,
    profile: Option<Result<Vec<u8>, DroppedProfile>>,
    orientation: Orientation,
}

/// Reads a file as it is meant to be seen: turned as EXIF or XMP say, its colour
/// profile applied, any colour type turned into 8-bit RGB. Transparency is kept beside
/// the colours if any pixel has some. Of several pictures in a file it is the first.
///
/// # Errors
/// [`DecodeError`] says what is wrong with the bytes, or what they are instead.
pub fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Decoded, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), max_bytes: limits.max_bytes });
    }
    // The maintainers of `image` warn that decoders may panic on hostile input.
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, limits)))
        .unwrap_or(Err(DecodeError::DecoderPanicked))
}

/// Bytes of memory that [`decode`] takes for a file besides the file itself, by its header:
/// those of the picture, of what the format's reader needs at the same time, and a little
/// more. Takes as long as it takes to look through the file.
///
/// # Errors
/// As [`decode`], as far as the header tells.
pub fn bytes_to_decode(bytes: &[u8], limits: DecodeLimits) -> Result<usize, DecodeError> {
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), max_bytes: limits.max_bytes });
    }
    let of_format = || match Format::of(bytes)? {
        Format::Png => png::needed(bytes, limits),
        Format::Jpeg => jpeg::needed(bytes, limits),
        Format::Tiff => tiff::needed(bytes, limits),
        format @ (Format::Webp | Format::Gif | Format::Bmp | Format::Ico) => {
            plain::needed(bytes, format, limits)
        }
    };
    let needed = catch_unwind(AssertUnwindSafe(of_format));
    let needed = needed.unwrap_or(Err(DecodeError::DecoderPanicked))?;
    // Metadata are copied out of the file.
    Ok(needed + bytes.len() + OVERHEAD)
}

fn decode_unguarded(bytes: &[u8], limits: DecodeLimits) -> Result<Decoded, DecodeError> {
    let Source { raster, profile, orientation } = match Format::of(bytes)? {
        Format::Png => png::read(bytes, limits)?,
        Format::Jpeg => jpeg::read(bytes, limits)?,
        Format::Tiff => tiff::read(bytes, limits)?,
        format @ (Format::Webp | Format::Gif | Format::Bmp | Format::Ico) => {
            plain::read(bytes, format, limits)?
        }
    };
    let (raster, dropped_profile) = match profile {
        None => (raster, None),
        Some(Err(dropped)) => (raster, Some(dropped)),
        Some(Ok(icc)) => profile::to_srgb(raster, &icc)?,
    };
    let picture = orientation::turned(raster.into_picture()?, orientation)?;
    Ok(Decoded { picture, dropped_profile })
}

#[cfg(test)]
mod tests;
