//! From a request that asks for a job to one that is stored.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::notices;
use super::relay::{self, Waiting};
use super::wire::ImageJob;
use crate::api::access::Permit;
use crate::api::error::ApiError;
use crate::api::images::Sent;
use crate::api::state::AppState;
use crate::api::wire::json_response;
use crate::domain::{FaultKind, Task, ValidationError};
use crate::jobs::{Created, Idempotency, JobRecord, NewJob};
use crate::requests::{
    Asked, Delivery, Endpoint, Fields, Prepared, RequestContext, StoredOutside, Writing, prepare,
};
use crate::service::{MemoryShare, ServiceError};

/// The header with the client's own name for a request.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// In an answer that tells of a job that was there before: the name that others have for it.
const REPLAYED: &str = "idempotent-replayed";
/// The longest such name, in bytes.
const LONGEST_KEY: usize = 255;
/// How often a request is held while it is stored, beside its fields.
const COPIES: usize = 2;

/// The client's own name for its request.
///
/// # Errors
/// [`ValidationError`] for a name that is too long, or no plain text.
pub(in crate::api) fn idempotency_key(
    headers: &HeaderMap,
) -> Result<Option<String>, ValidationError> {
    let key = headers.get(IDEMPOTENCY_KEY);
    let text = key.map(|key| key.to_str().map(str::to_owned).unwrap_or_default());
    let message = "Invalid 'Idempotency-Key': expected 1 to 255 plain characters.";
    let invalid = || ValidationError::new("Idempotency-Key", FaultKind::Invalid, message);
    sane(text).map_err(|_not_sane| invalid())
}

/// The same of a message.
///
/// # Errors
/// As [`idempotency_key`].
pub(in crate::api) fn checked_key(key: Option<String>) -> Result<Option<String>, ValidationError> {
    let message = "Invalid 'idempotency_key': expected 1 to 255 plain characters.";
    let invalid = || ValidationError::new("idempotency_key", FaultKind::Invalid, message);
    sane(key).map_err(|_not_sane| invalid())
}

/// A name that is no name.
struct NotSane;

fn sane(key: Option<String>) -> Result<Option<String>, NotSane> {
    let is_plain = |key: &String| key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let is_sane = |key: &String| (1..=LONGEST_KEY).contains(&key.len()) && is_plain(key);
    key.map(|key| Some(key).filter(is_sane).ok_or(NotSane)).transpose()
}

/// Stores a job, once all is refused that can be: 202 with the job.
pub(in crate::api) async fn accept(
    asking: (&AppState, &Arc<Permit>, &RequestContext),
    read: (Fields, MemoryShare),
    sent: Sent,
) -> Result<Response, ApiError> {
    let Accepted { created, .. } = store(asking, read, sent, Haste::Usual).await?;
    answer(created, asking.0)
}

/// Whether somebody waits for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Haste {
    /// A client, for the reply.
    Attached,
    /// One that comes back for the result.
    Usual,
    /// Nobody does: others go first.
    None,
}

/// A job that was stored, or one that was there by the same name.
pub(in crate::api) struct Accepted {
    pub(in crate::api) created: Created,
    pub(in crate::api) delivery: Delivery,
    /// Of one that somebody waits for.
    pub(super) waiting: Option<Waiting>,
}

