//! What a file is that is not what its name says: told by its first bytes.
//!
//! Checkpoints are copied by hand, cloned without git-lfs, and fetched through
//! proxies; what comes of that are pointers, pages and halves under the right
//! names.

use super::CheckpointError;

/// The longest beginning of a text that a message quotes, in characters.
const QUOTED_CHARS: usize = 60;

/// The longest header that is read to tell how long a file should be, in bytes:
/// that of the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The text in `bytes`, which are the content of `file`. A byte order mark of
/// UTF-8, which some editors write, is left out.
///
/// # Errors
/// [`CheckpointError::Malformed`] if it is no UTF-8, is empty, or is a pointer or
/// a page in the place of the file.
pub fn text(file: &str, bytes: Vec<u8>) -> Result<String, CheckpointError> {
    let malformed = |reason: &str| CheckpointError::Malformed {
        file: file.to_owned(),
        reason: reason.to_owned(),
    };
    if let Some(reason) = placeholder(&bytes) {
        return Err(malformed(reason));
    }
    // Also without a mark: no text of UTF-8 has a zero among its first two bytes.
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || has_zero(&bytes) {
        return Err(malformed("is UTF-16 text, or none at all: save it as UTF-8"));
    }
    let text = String::from_utf8(bytes).map_err(|_| malformed("is not UTF-8 text"))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

fn has_zero(bytes: &[u8]) -> bool {
    bytes.iter().take(2).any(|byte| *byte == 0)
}

/// What stands in the place of any file.
fn placeholder(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let lower: Vec<u8> = start.iter().take(64).map(u8::to_ascii_lowercase).collect();
    if start.is_empty() {
        return Some("is empty: fetch it again");
    }
    if lower.starts_with(b"version https://git-lfs") || lower.starts_with(b"# xet version") {
        return Some(
            "is a git-lfs pointer, not the file itself: run 'git lfs pull' where it was cloned, \
             or fetch it again",
        );
    }
    if [&b"<!doctype"[..], b"<html", b"<?xml", b"<head"].iter().any(|tag| lower.starts_with(tag)) {
        return Some(
            "is an HTML page, such as a login or error page that was saved in its place: fetch \
             it again",
        );
    }
    None
}

/// What `bytes` are, which are not a whole safetensors file.
pub(super) fn of_weights(bytes: &[u8]) -> Option<String> {
    if let Some(reason) = placeholder(bytes) {
        return Some(reason.to_owned());
    }
    let known = [
        (&b"PK\x03\x04"[..], "is a zip archive, as PyTorch's .bin and .ckpt files are"),
        (b"\x80\x02", "is a pickle, as PyTorch's old .bin and .ckpt files are"),
        (b"\x1f\x8b", "is a gzip archive"),
    ];
    if let Some((_, kind)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(format!(
            "{kind}, under a safetensors file's name: fetch the safetensors file"
        ));
    }
    shortness(bytes).or_else(|| words(bytes))
}

/// That a safetensors file is cut short, if it is.
fn shortness(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk()?;
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES || rest.first().is_some_and(|byte| *byte != b'{') {
        return None;
    }
    let actual = bytes.len() as u64;
    // The last tensor may be said to end anywhere.
    let data_bytes = data_bytes(rest, header_bytes).unwrap_or(0);
    let announced = data_bytes.saturating_add(8 + header_bytes);
    let more = if announced > 8 + header_bytes { "" } else { "more than " };
    (actual < announced).then(|| {
        format!("is cut short: it has {actual} of {more}{announced} bytes; fetch it again")
    })
}

/// The end of the last tensor, as the header of `header_bytes` bytes says.
fn data_bytes(rest: &[u8], header_bytes: u64) -> Option<u64> {
    let header = rest.get(..usize::try_from(header_bytes).ok()?)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64()).max()
}

/// The beginning of a text, such as a hub's "Entry not found".
fn words(bytes: &[u8]) -> Option<String> {
    let start = &bytes[..bytes.len().min(QUOTED_CHARS)];
    let is_text = start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    let line = std::str::from_utf8(start).ok()?.lines().next()?;
    (is_text && !line.is_empty()).then(|| format!("is a text ('{line}'): fetch it again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> String {
        text("a.json", bytes.to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn what_stands_in_the_place_of_a_text_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        assert!(fault(pointer).contains("a.json: is a git-lfs pointer"), "{}", fault(pointer));
        for page in [&b"<!DOCTYPE html><html>"[..], b"\n <HTML>", b"\xef\xbb\xbf<html>"] {
            assert!(fault(page).contains("HTML"), "{}", fault(page));
        }
        for empty in [&b""[..], b" \n"] {
            assert!(fault(empty).contains("is empty"), "{}", fault(empty));
        }
        for wide in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}", b"{\0}\0", b"\0{\0}"] {
            assert!(fault(wide).contains("UTF-16"), "{}", fault(wide));
        }
        assert!(fault(b"{\"a\": \"\xe9\"}").contains("not UTF-8"));
    }

    #[test]
    fn a_byte_order_mark_is_left_out() {
        assert_eq!(text("a.json", b"\xef\xbb\xbf{}".to_vec()).unwrap(), "{}");
    }

    #[test]
    fn what_stands_in_the_place_of_weights_is_named() {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut cut = (header.len() as u64).to_le_bytes().to_vec();
        cut.extend(header);
        let whole = cut.len() + 8;
        cut.extend([0; 3]);
        let said = of_weights(&cut).unwrap();
        assert!(said.contains(&format!("has {} of {whole} bytes", cut.len())), "{said}");
        let said = of_weights(&cut[..20]).unwrap();
        assert!(said.contains("has 20 of more than"), "{said}");

        for (bytes, name) in [
            (&b"PK\x03\x04.."[..], "zip"),
            (b"\x80\x02}q\0.", "pickle"),
            (b"Entry not found", "Entry not found"),
            (b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
        ] {
            let said = of_weights(bytes).unwrap();
            assert!(said.contains(name), "{said}");
        }
    }
}
