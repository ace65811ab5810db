//! Formats that the `image` crate reads by itself: WebP, GIF, BMP and ICO.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::error::DecodeError;
use super::format::Format;
use super::orientation::orientation;
use super::raster::{ColourSpace, Raster, Samples};
use super::{DecodeLimits, Source, WORKING_BYTES};

/// Bytes that may be missing at the end of a file: a BMP's last row is filled up to four.
const PADDING: [u8; 3] = [0; 3];

/// Reads a file's picture, of an animation the first one.
pub(super) fn read(
    bytes: &[u8],
    format: Format,
    limits: DecodeLimits,
) -> Result<Source, DecodeError> {
    let explain = |error| explain(error, format);
    let (image_format, padded);
    let mut bytes = bytes;
    match format {
        Format::Webp => image_format = ImageFormat::WebP,
        Format::Gif => image_format = ImageFormat::Gif,
        Format::Ico => image_format = ImageFormat::Ico,
        Format::Bmp => {
            image_format = ImageFormat::Bmp;
            padded = [bytes, &PADDING].concat();
            bytes = &padded;
        }
        Format::Png | Format::Jpeg | Format::Tiff => return Err(DecodeError::UnknownFormat),
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), image_format);
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some((limits.decoded_bytes() + WORKING_BYTES) as u64);
    reader.limits(memory);
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    limits.check(u64::from(width), u64::from(height))?;
    // A picture with unreadable metadata is shown as it is stored.
    let exif = decoder.exif_metadata().ok().flatten();
    let xmp = decoder.xmp_metadata().ok().flatten();
    let profile = decoder.icc_profile().ok().flatten();
    let image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    let orientation = orientation(exif.as_deref(), xmp.as_deref());
    Ok(Source { raster: raster(image), profile: profile.map(Ok), orientation })
}

/// These formats hold 8 bits a channel.
fn raster(image: DynamicImage) -> Raster {
    let sides = (image.width() as usize, image.height() as usize);
    let has_alpha = image.color().has_alpha();
    let (samples, extra) = if has_alpha {
        (image.into_rgba8().into_raw(), 1)
    } else {
        (image.into_rgb8().into_raw(), 0)
    };
    Raster::interleaved(sides, ColourSpace::Rgb, Samples::Eight(samples), extra)
}

fn explain(error: ImageError, format: Format) -> DecodeError {
    if matches!(error, ImageError::Limits(_)) {
        return DecodeError::TooMuchMemory;
    }
    if let ImageError::Unsupported(kind) = &error {
        return DecodeError::UnsupportedKind { format: format.name(), kind: kind.to_string() };
    }
    if let ImageError::IoError(error) = error {
        return DecodeError::reading(error);
    }
    DecodeError::damaged(error)
}
