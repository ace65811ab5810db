//! What a file is, by its bytes: never by its name or media type.

use super::error::DecodeError;

/// The formats that are read, for messages.
pub(super) const READ_FORMATS: &str = "PNG, JPEG, WebP, GIF, BMP, TIFF and ICO are";

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Webp,
    Gif,
    Bmp,
    Tiff,
    Ico,
}

/// How files of the formats that are read begin.
const READ: [(&[u8], Format); 9] = [
    (PNG_SIGNATURE, Format::Png),
    (JPEG_START, Format::Jpeg),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"BM", Format::Bmp),
    (b"II*\0", Format::Tiff),
    (b"MM\0*", Format::Tiff),
    // With addresses of 64 bits.
    (b"II+\0", Format::Tiff),
    (b"\0\0\x01\0", Format::Ico),
];

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG_START: &[u8] = b"\xff\xd8\xff";

/// How pictures of other formats begin, and what they are.
const FOREIGN: [(&[u8], &str); 22] = [
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"gimp xcf", "a GIMP document (XCF)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"FUJIFILMCCD-RAW", "a camera's raw picture (RAF)"),
    (b"IIRO", "a camera's raw picture (ORF)"),
    (b"IIRS", "a camera's raw picture (ORF)"),
    (b"IIU\0", "a camera's raw picture (RW2)"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"qoif", "a QOI picture"),
    (b"farbfeld", "a farbfeld picture"),
    (b"P5", "a PGM picture"),
    (b"P6", "a PPM picture"),
    (b"\0\0\x02\0", "a Windows cursor"),
    (b"\x0a\x05\x01", "a PCX picture"),
];

/// How other things begin that are sent by mistake, and what they are.
const NO_PICTURES: [(&[u8], &str, &str); 8] = [
    (b"PK\x03\x04", "a ZIP archive (or an office document)", SEND_THE_PICTURE),
    (b"\x1f\x8b", "gzip-compressed data", "decompress it first"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", SEND_A_FRAME),
    (b"\0\0\x01\xba", "a video (MPEG)", SEND_A_FRAME),
    (b"OggS", "an Ogg file", SEND_A_FRAME),
    (b"ID3", "an audio file", SEND_THE_PICTURE),
    (b"\x7fELF", "a program", SEND_THE_PICTURE),
    (b"--", "a part of a multipart body", "send the part's content alone"),
];

const SEND_THE_PICTURE: &str = "send the picture itself";
const SEND_A_FRAME: &str = "send a frame of it as JPEG or PNG";

/// Bytes in which another picture's beginning, or a text's kind, is looked for.
const LOOKED_AT: usize = 4096;

impl Format {
    /// # Errors
    /// [`DecodeError`] that names what the file is instead of a picture that is read.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            return Ok(Self::Webp);
        }
        // A raw picture that begins like a TIFF.
        if bytes.starts_with(b"II*\0") && bytes.get(8..10) == Some(b"CR") {
            return Err(DecodeError::ForeignPicture { what: "a camera's raw picture (CR2)" });
        }
        let read = READ.iter().find(|(start, _)| bytes.starts_with(start));
        read.map(|(_, format)| *format).ok_or_else(|| name_foreign(bytes))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Webp => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Ico => "ICO",
        }
    }
}

/// What bytes are that are no picture that is read.
fn name_foreign(bytes: &[u8]) -> DecodeError {
    if let Some(error) = boxed(bytes) {
        return error;
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(start, _)| bytes.starts_with(start)) {
        return DecodeError::ForeignPicture { what };
    }
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    for (signature, format) in [(PNG_SIGNATURE, "PNG"), (JPEG_START, "JPEG")] {
        if let Some(at) = head.windows(signature.len()).position(|part| part == signature) {
            return DecodeError::Displaced { format, at };
        }
    }
    let known = NO_PICTURES.iter().find(|(start, _, _)| bytes.starts_with(start));
    if let Some((_, what, advice)) = known {
        return DecodeError::NotAPicture { what, advice };
    }
    if bytes.starts_with(b"RIFF") {
        return DecodeError::NotAPicture { what: "a RIFF file (AVI or WAV)", advice: SEND_A_FRAME };
    }
    match text_of(head) {
        Some(text) => name_text(&text),
        None => DecodeError::UnknownFormat,
    }
}

