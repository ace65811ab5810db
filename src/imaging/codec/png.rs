//! PNG files: their chunks, and their pixels.
//!
//! Taken as Pillow takes them: a file may end once all rows are there, checksums of
//! pixel data and of chunks that a reader may skip do not count, and anything may follow.
//! `gAMA`, `cHRM`, `sRGB` and `cICP` are disregarded, as they are there.

use std::io::Cursor;

use png::{
    BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, InterlaceInfo, Limits, Reader,
    Transformations,
};

use super::error::{DecodeError, DroppedProfile, ProfileFault};
use super::orientation::orientation;
use super::profile::MAX_PROFILE_BYTES;
use super::raster::{ColourSpace, Raster, Samples};
use super::{DecodeLimits, Source, WORKING_BYTES};

const SIGNATURE_BYTES: usize = 8;

/// The longest text that is unpacked, in bytes: EXIF written in hexadecimal.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Keyword of an XMP packet in an `iTXt` chunk.
const XMP: &[u8] = b"XML:com.adobe.xmp\0";
/// Keyword of EXIF in a text, as ImageMagick writes it.
const RAW_EXIF: &[u8] = b"Raw profile type exif\0";

/// Reads a file's pixels, those of an animation's still picture.
pub(super) fn read(bytes: &[u8], limits: DecodeLimits) -> Result<Source, DecodeError> {
    let mut metadata = Metadata::default();
    for chunk in chunks(bytes) {
        chunk.check()?;
        metadata.take(&chunk);
    }
    let raster = decode(bytes, limits)?;
    let orientation = orientation(metadata.exif.as_deref(), metadata.xmp.as_deref());
    Ok(Source { raster, profile: metadata.profile, orientation })
}

struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    checksum: Option<u32>,
}

/// The chunks of a file up to its end, be that orderly or not.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes.get(SIGNATURE_BYTES..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (kind, behind) = behind.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (content, behind) = behind.split_at(length.min(behind.len()));
        let checksum = behind.first_chunk::<4>().map(|sum| u32::from_be_bytes(*sum));
        rest = if kind == b"IEND" { &[] } else { behind.get(4..).unwrap_or_default() };
        Some(Chunk { kind: *kind, content, checksum })
    })
}

impl Chunk<'_> {
    /// Without the header and the palette there is no picture.
    fn check(&self) -> Result<(), DecodeError> {
        if ![*b"IHDR", *b"PLTE"].contains(&self.kind) {
            return Ok(());
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.kind);
        hasher.update(self.content);
        match self.checksum {
            None => Err(DecodeError::Truncated),
            Some(sum) if sum == hasher.finalize() => Ok(()),
            Some(_) => Err(DecodeError::damaged("the header's or palette's checksum is wrong")),
        }
    }
}

#[derive(Debug, Default)]
struct Metadata {
    exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    profile: Option<Result<Vec<u8>, DroppedProfile>>,
}

impl Metadata {
    fn take(&mut self, chunk: &Chunk) {
        match &chunk.kind {
            b"eXIf" => self.exif = Some(chunk.content.to_vec()),
            b"iTXt" if self.xmp.is_none() => self.xmp = xmp(chunk.content),
            b"tEXt" | b"zTXt" if self.exif.is_none() => self.exif = raw_exif(chunk),
            b"iCCP" if self.profile.is_none() => self.profile = Some(profile(chunk.content)),
            _ => {}
        }
    }
}

/// Name, zero byte, method of compression, compressed profile.
fn profile(content: &[u8]) -> Result<Vec<u8>, DroppedProfile> {
    let name = content.split(|byte| *byte == 0).next().unwrap_or_default();
    let dropped = |reason| DroppedProfile {
        description: Some(String::from_utf8_lossy(name).into_owned())
            .filter(|name| !name.is_empty()),
        reason,
    };
    match content.get(name.len()..) {
        Some([0, 0, compressed @ ..]) => inflated(compressed, MAX_PROFILE_BYTES).map_err(dropped),
        _ => Err(dropped(ProfileFault::Damaged)),
    }
}

