//! Errors as the OpenAPI document shows them.

use std::time::Duration;

use super::ApiError;
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::JobStoreError;
use crate::model::ModelError;
use crate::pictures::StoreError;
use crate::requests::RequestError;
use crate::service::{MemoryError, ServiceError};

impl ApiError {
    /// An error of each kind that a request for pictures may get, with what it means.
    pub(in crate::api) fn examples() -> [(Self, &'static str); 25] {
        let missing = "Missing required parameter: 'prompt'.";
        let missing = ValidationError::new("prompt", FaultKind::Missing, missing);
        let (asked, served) = ("gpt-4o".to_owned(), vec!["demo".to_owned()]);
        let (model, reason) = ("demo".to_owned(), "its device is not there".to_owned());
        let offered = ServiceError::NotOffered { what: "pictures from words alone", field: None };
        [
            (missing.into(), "A field is missing or wrong; `param` names it"),
            (Self::Unauthorised, "No key, or a wrong one"),
            (Self::ExpiredKey, "A key that has expired"),
            (Self::MissingScope { scope: "images" }, "A key that is for something else"),
            (
                RequestError::WithheldModel { asked: "demo".to_owned() }.into(),
                "A model that the key may not use",
            ),
            (RequestError::UnknownModel { asked, served }.into(), "No such model"),
            (
                RequestError::NotOneFile { field: "n", what: "several pictures" }.into(),
                "A file was asked for (`Accept: image/png`), and more than one picture",
            ),
            (Self::UploadTooSlow, "The request took too long to arrive"),
            (Self::BodyTooLarge { max_upload_bytes: 128 << 20 }, "The request is too large"),
            (
                MemoryError::NeverFits { needed: 2 << 30, total: 1 << 30 }.into(),
                "Its pictures would take more memory than all requests may hold",
            ),
            (Self::UnsupportedMediaType { accepted: "multipart/form-data" }, "Another media type"),
            (
                ServiceError::Busy { waiting: 64, retry_after_s: 5 }.into(),
                "The queue is full; see `Retry-After`",
            ),
            (
                Self::RateLimited { limit: 60, wait: Duration::from_millis(640) },
                "Too many requests in a minute, or at a time; see `Retry-After`",
            ),
            (Self::IdempotencyKeyReused, "The `Idempotency-Key` of a job stands for another"),
            (
                JobStoreError::TooManyJobs { capacity: 1000 }.into(),
                "As many jobs wait as may (`background`); see `Retry-After`",
            ),
            (
                Self::PicturesSpent { limit: 100, left: 0, wait: Duration::from_secs(7200) },
                "Too many pictures for a day",
            ),
            (ServiceError::WorkerGone.into(), "The model failed"),
            (offered.into(), "The model does not do this"),
            (MemoryError::NotInTime.into(), "Other requests hold the memory; see `Retry-After`"),
            (ServiceError::NotLoaded { model, reason }.into(), "The model cannot be loaded now"),
            (
                ServiceError::DeviceMemory(ModelError::Cancelled).into(),
                "The device has too little memory for it",
            ),
            (Self::Starting, "The server is starting: its models are not loaded yet"),
            (ServiceError::ShuttingDown.into(), "The server is shutting down"),
            (
                StoreError::Full(String::new()).into(),
                "Pictures by `url` cannot be stored now; see `Retry-After`",
            ),
            (Self::DeadlineExceeded, "Not done within `x-request-timeout-ms`, or the setting"),
        ]
    }
}
