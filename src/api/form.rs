//! Request bodies to [`Fields`]: multipart forms and JSON objects.

use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use tracing::Instrument;

use super::ApiConfig;
use super::error::ApiError;
use super::incoming::Incoming;
use super::state::AppState;
use super::unread::UnreadBody;
use super::{json, multipart};
use crate::requests::{Endpoint, Fields};
use crate::service::{MemoryShare, ServiceError};
use crate::telemetry::spans;

/// How often a body of JSON is held while it is taken apart: as it came, and its texts.
const JSON_COPIES: usize = 2;

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
    /// Those of `endpoint`.
    pub(super) fn of(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Edits => Self::JsonOrMultipart,
            Endpoint::Generations => Self::Json,
            Endpoint::Variations => Self::Multipart,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Multipart => "multipart/form-data",
            Self::JsonOrMultipart => "multipart/form-data or application/json",
        }
    }
}

/// Reads the whole body of `request` as one of `encodings`; the share of the memory is that
/// of its fields.
///
/// # Errors
/// 415 for another media type, 413 for a body over the limits, 408 for one that
/// takes too long, 503 for one that gets no memory or is still on its way when the server
/// stops, 400 for one that is not what its media type says.
pub(super) async fn read(
    request: Request,
    encodings: Encodings,
    state: &AppState,
) -> Result<(Fields, MemoryShare), ApiError> {
    let config = &state.config;
    let max_upload_bytes = config.max_upload_bytes;
    let media_type = media_type(&request);
    let declared = declared_length(&request);
    if declared.is_some_and(|length| length > max_upload_bytes) {
        return Err(ApiError::BodyTooLarge { max_upload_bytes });
    }
    let unread = request.extensions().get::<UnreadBody>().cloned();
    let reading = async {
        match (media_type.as_str(), encodings) {
            ("multipart/form-data", Encodings::Multipart | Encodings::JsonOrMultipart) => {
                read_form(request, declared, state).await
            }
            ("application/json", Encodings::Json | Encodings::JsonOrMultipart) => {
                read_json(request, declared, state).await
            }
            _ => Err(ApiError::UnsupportedMediaType { accepted: encodings.describe() }),
        }
    };
    let (mut fields, mut memory) = in_time(unread, state, reading).await?;
    fields.resolve_aliases();
    memory.shrink_to(fields.held_bytes());
    Ok((fields, memory))
}

/// What `reading` makes of a body that arrives in time.
///
/// # Errors
/// 408 if it does not, 503 if it is still on its way when the server stops; those of
/// `reading`.
pub(super) async fn in_time<T>(
    unread: Option<UnreadBody>,
    state: &AppState,
    reading: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let config = &state.config;
    let reading = reading.instrument(spans::stage(spans::READ_BODY));
    let read = tokio::select! {
        read = reading => read?,
        () = tokio::time::sleep(config.upload_timeout) => return Err(ApiError::UploadTooSlow),
        () = stalled(unread.as_ref(), config) => return Err(ApiError::UploadTooSlow),
        () = too_late(state) => return Err(ServiceError::ShuttingDown.into()),
    };
    // Without its very end a body hides from hyper that the client has gone.
    if let Some(unread) = unread {
        unread.drain().await;
    }
    Ok(read)
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
    state.service().until_shut_down().await;
    tokio::time::sleep(LAST_UPLOADS).await;
}

/// How long the body is to be, if the request says so.
pub(super) fn declared_length(request: &Request) -> Option<usize> {
    let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>();
    Some(usize::try_from(length.ok()?).unwrap_or(usize::MAX))
}

/// Whether the body of `request` is said to be a form.
pub(super) fn is_form(request: &Request) -> bool {
    media_type(request) == "multipart/form-data"
}

/// The media type of a request, lower case and without parameters.
pub(super) fn media_type(request: &Request) -> String {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.unwrap_or_default().trim().to_ascii_lowercase()
}

/// What separates the parts of a form.
///
/// # Errors
/// 400 if the request does not say.
pub(super) fn boundary(request: &Request) -> Result<String, ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    multer::parse_boundary(content_type)
        .map_err(|error| ApiError::Malformed(format!("Invalid multipart body: {error}.")))
}

async fn read_form(
    request: Request,
    declared: Option<usize>,
    state: &AppState,
) -> Result<(Fields, MemoryShare), ApiError> {
    let boundary = boundary(&request)?;
    let (memory, max_bytes) = (state.requests.memory.share(), state.config.max_upload_bytes);
    let incoming = Incoming::begin(request.into_body(), declared, max_bytes, 1, memory);
    let mut incoming = incoming.await?;
    let fields = multipart::read(&mut incoming, &boundary, state.config.max_parts).await?;
    Ok((fields, incoming.into_memory()))
}

async fn read_json(
    request: Request,
    declared: Option<usize>,
    state: &AppState,
) -> Result<(Fields, MemoryShare), ApiError> {
    let (memory, max_bytes) = (state.requests.memory.share(), state.config.max_upload_bytes);
    let body = request.into_body();
    let mut incoming = Incoming::begin(body, declared, max_bytes, JSON_COPIES, memory).await?;
    let bytes = incoming.all(declared).await?;
    let memory = incoming.into_memory();
    // Data URLs make megabytes of JSON: too long a work for the runtime. The share goes
    // along: the work goes on if the client leaves.
    let max_fields = state.config.max_parts;
    let parse = move || json::parse(&bytes, max_fields).map(|fields| (fields, memory));
    tokio::task::spawn_blocking(spans::carried(parse)).await?
}
