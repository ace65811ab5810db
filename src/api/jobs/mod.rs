//! Requests with `background`: a job at once, its pictures later.
//!
//! `accept` refuses what can be refused and stores the rest; `runner` takes stored jobs up,
//! and sends each the way of any request: fields → [`prepare`](crate::requests::prepare) →
//! the line of its model → reply. The handlers here and `events` tell how far they are;
//! `notices` tells others that they have ended. What
//! is promised of a job stands in [`crate::jobs`].

mod accept;
mod events;
mod fleet;
mod notices;
mod previews;
mod relay;
mod runner;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

pub(super) use accept::{Haste, accept, checked_key, idempotency_key, store};
pub(super) use events::{__path_events, Following, JobEvent, Told, events};
pub(super) use fleet::{Announcing, announced_by, models_of};
pub(super) use notices::{Notices, refuse_webhook};
pub(super) use relay::{Relayed, relay};
pub(super) use runner::Runner;
pub(super) use wire::{EndedJob, ImageJob, JobPage};

use super::access::Permit;
use super::docs::PictureFile;
use super::error::ApiError;
use super::state::AppState;
use super::wire::{ErrorBody, ErrorEnvelope, ImagesResponse, json_response};
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::{
    Cancelled, Fleet, JobFailure, JobId, JobRecord, JobResult, JobState, JobStore, Page,
};
use previews::JobPreviews;
use wire::DeletedJob;

/// The jobs, and what of them lives in this process alone.
pub(super) struct JobDesk {
    pub(super) store: Arc<dyn JobStore>,
    /// The same, if it is shared with other processes.
    pub(super) fleet: Option<Arc<dyn Fleet>>,
    /// What the pictures of jobs were booked on that were accepted here.
    permits: Mutex<HashMap<JobId, Arc<Permit>>>,
    previews: JobPreviews,
}

impl JobDesk {
    pub(super) fn new(store: Arc<dyn JobStore>, fleet: Option<Arc<dyn Fleet>>) -> Self {
        Self { store, fleet, permits: Mutex::default(), previews: JobPreviews::default() }
    }

    /// The job that is called `id`, which must be of whoever asks.
    async fn own(&self, permit: &Permit, id: &str) -> Result<JobRecord, ApiError> {
        let id: JobId = id.parse().map_err(|_| ApiError::UnknownJob)?;
        let record = self.store.get(id).await?.filter(|record| record.owner == *permit.owner());
        record.ok_or(ApiError::UnknownJob)
    }

    /// Notes what the job's pictures are booked on. Of one that may end in another process
    /// nothing is given back, so that nothing need be known.
    fn remember(&self, id: JobId, permit: &Arc<Permit>) {
        if self.fleet.is_none() {
            let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
            permits.insert(id, Arc::clone(permit));
        }
    }

    /// What the job's pictures were booked on; known once.
    pub(super) fn forget(&self, id: JobId) -> Option<Arc<Permit>> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }
}

/// Jobs of a page, unless the client says.
const USUAL_PAGE: usize = 20;
/// Jobs of a page, at most.
const LARGEST_PAGE: usize = 100;

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsQuery {
    /// How many, up to 100; 20 if absent.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 100)]
    limit: Option<String>,
    /// Those accepted before this one: the `last_id` of the page before.
    #[param(pattern = "^job_[0-9a-f]{32}$")]
    after: Option<String>,
}

impl JobsQuery {
    fn page(&self) -> Result<Page, ApiError> {
        let invalid = |name, expected: &str| {
            let message = format!("Invalid '{name}': expected {expected}.");
            ApiError::from(ValidationError::new(name, FaultKind::Invalid, message))
        };
        let limit = self.limit.as_deref().map(|text| {
            let limit = text.parse().ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit));
            limit.ok_or_else(|| invalid("limit", "a number from 1 to 100"))
        });
        let after = self
            .after
            .as_deref()
            .map(|text| text.parse().map_err(|_| invalid("after", "the id of a job")));
        Ok(Page { limit: limit.transpose()?.unwrap_or(USUAL_PAGE), after: after.transpose()? })
    }
}

