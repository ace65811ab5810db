//! `data:` URLs, as clients write them.
//!
//! Source: RFC 2397; base64 after RFC 4648 and, with its line breaks, RFC 2045.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

/// Standard base64 with or without its padding. Bits behind the last byte do not count.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Whether a text is meant as a `data:` URL.
pub(super) fn is_data_url(text: &str) -> bool {
    let start = text.trim_start().as_bytes().first_chunk::<5>();
    start.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}

/// The bytes in a URL. Parameters do not matter; base64 may have line breaks and
/// spaces, be in the alphabet for URLs, and be percent-encoded.
///
/// # Errors
/// What is wrong with it, for a client.
pub(super) fn decode(url: &str) -> Result<Vec<u8>, &'static str> {
    let (head, data) = url.split_once(',').ok_or("the data URL has no comma")?;
    let is_base64 =
        head.split(';').skip(1).any(|parameter| parameter.trim().eq_ignore_ascii_case("base64"));
    let data = percent_decoded(data);
    if !is_base64 {
        return Ok(data);
    }
    let standard = |byte: u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    };
    let mut letters = data;
    letters.retain(|byte| !byte.is_ascii_whitespace());
    letters.iter_mut().for_each(|byte| *byte = standard(*byte));
    BASE64.decode(letters).map_err(|_error| "the data URL holds invalid base64")
}

/// `%41` is `A`; a `%` without two digits stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..2).filter(|_| *first == b'%');
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => {
                decoded.push(byte);
                rest = &behind[2..];
            }
            None => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_comes_in_many_dresses() {
        for url in [
            "data:image/png;base64,+/9oaQ==",
            "DATA:;BASE64,+/9oaQ",
            "data:image/png;charset=utf-8;base64,+/9oaQ==",
            "data:;base64;name=a.png,+/9oaQ==",
            "data:image/png; base64,+/9oaQ==",
            "data:image/png;base64, +/9o\r\n aQ==\r\n",
            "data:image/png;base64,-_9oaQ==",
            "data:image/png;base64,-_9oaQ",
            "data:image/png;base64,%2B%2f9oaQ%3D%3D",
            "data:,%fb%ffhi",
            " data:image/png;base64,+/9oaQ==",
        ] {
            assert!(is_data_url(url), "{url}");
            assert_eq!(decode(url).unwrap(), b"\xfb\xffhi", "{url}");
        }
        assert_eq!(decode("data:,100%").unwrap(), b"100%");
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for wrong in
            ["data:", "data:image/png;base64,@@", "data:;base64,aGk=aGk=", "data:;base64,a"]
        {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
        for other in ["", "dat", "http://x/", "dataä:"] {
            assert!(!is_data_url(other), "{other}");
        }
    }
}