/// Stores a job, once all is refused that can be.
pub(in crate::api) async fn store(
    (state, permit, context): (&AppState, &Arc<Permit>, &RequestContext),
    (mut fields, mut memory): (Fields, MemoryShare),
    sent: Sent,
    haste: Haste,
) -> Result<Accepted, ApiError> {
    let asked_webhook = match haste {
        Haste::Usual => notices::take_webhook(&mut fields, &state.config)?,
        Haste::Attached | Haste::None => {
            notices::refuse_webhook(&mut fields)?;
            None
        }
    };
    if !state.service().status().accepting {
        return Err(ServiceError::ShuttingDown.into());
    }
    let Sent { endpoint, origin, asked, idempotency_key } = sent;
    // What waits for its reply is no job that others could ask for.
    let idempotency_key = idempotency_key.filter(|_| haste != Haste::Attached);
    let copies = COPIES * fields.held_bytes();
    memory.grow_by(copies).await?;
    let copies = memory.split(copies);
    let from_outside = (asked.deployment.clone(), asked.accepted);
    let origin = origin.as_str().to_owned();
    let mut outside = StoredOutside::new(endpoint, from_outside, permit.model_names(), origin);
    outside.webhook = asked_webhook.as_ref().map(|url| url.as_str().to_owned());
    outside.is_followed = asked.is_followed;
    let (fields, writing, idempotency) = written(fields, outside, idempotency_key).await?;
    let store = &state.jobs.store;
    if let Some(idempotency) = &idempotency
        && let Some(created) = store.named(permit.owner(), idempotency).await?
    {
        return Ok(Accepted { created, delivery: Delivery::Base64, waiting: None });
    }
    let asked = Asked { is_followed: haste != Haste::Attached || asked.is_followed, ..asked };
    let prepared = prepare(context, (fields, memory), endpoint, asked).await?;
    if haste != Haste::Attached {
        refuse_streams(&prepared)?;
    }
    let (pictures, delivery) = (prepared.request.count.get(), prepared.output.delivery);
    let (seeds, seed) = (seeds_of(&prepared), prepared.request.seed);
    let Prepared { model, request, memory, warnings, .. } = prepared;
    // Refuses what its model has no room for.
    let estimate = model.images.estimate(request, memory).await?;
    permit.book(pictures)?;
    let request = encoded(writing.with_seed(seed)).await?;
    let told = (haste == Haste::Usual).then_some(asked_webhook);
    let webhook = told.and_then(|asked| notices::webhook_of(asked, permit, &state.config));
    let job = NewJob {
        owner: permit.owner().clone(),
        endpoint: name_of(endpoint).to_owned(),
        model: model.images.card().id.clone(),
        seeds,
        warnings,
        idempotency,
        webhook,
        is_patient: haste == Haste::None,
        request,
        cost_s: estimate.cost_s,
        is_attached: haste == Haste::Attached,
    };
    let (created, waiting) = match haste {
        Haste::Attached => {
            let (created, waiting) = relay::create(state, job).await?;
            (created, Some(waiting))
        }
        Haste::Usual | Haste::None => (store.create(job).await?, None),
    };
    drop(copies);
    match &created {
        Created::New(record) => state.jobs.remember(record.id, permit),
        // Somebody was quicker with the same.
        Created::Same(_) | Created::Other(_) => permit.give_back(),
    }
    Ok(Accepted { created, delivery, waiting })
}

fn name_of(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Edits => "edits",
        Endpoint::Generations => "generations",
        Endpoint::Variations => "variations",
    }
}

/// The seeds of its pictures: layers come of one.
fn seeds_of(prepared: &Prepared) -> Vec<u64> {
    let count = match prepared.request.task {
        Task::Decompose { .. } => 1,
        Task::Generate | Task::Edit { .. } | Task::Inpaint { .. } | Task::ImageToImage { .. } => {
            prepared.request.count.get()
        }
    };
    (0..count).map(|index| prepared.request.seed.of_image(index).get()).collect()
}

/// A job has events of its own.
fn refuse_streams(prepared: &Prepared) -> Result<(), ValidationError> {
    if !prepared.output.delivery.is_streamed() {
        return Ok(());
    }
    let message = "Unsupported parameter: 'stream' does not go with 'background': a job has its \
                   events at '/v1/jobs/{id}/events'.";
    Err(ValidationError::new("stream", FaultKind::Unsupported, message))
}

/// The request on its way into the store, and, if it has a name, a digest of it.
async fn written(
    fields: Fields,
    outside: StoredOutside,
    key: Option<String>,
) -> Result<(Fields, Writing, Option<Idempotency>), ApiError> {
    let writing = tokio::task::spawn_blocking(move || {
        let digest = key.is_some().then(|| Writing::of(&fields, outside.as_sent()).bytes());
        let writing = Writing::of(&fields, outside);
        let Some((key, digest)) = key.zip(digest) else { return Ok((fields, writing, None)) };
        let digest = Sha256::digest(digest?);
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((fields, writing, Some(Idempotency { key, digest })))
    });
    writing.await?.map_err(|error: serde_json::Error| ApiError::internal(&error))
}

async fn encoded(writing: Writing) -> Result<Bytes, ApiError> {
    let encoded = tokio::task::spawn_blocking(move || writing.bytes()).await?;
    encoded.map_err(|error| ApiError::internal(&error))
}

/// 202 with the job, also if it was there before; 422 if another one was.
fn answer(created: Created, state: &AppState) -> Result<Response, ApiError> {
    match created {
        Created::New(record) => accepted(record, state),
        Created::Same(record) => {
            let mut response = accepted(record, state)?;
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Created::Other(_) => Err(ApiError::IdempotencyKeyReused),
    }
}

fn accepted(record: JobRecord, state: &AppState) -> Result<Response, ApiError> {
    let location = state.path(&format!("/jobs/{}", record.id));
    let location = location.parse().map_err(|error| ApiError::internal(&error))?;
    let mut response = json_response(StatusCode::ACCEPTED, &ImageJob::of(record, state));
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}
