//! Files and batches in JSON, word for word.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::WINDOW;
use crate::jobs::batches::{
    BatchFault, BatchId, BatchRecord, BatchState, FileId, FileRecord, LineCounts,
};

/// A file.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct File {
    #[schema(example = "file-0198f3a4c1d27e6b9a3c5d7e9f001122")]
    id: String,
    /// Always `file`.
    object: &'static str,
    /// How long it is.
    bytes: u64,
    /// When it came, in seconds since 1970.
    created_at: u64,
    /// When it will be forgotten.
    expires_at: u64,
    /// What it was called.
    filename: String,
    /// `batch`, or `batch_output`.
    #[schema(example = "batch")]
    purpose: &'static str,
    /// Always `processed`.
    status: &'static str,
}

impl File {
    pub(super) fn of(record: FileRecord) -> Self {
        Self {
            id: record.id.to_string(),
            object: "file",
            bytes: record.bytes,
            created_at: seconds(record.created_ms),
            expires_at: seconds(record.expires_ms),
            filename: record.name,
            purpose: record.purpose.name(),
            status: "processed",
        }
    }
}

/// A page of files.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct FileListing {
    /// Always `list`.
    object: &'static str,
    /// The latest first, or as asked for.
    data: Vec<File>,
    #[schema(required = true)]
    first_id: Option<String>,
    /// What `after` of the next page is.
    #[schema(required = true)]
    last_id: Option<String>,
    has_more: bool,
}

impl FileListing {
    pub(super) fn of(data: Vec<File>, has_more: bool) -> Self {
        let id = |file: Option<&File>| file.map(|file| file.id.clone());
        let (first_id, last_id) = (id(data.first()), id(data.last()));
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// A file that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct DeletedFile {
    id: String,
    /// Always `file`.
    object: &'static str,
    deleted: bool,
}

impl DeletedFile {
    pub(super) fn of(id: FileId) -> Self {
        Self { id: id.to_string(), object: "file", deleted: true }
    }
}

/// Many requests, made when there is time.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Batch {
    #[schema(example = "batch_0198f3a4c1d27e6b9a3c5d7e9f001122")]
    id: String,
    /// Always `batch`.
    object: &'static str,
    /// What its requests are sent to.
    #[schema(example = "/v1/images/edits")]
    endpoint: String,
    /// What is wrong with its file, if it `failed` for that.
    #[schema(required = true)]
    errors: Option<BatchFaults>,
    /// The file with its requests.
    input_file_id: String,
    /// Always `24h`.
    completion_window: &'static str,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`,
    /// `cancelling` or `cancelled`.
    #[schema(example = "in_progress")]
    status: &'static str,
    /// What requests came to that succeeded, once it has ended.
    #[schema(required = true)]
    output_file_id: Option<String>,
    /// What the others came to.
    #[schema(required = true)]
    error_file_id: Option<String>,
    /// When it was accepted, in seconds since 1970.
    created_at: u64,
    #[schema(required = true)]
    in_progress_at: Option<u64>,
    /// When it ends with what is done by then.
    expires_at: u64,
    #[schema(required = true)]
    finalizing_at: Option<u64>,
    #[schema(required = true)]
    completed_at: Option<u64>,
    #[schema(required = true)]
    failed_at: Option<u64>,
    #[schema(required = true)]
    expired_at: Option<u64>,
    #[schema(required = true)]
    cancelling_at: Option<u64>,
    #[schema(required = true)]
    cancelled_at: Option<u64>,
    request_counts: RequestCounts,
    /// The client's notes.
    #[schema(required = true)]
    metadata: Option<BTreeMap<String, String>>,
}

/// How many requests of a batch have come to what.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct RequestCounts {
    total: u64,
    completed: u64,
    failed: u64,
}

/// What is wrong with a batch's file.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct BatchFaults {
    /// Always `list`.
    object: &'static str,
    data: Vec<FaultOfBatch>,
}

/// One thing that is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct FaultOfBatch {
    #[schema(example = "invalid_json_line")]
    code: String,
    message: String,
    #[schema(required = true)]
    param: Option<String>,
    /// The line, from 1.
    #[schema(required = true)]
    line: Option<u64>,
}