fn inflated(compressed: &[u8], max_bytes: usize) -> Result<Vec<u8>, ProfileFault> {
    use fdeflate::BoundedDecompressionError as Error;
    fdeflate::decompress_to_vec_bounded(compressed, max_bytes).map_err(|error| match error {
        Error::OutputTooLarge { .. } => ProfileFault::TooLarge,
        Error::DecompressionError { .. } => ProfileFault::Damaged,
    })
}

/// Keyword, whether it is compressed, method, language, translated keyword, text.
fn xmp(content: &[u8]) -> Option<Vec<u8>> {
    let (compressed, rest) = content.strip_prefix(XMP)?.split_first()?;
    let text = rest.get(1..)?.splitn(3, |byte| *byte == 0).nth(2)?;
    match compressed {
        0 => Some(text.to_vec()),
        _ => inflated(text, MAX_TEXT_BYTES).ok(),
    }
}

/// A line break, `exif`, the number of bytes, and the bytes in hexadecimal.
fn raw_exif(chunk: &Chunk) -> Option<Vec<u8>> {
    let content = chunk.content.strip_prefix(RAW_EXIF)?;
    let text = match &chunk.kind {
        b"zTXt" => inflated(content.get(1..)?, MAX_TEXT_BYTES).ok()?,
        _ => content.get(..content.len().min(MAX_TEXT_BYTES))?.to_vec(),
    };
    let text = String::from_utf8(text).ok()?;
    let digits: Vec<u8> = text.lines().skip(3).flat_map(str::bytes).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).map(byte).collect()
}

fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Raster, DecodeError> {
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(true);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(Limits { bytes: WORKING_BYTES });
    let header = decoder.read_header_info().map_err(explain)?;
    limits.check(u64::from(header.width), u64::from(header.height))?;
    // Palettes, fewer than 8 bits and colours that stand for transparency are spread out.
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(explain)?;
    let (colour, depth) = reader.output_color_type();
    let (space, extra) = match colour {
        ColorType::Grayscale => (ColourSpace::Grey, 0),
        ColorType::GrayscaleAlpha => (ColourSpace::Grey, 1),
        ColorType::Rgb | ColorType::Indexed => (ColourSpace::Rgb, 0),
        ColorType::Rgba => (ColourSpace::Rgb, 1),
    };
    let pixels = rows(&mut reader)?;
    let samples = if depth == BitDepth::Sixteen {
        let wide = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]);
        Samples::Sixteen(pixels.chunks_exact(2).map(wide).collect())
    } else {
        Samples::Eight(pixels)
    };
    let info = reader.info();
    let sides = (info.width as usize, info.height as usize);
    Ok(Raster::interleaved(sides, space, samples, extra))
}

/// All rows; what follows them is not asked for.
fn rows(reader: &mut Reader<Cursor<&[u8]>>) -> Result<Vec<u8>, DecodeError> {
    let size = reader.output_buffer_size().ok_or(DecodeError::TooMuchMemory)?;
    if !reader.info().interlaced {
        let mut pixels = Vec::with_capacity(size);
        for _ in 0..reader.info().height {
            let row = reader.next_row().map_err(explain)?.ok_or(DecodeError::Truncated)?;
            pixels.extend_from_slice(row.data());
        }
        return Ok(pixels);
    }
    let (colour, depth) = reader.output_color_type();
    let bits = u8::try_from(colour.samples()).unwrap_or(u8::MAX) * depth as u8;
    let stride = size / reader.info().height.max(1) as usize;
    let mut pixels = vec![0; size];
    while let Some(row) = reader.next_interlaced_row().map_err(explain)? {
        if let InterlaceInfo::Adam7(pass) = row.interlace() {
            png::expand_interlaced_row(&mut pixels, stride, row.data(), pass, bits);
        }
    }
    Ok(pixels)
}

fn explain(error: DecodingError) -> DecodeError {
    if matches!(error, DecodingError::LimitsExceeded) {
        return DecodeError::TooMuchMemory;
    }
    if let DecodingError::IoError(error) = error {
        return DecodeError::reading(error);
    }
    DecodeError::damaged(error)
}
