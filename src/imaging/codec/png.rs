//! PNG files: their chunks, and their pixels.
//!
//! Taken as Pillow takes them: a file may end once all rows are there, checksums of
//! pixel data and of chunks that a reader may skip do not count, and anything may follow.
//! `gAMA`, `cHRM`, `sRGB` and `cICP` are disregarded, as they are there.

use std::io::Cursor;

use image::metadata::Orientation;
use png::{
    BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, InterlaceInfo, Limits, Reader,
    Transformations,
};

use super::error::{DecodeError, DroppedProfile, ProfileFault};
use super::orientation::orientation;
use super::profile::{self, Conversion, MAX_PROFILE_BYTES};
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
    let mut reader = open(bytes, limits)?;
    let layout = Layout::of(&reader);
    let opened = match metadata.profile {
        Some(Ok(icc)) => profile::open(&icc, layout.space),
        Some(Err(dropped)) => Err(dropped),
        None => Ok(None),
    };
    let (conversion, dropped) =
        opened.map_or_else(|dropped| (None, Some(dropped)), |it| (it, None));
    let raster = decode(&mut reader, layout, conversion.as_ref())?;
    let orientation = orientation(metadata.exif.as_deref(), metadata.xmp.as_deref());
    Ok(Source { raster, profile: dropped.map(Err), orientation })
}

/// Bytes that reading the picture takes.
pub(super) fn needed(bytes: &[u8], limits: DecodeLimits) -> Result<usize, DecodeError> {
    let mut metadata = Metadata::default();
    chunks(bytes).for_each(|chunk| metadata.take(&chunk));
    let reader = open(bytes, limits)?;
    let (layout, info) = (Layout::of(&reader), reader.info());
    let stored = layout.channels() * if layout.is_wide { 2 } else { 1 };
    let made = 3 + layout.extra;
    // The rows of an interlaced picture come in seven passes over all of it.
    let interlaced = match (info.interlaced, &metadata.profile) {
        (true, Some(Ok(_))) => stored,
        (true, _) => layout.channels(),
        (false, _) => 0,
    };
    let turned = orientation(metadata.exif.as_deref(), metadata.xmp.as_deref());
    let turned = if turned == Orientation::NoTransforms { 0 } else { 3 };
    let profile = metadata.profile.and_then(Result::ok).map_or(0, |icc| 4 * icc.len());
    Ok(info.width as usize * info.height as usize * (made + interlaced.max(turned)) + profile)
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

type File<'a> = Reader<Cursor<&'a [u8]>>;

fn open(bytes: &[u8], limits: DecodeLimits) -> Result<File<'_>, DecodeError> {
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
    decoder.read_info().map_err(explain)
}

/// How pixels lie in the rows of a file.
#[derive(Debug, Clone, Copy)]
struct Layout {
    space: ColourSpace,
    /// Channels behind the colours: transparency.
    extra: usize,
    /// Whether samples have 16 bits.
    is_wide: bool,
}

impl Layout {
    fn of(reader: &File) -> Self {
        let (colour, depth) = reader.output_color_type();
        let (space, extra) = match colour {
            ColorType::Grayscale => (ColourSpace::Grey, 0),
            ColorType::GrayscaleAlpha => (ColourSpace::Grey, 1),
            ColorType::Rgb | ColorType::Indexed => (ColourSpace::Rgb, 0),
            ColorType::Rgba => (ColourSpace::Rgb, 1),
        };
        Self { space, extra, is_wide: depth == BitDepth::Sixteen }
    }

    fn channels(self) -> usize {
        self.space.channels() + self.extra
    }
}