/// The jobs of whoever asks, the latest first
#[utoipa::path(
    get,
    operation_id = "list_jobs",
    path = "/jobs",
    tag = "jobs",
    params(JobsQuery),
    responses(
        (status = 200, description = "A page of them", body = JobPage),
        (status = 400, description = "A parameter is wrong", body = ErrorEnvelope),
    )
)]
pub(super) async fn list(
    State(state): State<AppState>,
    Query(query): Query<JobsQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let list = state.jobs.store.list(permit.owner(), query.page()?).await?;
    let jobs = list.jobs.into_iter().map(|record| ImageJob::of(record, &state)).collect();
    Ok(json_response(StatusCode::OK, &JobPage::of(jobs, list.has_more)))
}

/// How far a job is
#[utoipa::path(
    get,
    operation_id = "retrieve_job",
    path = "/jobs/{id}",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = ImageJob),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(super) async fn job(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let record = state.jobs.own(&permit, &id).await?;
    Ok(json_response(StatusCode::OK, &ImageJob::of(record, &state)))
}

/// What a job came to: the reply that the endpoint would have given
#[utoipa::path(
    get,
    operation_id = "job_result",
    path = "/jobs/{id}/result",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The pictures, or the file that was asked for", content(
            (ImagesResponse = "application/json"),
            (PictureFile = "image/png"),
            (PictureFile = "image/jpeg"),
            (PictureFile = "image/webp"),
        )),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
        (status = 409, description = "There is no result yet, or the job was cancelled", body = ErrorEnvelope),
        (status = 500, description = "The job failed: with this status, or that of its error", body = ErrorEnvelope),
    )
)]
pub(super) async fn result(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let record = state.jobs.own(&permit, &id).await?;
    if let Some(failure) = record.failure {
        // The client may send the request again: not this one.
        let mut response = failed(failure);
        response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        return Ok(response);
    }
    if record.state != JobState::Succeeded {
        return Err(ApiError::NoResult { state: record.state });
    }
    let mut memory = state.requests.memory.share();
    memory.grow_to(usize::try_from(record.result_bytes).unwrap_or(usize::MAX)).await?;
    let result = state.jobs.store.result(record.id).await?.ok_or(ApiError::UnknownJob)?;
    succeeded(result)
}

/// The reply as it was stored.
fn succeeded(result: JobResult) -> Result<Response, ApiError> {
    let JobResult { media_type, notes, body } = result;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    let value =
        |text: &str| text.parse::<HeaderValue>().map_err(|error| ApiError::internal(&error));
    headers.insert(header::CONTENT_TYPE, value(&media_type)?);
    for (name, text) in &notes {
        let name = name.parse::<header::HeaderName>();
        headers.insert(name.map_err(|error| ApiError::internal(&error))?, value(text)?);
    }
    Ok(response)
}

/// The error as the endpoint would have answered it.
fn failed(failure: JobFailure) -> Response {
    let status = StatusCode::from_u16(failure.status);
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(status, &envelope_of(failure))
}

fn envelope_of(failure: JobFailure) -> ErrorEnvelope {
    let JobFailure { message, kind, param, code, .. } = failure;
    ErrorEnvelope { error: ErrorBody { message, kind, param, code } }
}

/// Call a job off, or forget one that has ended
///
/// A job that waits or runs is cancelled, and stays in the list as such. One that has ended,
/// cancelled or not, is forgotten, with its pictures.
#[utoipa::path(
    delete,
    operation_id = "delete_job",
    path = "/jobs/{id}",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job, which is cancelled now; of one that had ended, that it is `deleted`", body = EndedJob),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let record = state.jobs.own(&permit, &id).await?;
    let ended = match state.jobs.store.cancel(record.id).await?.ok_or(ApiError::UnknownJob)? {
        Cancelled::Now(record) => {
            state.jobs.forget(record.id);
            EndedJob::Cancelled(Box::new(ImageJob::of(record, &state)))
        }
        Cancelled::Ended(record) => {
            state.jobs.store.remove(record.id).await?;
            EndedJob::Deleted(DeletedJob::of(record.id))
        }
    };
    Ok(json_response(StatusCode::OK, &ended))
}
