//! A text inside a picture file that says how the picture was made.
//!
//! A PNG carries it as an `iTXt` chunk with the keyword [`KEYWORD`]; JPEG and
//! WebP carry it as EXIF's `ImageDescription`, with `Software` beside it.

use bytes::Bytes;
use img_parts::jpeg::Jpeg;
use img_parts::png::{Png, PngChunk};
use img_parts::webp::WebP;
use img_parts::{Error, ImageEXIF};

/// Keyword of the chunk in a PNG.
pub const KEYWORD: &str = "diffuser-api";

const ITXT: [u8; 4] = *b"iTXt";

/// EXIF's tags for a description, and for the program that wrote the file.
const IMAGE_DESCRIPTION: u16 = 0x010e;
const SOFTWARE: u16 = 0x0131;
/// EXIF's type of a text that ends with a zero byte.
const ASCII: u16 = 2;
/// Bytes of the TIFF header, and of one entry of its directory.
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 12;

/// The longest text that is read, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// A file that no text can be put into.
#[derive(Debug, thiserror::Error)]
#[error("cannot write into the file")]
pub struct AttachError(#[from] Error);

/// Gives the file (PNG, JPEG or WebP) `text`, and the name of the `software`.
///
/// # Errors
/// [`AttachError`] if the bytes are no such file.
pub fn attach(file: Vec<u8>, text: &str, software: &str) -> Result<Vec<u8>, AttachError> {
    let file = Bytes::from(file);
    let mut written = Vec::with_capacity(file.len() + text.len() + 256);
    if let Ok(mut png) = Png::from_bytes(file.clone()) {
        // After the header, before the pixels: readers find it at once.
        let chunk = PngChunk::new(ITXT, itxt(text).into());
        let place = png.chunks().len().min(1);
        png.chunks_mut().insert(place, chunk);
        written.extend_from_slice(&png.encoder().bytes());
    } else if let Ok(mut jpeg) = Jpeg::from_bytes(file.clone()) {
        jpeg.set_exif(Some(exif(text, software).into()));
        written.extend_from_slice(&jpeg.encoder().bytes());
    } else {
        let mut webp = WebP::from_bytes(file)?;
        webp.set_exif(Some(exif(text, software).into()));
        written.extend_from_slice(&webp.encoder().bytes());
    }
    Ok(written)
}

/// The text that [`attach`] gave a file; `None` if there is none.
///
/// Nothing but the text is copied. A list of the parts of a stranger's file, which may have one
/// every four bytes, would take fifty times its size.
#[must_use]
pub fn read(file: &[u8]) -> Option<String> {
    if let Some(chunks) = file.strip_prefix(b"\x89PNG\r\n\x1a\n") {
        return text_of_png(chunks);
    }
    if let Some(segments) = file.strip_prefix(b"\xff\xd8") {
        return description_of(exif_of_jpeg(segments)?);
    }
    let is_webp = file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP");
    let chunks = file.get(12..).filter(|_| is_webp)?;
    description_of(exif_of_webp(chunks)?)
}

fn text_of_png(mut chunks: &[u8]) -> Option<String> {
    loop {
        let (length, rest) = chunks.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (contents, rest) = rest.split_at_checked(length)?;
        if *kind == ITXT
            && let Some(text) = text_of_itxt(contents)
        {
            return Some(text);
        }
        // Each ends with a checksum.
        chunks = rest.get(4..)?;
    }
}

/// EXIF stands before the first scan.
fn exif_of_jpeg(mut segments: &[u8]) -> Option<&[u8]> {
    loop {
        let marked = segments.strip_prefix(b"\xff")?;
        let (marker, rest) = marked.split_first()?;
        segments = match marker {
            0xff => marked, // Fills.
            0x01 | 0xd0..=0xd7 => rest,
            0xd9 | 0xda => return None,
            _ => {
                let (length, _) = rest.split_first_chunk()?;
                let length = usize::from(u16::from_be_bytes(*length));
                let (segment, rest) = rest.split_at_checked(length)?;
                let contents = segment.get(2..)?;
                if *marker == 0xe1 && contents.starts_with(b"Exif\0\0") {
                    return Some(contents);
                }
                rest
            }
        };
    }
}

fn exif_of_webp(mut chunks: &[u8]) -> Option<&[u8]> {
    loop {
        let (kind, rest) = chunks.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (contents, rest) = rest.split_at_checked(length)?;
        if kind == b"EXIF" {
            return Some(contents);
        }
        // Filled up to an even length.
        chunks = rest.get(length % 2..)?;
    }
}

/// Keyword, no compression, no language, no translated keyword, text.
///
/// Source: PNG specification, third edition, 11.3.3.4.
fn itxt(text: &str) -> Vec<u8> {
    [KEYWORD.as_bytes(), b"\0\0\0\0\0", text.as_bytes()].concat()
}

fn text_of_itxt(contents: &[u8]) -> Option<String> {
    let text = contents.strip_prefix(KEYWORD.as_bytes())?.strip_prefix(b"\0\0\0\0\0")?;
    let text = text.get(..text.len().min(MAX_TEXT_BYTES))?;
    String::from_utf8(text.to_vec()).ok()
}

/// A TIFF of one directory with two texts, little endian.
///
/// Source: EXIF 2.3, 4.6.2.
fn exif(description: &str, software: &str) -> Vec<u8> {
    let texts = [(IMAGE_DESCRIPTION, description), (SOFTWARE, software)];
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let mut values = Vec::new();
    let directory_bytes = 2 + texts.len() * ENTRY_BYTES + 4;
    tiff.extend([2, 0]); // Two entries.
    for (tag, text) in texts {
        let bytes = [text.as_bytes(), b"\0"].concat();
        let place = HEADER_BYTES + directory_bytes + values.len();
        tiff.extend(tag.to_le_bytes());
        tiff.extend(ASCII.to_le_bytes());
        tiff.extend(little_endian(bytes.len()));
        // Four bytes at most stand in the entry itself.
        if bytes.len() <= 4 {
            tiff.extend(bytes.iter().copied().chain(std::iter::repeat(0)).take(4));
        } else {
            tiff.extend(little_endian(place));
            values.extend(bytes);
        }
    }
    tiff.extend([0; 4]);
    tiff.extend(values);
    tiff
}

fn little_endian(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

/// The description in a TIFF of ours. Others' may have another byte order or
/// more directories: they hold no text of ours.
fn description_of(exif: &[u8]) -> Option<String> {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let number = |at: usize| {
        let bytes: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let short = |at: usize| -> Option<u16> {
        Some(u16::from_le_bytes(tiff.get(at..at.checked_add(2)?)?.try_into().ok()?))
    };
    if !tiff.starts_with(b"II*\0") {
        return None;
    }
    let directory = number(4)?;
    let entries = usize::from(short(directory)?);
    let mut places = (0..entries).map(|index| directory + 2 + index * ENTRY_BYTES);
    let entry = places.find(|at| short(*at) == Some(IMAGE_DESCRIPTION))?;
    let (length, place) = (number(entry + 4)?.min(MAX_TEXT_BYTES), number(entry + 8)?);
    let text = tiff.get(place..place.checked_add(length)?)?;
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{GreyImage, Picture, RgbImage};
    use crate::imaging::codec::{DecodeLimits, OutputFormat, decode, encode};

    const LIMITS: DecodeLimits =
        DecodeLimits { max_bytes: 1 << 20, max_side: 1000, max_pixels: 10_000 };

    const FORMATS: [OutputFormat; 4] = [
        OutputFormat::Png,
        OutputFormat::Jpeg { quality: 90 },
        OutputFormat::Webp { quality: 80 },
        OutputFormat::Webp { quality: 100 },
    ];

    fn pictures() -> [Picture; 2] {
        let colour = RgbImage::filled(9, 7, [10, 120, 240]);
        let alpha = GreyImage::new(9, 7, vec![100; 63]).unwrap();
        [colour.clone().into(), Picture::with_alpha(colour, alpha).unwrap()]
    }

    #[test]
    fn every_format_gives_the_text_back_and_keeps_its_pixels() {
        let text = "{\"seed\":7,\"prompt\":\"Grüße, 日本\"}";
        for (format, picture) in FORMATS.into_iter().flat_map(|f| pictures().map(|p| (f, p))) {
            let plain = encode(&picture, format).unwrap();

            let marked = attach(plain.clone(), text, "Diffuser API 1.0").unwrap();

            assert_eq!(read(&marked).as_deref(), Some(text), "{format:?}");
            let (before, after) = (decode(&plain, LIMITS), decode(&marked, LIMITS));
            assert_eq!(before.unwrap(), after.unwrap(), "{format:?}");
            assert_eq!(read(&plain), None, "{format:?}");
        }
    }

    #[test]
    fn what_is_no_picture_of_ours_holds_no_text() {
        for foreign in [b"".as_slice(), b"hello", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"] {
            assert_eq!(read(foreign), None);
        }
        assert!(attach(b"hello".to_vec(), "x", "y").is_err());
        // An empty segment every four bytes.
        let segments = b"\xff\xe1\0\x02".repeat(1 << 20);
        assert_eq!(read(&[b"\xff\xd8", segments.as_slice()].concat()), None);
        for length in 0..60 {
            assert!(description_of(&exif("a text of some length", "s")[..length]).is_none());
        }
    }
}
