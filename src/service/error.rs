//! Why a request was not served, by cause and by class.

use super::MemoryError;
use crate::domain::{FaultKind, ValidationError};
use crate::model::{DeviceFailure, ModelError};

/// Why a request was not served: one variant per cause a caller can act upon.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A value of the request is not one that can be served.
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    /// The request is fine, but the model cannot do this with it.
    #[error("{reason}")]
    Unsuitable {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it: a whole sentence for the client.
        reason: String,
    },
    /// The model does not do this kind of work.
    #[error("this model does not offer {what}")]
    NotOffered {
        /// The work, in words for the client.
        what: &'static str,
        /// The field that asked for it, where one did.
        field: Option<&'static str>,
    },
    /// As many requests are waiting as may wait.
    #[error("the server is busy: {waiting} requests are waiting")]
    Busy {
        /// How many.
        waiting: usize,
        /// Seconds after which there may be a place: as long as requests have taken.
        retry_after_s: u8,
    },
    /// The model is not there, and cannot be loaded now.
    #[error("the model '{model}' could not be loaded: {reason}")]
    NotLoaded {
        /// Its name.
        model: String,
        /// Why not, in words for the client.
        reason: String,
    },
    /// The model's device has no room for what is asked.
    #[error(
        "the pictures need at least {needed_bytes} bytes beside the model, and its device has \
         {room_bytes}: ask for a smaller size"
    )]
    TooLarge {
        /// Bytes that they need, at least.
        needed_bytes: usize,
        /// Bytes that are left beside the weights.
        room_bytes: usize,
    },
    /// The device ran out of memory, whatever was given back.
    #[error("the device has too little memory for this request: ask for a smaller size")]
    DeviceMemory(#[source] ModelError),
    /// The device computes nothing more for this process.
    #[error("the device has failed")]
    DeviceFault(#[source] ModelError),
    /// The memory for requests is taken, or would never do.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The service takes no more requests.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The client went away, or the work was called off.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model failed.
    #[error("the model failed")]
    Model(#[source] ModelError),
    /// The model panicked; it goes on with the next request.
    #[error("the model panicked: {message}")]
    Panicked {
        /// What the panic said; for the log, not for clients.
        message: String,
    },
    /// The thread that owns the model has ended.
    #[error("the thread of the model has ended")]
    WorkerGone,
}

/// The class of a [`ServiceError`]: what an outer layer decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The client can mend the request.
    InvalidRequest {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        fault: FaultKind,
    },
    /// This server will never do it.
    NotImplemented {
        /// The field that asked for it, where one did.
        field: Option<&'static str>,
    },
    /// Trying again may help.
    Busy {
        /// In so many seconds, 1 to 60.
        retry_after_s: u8,
    },
    /// The model cannot be loaded now; trying again may help.
    NotLoaded,
    /// The memory for requests is taken; trying again soon may help.
    OutOfMemory,
    /// The request needs more memory than all of them may hold, or than its model's device has.
    NeverFits,
    /// The device ran out of memory.
    DeviceMemory,
    /// Another server may help.
    ShuttingDown,
    /// Nobody waits for the answer.
    Cancelled,
    /// A fault of ours or of the machine.
    Internal,
}

impl ServiceError {
    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(ValidationError { field, kind, .. }) => {
                ErrorKind::InvalidRequest { field, fault: *kind }
            }
            Self::Unsuitable { field, .. } => {
                ErrorKind::InvalidRequest { field, fault: FaultKind::Invalid }
            }
            Self::NotOffered { field, .. } => ErrorKind::NotImplemented { field: *field },
            Self::Busy { retry_after_s, .. } => ErrorKind::Busy { retry_after_s: *retry_after_s },
            Self::NotLoaded { .. } => ErrorKind::NotLoaded,
            Self::Memory(MemoryError::NotInTime) => ErrorKind::OutOfMemory,
            Self::Memory(MemoryError::NeverFits { .. }) | Self::TooLarge { .. } => {
                ErrorKind::NeverFits
            }
            Self::DeviceMemory(_) => ErrorKind::DeviceMemory,
            Self::ShuttingDown => ErrorKind::ShuttingDown,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::DeviceFault(_) | Self::Model(_) | Self::Panicked { .. } | Self::WorkerGone => {
                ErrorKind::Internal
            }
        }
    }
}

impl From<ModelError> for ServiceError {
    fn from(error: ModelError) -> Self {
        match error.device_failure() {
            Some(DeviceFailure::OutOfMemory) => return Self::DeviceMemory(error),
            Some(DeviceFailure::Fault) => return Self::DeviceFault(error),
            None => {}
        }
        match error {
            ModelError::Unsuitable { field, reason } => Self::Unsuitable { field, reason },
            ModelError::Cancelled => Self::Cancelled,
            ModelError::Tensor(_) | ModelError::BadOutput(_) | ModelError::NotFinite { .. } => {
                Self::Model(error)
            }
        }
    }
}
