//! Pictures by address: whole, in parts, or only what is known of them.
//!
//! What an address leads to never changes: its name is its entity tag.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

use super::docs::PictureFile;
use super::error::ApiError;
use super::state::AppState;
use super::wire::ErrorEnvelope;
use crate::pictures::{Description, StoredFile, media_type_of};

/// A finished picture that a reply gave the address of
#[utoipa::path(
    get,
    operation_id = "picture_file",
    path = "/images/files/{name}",
    tag = "images",
    params(("name" = String, Path, description = "The last part of the address")),
    responses(
        (status = 200, description = "The file", content(
            (PictureFile = "image/png"), (PictureFile = "image/jpeg"), (PictureFile = "image/webp"),
        )),
        (status = 206, description = "The part of it that `Range` names"),
        (status = 304, description = "The client has it: `If-None-Match` names its `ETag`"),
        (status = 404, description = "There is none, or it was there too long", body = ErrorEnvelope),
        (status = 416, description = "It has no such part"),
        (status = 503, description = "Where pictures are kept gives no answer", body = ErrorEnvelope),
    )
)]
pub(super) async fn file(
    State(state): State<AppState>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let tag = format!("\"{name}\"");
    let wanted = header_text(&headers, header::RANGE).filter(|_| has_same_tag(&headers, &tag));
    let is_known = header_text(&headers, header::IF_NONE_MATCH)
        .is_some_and(|known| known.split(',').any(|known| is_tag(known, &tag)));
    if method == Method::HEAD || is_known || wanted.is_some() {
        let found = state.store.describe(&name).await?.ok_or(ApiError::UnknownPicture)?;
        if is_known {
            return described(StatusCode::NOT_MODIFIED, (&name, &tag), found, Body::empty());
        }
        if method == Method::HEAD {
            return with_length(
                described(StatusCode::OK, (&name, &tag), found, Body::empty())?,
                found.bytes,
            );
        }
        match wanted.and_then(|wanted| part_of(wanted, found.bytes)) {
            Some(Part::Within(part)) => return send_part(&state, (&name, &tag), part).await,
            Some(Part::Nowhere) => return Ok(not_satisfiable(found.bytes)),
            None => {}
        }
    }
    let StoredFile { description, pieces } =
        state.store.read(&name, None).await?.ok_or(ApiError::UnknownPicture)?;
    let body = Body::from_stream(pieces);
    with_length(described(StatusCode::OK, (&name, &tag), description, body)?, description.bytes)
}

async fn send_part(
    state: &AppState,
    names: (&str, &str),
    part: Range<u64>,
) -> Result<Response, ApiError> {
    let read = state.store.read(names.0, Some(part.clone())).await?;
    let StoredFile { description, pieces } = read.ok_or(ApiError::UnknownPicture)?;
    let body = Body::from_stream(pieces);
    let mut response = described(StatusCode::PARTIAL_CONTENT, names, description, body)?;
    let place = format!("bytes {}-{}/{}", part.start, part.end - 1, description.bytes);
    response.headers_mut().insert(header::CONTENT_RANGE, value(&place)?);
    with_length(response, part.end - part.start)
}

/// A response with all that is said of a picture whatever is sent of it.
fn described(
    status: StatusCode,
    (name, tag): (&str, &str),
    description: Description,
    body: Body,
) -> Result<Response, ApiError> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let caching = format!("private, max-age={}, immutable", description.left.as_secs());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type_of(name)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, value(&caching)?);
    headers.insert(header::ETAG, value(tag)?);
    Ok(response)
}

fn with_length(mut response: Response, bytes: u64) -> Result<Response, ApiError> {
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}

fn not_satisfiable(bytes: u64) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    if let Ok(all) = HeaderValue::try_from(format!("bytes */{bytes}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, all);
    }
    response
}

fn value(text: &str) -> Result<HeaderValue, ApiError> {
    text.parse().map_err(|error| ApiError::internal(&error))
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `If-Range`, if it is there, means this picture.
fn has_same_tag(headers: &HeaderMap, tag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|known| known.as_bytes() == tag.as_bytes())
}

/// Whether an entry of `If-None-Match` is `tag`.
fn is_tag(known: &str, tag: &str) -> bool {
    let known = known.trim();
    known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
}

/// A part that was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Within(Range<u64>),
    /// The file is shorter.
    Nowhere,
}

/// What `Range` asks for of a file of `length` bytes; `None` if that is no single part, and
/// all of it is sent.
///
/// Source: RFC 9110, section 14.1.2.
fn part_of(wanted: &str, length: u64) -> Option<Part> {
    let (first, last) = wanted.strip_prefix("bytes=")?.trim().split_once('-')?;
    let digits = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let part = match (digits(first), digits(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.is_empty() => first..length,
        (None, Some(count)) if first.is_empty() => length.saturating_sub(count)..length,
        _ => return None,
    };
    Some(if part.start < part.end { Part::Within(part) } else { Part::Nowhere })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_part_of_the_file_or_none() {
        for (wanted, expected) in [
            ("bytes=0-0", Some(Part::Within(0..1))),
            ("bytes=2-5", Some(Part::Within(2..6))),
            ("bytes=2-", Some(Part::Within(2..10))),
            ("bytes=2-99999999999999999999999", Some(Part::Within(2..10))),
            ("bytes=-3", Some(Part::Within(7..10))),
            ("bytes=-30", Some(Part::Within(0..10))),
            ("bytes=10-", Some(Part::Nowhere)),
            ("bytes=-0", Some(Part::Nowhere)),
            ("bytes=5-2", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("bytes=-", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(part_of(wanted, 10), expected, "{wanted}");
        }
    }
}
