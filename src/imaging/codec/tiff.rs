//! TIFF files: their first picture, as Pillow shows it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "levels of at most 255, and positions in memory; Pillow truncates floating-point greys"
)]

use std::borrow::Cow;
use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::{ExtraSamples, Tag};

use super::error::DecodeError;
use super::orientation::orientation;
use super::raster::{ColourSpace, Raster, Samples};
use super::{DecodeLimits, Source, WORKING_BYTES};

const XMP: Tag = Tag::Unknown(700);
/// Raw pictures of cameras (DNG) have it.
const DNG_VERSION: Tag = Tag::Unknown(50_706);

/// Values of `PhotometricInterpretation` (tag 262): an index, and a grey.
const PHOTOMETRIC: u16 = 262;
const PALETTE: u8 = 3;
const BLACK_IS_ZERO: u8 = 1;

type File<'a> = Decoder<Cursor<Cow<'a, [u8]>>>;

/// Bytes that reading the picture takes: the library has no rows, so there are the samples,
/// the strip that they are unpacked from, and what is made of them.
pub(super) fn needed(bytes: &[u8], limits: DecodeLimits) -> Result<usize, DecodeError> {
    let mut file = Decoder::new(Cursor::new(bytes)).map_err(explain)?;
    let (width, height) = file.dimensions().map_err(explain)?;
    limits.check(u64::from(width), u64::from(height))?;
    let channels = file.find_tag_unsigned::<u16>(Tag::SamplesPerPixel).ok().flatten();
    let bits = file.find_tag_unsigned_vec::<u16>(Tag::BitsPerSample).ok().flatten();
    let widest = bits.and_then(|bits| bits.into_iter().max()).unwrap_or(1);
    let pixel = usize::from(channels.unwrap_or(1)) * usize::from(widest).div_ceil(8);
    Ok((width as usize * height as usize).saturating_mul(3 * pixel + 4))
}

/// Reads the first picture of a file.
pub(super) fn read(bytes: &[u8], limits: DecodeLimits) -> Result<Source, DecodeError> {
    // The library reads no palettes: their indices are read as greys.
    let palette_at = place_of_photometric(bytes).filter(|at| bytes[*at] == PALETTE);
    let bytes = match palette_at {
        None => Cow::Borrowed(bytes),
        Some(at) => {
            let mut bytes = bytes.to_vec();
            bytes[at] = BLACK_IS_ZERO;
            Cow::Owned(bytes)
        }
    };
    let mut file = Decoder::new(Cursor::new(bytes)).map_err(explain)?;
    let (width, height) = file.dimensions().map_err(explain)?;
    limits.check(u64::from(width), u64::from(height))?;
    if let Ok(Some(_)) = file.find_tag(DNG_VERSION) {
        return Err(DecodeError::ForeignPicture { what: "a camera's raw picture (DNG)" });
    }
    let mut memory = Limits::default();
    memory.decoding_buffer_size = limits.decoded_bytes();
    memory.intermediate_buffer_size = limits.decoded_bytes() + WORKING_BYTES;
    memory.ifd_value_size = WORKING_BYTES;
    let mut file = file.with_limits(memory);
    let tag = |file: &mut File, tag| file.get_tag_u8_vec(tag).ok();
    let (profile, xmp) = (tag(&mut file, Tag::IccProfile), tag(&mut file, XMP));
    let turn = file.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    let turn = turn.and_then(image::metadata::Orientation::from_exif);
    let raster = if palette_at.is_some() {
        indexed(&mut file, (width, height))?
    } else {
        decode(&mut file, (width, height))?
    };
    let orientation = turn.unwrap_or_else(|| orientation(None, xmp.as_deref()));
    Ok(Source { raster, profile: profile.map(Ok), orientation })
}

