//! Request bodies to [`Fields`]: multipart forms and JSON objects.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value};

use super::ApiConfig;
use super::error::ApiError;
use super::fields::{Fields, RawValue, quote};
use super::state::AppState;
use super::unread::UnreadBody;
use crate::service::ServiceError;

/// Fields that a form may have. One that a client fills with a field per byte
/// of a file (node's client does so with a bare `Buffer`) is refused early.
const MAX_FORM_FIELDS: usize = 256;

/// How long a body may still arrive when the server is told to stop.
const LAST_UPLOADS: Duration = Duration::from_secs(5);

/// The media types that an endpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encodings {
    Json,
    Multipart,
    JsonOrMultipart,
}

impl Encodings {
    fn describe(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Multipart => "multipart/form-data",
            Self::JsonOrMultipart => "multipart/form-data or application/json",
        }
    }
}

/// Reads the whole body of `request` as one of `encodings`.
///
/// # Errors
/// 415 for another media type, 413 for a body over the limit, 408 for one that
/// takes too long, 503 for one that is still on its way when the server stops, 400 for
/// one that is not what its media type says.
pub(super) async fn read(
    request: Request,
    encodings: Encodings,
    state: &AppState,
) -> Result<Fields, ApiError> {
    let config = &state.config;
    let max_upload_bytes = config.max_upload_bytes;
    let media_type = media_type(&request);
    if declared_length(&request).is_some_and(|length| length > max_upload_bytes as u64) {
        return Err(ApiError::BodyTooLarge { max_upload_bytes });
    }
    let unread = request.extensions().get::<UnreadBody>().cloned();
    let reading = async {
        match (media_type.as_str(), encodings) {
            ("multipart/form-data", Encodings::Multipart | Encodings::JsonOrMultipart) => {
                read_form(request, max_upload_bytes).await
            }
            ("application/json", Encodings::Json | Encodings::JsonOrMultipart) => {
                read_json(request, max_upload_bytes).await
            }
            _ => Err(ApiError::UnsupportedMediaType { accepted: encodings.describe() }),
        }
    };
    let mut fields = tokio::select! {
        fields = reading => fields?,
        () = tokio::time::sleep(config.upload_timeout) => return Err(ApiError::UploadTooSlow),
        () = stalled(unread.as_ref(), config) => return Err(ApiError::UploadTooSlow),
        () = too_late(state) => return Err(ServiceError::ShuttingDown.into()),
    };
    // Without its very end a body hides from hyper that the client has gone.
    if let Some(unread) = unread {
        unread.drain().await;
    }
    fields.resolve_aliases();
    Ok(fields)
}

/// Completes once the client has sent nothing for longer than it may.
async fn stalled(unread: Option<&UnreadBody>, config: &ApiConfig) {
    match unread {
        Some(unread) => unread.stalled(config.peers.body_timeout).await,
        None => std::future::pending().await,
    }
}

/// Completes once the server is stopping, and what has not arrived will not be waited for.
async fn too_late(state: &AppState) {
    state.images.until_shut_down().await;
    tokio::time::sleep(LAST_UPLOADS).await;
}

/// How long the body is to be, if the request says so.
fn declared_length(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The media type of a request, lower case and without parameters.
fn media_type(request: &Request) -> String {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_form(request: Request, max_upload_bytes: usize) -> Result<Fields, ApiError> {
    let explain = |error: MultipartError| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { max_upload_bytes },
        _ => ApiError::Malformed(format!("Invalid multipart body: {}.", error.body_text())),
    };
    let mut form = Multipart::from_request(request, &()).await.map_err(|rejection| {
        ApiError::Malformed(format!("Invalid multipart body: {}.", rejection.body_text()))
    })?;
    let mut fields = Fields::default();
    let mut count = 0;
    while let Some(field) = form.next_field().await.map_err(explain)? {
        count += 1;
        if count > MAX_FORM_FIELDS {
            return Err(ApiError::Malformed(format!(
                "The form has more than {MAX_FORM_FIELDS} fields. A picture is one file field, \
                 not a field per byte."
            )));
        }
        if let Some((name, value)) = read_field(field).await.map_err(explain)? {
            fields.push(name, value);
        }
    }
    Ok(fields)
}

/// One field of a form; `None` for a file input that was left empty.
async fn read_field(field: Field<'_>) -> Result<Option<(String, RawValue)>, MultipartError> {
    let name = field.name().unwrap_or_default().to_owned();
    let file_name = field.file_name().map(str::to_owned);
    let bytes = field.bytes().await?;
    let value = match file_name {
        None => RawValue::Text(bytes),
        // What a browser sends for a file input in which nothing was chosen.
        Some(file_name) if file_name.is_empty() && bytes.is_empty() => return Ok(None),
        Some(_) => RawValue::File(bytes),
    };
    Ok(Some((name, value)))
}

async fn read_json(request: Request, max_upload_bytes: usize) -> Result<Fields, ApiError> {
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| {
        match rejection.into_response().status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { max_upload_bytes },
            _ => ApiError::Malformed("The request body could not be read.".to_owned()),
        }
    })?;
    // Data URLs make megabytes of JSON: too long a work for the runtime.
    let parsed =
        tokio::task::spawn_blocking(move || serde_json::from_slice::<Map<String, Value>>(&bytes));
    let object = parsed.await?.map_err(|error| {
        let error = error.to_string();
        ApiError::Malformed(format!("The request body is not a JSON object: {}.", quote(&error)))
    })?;
    let mut fields = Fields::default();
    for (name, value) in object {
        fields.push(name, RawValue::Json(value));
    }
    Ok(fields)
}
