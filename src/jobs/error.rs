//! Why a store of jobs does not do what it was asked for.

use std::io;
use std::path::PathBuf;

/// Why a store of jobs does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum JobStoreError {
    /// As many jobs wait or run as may.
    #[error("{capacity} jobs are waiting or running already")]
    TooManyJobs {
        /// The most.
        capacity: usize,
    },
    /// Requests and results take all the room that they may.
    #[error("the jobs take all the {max_bytes} bytes that they may")]
    NoRoom {
        /// The most.
        max_bytes: u64,
    },
    /// As many batches of an owner have not ended as may.
    #[error("{most} batches of this owner have not ended yet")]
    TooManyBatches {
        /// The most.
        most: usize,
    },
    /// A file was not sent to its end.
    #[error("the content of a file broke off")]
    BrokenOff,
    /// Another process has the store.
    #[error(
        "another process has the jobs of {}: a store belongs to one process at a time",
        path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// They are in a database that several processes share.
    #[error("these jobs are in a database that several processes share")]
    NotEmbedded,
    /// A later version of the program wrote it.
    #[error("the jobs are of a later version ({found}) than this program knows ({known})")]
    Newer {
        /// The version of the database.
        found: i64,
        /// The latest that is known.
        known: i64,
    },
    /// The database failed.
    #[error("the database of the jobs failed")]
    Database(#[from] rusqlite::Error),
    /// A row has what no version wrote.
    #[error("the database of the jobs has a row that makes no sense: {0}")]
    Damaged(String),
    /// A file failed.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The database of several processes failed, or is away.
    #[error("the database of the jobs failed")]
    Shared(#[from] sqlx::Error),
    /// An object failed.
    #[error("cannot use the object {name}")]
    Object {
        /// Which.
        name: String,
        /// Why.
        #[source]
        error: object_store::Error,
    },
    /// The database or the objects gave no answer.
    #[error("the store of the jobs did not answer in time")]
    NotInTime,
    /// The work ended early.
    #[error("the store of the jobs was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl JobStoreError {
    /// Whether a request or a result is not there.
    #[must_use]
    pub fn is_for_want_of_file(&self) -> bool {
        match self {
            Self::File { error, .. } => error.kind() == io::ErrorKind::NotFound,
            Self::Object { error, .. } => matches!(error, object_store::Error::NotFound { .. }),
            Self::TooManyJobs { .. }
            | Self::NoRoom { .. }
            | Self::TooManyBatches { .. }
            | Self::BrokenOff
            | Self::InUse { .. }
            | Self::NotEmbedded
            | Self::Newer { .. }
            | Self::Database(_)
            | Self::Shared(_)
            | Self::NotInTime
            | Self::Damaged(_)
            | Self::Interrupted(_) => false,
        }
    }
}
