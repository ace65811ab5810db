//! Why something cannot be done with a file or a batch, and its rows of the table.

use axum::http::StatusCode;

use super::{ApiError, Retry, Row};
use crate::jobs::batches::BatchState;

/// Why something cannot be done with a file or a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum BatchError {
    /// Where jobs are stored, these are not.
    NotStored,
    /// There is no such file, or it is somebody else's.
    UnknownFile,
    /// There is no such batch, or it is somebody else's.
    UnknownBatch,
    /// A batch that has not ended needs the file.
    FileInUse,
    /// The batch is over.
    NotToBeCancelled { state: BatchState },
}

impl Row {
    pub(super) fn of_batch(error: &BatchError) -> Self {
        match error {
            BatchError::NotStored => Self {
                status: StatusCode::NOT_IMPLEMENTED,
                kind: "not_implemented_error",
                code: Some("not_implemented"),
                param: None,
                retry: Retry::Never,
            },
            BatchError::UnknownFile | BatchError::UnknownBatch => {
                Self::refused(StatusCode::NOT_FOUND, None)
            }
            BatchError::FileInUse => Self::conflict("file_in_use"),
            BatchError::NotToBeCancelled { .. } => Self::conflict("batch_has_ended"),
        }
    }

    /// OpenAI's clients would try it again by themselves.
    fn conflict(code: &'static str) -> Self {
        Self { retry: Retry::Never, ..Self::refused(StatusCode::CONFLICT, Some(code)) }
    }
}

impl BatchError {
    /// What the client reads.
    pub(super) fn message(self) -> String {
        match self {
            Self::NotStored => {
                "This server has no storage for files and batches: 'jobs.store' of its settings \
                 says where jobs are."
                    .to_owned()
            }
            Self::UnknownFile => {
                "There is no such file; files are kept for a while only.".to_owned()
            }
            Self::UnknownBatch => {
                "There is no such batch; batches are kept for a while only after they have ended."
                    .to_owned()
            }
            Self::FileInUse => {
                "A batch that has not ended needs this file: cancel it first.".to_owned()
            }
            Self::NotToBeCancelled { state } => {
                format!("The batch is {}: it cannot be cancelled.", state.name())
            }
        }
    }
}

impl From<BatchError> for ApiError {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}
