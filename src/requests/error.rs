//! Why a request cannot be prepared: one variant for each cause.

use crate::domain::ValidationError;
use crate::service::{MemoryError, ServiceError};

/// Why a request cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The service refused, or there is no memory.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The bytes of a picture are no picture, or too large a one.
    #[error("{message}")]
    BadPicture {
        field: &'static str,
        /// A sentence for the client.
        message: String,
    },
    /// A file was asked for, and the request makes something else.
    #[error("{what} do not go into one file")]
    NotOneFile { field: &'static str, what: &'static str },
    /// No model has such a name.
    #[error("the model '{asked}' does not exist")]
    UnknownModel {
        asked: String,
        /// The names that would do.
        served: Vec<String>,
    },
    /// Whoever asks may not use this model.
    #[error("the model '{asked}' may not be used")]
    WithheldModel { asked: String },
    /// Work that blocks ended early.
    #[error("the request was not read to its end")]
    Interrupted(#[from] tokio::task::JoinError),
    /// A fault of ours.
    #[error("a request lost its picture")]
    LostPicture,
}

impl From<MemoryError> for RequestError {
    fn from(error: MemoryError) -> Self {
        Self::Service(error.into())
    }
}

impl From<ValidationError> for RequestError {
    fn from(error: ValidationError) -> Self {
        Self::Service(ServiceError::Invalid(error))
    }
}
