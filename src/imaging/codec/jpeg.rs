//! JPEG files: their segments, and their pixels.
//!
//! The end of the picture is found by walking from marker to marker, as in ITU-T
//! T.81, annex B: what cameras write behind it (a second picture, a video, their own
//! notes) may hold any bytes, and so may the thumbnail inside EXIF.

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::error::{DecodeError, DroppedProfile, ProfileFault};
use super::orientation::orientation;
use super::profile::MAX_PROFILE_BYTES;
use super::raster::{ColourSpace, Raster, Samples};
use super::{DecodeLimits, Source};

/// Scans of a picture that are decoded. Progressive pictures have about ten; each one
/// costs a pass over all pixels, however short it is.
const MAX_SCANS: usize = 100;

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
/// The segments of EXIF and XMP, and of colour profiles.
const APP1: u8 = 0xe1;
const APP2: u8 = 0xe2;

const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const PROFILE: &[u8] = b"ICC_PROFILE\0";

/// What is known of a file before a pixel is decoded.
#[derive(Debug, Default)]
struct Segments<'a> {
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
    /// Number, count and content of the profile's parts.
    profile_parts: Vec<(u8, u8, &'a [u8])>,
    scans: usize,
    frame: Option<Frame>,
    /// Where the picture ends.
    end: usize,
}

/// What a frame's header says of the picture.
#[derive(Debug, Clone, Copy)]
struct Frame {
    is_progressive: bool,
    width: usize,
    height: usize,
    channels: usize,
}

impl Frame {
    /// Bits of a sample, rows, columns, components.
    fn of(marker: u8, content: &[u8]) -> Option<Self> {
        let [_, rows @ .., channels] = content.first_chunk::<6>()?;
        let [height, width] =
            [[rows[0], rows[1]], [rows[2], rows[3]]].map(|side| u16::from_be_bytes(side).into());
        let is_progressive = marker == 0xc2;
        Some(Self { is_progressive, width, height, channels: usize::from(*channels) })
    }
}

/// Bytes that reading the picture takes.
pub(super) fn needed(bytes: &[u8], limits: DecodeLimits) -> Result<usize, DecodeError> {
    let segments = Segments::of(bytes)?;
    let frame = segments.frame()?;
    limits.check(frame.width as u64, frame.height as u64)?;
    // The decoder keeps all coefficients, two bytes each, if it must come back to them.
    let keeps_all = frame.is_progressive || segments.scans > 1;
    let kept = if keeps_all { 2 * frame.channels } else { 0 };
    let turned = orientation(segments.exif, segments.xmp) != Orientation::NoTransforms;
    // Of grey pixels colours are made; a turned picture stands beside the stored one.
    let after = if turned || frame.channels < 3 { 3 } else { 0 };
    let pixel = frame.channels.max(3) + kept.max(after);
    // Blocks at the edges are whole.
    Ok(frame.width.next_multiple_of(32) * frame.height.next_multiple_of(32) * pixel)
}

/// Reads the first picture of a file.
pub(super) fn read(bytes: &[u8], limits: DecodeLimits) -> Result<Source, DecodeError> {
    let segments = Segments::of(bytes)?;
    let raster = decode(&bytes[..segments.end], segments.frame()?, limits)?;
    let orientation = orientation(segments.exif, segments.xmp);
    Ok(Source { raster, profile: segments.profile(), orientation })
}

impl<'a> Segments<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut segments = Self::default();
        let mut at = 2;
        loop {
            let (marker, behind) = next_marker(bytes, at).ok_or(DecodeError::Truncated)?;
            at = behind;
            match marker {
                END_OF_IMAGE => {
                    segments.end = at;
                    return Ok(segments);
                }
                // Restarts, a second start, and a marker without meaning stand alone.
                0x01 | 0xd0..=START_OF_IMAGE => continue,
                _ => {}
            }
            let content = content(bytes, at)?;
            at += 2 + content.len();
            match marker {
                APP1 | APP2 => segments.take(marker, content),
                START_OF_SCAN => segments.scans += 1,
                0xc0..=0xc2 => segments.frame = segments.frame.or(Frame::of(marker, content)),
                // Of the frames, those of Huffman-coded sequential and progressive pictures.
                0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return Err(unsupported(marker)),
                _ => {}
            }
            if segments.scans >= MAX_SCANS {
                return Err(DecodeError::TooManyScans { scans: segments.scans });
            }
        }
    }

    fn frame(&self) -> Result<Frame, DecodeError> {
        self.frame.ok_or_else(|| DecodeError::damaged("a picture without a frame"))
    }

    fn take(&mut self, marker: u8, content: &'a [u8]) {
        if let Some(exif) = content.strip_prefix(EXIF).filter(|_| marker == APP1) {
            self.exif.get_or_insert(exif);
        } else if let Some(xmp) = content.strip_prefix(XMP).filter(|_| marker == APP1) {
            self.xmp.get_or_insert(xmp);
        } else if let Some([number, count, part @ ..]) =
            content.strip_prefix(PROFILE).filter(|_| marker == APP2)
        {
            self.profile_parts.push((*number, *count, part));
        }
    }

    /// The profile put together; its parts may come in any order.
    fn profile(mut self) -> Option<Result<Vec<u8>, DroppedProfile>> {
        let (_, count, _) = *self.profile_parts.first()?;
        self.profile_parts.sort_by_key(|(number, _, _)| *number);
        let numbers = self.profile_parts.iter().map(|(number, _, _)| *number);
        let refuse = |reason| Some(Err(DroppedProfile { description: None, reason }));
        if !numbers.eq(1..=count) {
            return refuse(ProfileFault::Damaged);
        }
        let length: usize = self.profile_parts.iter().map(|(_, _, part)| part.len()).sum();
        if length > MAX_PROFILE_BYTES {
            return refuse(ProfileFault::TooLarge);
        }
        Some(Ok(self.profile_parts.iter().flat_map(|(_, _, part)| *part).copied().collect()))
    }
}

