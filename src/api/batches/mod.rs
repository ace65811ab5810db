//! OpenAI's Files and Batches: many requests in a file, their results in another.
//!
//! `files` and `upload` take files in and give them back. The handlers here store a batch;
//! `driver` sees to it from then on, by nothing but its record: `validation` looks its file
//! through, `lines` makes a job of each line and keeps what it came to, `output` writes that.
//! What is promised of a batch stands in [`crate::jobs::batches`].

mod create;
mod driver;
mod files;
mod input;
mod line;
mod lines;
mod output;
mod upload;
mod validation;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use utoipa::IntoParams;

pub(super) use create::{__path_create, create};
pub(super) use driver::Driver;
pub(super) use files::{
    __path_content, __path_delete, __path_file, __path_list as __path_files, __path_upload,
    content, delete, file, list as files, upload,
};

use super::access::Permit;
use super::error::{ApiError, BatchError};
use super::state::AppState;
use super::wire::{ErrorEnvelope, json_response};
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::Owner;
use crate::jobs::batches::{BatchId, BatchPage, BatchRecord, BatchState, BatchStore};
use crate::requests::Endpoint;
use wire::{Batch, BatchListing};

/// What files and batches may be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchesConfig {
    /// The largest file, in bytes.
    pub max_file_bytes: usize,
    /// Requests in a file, at most.
    pub max_requests: u64,
    /// Requests of all batches that are under way at a time.
    pub in_flight: usize,
    /// How long files are kept that do not say, and batches that have ended.
    pub lifetime: Duration,
    /// How long a batch may take.
    pub window: Duration,
}

/// The one time that clients may give a batch.
const WINDOW: &str = "24h";

impl BatchesConfig {
    /// What clients are told that a batch may take.
    pub const WINDOW: Duration = Duration::from_secs(24 * 3600);
}

/// The files and batches, and what of them lives in this process alone.
pub(super) struct BatchDesk {
    store: Option<Arc<dyn BatchStore>>,
    /// What the pictures of batches count as that were accepted here.
    permits: Mutex<HashMap<BatchId, Arc<Permit>>>,
    changes: watch::Sender<()>,
    /// Places for lines that are under way.
    slots: Arc<Semaphore>,
    /// One file at a time is looked through.
    validating: Semaphore,
}

impl BatchDesk {
    pub(super) fn new(store: Option<Arc<dyn BatchStore>>, config: &BatchesConfig) -> Self {
        Self {
            store,
            permits: Mutex::default(),
            changes: watch::Sender::new(()),
            slots: Arc::new(Semaphore::new(config.in_flight)),
            validating: Semaphore::new(1),
        }
    }

    /// Where they are.
    fn store(&self) -> Result<&Arc<dyn BatchStore>, ApiError> {
        self.store.as_ref().ok_or_else(|| BatchError::NotStored.into())
    }

    /// The batch that is called `id`, which must be of whoever asks.
    async fn own(&self, permit: &Permit, id: &str) -> Result<BatchRecord, ApiError> {
        let id: BatchId = id.parse().map_err(|_| BatchError::UnknownBatch)?;
        let found = self.store()?.batch(id).await?;
        let record = found.filter(|record| record.owner == *permit.owner());
        record.ok_or_else(|| BatchError::UnknownBatch.into())
    }

    /// Tells the driver that a batch is not where it was.
    fn tell(&self) {
        self.changes.send_replace(());
    }

    fn remember(&self, id: BatchId, permit: &Arc<Permit>) {
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        permits.insert(id, Arc::clone(permit));
    }

