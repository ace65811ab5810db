//! The one table of errors: cause → status, OpenAI's `type` and `code`, and
//! whether to try again.
//!
//! Clients get texts of ours only. The causes of a 5xx go to the log, once,
//! through [`Cause`] in the response's extensions.

mod batches;
mod examples;
mod message;

use std::time::Duration;

use axum::extract::{OriginalUri, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

pub(super) use batches::BatchError;
use message::sentence;

use super::wire::{ErrorBody, ErrorEnvelope, json_response};
use crate::causes;
use crate::domain::{FaultKind, ValidationError};
use crate::jobs::{JobState, JobStoreError};
use crate::metrics::ErrorCode;
use crate::pictures::StoreError;
use crate::requests::{RequestError, quote};
use crate::service::{ErrorKind, MemoryError, ServiceError};

/// Why a request gets no 2xx.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The request was not understood, or the service refused it or failed.
    Request(RequestError),
    /// The body is not what its media type says.
    Malformed(String),
    UnsupportedMediaType {
        accepted: &'static str,
    },
    BodyTooLarge {
        max_upload_bytes: usize,
    },
    /// There are no models yet.
    Starting,
    /// No key, or not one of ours.
    Unauthorised,
    /// A key of ours whose time is over.
    ExpiredKey,
    /// A key of ours that is for something else.
    MissingScope {
        scope: &'static str,
    },
    /// A key of ours that no model is for.
    NoModelAllowed,
    /// The client sent as many requests as it may in a minute.
    RateLimited {
        limit: u32,
        wait: Duration,
    },
    /// The client has as many requests under way as it may.
    TooManyAtOnce {
        limit: u32,
    },
    /// The client had as many pictures made as it may in a day.
    PicturesSpent {
        limit: u32,
        left: u32,
        wait: Duration,
    },
    /// What only administrators may.
    NotForAll {
        there_are_keys: bool,
    },
    /// The page of another origin, which may not call.
    ForeignOrigin,
    /// What is no opening of a WebSocket, at an address that has nothing else.
    NotWebSocket,
    /// The client took too long to send its request.
    UploadTooSlow,
    /// The answer would come too late for whoever asked.
    DeadlineExceeded,
    /// The picture of an address is not there, or not any more.
    UnknownPicture,
    /// Where pictures are kept is full, or gives no answer.
    StorageUnavailable(StoreError),
    /// There is no such job, or it is somebody else's.
    UnknownJob,
    /// A job has no result.
    NoResult {
        state: JobState,
    },
    /// The client's name for a request stands for another one.
    IdempotencyKeyReused,
    /// Jobs cannot be stored, or looked up.
    Jobs(JobStoreError),
    /// What is asked of a file or a batch cannot be done.
    Batch(BatchError),
    UnknownRoute {
        method: Method,
        path: String,
        /// Where OpenAI's endpoints are: what clients call their base URL.
        base_url: String,
        origin: String,
    },
    WrongMethod {
        method: Method,
        path: String,
    },
    /// A fault of this layer, with its cause for the log.
    Internal(String),
}

/// What the log is to say about a 5xx.
#[derive(Debug, Clone)]
pub(super) struct Cause(pub(super) String);

/// What the metrics count an error as: the code that the client reads, else its type; a
/// fault of ours has none.
fn counted_as(status: StatusCode, code: Option<&'static str>, kind: &'static str) -> ErrorCode {
    let fallback = if status.is_server_error() { "internal" } else { kind };
    ErrorCode(code.unwrap_or(fallback))
}

/// One row of the table.
struct Row {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<&'static str>,
    retry: Retry,
}

/// What the client is told about trying again.
enum Retry {
    /// Nothing: what the status says by itself.
    AsUsual,
    /// Do not: OpenAI's clients would otherwise send every 5xx three times.
    Never,
    /// After so many seconds. Above 60 node's client does not listen.
    After(u8),
    /// After this time, to the millisecond.
    AfterWait(Duration),
    /// Not by itself: after this time, which is long.
    MuchLater(Duration),
}

/// How long a client is told to wait that has too many requests under way, in seconds.
const AT_ONCE_RETRY_S: u8 = 1;

