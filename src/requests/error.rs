//! Why a request cannot be prepared: one variant for each cause.

use super::context::RequestContext;
use super::fields::quote;
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
    /// The loaded model has no such name.
    #[error("the model '{asked}' does not exist")]
    UnknownModel {
        asked: String,
        /// A name that would do.
        served: String,
    },
    /// Work that blocks ended early.
    #[error("the request was not read to its end")]
    Interrupted(#[from] tokio::task::JoinError),
    /// A fault of ours.
    #[error("a request lost its picture")]
    LostPicture,
}

impl RequestError {
    pub(crate) fn unknown_model(asked: &str, context: &RequestContext) -> Self {
        Self::UnknownModel { asked: quote(asked), served: context.images.info().id.clone() }
    }
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
