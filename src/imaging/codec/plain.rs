//! Formats that the `image` crate reads by itself: WebP, GIF, BMP and ICO.

use std::borrow::Cow;
use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::error::DecodeError;
use super::format::Format;
use super::orientation::orientation;
use super::raster::{ColourSpace, Raster, Samples, compacted};
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
    let (file, has_alpha_added) = match format {
        Format::Bmp => {
            // They are pixels: the header and its colours have to be in the file itself.
            open(bytes, format, limits)?;
            (Cow::Owned([bytes, &PADDING].concat()), false)
        }
        Format::Webp => with_alpha(bytes),
        Format::Gif | Format::Ico | Format::Png | Format::Jpeg | Format::Tiff => {
            (Cow::Borrowed(bytes), false)
        }
    };
    let mut decoder = open(&file, format, limits)?;
    // A picture with unreadable metadata is shown as it is stored.
    let exif = decoder.exif_metadata().ok().flatten();
    let xmp = decoder.xmp_metadata().ok().flatten();
    let profile = decoder.icc_profile().ok().flatten();
    let image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    let orientation = orientation(exif.as_deref(), xmp.as_deref());
    let raster = if has_alpha_added { without_alpha(image) } else { raster(image) };
    Ok(Source { raster, profile: profile.map(Ok), orientation })
}

/// The decoder of a file whose picture is not too large.
fn open<'a>(
    bytes: &'a [u8],
    format: Format,
    limits: DecodeLimits,
) -> Result<impl ImageDecoder + 'a, DecodeError> {
    let image_format = match format {
        Format::Webp => ImageFormat::WebP,
        Format::Gif => ImageFormat::Gif,
        Format::Ico => ImageFormat::Ico,
        Format::Bmp => ImageFormat::Bmp,
        Format::Png | Format::Jpeg | Format::Tiff => return Err(DecodeError::UnknownFormat),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), image_format);
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some((limits.decoded_bytes() + WORKING_BYTES) as u64);
    reader.limits(memory);
    let decoder = reader.into_decoder().map_err(|error| explain(error, format))?;
    let (width, height) = decoder.dimensions();
    limits.check(u64::from(width), u64::from(height))?;
    if let Some((width, height)) = frame_of(bytes, format) {
        limits.check(width, height)?;
    }
    Ok(decoder)
}

/// Width and height of a GIF's first picture, which need not be those of the whole.
fn frame_of(bytes: &[u8], format: Format) -> Option<(u64, u64)> {
    const TABLE_FLAG: u8 = 0x80;
    let at = |place: usize| bytes.get(place).copied();
    let number = |place: usize| {
        Some(u64::from(u16::from_le_bytes(bytes.get(place..place + 2)?.try_into().ok()?)))
    };
    if format != Format::Gif {
        return None;
    }
    let flags = at(10)?;
    let colours = if flags & TABLE_FLAG == 0 { 0 } else { 2 << (flags & 7) };
    let mut place = 13 + 3 * colours;
    // What comes before it are extensions, in blocks of which an empty one is the last.
    while at(place)? == b'!' {
        place += 2;
        while at(place)? != 0 {
            place += 1 + usize::from(at(place)?);
        }
        place += 1;
    }
    (at(place)? == b',').then_some(())?;
    Some((number(place + 5)?, number(place + 7)?))
}

/// Bytes that reading the picture takes.
pub(super) fn needed(
    bytes: &[u8],
    format: Format,
    limits: DecodeLimits,
) -> Result<usize, DecodeError> {
    let decoder = open(bytes, format, limits)?;
    let (width, height) = decoder.dimensions();
    let has_alpha = decoder.color_type().has_alpha();
    let pixel = match format {
        // Four channels, of which the transparency is taken out.
        Format::Webp if lossless_chunk(bytes).is_some() => 5 + if has_alpha { 3 } else { 0 },
        // The frame, half of it for the colours, and the transparency unpacked.
        Format::Webp if has_alpha => 4 + 2 + 5,
        Format::Webp => 3 + 3,
        Format::Bmp => 5,
        // The picture, and the part of it that is stored.
        Format::Gif | Format::Ico | Format::Png | Format::Jpeg | Format::Tiff => 4 + 4,
    };
    let is_lossy_webp = format == Format::Webp && lossless_chunk(bytes).is_none();
    // A frame is its indices, and what they stand for.
    let frame = frame_of(bytes, format).map_or(0, |(width, height)| width * height * 5);
    let beside = if is_lossy_webp { bytes.len() + MOST_OF_A_PARTITION } else { 0 };
    let beside = beside.saturating_add(usize::try_from(frame).unwrap_or(usize::MAX));
    Ok(width as usize * height as usize * pixel + bytes.len() + beside)
}

/// The data of a lossy WebP picture lie in partitions, whose lengths are numbers of 24 bits: the
/// decoder takes the memory before it sees whether the file has as much. The last one is read
/// twice. (image-webp 0.2, `Vp8Decoder::init_partitions`.)
const MOST_OF_A_PARTITION: usize = 1 << 24;

/// Where the chunk of a lossless WebP picture begins.
fn lossless_chunk(bytes: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let kind = bytes.get(at..at + 4)?;
        match kind {
            b"VP8L" => return Some(at),
            b"VP8 " | b"ANMF" | b"ALPH" => return None,
            _ => {}
        }
        let length = u32::from_le_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?);
        at = at.checked_add(8)?.checked_add(usize::try_from(length).ok()?.next_multiple_of(2))?;
    }
}

/// The file, and whether it now says that it has transparency though it has none: pixels
/// of lossless WebP always have four channels, and those of a picture that is said to be
/// opaque would be unpacked beside it.
fn with_alpha(bytes: &[u8]) -> (Cow<'_, [u8]>, bool) {
    const IN_CHUNK: u8 = 0x10;
    const IN_HEADER: u8 = 0x10;
    // The signature, and sides of 14 bits before the flag.
    let flag = lossless_chunk(bytes).map(|chunk| chunk + 12);
    let is_extended = bytes.get(12..16) == Some(b"VP8X") && bytes.len() > 20;
    match flag.filter(|flag| bytes.get(*flag).is_some()) {
        Some(flag) if is_extended && bytes[20] & IN_HEADER == 0 => {
            let mut file = bytes.to_vec();
            file[20] |= IN_HEADER;
            file[flag] |= IN_CHUNK;
            (Cow::Owned(file), true)
        }
        Some(flag) if !is_extended && bytes[flag] & IN_CHUNK == 0 => {
            let mut file = bytes.to_vec();
            file[flag] |= IN_CHUNK;
            (Cow::Owned(file), true)
        }
        _ => (Cow::Borrowed(bytes), false),
    }
}

/// The colours of a picture whose transparency means nothing.
fn without_alpha(image: DynamicImage) -> Raster {
    let sides = (image.width() as usize, image.height() as usize);
    let colours = compacted(image.into_rgba8().into_raw(), 3, 1);
    Raster::interleaved(sides, ColourSpace::Rgb, Samples::Eight(colours), 0)
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