/// The next marker from `at` on, and where it ends. What stands before it is skipped:
/// a scan's data (in which 0xff is followed by 0), fill bytes, or stray bytes.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xff)?;
        let marker = bytes[at];
        at += 1;
        if marker != 0 {
            return Some((marker, at));
        }
    }
}

/// What a segment holds behind the two bytes of its length at `at`.
fn content(bytes: &[u8], at: usize) -> Result<&[u8], DecodeError> {
    let length = bytes.get(at..at + 2).ok_or(DecodeError::Truncated)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let length =
        length.checked_sub(2).ok_or_else(|| DecodeError::damaged("a segment without a length"))?;
    bytes.get(at + 2..at + 2 + length).ok_or(DecodeError::Truncated)
}

fn unsupported(frame: u8) -> DecodeError {
    let kind = match frame {
        0xc3 | 0xc7 | 0xcb | 0xcf => "lossless coding",
        0xc9..=0xcd => "arithmetic coding",
        _ => "hierarchical coding",
    };
    DecodeError::UnsupportedKind { format: "JPEG", kind: kind.to_owned() }
}

/// The pixels. `jpeg` ends with the picture, whose frame is `frame`: a decoder that finds
/// another one in a damaged file would take another amount of memory.
fn decode(jpeg: &[u8], frame: Frame, limits: DecodeLimits) -> Result<Raster, DecodeError> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    decoder.decode_headers().map_err(explain)?;
    let (Some((width, height)), Some(stored)) = (decoder.dimensions(), decoder.input_colorspace())
    else {
        return Err(DecodeError::damaged("a picture without a frame"));
    };
    limits.check(width as u64, height as u64)?;
    if (width, height, stored.num_components()) != (frame.width, frame.height, frame.channels) {
        return Err(DecodeError::damaged("a picture of two frames"));
    }
    // Four channels are taken as they are stored: their colours follow from the
    // profile, if there is one.
    let (wanted, space) = if stored == ColorSpace::Luma {
        (stored, ColourSpace::Grey)
    } else if [ColorSpace::CMYK, ColorSpace::YCCK].contains(&stored) {
        (stored, ColourSpace::Cmyk)
    } else {
        (ColorSpace::RGB, ColourSpace::Rgb)
    };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let mut samples = decoder.decode().map_err(explain)?;
    if wanted == ColorSpace::CMYK {
        samples.iter_mut().for_each(|ink| *ink = u8::MAX - *ink);
    } else if wanted == ColorSpace::YCCK {
        samples.chunks_exact_mut(4).for_each(inks_of_ycck);
    }
    if samples.len() != width * height * space.channels() {
        return Err(DecodeError::damaged("another number of samples than the header tells"));
    }
    Ok(Raster::interleaved((width, height), space, Samples::Eight(samples), 0))
}

/// Adobe stores inks inverted, so what YCbCr makes of the first three are the inks.
#[expect(clippy::cast_possible_truncation, reason = "the numbers are clamped before")]
fn inks_of_ycck(pixel: &mut [u8]) {
    let [luma, blue, red, _] = [0, 1, 2, 3].map(|channel| f32::from(pixel[channel]));
    let (blue, red) = (blue - 128.0, red - 128.0);
    let inks = [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue];
    for (channel, ink) in inks.into_iter().enumerate() {
        pixel[channel] = ink.round().clamp(0.0, 255.0) as u8;
    }
    pixel[3] = u8::MAX - pixel[3];
}

fn explain(error: DecodeErrors) -> DecodeError {
    if let DecodeErrors::Unsupported(scheme) = error {
        return DecodeError::UnsupportedKind { format: "JPEG", kind: format!("{scheme:?}") };
    }
    DecodeError::damaged(error.to_string())
}
