//! A form with a file, on its way onto the disk: no more of it than a piece is in memory.

use std::pin::pin;

use axum::extract::Request;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use multer::{Field, Multipart};

use crate::api::error::ApiError;
use crate::api::form;
use crate::api::incoming::Incoming;
use crate::api::multipart::{HeadRoom, chunks, explain, next_part};
use crate::api::state::AppState;
use crate::api::unread::UnreadBody;
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::JobStoreError;
use crate::jobs::Owner;
use crate::jobs::batches::{BatchStore, FilePurpose, FileRecord, NewFile, Received};
use crate::requests::quote;
use crate::service::ServiceError;

/// What a form may have besides its file, in bytes.
const FORM_BYTES: usize = 64 << 10;
/// The longest field that is no file, in bytes.
const LONGEST_TEXT: usize = 1 << 10;
/// The longest name of a file, in characters.
const LONGEST_NAME: usize = 255;
/// What a file is called whose client gives it no name.
const NAMELESS: &str = "upload";

/// Seconds that clients may have files kept.
const LIFETIMES: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// Takes a file in.
///
/// # Errors
/// 400 if a field is missing or wrong, 413 for a file that is too large, those of
/// [`form::in_time`], 503 if there is no room.
pub(super) async fn store(
    state: &AppState,
    owner: &Owner,
    request: Request,
) -> Result<FileRecord, ApiError> {
    let store = state.batches.store()?;
    if !state.service().status().accepting {
        return Err(ServiceError::ShuttingDown.into());
    }
    if form::media_type(&request) != "multipart/form-data" {
        return Err(ApiError::UnsupportedMediaType { accepted: "multipart/form-data" });
    }
    let max_file_bytes = state.config.batches.max_file_bytes;
    let too_large = || ApiError::BodyTooLarge { max_upload_bytes: max_file_bytes };
    let max_bytes = max_file_bytes.saturating_add(FORM_BYTES);
    let declared = form::declared_length(&request);
    if declared.is_some_and(|length| length > max_bytes) {
        return Err(too_large());
    }
    let unread = request.extensions().get::<UnreadBody>().cloned();
    let reading = read(request, max_bytes, state, store.as_ref());
    let Upload { file, name, purpose, expiry } = form::in_time(unread, state, reading).await?;
    check_purpose(purpose.as_deref())?;
    let usual = state.config.batches.lifetime.as_millis();
    let usual = u64::try_from(usual).unwrap_or(u64::MAX);
    let lifetime_ms = expiry.lifetime_ms()?.unwrap_or(usual);
    let file = file.ok_or_else(|| missing("file"))?;
    if file.bytes() > max_file_bytes as u64 {
        return Err(too_large());
    }
    let new = NewFile { owner: owner.clone(), name, lifetime_ms };
    Ok(store.keep(file, new).await?)
}

/// What a form has.
#[derive(Default)]
struct Upload {
    file: Option<Received>,
    name: String,
    purpose: Option<String>,
    expiry: Expiry,
}

async fn read(
    request: Request,
    max_bytes: usize,
    state: &AppState,
    store: &dyn BatchStore,
) -> Result<Upload, ApiError> {
    let boundary = form::boundary(&request)?;
    // What the store holds of it is all that is held.
    let mut held = state.requests.memory.share();
    held.grow_to(store.upload_bytes().min(state.requests.memory.total_bytes())).await?;
    let (memory, copies) = (state.requests.memory.share(), 0);
    let mut incoming =
        Incoming::begin(request.into_body(), None, max_bytes, copies, memory).await?;
    let (head_room, mut failure) = (HeadRoom::new(), None);
    let read = {
        let chunks = pin!(chunks(&mut incoming, &head_room, &mut failure));
        read_parts(Multipart::new(chunks, boundary), &head_room, store).await
    };
    // What the stream met says more than that it ended.
    failure.map_or(read, Err)
}