/// How long a client is told to wait whose job has no room, in seconds.
const JOBS_RETRY_S: u8 = 10;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const FAILED: &str = "The server failed. Its log says why.";

impl Row {
    /// A fault of ours.
    const FAILED: Self = Self {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: SERVER,
        code: None,
        param: None,
        retry: Retry::Never,
    };

    /// A fault of the client's.
    fn refused(status: StatusCode, code: Option<&'static str>) -> Self {
        Self { status, kind: INVALID, code, param: None, retry: Retry::AsUsual }
    }

    /// What a client asks for too often: OpenAI's word for what is counted.
    fn too_often(kind: &'static str, code: &'static str, retry: Retry) -> Self {
        Self { kind, retry, ..Self::refused(StatusCode::TOO_MANY_REQUESTS, Some(code)) }
    }

    /// What has no room or time now.
    fn unavailable(code: &'static str, retry: Retry) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, kind: SERVER, code: Some(code), param: None, retry }
    }

    fn of_request(error: &RequestError) -> Self {
        match error {
            RequestError::Service(error) => Self::of_service(error.kind()),
            RequestError::BadPicture { field, .. } => Self {
                kind: "image_generation_user_error",
                param: Some(field),
                ..Self::refused(StatusCode::BAD_REQUEST, Some("invalid_image_file"))
            },
            RequestError::NotOneFile { field, .. } => Self {
                param: Some(field),
                ..Self::refused(StatusCode::NOT_ACCEPTABLE, Some("not_acceptable"))
            },
            RequestError::UnknownModel { .. } => Self {
                param: Some("model"),
                ..Self::refused(StatusCode::NOT_FOUND, Some("model_not_found"))
            },
            // OpenAI's code for a model that a project has no access to.
            RequestError::WithheldModel { .. } => Self {
                param: Some("model"),
                ..Self::refused(StatusCode::FORBIDDEN, Some("model_not_found"))
            },
            RequestError::Interrupted(_) | RequestError::LostPicture => Self::FAILED,
        }
    }

    fn of_service(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidRequest { field, fault } => {
                let refused = Self::refused(StatusCode::BAD_REQUEST, Some(code_of(fault)));
                Self { param: Some(field), ..refused }
            }
            ErrorKind::NotImplemented { field } => Self {
                status: StatusCode::NOT_IMPLEMENTED,
                kind: "not_implemented_error",
                code: Some("not_implemented"),
                param: field,
                retry: Retry::Never,
            },
            ErrorKind::Busy { retry_after_s } => Self {
                kind: "rate_limit_error",
                retry: Retry::After(retry_after_s),
                ..Self::refused(StatusCode::TOO_MANY_REQUESTS, Some("server_busy"))
            },
            ErrorKind::NotLoaded => Self::unavailable("model_not_loaded", Retry::After(10)),
            ErrorKind::OutOfMemory => Self::unavailable("out_of_memory", Retry::After(5)),
            ErrorKind::NeverFits => {
                Self::refused(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"))
            }
            // Trying again would end as this did.
            ErrorKind::DeviceMemory => Self::unavailable("device_out_of_memory", Retry::Never),
            ErrorKind::ShuttingDown => Self::unavailable("shutting_down", Retry::After(10)),
            ErrorKind::Cancelled => Self::unavailable("cancelled", Retry::AsUsual),
            ErrorKind::Internal => Self::FAILED,
        }
    }
}

/// OpenAI's word for a fault.
fn code_of(fault: FaultKind) -> &'static str {
    match fault {
        FaultKind::Missing => "missing_required_parameter",
        FaultKind::WrongType => "invalid_type",
        FaultKind::Invalid => "invalid_value",
        FaultKind::IntegerTooSmall => "integer_below_min_value",
        FaultKind::IntegerTooLarge => "integer_above_max_value",
        FaultKind::DecimalTooSmall => "decimal_below_min_value",
        FaultKind::DecimalTooLarge => "decimal_above_max_value",
        FaultKind::TextTooShort => "string_below_min_length",
        FaultKind::TextTooLong => "string_above_max_length",
        FaultKind::ListTooLong => "array_above_max_length",
        FaultKind::Unsupported => "unsupported_parameter",
    }
}

