//! What a client wants its pictures in: JSON, or the file itself.

use axum::http::{HeaderMap, header};

use crate::imaging::codec::OutputFormat;
use crate::requests::Accepted;

/// What the client likes best of what there is; of several alike, the first.
///
/// Source: RFC 9110, section 12.5.1, but for `*/*`, which stands for JSON.
pub(super) fn accepted_by(headers: &HeaderMap) -> Accepted {
    let values = headers.get_all(header::ACCEPT).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let ranges = texts.flat_map(|text| text.split(',')).filter_map(weighed);
    let mut best = (Accepted::Json, 0.0);
    for (accepted, weight) in ranges {
        if weight > best.1 {
            best = (accepted, weight);
        }
    }
    best.0
}

/// A media range that stands for something that there is, with its weight.
fn weighed(range: &str) -> Option<(Accepted, f32)> {
    let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
    let accepted = match parts.next()?.as_str() {
        "*/*" | "application/*" | "application/json" | "text/event-stream" => Accepted::Json,
        "image/png" | "image/*" => Accepted::File(OutputFormat::Png),
        "image/jpeg" => Accepted::File(OutputFormat::Jpeg { quality: 100 }),
        "image/webp" => Accepted::File(OutputFormat::Webp { quality: 100 }),
        _ => return None,
    };
    let weight = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse().ok());
    Some((accepted, weight.unwrap_or(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_sent_to_those_who_ask_for_one_and_json_to_all_others() {
        let png = Accepted::File(OutputFormat::Png);
        let jpeg = Accepted::File(OutputFormat::Jpeg { quality: 100 });
        for (accept, expected) in [
            ("", Accepted::Json),
            ("*/*", Accepted::Json),
            ("application/json", Accepted::Json),
            ("text/html", Accepted::Json),
            ("application/json, text/plain, */*", Accepted::Json),
            ("application/json, image/png", Accepted::Json),
            ("image/png", png),
            ("IMAGE/PNG", png),
            ("image/*", png),
            ("image/avif, image/jpeg, */*;q=0.8", jpeg),
            ("application/json;q=0.5, image/png", png),
            ("image/png;q=0.2, application/json;q=0.9", Accepted::Json),
            ("image/png;q=0", Accepted::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(accepted_by(&headers), expected, "{accept}");
        }
        assert_eq!(accepted_by(&HeaderMap::new()), Accepted::Json);
    }
}