async fn read_parts(
    mut form: Multipart<'_>,
    head_room: &HeadRoom,
    store: &dyn BatchStore,
) -> Result<Upload, ApiError> {
    let mut upload = Upload::default();
    while let Some(field) = next_part(&mut form, head_room).await? {
        match field.name().unwrap_or_default() {
            "file" if upload.file.is_some() => {
                return Err(super::invalid("file", "one file, got several"));
            }
            "file" => {
                upload.name = name_of(field.file_name());
                upload.file = Some(receive(field, store).await?);
            }
            "purpose" => upload.purpose = Some(text_of(field, "purpose").await?),
            ANCHOR => upload.expiry.anchor = Some(text_of(field, ANCHOR).await?),
            SECONDS => upload.expiry.seconds = Some(text_of(field, SECONDS).await?),
            other => {
                let message = format!("Unknown parameter: '{}'.", quote(other));
                return Err(ApiError::Malformed(message));
            }
        }
    }
    Ok(upload)
}

/// Has the store take the content of a part.
async fn receive(field: Field<'_>, store: &dyn BatchStore) -> Result<Received, ApiError> {
    let content = field.map_err(|_| JobStoreError::BrokenOff).boxed();
    store.receive(content).await.map_err(|error| {
        if matches!(error, JobStoreError::BrokenOff) {
            return ApiError::Malformed("Invalid multipart body: the file breaks off.".to_owned());
        }
        error.into()
    })
}

/// The name of a file without what would not show.
fn name_of(given: Option<&str>) -> String {
    let name = given.unwrap_or_default().trim();
    let name: String =
        name.chars().filter(|letter| !letter.is_control()).take(LONGEST_NAME).collect();
    if name.is_empty() { NAMELESS.to_owned() } else { name }
}

async fn text_of(mut field: Field<'_>, name: &'static str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(explain)? {
        let chunk: Bytes = chunk;
        if bytes.len() + chunk.len() > LONGEST_TEXT {
            return Err(super::invalid(name, "a short text"));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| super::invalid(name, "a text"))
}

fn check_purpose(purpose: Option<&str>) -> Result<(), ApiError> {
    match purpose {
        None | Some("") => Err(missing("purpose")),
        Some(name) if name == FilePurpose::Batch.name() => Ok(()),
        Some(other) => {
            let message = format!(
                "Invalid 'purpose': '{}' is not supported. This server takes files for batches: \
                 'batch'.",
                quote(other)
            );
            Err(ValidationError::new("purpose", FaultKind::Invalid, message).into())
        }
    }
}

/// A parameter that must be there.
pub(super) fn missing(name: &'static str) -> ApiError {
    let message = format!("Missing required parameter: '{name}'.");
    ValidationError::new(name, FaultKind::Missing, message).into()
}

const ANCHOR: &str = "expires_after[anchor]";
const SECONDS: &str = "expires_after[seconds]";

/// When a file is to be forgotten, as it was written.
#[derive(Default)]
struct Expiry {
    anchor: Option<String>,
    seconds: Option<String>,
}

impl Expiry {
    fn lifetime_ms(&self) -> Result<Option<u64>, ApiError> {
        if self.anchor.is_none() && self.seconds.is_none() {
            return Ok(None);
        }
        let anchor = self.anchor.as_deref().ok_or_else(|| missing(ANCHOR))?;
        let seconds = self.seconds.as_deref().ok_or_else(|| missing(SECONDS))?;
        let seconds = seconds.parse().ok();
        lifetime_ms((ANCHOR, anchor), (SECONDS, seconds)).map(Some)
    }
}

/// How long a file is kept that is to be kept for some `seconds` after an `anchor`; each
/// comes with its name.
pub(super) fn lifetime_ms(
    (anchor_name, anchor): (&'static str, &str),
    (seconds_name, seconds): (&'static str, Option<u64>),
) -> Result<u64, ApiError> {
    if anchor != "created_at" {
        return Err(super::invalid(anchor_name, "'created_at'"));
    }
    let seconds = seconds.filter(|seconds| LIFETIMES.contains(seconds));
    let seconds =
        seconds.ok_or_else(|| super::invalid(seconds_name, "a number from 3600 to 2592000"))?;
    Ok(seconds * 1000)
}