/// Where the low byte of the photometric interpretation stands, in a file of 32-bit
/// addresses.
fn place_of_photometric(bytes: &[u8]) -> Option<usize> {
    let is_little = bytes.starts_with(b"II*\0");
    if !is_little && !bytes.starts_with(b"MM\0*") {
        return None;
    }
    let short = |at: usize| -> Option<u16> {
        let pair = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let (first, second) = (usize::from(short(4)?), usize::from(short(6)?));
    let directory = if is_little { first | second << 16 } else { first << 16 | second };
    let entries = usize::from(short(directory)?);
    let mut places = (0..entries).map(|index| directory + 2 + 12 * index);
    let entry = places.find(|at| short(*at) == Some(PHOTOMETRIC))?;
    let value = entry + 8;
    short(value).map(|_| if is_little { value } else { value + 1 })
}

/// The colours of an indexed picture.
fn indexed(file: &mut File, size: (u32, u32)) -> Result<Raster, DecodeError> {
    let map = file.get_tag_u16_vec(Tag::ColorMap).map_err(explain)?;
    let bits = file.colortype().map_err(explain)?.bit_depth();
    let indices = greys(file, size, bits)?;
    let colours = map.len() / 3;
    let of = |index: u8| {
        let at = usize::from(index).min(colours.saturating_sub(1));
        [at, at + colours, at + 2 * colours]
            .map(|at| map.get(at).map_or(0, |value| value.to_be_bytes()[0]))
    };
    let samples = Samples::Eight(indices.into_iter().flat_map(of).collect());
    let sides = (size.0 as usize, size.1 as usize);
    Ok(Raster::interleaved(sides, ColourSpace::Rgb, samples, 0))
}

/// One byte a pixel, of 1 to 8 bits, without spreading their range.
fn greys(file: &mut File, (width, _): (u32, u32), bits: u8) -> Result<Vec<u8>, DecodeError> {
    let (DecodingResult::U8(packed), 1) = samples(file)? else {
        return Err(unsupported("indices of more than 8 bits"));
    };
    if bits == 8 {
        return Ok(packed);
    }
    let row_bytes = (width as usize * usize::from(bits)).div_ceil(8);
    let per_byte = 8 / usize::from(bits.max(1));
    let value = |row: &[u8], x: usize| {
        let shift = 8 - bits as usize * (x % per_byte + 1);
        (row[x / per_byte] >> shift) & ((1_u16 << bits) - 1) as u8
    };
    let rows = packed.chunks_exact(row_bytes);
    Ok(rows.flat_map(|row| (0..width as usize).map(move |x| value(row, x))).collect())
}

fn decode(file: &mut File, size: (u32, u32)) -> Result<Raster, DecodeError> {
    let colour = file.colortype().map_err(explain)?;
    let sides = (size.0 as usize, size.1 as usize);
    let other = || Err(unsupported(format!("{colour:?}")));
    let (space, channels) = match colour {
        ColorType::Gray(bits @ (1 | 2 | 4)) => {
            let most = (1_u16 << bits) - 1;
            let spread = |value: u8| (u16::from(value) * 255 / most) as u8;
            let greys = greys(file, size, bits)?.into_iter().map(spread).collect();
            return Ok(Raster::interleaved(sides, ColourSpace::Grey, Samples::Eight(greys), 0));
        }
        ColorType::Gray(_) => (ColourSpace::Grey, 1),
        ColorType::Multiband { num_samples, .. } => (ColourSpace::Grey, usize::from(num_samples)),
        ColorType::GrayA(_) => (ColourSpace::Grey, 2),
        ColorType::RGB(_) => (ColourSpace::Rgb, 3),
        ColorType::RGBA(_) => (ColourSpace::Rgb, 4),
        ColorType::CMYK(_) => (ColourSpace::Cmyk, 4),
        ColorType::CMYKA(_) => (ColourSpace::Cmyk, 5),
        ColorType::Palette(_) | ColorType::YCbCr(_) | ColorType::Lab(_) => return other(),
        _ => return other(),
    };
    let (samples, planes) = samples(file)?;
    let samples = match samples {
        DecodingResult::U8(samples) => Samples::Eight(chunky(samples, planes)),
        DecodingResult::U16(samples) => Samples::Sixteen(chunky(samples, planes)),
        // Pillow takes 255 for white.
        DecodingResult::F32(samples) if space == ColourSpace::Grey && channels == 1 => {
            Samples::Eight(samples.into_iter().map(|value| value.clamp(0.0, 255.0) as u8).collect())
        }
        DecodingResult::F32(_)
        | DecodingResult::U32(_)
        | DecodingResult::U64(_)
        | DecodingResult::F16(_)
        | DecodingResult::F64(_)
        | DecodingResult::I8(_)
        | DecodingResult::I16(_)
        | DecodingResult::I32(_)
        | DecodingResult::I64(_) => {
            return Err(unsupported("numbers with a sign, or of more than 16 bits"));
        }
    };
    let extra = file.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).ok().flatten();
    let kind = extra.and_then(|kinds| ExtraSamples::from_u16(*kinds.first()?));
    let raster = Raster::interleaved(sides, space, samples, channels - space.channels());
    Ok(with_alpha_of(raster, kind))
}