impl FaultOfBatch {
    fn of(fault: BatchFault) -> Self {
        let BatchFault { code, message, param, line } = fault;
        Self { code, message, param, line }
    }
}

impl Batch {
    pub(super) fn of(record: BatchRecord) -> Self {
        let times = record.times;
        let ended_as = |state| times.ended_ms.filter(|_| record.state == state).map(seconds);
        let LineCounts { total, completed, failed } = record.counts;
        let faults: Vec<_> = record.faults.into_iter().map(FaultOfBatch::of).collect();
        Self {
            id: record.id.to_string(),
            object: "batch",
            endpoint: record.endpoint,
            errors: (!faults.is_empty()).then_some(BatchFaults { object: "list", data: faults }),
            input_file_id: record.input_file.to_string(),
            completion_window: WINDOW,
            status: record.state.name(),
            output_file_id: record.output_file.map(|id| id.to_string()),
            error_file_id: record.error_file.map(|id| id.to_string()),
            created_at: seconds(times.created_ms),
            in_progress_at: times.in_progress_ms.map(seconds),
            expires_at: seconds(times.due_ms),
            finalizing_at: times.finalizing_ms.map(seconds),
            completed_at: ended_as(BatchState::Completed),
            failed_at: ended_as(BatchState::Failed),
            expired_at: ended_as(BatchState::Expired),
            cancelling_at: times.cancelling_ms.map(seconds),
            cancelled_at: ended_as(BatchState::Cancelled),
            request_counts: RequestCounts { total, completed, failed },
            metadata: record.metadata,
        }
    }
}

/// A page of batches.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct BatchListing {
    /// Always `list`.
    object: &'static str,
    /// The latest first.
    data: Vec<Batch>,
    #[schema(required = true)]
    first_id: Option<String>,
    /// What `after` of the next page is.
    #[schema(required = true)]
    last_id: Option<String>,
    has_more: bool,
}

impl BatchListing {
    pub(super) fn of(data: Vec<Batch>, has_more: bool) -> Self {
        let id = |batch: Option<&Batch>| batch.map(|batch| batch.id.clone());
        let (first_id, last_id) = (id(data.first()), id(data.last()));
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

/// What a batch is asked for with.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "says what a body has; `create` reads it")]
pub(in crate::api) struct NewBatchBody {
    /// A file of purpose `batch`: JSON Lines of `custom_id`, `method`, `url` and `body`.
    #[schema(example = "file-0198f3a4c1d27e6b9a3c5d7e9f001122")]
    input_file_id: String,
    /// `/v1/images/generations` or `/v1/images/edits`: the `url` of every line.
    #[schema(example = "/v1/images/edits")]
    endpoint: String,
    /// `24h`: what is not done by then is not done.
    #[schema(example = "24h")]
    completion_window: String,
    /// Up to 16 notes, which come back with the batch.
    metadata: Option<BTreeMap<String, String>>,
    /// How long its files are kept.
    output_expires_after: Option<ExpiresAfter>,
}

/// When a file is forgotten.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "says what a body has; `create` reads it")]
pub(in crate::api) struct ExpiresAfter {
    /// `created_at`: counted from when the file came to be.
    #[schema(example = "created_at")]
    anchor: String,
    /// An hour to 30 days.
    #[schema(minimum = 3600, maximum = 2_592_000)]
    seconds: u64,
}

/// A file that comes in.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "says what a form has; `upload` reads it")]
pub(in crate::api) struct UploadForm {
    /// JSON Lines.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `batch`.
    #[schema(example = "batch")]
    purpose: String,
    /// `created_at`, with the seconds.
    #[schema(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    /// An hour to 30 days; `batches.lifetime_s` of the settings if absent.
    #[schema(rename = "expires_after[seconds]", minimum = 3600, maximum = 2_592_000)]
    seconds: Option<u64>,
}

/// Seconds since 1970.
fn seconds(ms: u64) -> u64 {
    ms / 1000
}

/// The name of a result line: the same whoever writes it.
pub(super) fn line_id(batch: BatchId, number: u64) -> String {
    use sha2::{Digest, Sha256};

    let digest = Sha256::digest(format!("{batch}:{number}"));
    let digits: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("batch_req_{digits}")
}