    fn forget(&self, id: BatchId) {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn permit_of(&self, id: BatchId) -> Option<Arc<Permit>> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// What is stored of a batch for whoever drives it.
#[derive(Debug, Serialize, Deserialize)]
struct Outside {
    endpoint: Endpoint,
    /// The models that may be used, if not all.
    models: Option<Vec<String>>,
    /// Where addresses in replies begin.
    origin: String,
}

/// Whose the jobs of a batch are: not its owner's own, in whose list they would stand.
fn owner_of_lines(owner: &Owner) -> Owner {
    Owner::of("batch", owner.as_str().as_bytes())
}

/// The ways to write the endpoint in lines and in batches: OpenAI's, and where it is here.
fn addresses_of(endpoint: Endpoint, state: &AppState) -> Vec<String> {
    let path = match endpoint {
        Endpoint::Edits => "/images/edits",
        Endpoint::Generations => "/images/generations",
        Endpoint::Variations => return Vec::new(),
    };
    vec![format!("/v1{path}"), state.path(path)]
}

/// Batches of a page, unless the client says.
const USUAL_PAGE: usize = 20;
/// Batches of a page, at most.
const LARGEST_PAGE: usize = 100;

/// Which batches to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchesQuery {
    /// How many, up to 100; 20 if absent.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 100)]
    limit: Option<String>,
    /// Those accepted before this one: the `last_id` of the page before.
    #[param(pattern = "^batch_[0-9a-f]{32}$")]
    after: Option<String>,
}

impl BatchesQuery {
    fn page(&self) -> Result<BatchPage, ApiError> {
        let limit = limit_of(self.limit.as_deref(), USUAL_PAGE, LARGEST_PAGE)?;
        let invalid = |_| invalid("after", "the id of a batch");
        let after = self.after.as_deref().map(|text| text.parse().map_err(invalid));
        Ok(BatchPage { limit, after: after.transpose()? })
    }
}

fn limit_of(text: Option<&str>, usual: usize, most: usize) -> Result<usize, ApiError> {
    let Some(text) = text else { return Ok(usual) };
    let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
    limit.ok_or_else(|| invalid("limit", &format!("a number from 1 to {most}")))
}

/// A value that is not what it must be.
fn invalid(name: &'static str, expected: &str) -> ApiError {
    let message = format!("Invalid '{name}': expected {expected}.");
    ValidationError::new(name, FaultKind::Invalid, message).into()
}

/// The batches of whoever asks, the latest first
#[utoipa::path(
    get,
    operation_id = "list_batches",
    path = "/batches",
    tag = "batches",
    params(BatchesQuery),
    responses(
        (status = 200, description = "A page of them", body = BatchListing),
        (status = 400, description = "A parameter is wrong", body = ErrorEnvelope),
    )
)]
pub(super) async fn list(
    State(state): State<AppState>,
    Query(query): Query<BatchesQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let list = state.batches.store()?.batches(permit.owner(), query.page()?).await?;
    let batches = list.batches.into_iter().map(Batch::of).collect();
    Ok(json_response(StatusCode::OK, &BatchListing::of(batches, list.has_more)))
}

/// How far a batch is
#[utoipa::path(
    get,
    operation_id = "retrieve_batch",
    path = "/batches/{id}",
    tag = "batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(super) async fn batch(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let record = state.batches.own(&*Permit::of(&request)?, &id).await?;
    Ok(json_response(StatusCode::OK, &Batch::of(record)))
}

/// Call a batch off
///
/// What is done stays, in its output file; the lines that are not go into its error file, as
/// `batch_cancelled`. It is `cancelling` until they are there.
#[utoipa::path(
    post,
    operation_id = "cancel_batch",
    path = "/batches/{id}/cancel",
    tag = "batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
        (status = 409, description = "It has ended, or is about to", body = ErrorEnvelope),
    )
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let record = state.batches.own(&permit, &id).await?;
    state.batches.store()?.cancel_batch(record.id).await?;
    state.batches.tell();
    let record = state.batches.own(&permit, &id).await?;
    if !matches!(record.state, BatchState::Cancelling | BatchState::Cancelled) {
        return Err(BatchError::NotToBeCancelled { state: record.state }.into());
    }
    Ok(json_response(StatusCode::OK, &Batch::of(record)))
}
