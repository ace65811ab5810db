//! What clients read of an error.

use std::time::Duration;

use super::{ApiError, FAILED, whole_seconds};
use crate::jobs::{JobState, JobStoreError};
use crate::model::ModelError;
use crate::pictures::StoreError;
use crate::requests::RequestError;
use crate::service::{ErrorKind, ServiceError};

impl ApiError {
    /// What the client reads. Never a cause from below: those may hold paths.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Request(error) => request_message(error),
            Self::Malformed(message) => message.clone(),
            Self::UnsupportedMediaType { accepted } => {
                format!("Unsupported Content-Type: this endpoint takes {accepted}.")
            }
            Self::BodyTooLarge { max_upload_bytes } => {
                format!("The request body is larger than {max_upload_bytes} bytes.")
            }
            Self::Starting => {
                "The server is starting, and its models are not loaded yet: try again in a moment."
                    .to_owned()
            }
            Self::Unauthorised => {
                "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY' or as \
                 'api-key: KEY'."
                    .to_owned()
            }
            Self::ExpiredKey => "This API key has expired. Its owner needs a new one.".to_owned(),
            Self::MissingScope { scope } => {
                format!("This API key is not for this: it lacks the scope '{scope}'.")
            }
            Self::NoModelAllowed => "This API key may use no model of this server.".to_owned(),
            Self::RateLimited { limit, wait } => format!(
                "Too many requests: {limit} a minute are allowed. The next one is taken in {}.",
                seconds(*wait)
            ),
            Self::TooManyAtOnce { limit } => format!(
                "Too many requests at a time: {limit} are allowed. Wait for the answer to one."
            ),
            Self::PicturesSpent { limit, left, wait } => format!(
                "Too many pictures: {limit} a day are allowed, and {left} of today's are left. \
                 The next day, in UTC, begins in {}.",
                seconds(*wait)
            ),
            Self::NotForAll { there_are_keys: true } => {
                "Only an administrator's key may do this.".to_owned()
            }
            Self::NotForAll { there_are_keys: false } => {
                "Only administrators may do this, and this server has no keys for them: \
                 'server.admin_keys' of its settings names some, and so may 'keys'."
                    .to_owned()
            }
            Self::ForeignOrigin => {
                "Pages of this origin may not call this server: 'server.cors_origins' of its \
                 settings names those that may."
                    .to_owned()
            }
            Self::NotWebSocket => {
                "This address speaks WebSocket (RFC 6455, over HTTP/1.1): open it with 'Upgrade: \
                 websocket'."
                    .to_owned()
            }
            Self::UploadTooSlow => "The request took too long to arrive.".to_owned(),
            Self::DeadlineExceeded => {
                "The pictures were not made in the time that the request, or this server, allows."
                    .to_owned()
            }
            Self::UnknownPicture => {
                "There is no such picture; those by 'url' are kept for a while only.".to_owned()
            }
            Self::StorageUnavailable(error) => storage_message(error),
            Self::UnknownJob => {
                "There is no such job; jobs are kept for a while only after they have ended."
                    .to_owned()
            }
            Self::NoResult { state: JobState::Cancelled } => {
                "The job was cancelled: it has no result.".to_owned()
            }
            Self::NoResult { state } => {
                format!("The job is {}: it has no result yet.", state.name())
            }
            Self::IdempotencyKeyReused => {
                "This Idempotency-Key was used for another request: send a new one with it."
                    .to_owned()
            }
            Self::Jobs(error) => jobs_message(error),
            Self::Batch(error) => error.message(),
            Self::UnknownRoute { method, path, base_url, origin } => format!(
                "Invalid URL ({method} {path}). This server has OpenAI's images API, and files and \
                 batches for it: {base_url}/images/edits, /images/generations, /images/variations. Clients \
                 take '{base_url}' as their base URL, those of Azure '{origin}' as their endpoint."
            ),
            Self::WrongMethod { method, path } => format!(
                "Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different \
                 HTTP method?)"
            ),
            Self::Internal(_) => FAILED.to_owned(),
        }
    }
}

/// `wait` in whole seconds, at least one.
fn seconds(wait: Duration) -> String {
    format!("{} s", whole_seconds(wait))
}

/// `text`, an error in our style, with a capital letter and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

fn storage_message(error: &StoreError) -> String {
    let what = if let StoreError::Full(_) = error { "full" } else { "not available" };
    format!("The storage for pictures by 'url' is {what}. Use 'b64_json', or try again later.")
}

fn jobs_message(error: &JobStoreError) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others mean the same to clients")]
    match error {
        JobStoreError::TooManyJobs { capacity } => format!(
            "The server has as many jobs as it takes: {capacity} wait or run. Try again later."
        ),
        JobStoreError::TooManyBatches { most } => format!(
            "Too many batches: {most} may be under way at a time. Wait until one has ended."
        ),
        JobStoreError::NoRoom { .. } => "The storage for jobs is full. Try again later.".to_owned(),
        _ => "The storage for jobs is not available. Try again later.".to_owned(),
    }
}

/// What the client reads of a request that was refused or failed.
fn request_message(error: &RequestError) -> String {
    match error {
        RequestError::Service(error) => match error.kind() {
            ErrorKind::Internal => internal_message(error),
            ErrorKind::InvalidRequest { .. } => error.to_string(),
            ErrorKind::NotImplemented { .. }
            | ErrorKind::Busy { .. }
            | ErrorKind::NotLoaded
            | ErrorKind::OutOfMemory
            | ErrorKind::NeverFits
            | ErrorKind::DeviceMemory
            | ErrorKind::ShuttingDown
            | ErrorKind::Cancelled => sentence(&error.to_string()),
        },
        RequestError::BadPicture { message, .. } => message.clone(),
        RequestError::WithheldModel { asked } => {
            format!("This API key may not use the model '{asked}'.")
        }
        RequestError::NotOneFile { field, what } => format!(
            "Invalid '{field}': {what} do not go into one file. Ask for one picture, or for \
             'Accept: application/json'."
        ),
        RequestError::UnknownModel { asked, served } => format!(
            "The model '{asked}' does not exist: this server has '{}'. The list of models \
             has other names.",
            served.join("', '")
        ),
        RequestError::Interrupted(_) | RequestError::LostPicture => FAILED.to_owned(),
    }
}

/// What the client reads of a fault of ours: where numbers overflowed, for that is
/// mended by a setting, and nothing of other causes.
fn internal_message(error: &ServiceError) -> String {
    if let ServiceError::Model(cause @ ModelError::NotFinite { .. }) = error {
        return format!("The server failed to make the picture: {cause}.");
    }
    "The server failed to make the picture. Its log says why.".to_owned()
}