/// The picture: its rows become 8 bits, and sRGB, one by one. What follows them is not
/// asked for.
fn decode(
    reader: &mut File,
    layout: Layout,
    conversion: Option<&Conversion>,
) -> Result<Raster, DecodeError> {
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if !reader.info().interlaced {
        let mut rows = Rows::new(layout, conversion, width * height);
        for _ in 0..height {
            let row = reader.next_row().map_err(explain)?.ok_or(DecodeError::Truncated)?;
            rows.push(row.data())?;
        }
        return Ok(rows.into_raster((width, height)));
    }
    let narrows = layout.is_wide && conversion.is_none();
    let layout = Layout { is_wide: layout.is_wide && !narrows, ..layout };
    let pixels = passes(reader, layout, narrows)?;
    if conversion.is_none() {
        let samples = Samples::Eight(pixels);
        return Ok(Raster::interleaved((width, height), layout.space, samples, layout.extra));
    }
    let mut rows = Rows::new(layout, conversion, width * height);
    pixels.chunks_exact(pixels.len() / height.max(1)).try_for_each(|row| rows.push(row))?;
    Ok(rows.into_raster((width, height)))
}

/// All pixels of an interlaced picture.
fn passes(reader: &mut File, layout: Layout, narrows: bool) -> Result<Vec<u8>, DecodeError> {
    let pixel = layout.channels() * if layout.is_wide { 2 } else { 1 };
    let stride = reader.info().width as usize * pixel;
    let bits = u8::try_from(8 * pixel).unwrap_or(u8::MAX);
    let mut pixels = vec![0; stride * reader.info().height as usize];
    while let Some(row) = reader.next_interlaced_row().map_err(explain)? {
        let InterlaceInfo::Adam7(pass) = row.interlace() else { continue };
        if narrows {
            let upper: Vec<u8> = row.data().iter().copied().step_by(2).collect();
            png::expand_interlaced_row(&mut pixels, stride, &upper, pass, bits);
        } else {
            png::expand_interlaced_row(&mut pixels, stride, row.data(), pass, bits);
        }
    }
    Ok(pixels)
}

/// The rows so far, as 8-bit RGB.
struct Rows<'a> {
    layout: Layout,
    conversion: Option<&'a Conversion>,
    colours: Vec<u8>,
    alpha: Vec<u8>,
}

impl<'a> Rows<'a> {
    fn new(layout: Layout, conversion: Option<&'a Conversion>, pixels: usize) -> Self {
        let (colours, alpha) = (Vec::with_capacity(3 * pixels), Vec::new());
        let mut rows = Self { layout, conversion, colours, alpha };
        rows.alpha.reserve_exact(layout.extra * pixels);
        rows
    }

    fn push(&mut self, row: &[u8]) -> Result<(), DecodeError> {
        let Layout { space, extra, is_wide } = self.layout;
        let (channels, bytes) = (space.channels(), if is_wide { 2 } else { 1 });
        let pixels = || row.chunks_exact((channels + extra) * bytes);
        if extra > 0 {
            self.alpha.extend(pixels().map(|pixel| pixel[channels * bytes]));
        }
        if let Some(conversion) = self.conversion {
            let colours = pixels().flat_map(|pixel| pixel[..channels * bytes].chunks_exact(bytes));
            // Eight bits are the same number twice.
            let wide = colours.map(|sample| u16::from_be_bytes([sample[0], sample[bytes - 1]]));
            return conversion.convert(&wide.collect::<Vec<_>>(), &mut self.colours);
        }
        match space {
            ColourSpace::Rgb if extra == 0 && !is_wide => self.colours.extend_from_slice(row),
            ColourSpace::Grey => {
                self.colours.extend(pixels().flat_map(|pixel| [pixel[0]; 3]));
            }
            ColourSpace::Rgb | ColourSpace::Cmyk => {
                let upper = |pixel: &[u8]| [pixel[0], pixel[bytes], pixel[2 * bytes]];
                self.colours.extend(pixels().flat_map(upper));
            }
        }
        Ok(())
    }

    fn into_raster(self, (width, height): (usize, usize)) -> Raster {
        let alpha = (self.layout.extra > 0).then_some(self.alpha);
        let colours = Samples::Eight(self.colours);
        Raster { width, height, space: ColourSpace::Rgb, colours, alpha }
    }
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