/// Files made of ISO boxes say by their brands what they hold.
fn boxed(bytes: &[u8]) -> Option<DecodeError> {
    if bytes.get(4..8) != Some(b"ftyp") {
        return None;
    }
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.clamp(8, 256).min(bytes.len());
    let brands: Vec<&[u8]> = bytes[8..end.max(8)].chunks_exact(4).collect();
    let has = |wanted: &[&[u8]]| brands.iter().any(|brand| wanted.contains(brand));
    Some(if has(&[b"avif", b"avis"]) {
        DecodeError::ForeignPicture { what: "an AVIF picture" }
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        DecodeError::ForeignPicture { what: "a HEIC/HEIF picture (as iPhones take them)" }
    } else if has(&[b"crx "]) {
        DecodeError::ForeignPicture { what: "a camera's raw picture (CR3)" }
    } else {
        DecodeError::NotAPicture { what: "a video (MP4 or MOV)", advice: SEND_A_FRAME }
    })
}

/// The bytes as a text, if they are one.
fn text_of(head: &[u8]) -> Option<String> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = match str::from_utf8(head) {
        Ok(text) => text,
        // A letter may have been cut at the end of what is looked at.
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_control = |letter: char| letter.is_control() && !letter.is_ascii_whitespace();
    (!text.chars().any(is_control)).then(|| text.trim_start().to_owned())
}

/// How the base64 of pictures begins.
const BASE64_STARTS: [&str; 4] = ["iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD"];

fn name_text(text: &str) -> DecodeError {
    let is_base64 = BASE64_STARTS.iter().any(|start| text.starts_with(start));
    let lower = text.to_ascii_lowercase();
    let is_html = lower.starts_with("<!doctype html") || lower.contains("<html");
    let (what, advice) = if is_base64 {
        ("the base64 text of a picture", "send the decoded bytes, or the text in a data URL")
    } else if lower.starts_with("data:") {
        ("the text of a data URL", "send the decoded bytes, or the URL as a text field")
    } else if is_html {
        ("an HTML page", "the address that it was fetched from gave no picture")
    } else if lower.contains("<svg") {
        return DecodeError::ForeignPicture { what: "an SVG drawing" };
    } else if lower.starts_with('<') {
        ("an XML document", "the address that it was fetched from gave no picture")
    } else if lower.starts_with(['{', '[']) {
        ("a JSON text", "the address that it was fetched from gave an error or a reference")
    } else if lower.starts_with("version https://git-lfs") {
        ("a git-lfs pointer", "fetch the file that it stands for")
    } else if lower.starts_with("http://") || lower.starts_with("https://") {
        ("an address", "addresses are not fetched, send the picture itself")
    } else {
        ("a text", SEND_THE_PICTURE)
    };
    DecodeError::NotAPicture { what, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_refused_by_name() {
        let ftyp = |brands: &[u8]| [b"\0\0\0\x18ftyp".as_slice(), brands].concat();
        let heic = ftyp(b"heic\0\0\0\0mif1heic");
        let avif = ftyp(b"mif1\0\0\0\0mif1avif");
        let video = ftyp(b"isom\0\0\x02\0isomiso2");
        let behind = [b"\r\n".as_slice(), PNG_SIGNATURE].concat();
        let cases: [(&[u8], &str); 24] = [
            (&heic, "HEIC"),
            (&avif, "AVIF"),
            (&video, "video"),
            (b"\xff\x0a\0\0", "JPEG XL"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"8BPS\0\x01", "Photoshop"),
            (b"%PDF-1.7", "PDF"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
            (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
            (b"\n<!DOCTYPE html><title>404</title>", "HTML"),
            (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
            (b"{\"error\": \"not found\"}", "JSON"),
            (b"\xef\xbb\xbf{\"error\": 1}", "JSON"),
            (b"hello", "text"),
            (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
            (b"/9j/4AAQSkZJRg", "base64"),
            (b"data:image/png;base64,iVBORw0KGgo", "data URL"),
            (b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
            (b"https://example.org/cat.png", "address"),
            (b"PK\x03\x04\x14\0", "ZIP"),
            (b"II*\0\x10\0\0\0CR\x02\0", "raw"),
            (b"RIFF\0\0\0\0AVI LIST", "AVI"),
            (&behind, "byte 2"),
            (b"\x01\x02\x03\x04", "PNG, JPEG, WebP"),
        ];
        for (bytes, named) in cases {
            let message = Format::of(bytes).unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }
}