impl ApiError {
    fn row(&self) -> Row {
        match self {
            Self::Request(error) => Row::of_request(error),
            Self::Malformed(_) => Row::refused(StatusCode::BAD_REQUEST, None),
            Self::UnsupportedMediaType { .. } => {
                Row::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_content_type"))
            }
            Self::BodyTooLarge { .. } => {
                Row::refused(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"))
            }
            Self::Starting => Row::unavailable("model_loading", Retry::After(5)),
            Self::Unauthorised | Self::ExpiredKey => {
                Row::refused(StatusCode::UNAUTHORIZED, Some("invalid_api_key"))
            }
            Self::NotForAll { .. } | Self::MissingScope { .. } | Self::ForeignOrigin => {
                Row::refused(StatusCode::FORBIDDEN, Some("not_allowed"))
            }
            Self::NoModelAllowed => Row {
                param: Some("model"),
                ..Row::refused(StatusCode::FORBIDDEN, Some("model_not_found"))
            },
            Self::RateLimited { wait, .. } => {
                Row::too_often("requests", "rate_limit_exceeded", Retry::AfterWait(*wait))
            }
            Self::TooManyAtOnce { .. } => {
                Row::too_often("requests", "rate_limit_exceeded", Retry::After(AT_ONCE_RETRY_S))
            }
            Self::PicturesSpent { wait, .. } => {
                let retry = Retry::MuchLater(*wait);
                Row::too_often("insufficient_quota", "insufficient_quota", retry)
            }
            Self::NotWebSocket => {
                Row::refused(StatusCode::UPGRADE_REQUIRED, Some("upgrade_required"))
            }
            // Trying again would take as long.
            Self::UploadTooSlow => Row {
                retry: Retry::Never,
                ..Row::refused(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"))
            },
            Self::DeadlineExceeded => Row {
                status: StatusCode::GATEWAY_TIMEOUT,
                code: Some("deadline_exceeded"),
                ..Row::FAILED
            },
            Self::StorageUnavailable(_) => {
                Row::unavailable("storage_unavailable", Retry::After(10))
            }
            // Clients try 409 again by themselves, at once.
            Self::NoResult { .. } => Row {
                retry: Retry::Never,
                ..Row::refused(StatusCode::CONFLICT, Some("job_has_no_result"))
            },
            Self::IdempotencyKeyReused => Row {
                param: Some("Idempotency-Key"),
                ..Row::refused(StatusCode::UNPROCESSABLE_ENTITY, Some("idempotency_key_reused"))
            },
            Self::Batch(error) => Row::of_batch(error),
            Self::Jobs(
                JobStoreError::TooManyJobs { .. } | JobStoreError::TooManyBatches { .. },
            ) => Row::too_often("rate_limit_error", "server_busy", Retry::After(JOBS_RETRY_S)),
            Self::Jobs(_) => Row::unavailable("storage_unavailable", Retry::After(JOBS_RETRY_S)),
            Self::UnknownPicture | Self::UnknownJob | Self::UnknownRoute { .. } => {
                Row::refused(StatusCode::NOT_FOUND, None)
            }
            Self::WrongMethod { .. } => {
                Row::refused(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_supported"))
            }
            Self::Internal(_) => Row::FAILED,
        }
    }

    /// A fault of ours.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        Self::Internal(causes::one_line(error))
    }

    /// The causes, outermost first, where the log should have them.
    fn cause(&self) -> Option<Cause> {
        match self {
            Self::Request(RequestError::Service(error)) if !is_to_be_logged(error.kind()) => None,
            Self::Request(
                error @ (RequestError::Service(_)
                | RequestError::Interrupted(_)
                | RequestError::LostPicture),
            ) => Some(Cause(causes::one_line(error))),
            Self::StorageUnavailable(error) => Some(Cause(causes::one_line(error))),
            Self::Jobs(
                JobStoreError::TooManyJobs { .. } | JobStoreError::TooManyBatches { .. },
            ) => None,
            Self::Jobs(error) => Some(Cause(causes::one_line(error))),
            Self::Internal(cause) => Some(Cause(cause.clone())),
            Self::Request(_)
            | Self::Malformed(_)
            | Self::UnsupportedMediaType { .. }
            | Self::BodyTooLarge { .. }
            | Self::Starting
            | Self::Unauthorised
            | Self::ExpiredKey
            | Self::MissingScope { .. }
            | Self::NoModelAllowed
            | Self::RateLimited { .. }
            | Self::TooManyAtOnce { .. }
            | Self::PicturesSpent { .. }
            | Self::NotForAll { .. }
            | Self::ForeignOrigin
            | Self::NotWebSocket
            | Self::UploadTooSlow
            | Self::DeadlineExceeded
            | Self::UnknownPicture
            | Self::UnknownJob
            | Self::NoResult { .. }
            | Self::IdempotencyKeyReused
            | Self::Batch(_)
            | Self::UnknownRoute { .. }
            | Self::WrongMethod { .. } => None,
        }
    }
}

/// Whether the log has to say why.
fn is_to_be_logged(kind: ErrorKind) -> bool {
    [ErrorKind::Internal, ErrorKind::DeviceMemory].contains(&kind)
}

/// `wait` as seconds that are not over before it is.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

impl ApiError {
    /// The request's path does not have its method.
    pub(super) fn wrong_method(request: &Request) -> Self {
        // As the client wrote it: below a prefix the request's own is without that.
        let original = request.extensions().get::<OriginalUri>();
        let uri = original.map_or(request.uri(), |OriginalUri(uri)| uri);
        Self::WrongMethod { method: request.method().clone(), path: quote(uri.path()) }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.row().status
    }

    /// Whether the same will be well later: nothing is wrong with the request.
    pub(super) fn is_for_now(&self) -> bool {
        match self.row().retry {
            Retry::After(_) | Retry::AfterWait(_) | Retry::MuchLater(_) => true,
            Retry::AsUsual | Retry::Never => false,
        }
    }

    /// What the client reads.
    pub(super) fn body(&self) -> ErrorEnvelope {
        self.envelope(&self.row())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        Self::Request(error.into())
    }
}

impl From<MemoryError> for ApiError {
    fn from(error: MemoryError) -> Self {
        Self::Request(error.into())
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        Self::Request(error.into())
    }
}

impl From<JobStoreError> for ApiError {
    fn from(error: JobStoreError) -> Self {
        Self::Jobs(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::StorageUnavailable(error)
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(&error)
    }
}

impl ApiError {
    fn envelope(&self, row: &Row) -> ErrorEnvelope {
        let error = ErrorBody {
            message: self.message(),
            kind: row.kind.to_owned(),
            param: row.param.map(str::to_owned),
            code: row.code.map(str::to_owned),
        };
        ErrorEnvelope { error }
    }

    /// What a client reads that has its 200 already, and what the log and the metrics are
    /// to say.
    pub(super) fn into_parts(self) -> (ErrorEnvelope, Option<Cause>, ErrorCode) {
        let row = self.row();
        let code = counted_as(row.status, row.code, row.kind);
        (self.envelope(&row), self.cause(), code)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let row = self.row();
        let mut response = json_response(row.status, &self.envelope(&row));
        if row.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        let headers = response.headers_mut();
        if row.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        match row.retry {
            Retry::AsUsual => {}
            Retry::Never => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Retry::After(seconds) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
            }
            Retry::AfterWait(wait) => {
                let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
                headers.insert("retry-after-ms", HeaderValue::from(ms.max(1)));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
            }
            Retry::MuchLater(wait) => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
            }
        }
        response.extensions_mut().insert(counted_as(row.status, row.code, row.kind));
        if let Some(cause) = self.cause() {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

/// Answers a panic of a handler.
pub(super) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let said = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    ApiError::Internal(format!("a handler panicked: {said}")).into_response()
}

/// Puts an error that something below us wrote as plain text into the envelope,
/// under the same status and headers.
pub(super) async fn wrap_foreign(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let kind = if status.is_server_error() { SERVER } else { INVALID };
    let body = ErrorBody {
        message: sentence(status.canonical_reason().unwrap_or("error")),
        kind: kind.to_owned(),
        param: None,
        code: None,
    };
    let mut wrapped = json_response(status, &ErrorEnvelope { error: body });
    wrapped.extensions_mut().insert(counted_as(status, None, kind));
    let (mut parts, _text) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE {
            wrapped.headers_mut().append(name, value.clone());
        }
    }
    wrapped
}

#[cfg(test)]
mod tests;
