//! What is known of files and batches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{BatchId, FileId};
use crate::jobs::record::Owner;

/// What is known of a file, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Its name.
    pub id: FileId,
    /// Whose it is.
    pub owner: Owner,
    /// What it is for.
    pub purpose: FilePurpose,
    /// What its owner calls it.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
    /// When it came, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it is forgotten.
    pub expires_ms: u64,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePurpose {
    /// Its lines are requests.
    Batch,
    /// Its lines are what requests came to.
    BatchOutput,
}

impl FilePurpose {
    /// All.
    pub const ALL: [Self; 2] = [Self::Batch, Self::BatchOutput];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

/// What is known of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRecord {
    /// Its name.
    pub id: BatchId,
    /// Whose it is.
    pub owner: Owner,
    /// What its requests are sent to.
    pub endpoint: String,
    /// The file with its requests.
    pub input_file: FileId,
    /// What else whoever drives it has to know: no matter of the store.
    pub context: String,
    /// Its owner's notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How far it is.
    pub state: BatchState,
    /// When it got there.
    pub times: BatchTimes,
    /// How many lines have come to what.
    pub counts: LineCounts,
    /// What is wrong with its file.
    pub faults: Vec<BatchFault>,
    /// What its requests came to; there is none without one that succeeded.
    pub output_file: Option<FileId>,
    /// What those came to that failed.
    pub error_file: Option<FileId>,
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchState {
    /// Its file is looked through.
    Validating,
    /// There is something wrong with its file, and nothing was made.
    Failed,
    /// Its lines are made.
    InProgress,
    /// Its lines are settled.
    Finalizing,
    /// Its files are there.
    Completed,
    /// Its time was over before all lines were made.
    Expired,
    /// Its owner called it off, and some lines are not settled yet.
    Cancelling,
    /// Its owner called it off.
    Cancelled,
}

impl BatchState {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// When a batch got where, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchTimes {
    /// It was accepted.
    pub created_ms: u64,
    /// It has to be done.
    pub due_ms: u64,
    /// Its file was found to be well.
    pub in_progress_ms: Option<u64>,
    /// All its lines were settled.
    pub finalizing_ms: Option<u64>,
    /// It was called off.
    pub cancelling_ms: Option<u64>,
    /// It ended, as its state says.
    pub ended_ms: Option<u64>,
}

/// How many lines of a batch have come to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Requests in its file; 0 until that was looked through.
    pub total: u64,
    /// Those that succeeded.
    pub completed: u64,
    /// Those that failed, or were not made in time.
    pub failed: u64,
}

impl LineCounts {
    /// Whether each line has come to something.
    #[must_use]
    pub fn are_settled(self) -> bool {
        self.completed + self.failed == self.total
    }
}

/// Something that is wrong with the file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchFault {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field at fault, if one is.
    pub param: Option<String>,
    /// The line at fault, from 1, if one is.
    pub line: Option<u64>,
}
