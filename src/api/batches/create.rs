//! A batch on its way into the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;

use super::upload::{lifetime_ms, missing};
use super::wire::{Batch, NewBatchBody};
use super::{Outside, WINDOW, addresses_of, invalid};
use crate::api::access::Permit;
use crate::api::error::{ApiError, BatchError};
use crate::api::form::{self, Encodings};
use crate::api::origin::Origin;
use crate::api::state::AppState;
use crate::api::wire::{ErrorEnvelope, json_response};
use crate::jobs::batches::{FileId, FilePurpose, NewBatch};
use crate::requests::{Endpoint, Fields, quote};
use crate::service::ServiceError;

/// Notes of a batch, at most.
const MOST_NOTES: usize = 16;
/// Characters of a note's name.
const LONGEST_KEY: usize = 64;
/// Characters of a note.
const LONGEST_NOTE: usize = 512;

/// Have the requests of a file made, when there is time
///
/// Each line becomes a job, after all requests that somebody waits for. What came of them is in
/// two files once the batch has ended: a line for each, of those that succeeded and of those
/// that did not.
#[utoipa::path(
    post,
    operation_id = "create_batch",
    path = "/batches",
    tag = "batches",
    request_body(content = NewBatchBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 400, description = "A field is missing or wrong; `param` names it", body = ErrorEnvelope),
        (status = 429, description = "As many of its client's batches are under way as may", body = ErrorEnvelope),
        (status = 501, description = "No model does what the endpoint is for", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn create(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let store = Arc::clone(state.batches.store()?);
    if !state.service().status().accepting {
        return Err(ServiceError::ShuttingDown.into());
    }
    let context = permit.context(&state.requests)?;
    let origin = Origin::of(request.headers(), &state.config);
    let (fields, _memory) = form::read(request, Encodings::Json, &state).await?;
    let wish = Wish::take(fields, &state)?;
    context.models.check_offered(wish.endpoint.task_kind())?;
    let input_file = own_input(&state, &permit, &wish.input_file).await?;
    let outside = Outside {
        endpoint: wish.endpoint,
        models: permit.model_names(),
        origin: origin.as_str().to_owned(),
    };
    let context = serde_json::to_string(&outside).map_err(|error| ApiError::internal(&error))?;
    let config = &state.config.batches;
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let new = NewBatch {
        owner: permit.owner().clone(),
        endpoint: wish.address,
        input_file,
        context,
        metadata: wish.metadata,
        window_ms: ms(config.window),
        lifetime_ms: ms(config.lifetime),
        files_lifetime_ms: wish.files_lifetime_ms.unwrap_or_else(|| ms(config.lifetime)),
    };
    let record = store.create_batch(new).await?;
    state.batches.remember(record.id, &permit);
    state.batches.tell();
    Ok(json_response(StatusCode::OK, &Batch::of(record)))
}

/// The file that a batch is to be of.
async fn own_input(state: &AppState, permit: &Permit, id: &str) -> Result<FileId, ApiError> {
    let unknown = || invalid("input_file_id", "the id of a file of yours");
    let file = match state.batches.own_file(permit, id).await {
        Err(ApiError::Batch(BatchError::UnknownFile)) => return Err(unknown()),
        found => found?,
    };
    match file.purpose {
        FilePurpose::Batch => Ok(file.id),
        FilePurpose::BatchOutput => {
            Err(invalid("input_file_id", "a file with the purpose 'batch'"))
        }
    }
}

/// What is asked for.
struct Wish {
    input_file: String,
    endpoint: Endpoint,
    /// The endpoint as the client wrote it.
    address: String,
    metadata: Option<BTreeMap<String, String>>,
    files_lifetime_ms: Option<u64>,
}

impl Wish {
    fn take(mut fields: Fields, state: &AppState) -> Result<Self, ApiError> {
        let mut text = |name| fields.text(name)?.ok_or_else(|| missing(name));
        let (input_file, address) = (text("input_file_id")?, text("endpoint")?);
        if text("completion_window")? != WINDOW {
            return Err(invalid("completion_window", "'24h'"));
        }
        let endpoint = endpoint_of(&address, state)?;
        let metadata = fields.value("metadata")?.map(|notes| metadata_of(&notes)).transpose()?;
        let expiry = fields.value("output_expires_after")?;
        let files_lifetime_ms = expiry.map(|expiry| expiry_of(&expiry)).transpose()?;
        if let Some(unknown) = fields.left_over().first() {
            let message = format!("Unknown parameter: '{}'.", quote(unknown));
            return Err(ApiError::Malformed(message));
        }
        Ok(Self { input_file, endpoint, address, metadata, files_lifetime_ms })
    }
}

fn endpoint_of(address: &str, state: &AppState) -> Result<Endpoint, ApiError> {
    let endpoints = [Endpoint::Edits, Endpoint::Generations];
    let is_meant =
        |endpoint: &Endpoint| addresses_of(*endpoint, state).iter().any(|it| it == address);
    let expected = "'/v1/images/generations' or '/v1/images/edits'";
    endpoints.into_iter().find(is_meant).ok_or_else(|| invalid("endpoint", expected))
}

fn metadata_of(notes: &Value) -> Result<BTreeMap<String, String>, ApiError> {
    let expected = "an object of up to 16 texts of up to 512 characters, with names of up to 64";
    let refused = || invalid("metadata", expected);
    let notes = notes.as_object().filter(|notes| notes.len() <= MOST_NOTES).ok_or_else(refused)?;
    let note = |(key, value): (&String, &Value)| {
        let value = value.as_str().filter(|text| text.chars().count() <= LONGEST_NOTE);
        let is_named = key.chars().count() <= LONGEST_KEY;
        value.filter(|_| is_named).map(|value| (key.clone(), value.to_owned()))
    };
    notes.iter().map(note).collect::<Option<_>>().ok_or_else(refused)
}

fn expiry_of(expiry: &Value) -> Result<u64, ApiError> {
    let name = "output_expires_after";
    let object = expiry.as_object().ok_or_else(|| invalid(name, "an object"))?;
    let is_known = |key: &String| ["anchor", "seconds"].contains(&key.as_str());
    if !object.keys().all(is_known) {
        return Err(invalid(name, "'anchor' and 'seconds' alone"));
    }
    let anchor = object.get("anchor").and_then(Value::as_str).unwrap_or_default();
    let seconds = object.get("seconds").and_then(Value::as_u64);
    lifetime_ms(("output_expires_after.anchor", anchor), ("output_expires_after.seconds", seconds))
}