/// The samples, and in how many planes they lie one after the other.
fn samples(file: &mut File) -> Result<(DecodingResult, usize), DecodeError> {
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = file.read_image_to_buffer(&mut samples).map_err(explain)?;
    let length = samples.as_buffer(0).as_bytes().len();
    // Over its limit the library reads the first plane alone.
    if length < layout.complete_len {
        return Err(DecodeError::TooMuchMemory);
    }
    Ok((samples, layout.planes))
}

/// Pixel by pixel, from plane by plane.
fn chunky<T: Copy>(samples: Vec<T>, planes: usize) -> Vec<T> {
    if planes <= 1 {
        return samples;
    }
    let pixels = samples.len() / planes;
    let samples = &samples;
    (0..pixels).flat_map(|at| (0..planes).map(move |plane| samples[at + plane * pixels])).collect()
}

/// What the channel behind the colours is: transparency, which may have darkened the
/// colours already, or nothing of that kind.
fn with_alpha_of(raster: Raster, kind: Option<ExtraSamples>) -> Raster {
    let Some(alpha) = &raster.alpha else {
        return raster;
    };
    if kind == Some(ExtraSamples::UnassociatedAlpha) {
        return raster;
    }
    if kind != Some(ExtraSamples::AssociatedAlpha) {
        return Raster { alpha: None, ..raster };
    }
    let channels = raster.space.channels();
    let colours = match &raster.colours {
        Samples::Eight(samples) => divided(samples, alpha, channels),
        Samples::Sixteen(samples) => {
            let upper: Vec<u8> = samples.iter().map(|sample| sample.to_be_bytes()[0]).collect();
            divided(&upper, alpha, channels)
        }
    };
    Raster { colours: Samples::Eight(colours), ..raster }
}

/// Source: Pillow 13.0, `Convert.c`, `rgba2rgbA` backwards (`RGBa` to `RGBA`).
fn divided(samples: &[u8], alpha: &[u8], channels: usize) -> Vec<u8> {
    let of = |(pixel, alpha): (&[u8], &u8)| -> Vec<u8> {
        let whole = |value: &u8| match *alpha {
            0 | 255 => *value,
            alpha => (255 * u32::from(*value) / u32::from(alpha)).min(255) as u8,
        };
        pixel.iter().map(whole).collect()
    };
    samples.chunks_exact(channels).zip(alpha).flat_map(of).collect()
}

fn unsupported(kind: impl Into<String>) -> DecodeError {
    DecodeError::UnsupportedKind { format: "TIFF", kind: kind.into() }
}

fn explain(error: tiff::TiffError) -> DecodeError {
    if matches!(error, tiff::TiffError::LimitsExceeded) {
        return DecodeError::TooMuchMemory;
    }
    if let tiff::TiffError::UnsupportedError(kind) = &error {
        return unsupported(kind.to_string());
    }
    if let tiff::TiffError::IoError(error) = error {
        return DecodeError::reading(error);
    }
    DecodeError::damaged(error)
}
