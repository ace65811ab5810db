//! Jobs in JSON, word for word.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::state::AppState;
use crate::api::wire::ErrorBody;
use crate::jobs::{JobId, JobRecord, JobState};

/// What every job says that it is.
const OBJECT: &str = "image.job";

/// A request whose pictures are fetched later.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ImageJob {
    #[schema(example = "job_0198f3a4c1d27e6b9a3c5d7e9f001122")]
    id: String,
    /// Always `image.job`.
    object: &'static str,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    #[schema(example = "running")]
    status: &'static str,
    /// When it was accepted, in seconds since 1970.
    created_at: u64,
    /// When its model began.
    #[schema(required = true)]
    started_at: Option<u64>,
    /// When it ended.
    #[schema(required = true)]
    completed_at: Option<u64>,
    /// When it will be forgotten, with its pictures; known once it has ended.
    #[schema(required = true)]
    expires_at: Option<u64>,
    /// What it was sent to.
    #[schema(example = "/v1/images/edits")]
    endpoint: String,
    /// The model that makes its pictures.
    model: String,
    /// Queued jobs that were accepted before it; small ones, and those of other clients, may go
    /// first. Null once it runs.
    #[schema(required = true)]
    pub(in crate::api) position: Option<u64>,
    /// The picture that is being made, from 1.
    #[schema(required = true)]
    pub(in crate::api) picture: Option<usize>,
    /// Steps of it that are done.
    #[schema(required = true)]
    pub(in crate::api) step: Option<usize>,
    /// Steps that it takes.
    #[schema(required = true)]
    pub(in crate::api) total: Option<usize>,
    /// How long it will take yet, as far as can be told.
    #[schema(required = true)]
    pub(in crate::api) eta_ms: Option<u64>,
    /// How often its model has begun; more than once, if the server ended in between.
    tries: u32,
    /// The seed of each picture.
    pub(in crate::api) seeds: Vec<u64>,
    /// What was accepted without effect.
    warnings: Vec<String>,
    /// Why it failed.
    #[schema(required = true)]
    error: Option<ErrorBody>,
}

impl ImageJob {
    pub(in crate::api) fn of(record: JobRecord, state: &AppState) -> Self {
        let seconds = |ms: u64| ms / 1000;
        let progress = record.progress.filter(|_| record.state == JobState::Running);
        Self {
            id: record.id.to_string(),
            object: OBJECT,
            status: record.state.name(),
            created_at: seconds(record.created_ms),
            started_at: record.started_ms.map(seconds),
            completed_at: record.ended_ms.map(seconds),
            expires_at: record.expires_ms.map(seconds),
            endpoint: state.path(&format!("/images/{}", record.endpoint)),
            model: record.model,
            position: (record.state == JobState::Queued).then_some(record.ahead),
            picture: progress.map(|at| at.picture),
            step: progress.map(|at| at.step),
            total: progress.map(|at| at.total).filter(|total| *total > 0),
            eta_ms: progress.and_then(|at| at.left_ms),
            tries: record.tries,
            seeds: record.seeds,
            warnings: record.warnings,
            error: record.failure.map(|failure| ErrorBody {
                message: failure.message,
                kind: failure.kind,
                param: failure.param,
                code: failure.code,
            }),
        }
    }
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct JobPage {
    /// Always `list`.
    object: &'static str,
    /// The latest first.
    data: Vec<ImageJob>,
    #[schema(required = true)]
    first_id: Option<String>,
    /// What `after` of the next page is.
    #[schema(required = true)]
    last_id: Option<String>,
    has_more: bool,
}

impl JobPage {
    pub(super) fn of(data: Vec<ImageJob>, has_more: bool) -> Self {
        let id = |job: Option<&ImageJob>| job.map(|job| job.id.clone());
        let (first_id, last_id) = (id(data.first()), id(data.last()));
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// A job that was told to end.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::api) enum EndedJob {
    Cancelled(Box<ImageJob>),
    Deleted(DeletedJob),
}

/// A job that is forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct DeletedJob {
    id: String,
    /// Always `image.job`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

impl DeletedJob {
    pub(super) fn of(id: JobId) -> Self {
        Self { id: id.to_string(), object: OBJECT, deleted: true }
    }
}
