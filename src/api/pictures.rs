//! The input pictures of a request: found among its fields, then decoded.

use axum::body::Bytes;
use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, RawValue, wrong_type};
use crate::domain::{Picture, ValidationError};
use crate::imaging::codec::{self, DecodeLimits};

/// OpenAI's limit on input pictures.
const MAX_PICTURES: usize = 16;

/// Standard base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A picture that was not decoded yet, with the field that it came in.
#[derive(Debug)]
pub(super) struct RawPicture {
    field: &'static str,
    /// Its place among the request's pictures, from 1.
    number: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A file's bytes.
    File(Bytes),
    /// A `data:` URL.
    DataUrl(String),
}

/// Takes the pictures out of `fields`: `image` and `image[]` of a form, in any
/// order and number, or `images` of a JSON object.
///
/// # Errors
/// 400 if there is none, too many, or something else in their place.
pub(super) fn take(fields: &mut Fields, max_pictures: usize) -> Result<Vec<RawPicture>, ApiError> {
    let mut field = "image";
    let mut contents = Vec::new();
    for value in fields.take_all(&["image", "image[]"]) {
        match value {
            RawValue::File(bytes) => contents.push(Content::File(bytes)),
            RawValue::Text(_) => return Err(wrong_type("image", "a file", "a text").into()),
            RawValue::Json(_) => {
                let expected = "no such field in JSON, but 'images': [{\"image_url\": \"data:…\"}]";
                return Err(wrong_type("image", expected, value.describe()).into());
            }
        }
    }
    for value in fields.take_all(&["images"]) {
        let RawValue::Json(Value::Array(references)) = value else {
            return Err(wrong_type("images", "a JSON array", value.describe()).into());
        };
        field = "images";
        for reference in references {
            contents.push(Content::DataUrl(data_url(reference)?));
        }
    }
    let max_pictures = max_pictures.min(MAX_PICTURES);
    if contents.is_empty() {
        let message = format!("Missing required parameter: '{field}'.");
        let error = ValidationError::new(field, "missing_required_parameter", message);
        return Err(error.into());
    }
    if contents.len() > max_pictures {
        let count = contents.len();
        let message = format!(
            "Invalid '{field}': this model takes at most {max_pictures} input pictures, got {count}."
        );
        return Err(ValidationError::new(field, "array_above_max_length", message).into());
    }
    let numbered = contents.into_iter().zip(1..);
    let pictures = numbered.map(|(content, number)| RawPicture { field, number, content });
    Ok(pictures.collect())
}

/// The data URL of an item of `images`. Files of OpenAI's Files API and
/// addresses are not fetched: this server opens no connections for clients.
fn data_url(reference: Value) -> Result<String, ValidationError> {
    let refuse = |message: &str| {
        let message = format!("Invalid 'images': {message}.");
        Err(ValidationError::new("images", "invalid_value", message))
    };
    let Value::Object(mut reference) = reference else {
        return Err(wrong_type("images", "objects with an 'image_url'", "other items"));
    };
    let is_given = |value: &Value| !value.is_null();
    if reference.get("file_id").is_some_and(is_given) {
        return refuse("'file_id' is not offered; send the picture as a data URL in 'image_url'");
    }
    match reference.remove("image_url") {
        Some(Value::String(url)) if is_data_url(&url) => Ok(url),
        Some(Value::String(_)) => refuse(
            "only data URLs ('data:image/png;base64,…') are offered in 'image_url'; addresses and \
             paths are not fetched",
        ),
        Some(_) => refuse("'image_url' must be a string"),
        None => refuse("each item needs an 'image_url'"),
    }
}

fn is_data_url(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// Decodes pictures away from the async runtime.
///
/// # Errors
/// 400 naming the picture that is none, or is too large.
pub(super) async fn decode(
    pictures: Vec<RawPicture>,
    limits: DecodeLimits,
) -> Result<Vec<Picture>, ApiError> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let decoding = tokio::task::spawn_blocking(move || {
        let decoded = pictures.into_iter().map(|picture| picture.decode(limits));
        decoded.collect()
    });
    decoding.await?
}

impl RawPicture {
    fn decode(self, limits: DecodeLimits) -> Result<Picture, ApiError> {
        let Self { field, number, content } = self;
        let refuse = |reason: String| ApiError::BadPicture {
            field,
            message: format!("Invalid image file for image {number}: {reason}."),
        };
        let bytes = match content {
            Content::File(bytes) => bytes,
            Content::DataUrl(url) => decode_data_url(&url)
                .map(Bytes::from)
                .map_err(|reason| refuse(reason.to_owned()))?,
        };
        codec::decode(&bytes, limits).map_err(|error| refuse(error.to_string()))
    }
}

fn decode_data_url(url: &str) -> Result<Vec<u8>, &'static str> {
    let (head, data) = url.split_once(',').ok_or("the data URL has no comma")?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err("the data URL is not base64");
    }
    BASE64.decode(data.trim_ascii()).map_err(|_error| "the data URL holds invalid base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_base64_with_or_without_padding() {
        assert_eq!(decode_data_url("data:image/png;base64,aGk=").unwrap(), b"hi");
        assert_eq!(decode_data_url("DATA:;BASE64,aGk").unwrap(), b"hi");
        for wrong in ["data:", "data:,hi", "data:image/png;base64,@@", "data:base64,aGk="] {
            assert!(decode_data_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_data_urls_are_references() {
        for wrong in [
            serde_json::json!({"image_url": "http://127.0.0.1/x.png"}),
            serde_json::json!({"image_url": "file:///etc/passwd"}),
            serde_json::json!({"image_url": "/etc/passwd"}),
            serde_json::json!({"image_url": {"url": "data:,"}}),
            serde_json::json!({"file_id": "file-1"}),
            serde_json::json!({"file_id": "file-1", "image_url": "data:,"}),
            serde_json::json!({}),
            serde_json::json!("data:,"),
            serde_json::json!(7),
        ] {
            assert_eq!(data_url(wrong.clone()).unwrap_err().field, "images", "{wrong}");
        }
    }
}
