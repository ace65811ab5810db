//! The one table of errors: cause → status, OpenAI's `type` and `code`, and
//! whether to try again.
//!
//! Clients get texts of ours only. The causes of a 5xx go to the log, once,
//! through [`Cause`] in the response's extensions.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::fields::quote;
use super::state::AppState;
use super::wire::{ErrorBody, ErrorEnvelope, json_response};
use crate::domain::ValidationError;
use crate::model::ModelError;
use crate::service::{ErrorKind, MemoryError, ServiceError};

/// Why a request gets no 2xx.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The service refused or failed.
    Service(ServiceError),
    /// The bytes of a picture are no picture, or too large a one.
    BadPicture {
        field: &'static str,
        message: String,
    },
    /// The body is not what its media type says.
    Malformed(String),
    /// A file was asked for, and the request makes something else.
    NotOneFile {
        field: &'static str,
        what: &'static str,
    },
    UnsupportedMediaType {
        accepted: &'static str,
    },
    BodyTooLarge {
        max_upload_bytes: usize,
    },
    UnknownModel {
        asked: String,
        /// A name that would do.
        served: String,
    },
    /// No key, or not one of ours.
    Unauthorised,
    /// The client took too long to send its request.
    UploadTooSlow,
    /// The picture of an address is not there, or not any more.
    UnknownPicture,
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
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn row(&self) -> Row {
        let row = |status, kind, code, param, retry| Row { status, kind, code, param, retry };
        let refused = |status, code| row(status, INVALID, code, None, Retry::AsUsual);
        match self {
            Self::Service(error) => match error.kind() {
                ErrorKind::InvalidRequest { field, code } => {
                    row(StatusCode::BAD_REQUEST, INVALID, Some(code), Some(field), Retry::AsUsual)
                }
                ErrorKind::NotImplemented { field } => row(
                    StatusCode::NOT_IMPLEMENTED,
                    "not_implemented_error",
                    Some("not_implemented"),
                    field,
                    Retry::Never,
                ),
                ErrorKind::Busy => row(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    Some("server_busy"),
                    None,
                    Retry::After(5),
                ),
                ErrorKind::OutOfMemory => row(
                    StatusCode::SERVICE_UNAVAILABLE,
                    SERVER,
                    Some("out_of_memory"),
                    None,
                    Retry::After(5),
                ),
                ErrorKind::NeverFits => {
                    refused(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"))
                }
                ErrorKind::ShuttingDown => row(
                    StatusCode::SERVICE_UNAVAILABLE,
                    SERVER,
                    Some("shutting_down"),
                    None,
                    Retry::After(10),
                ),
                ErrorKind::Cancelled => row(
                    StatusCode::SERVICE_UNAVAILABLE,
                    SERVER,
                    Some("cancelled"),
                    None,
                    Retry::AsUsual,
                ),
                ErrorKind::Internal => {
                    row(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, None, Retry::Never)
                }
            },
            Self::BadPicture { field, .. } => row(
                StatusCode::BAD_REQUEST,
                "image_generation_user_error",
                Some("invalid_image_file"),
                Some(field),
                Retry::AsUsual,
            ),
            Self::Malformed(_) => refused(StatusCode::BAD_REQUEST, None),
            Self::NotOneFile { field, .. } => row(
                StatusCode::NOT_ACCEPTABLE,
                INVALID,
                Some("not_acceptable"),
                Some(field),
                Retry::AsUsual,
            ),
            Self::UnsupportedMediaType { .. } => {
                refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_content_type"))
            }
            Self::BodyTooLarge { .. } => {
                refused(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"))
            }
            Self::UnknownModel { .. } => row(
                StatusCode::NOT_FOUND,
                INVALID,
                Some("model_not_found"),
                Some("model"),
                Retry::AsUsual,
            ),
            Self::Unauthorised => refused(StatusCode::UNAUTHORIZED, Some("invalid_api_key")),
            // Trying again would take as long.
            Self::UploadTooSlow => row(
                StatusCode::REQUEST_TIMEOUT,
                INVALID,
                Some("request_timeout"),
                None,
                Retry::Never,
            ),
            Self::UnknownPicture | Self::UnknownRoute { .. } => {
                refused(StatusCode::NOT_FOUND, None)
            }
            Self::WrongMethod { .. } => {
                refused(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_supported"))
            }
            Self::Internal(_) => {
                row(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, None, Retry::Never)
            }
        }
    }

    /// What the client reads. Never a cause from below: those may hold paths.
    fn message(&self) -> String {
        match self {
            Self::Service(error) => match error.kind() {
                ErrorKind::Internal => internal_message(error),
                ErrorKind::InvalidRequest { .. } => error.to_string(),
                ErrorKind::NotImplemented { .. }
                | ErrorKind::Busy
                | ErrorKind::OutOfMemory
                | ErrorKind::NeverFits
                | ErrorKind::ShuttingDown
                | ErrorKind::Cancelled => sentence(&error.to_string()),
            },
            Self::BadPicture { message, .. } | Self::Malformed(message) => message.clone(),
            Self::NotOneFile { field, what } => format!(
                "Invalid '{field}': {what} do not go into one file. Ask for one picture, or for \
                 'Accept: application/json'."
            ),
            Self::UnsupportedMediaType { accepted } => {
                format!("Unsupported Content-Type: this endpoint takes {accepted}.")
            }
            Self::BodyTooLarge { max_upload_bytes } => {
                format!("The request body is larger than {max_upload_bytes} bytes.")
            }
            Self::UnknownModel { asked, served } => format!(
                "The model '{asked}' does not exist: this server has '{served}'. The list of \
                 models has its other names."
            ),
            Self::Unauthorised => {
                "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY' or as \
                 'api-key: KEY'."
                    .to_owned()
            }
            Self::UploadTooSlow => "The request took too long to arrive.".to_owned(),
            Self::UnknownPicture => {
                "There is no such picture; those by 'url' are kept for a while only.".to_owned()
            }
            Self::UnknownRoute { method, path, base_url, origin } => format!(
                "Invalid URL ({method} {path}). This server has OpenAI's images API and nothing \
                 else: {base_url}/images/edits, /images/generations, /images/variations. Clients \
                 take '{base_url}' as their base URL, those of Azure '{origin}' as their endpoint."
            ),
            Self::WrongMethod { method, path } => format!(
                "Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different \
                 HTTP method?)"
            ),
            Self::Internal(_) => "The server failed. Its log says why.".to_owned(),
        }
    }

    /// The causes, outermost first, where the log should have them.
    fn cause(&self) -> Option<Cause> {
        match self {
            Self::Service(error) if error.kind() == ErrorKind::Internal => {
                Some(Cause(chain(error)))
            }
            Self::Internal(cause) => Some(Cause(cause.clone())),
            Self::Service(_)
            | Self::BadPicture { .. }
            | Self::Malformed(_)
            | Self::NotOneFile { .. }
            | Self::UnsupportedMediaType { .. }
            | Self::BodyTooLarge { .. }
            | Self::UnknownModel { .. }
            | Self::Unauthorised
            | Self::UploadTooSlow
            | Self::UnknownPicture
            | Self::UnknownRoute { .. }
            | Self::WrongMethod { .. } => None,
        }
    }
}

/// An error with all that caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// `text`, an error in our style, with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

impl ApiError {
    /// The loaded model has no such name.
    pub(super) fn unknown_model(asked: &str, state: &AppState) -> Self {
        Self::UnknownModel { asked: quote(asked), served: state.images.info().id.clone() }
    }
}

impl ApiError {
    /// An error of each kind that a request for pictures may get, with what it means.
    pub(super) fn examples() -> [(Self, &'static str); 13] {
        let missing = "Missing required parameter: 'prompt'.";
        let missing = ValidationError::new("prompt", "missing_required_parameter", missing);
        let (asked, served) = ("gpt-4o".to_owned(), "demo".to_owned());
        let offered = ServiceError::NotOffered { what: "pictures from words alone", field: None };
        [
            (missing.into(), "A field is missing or wrong; `param` names it"),
            (Self::Unauthorised, "No key, or a wrong one"),
            (Self::UnknownModel { asked, served }, "No such model"),
            (
                Self::NotOneFile { field: "n", what: "several pictures" },
                "A file was asked for (`Accept: image/png`), and more than one picture",
            ),
            (Self::UploadTooSlow, "The request took too long to arrive"),
            (Self::BodyTooLarge { max_upload_bytes: 128 << 20 }, "The request is too large"),
            (
                MemoryError::NeverFits { needed: 2 << 30, total: 1 << 30 }.into(),
                "Its pictures would take more memory than all requests may hold",
            ),
            (Self::UnsupportedMediaType { accepted: "multipart/form-data" }, "Another media type"),
            (ServiceError::Busy { waiting: 64 }.into(), "The queue is full; see `Retry-After`"),
            (ServiceError::WorkerGone.into(), "The model failed"),
            (offered.into(), "The loaded model does not do this"),
            (MemoryError::NotInTime.into(), "Other requests hold the memory; see `Retry-After`"),
            (ServiceError::ShuttingDown.into(), "The server is shutting down"),
        ]
    }

    pub(super) fn status(&self) -> StatusCode {
        self.row().status
    }

    /// What the client reads.
    pub(super) fn body(&self) -> ErrorEnvelope {
        self.envelope(&self.row())
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl From<MemoryError> for ApiError {
    fn from(error: MemoryError) -> Self {
        Self::Service(error.into())
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        Self::Service(ServiceError::Invalid(error))
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Internal(chain(&error))
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

    /// What a client reads that has its 200 already, and what the log is to say.
    pub(super) fn into_parts(self) -> (ErrorEnvelope, Option<Cause>) {
        (self.envelope(&self.row()), self.cause())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let row = self.row();
        let mut response = json_response(row.status, &self.envelope(&row));
        if matches!(self, Self::Unauthorised) {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        let headers = response.headers_mut();
        match row.retry {
            Retry::AsUsual => {}
            Retry::Never => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Retry::After(seconds) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
            }
        }
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
    let (mut parts, _text) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE {
            wrapped.headers_mut().append(name, value.clone());
        }
    }
    wrapped
}

/// What the client reads of a fault of ours: where numbers overflowed, for that is
/// mended by a setting, and nothing of other causes.
fn internal_message(error: &ServiceError) -> String {
    if let ServiceError::Model(cause @ ModelError::NotFinite { .. }) = error {
        return format!("The server failed to make the picture: {cause}.");
    }
    "The server failed to make the picture. Its log says why.".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_that_are_not_finite_are_a_500_that_names_the_stage() {
        let cause = ModelError::NotFinite { stage: "VAE decoder".to_owned(), dtype: "float16" };

        let response = ApiError::from(ServiceError::from(cause)).into_response();

        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("VAE decoder") && message.contains("float16"), "{message}");
        assert_eq!(body["error"]["type"], "server_error");
    }

    #[test]
    fn causes_reach_the_log_and_not_the_client() {
        let cause = ModelError::BadOutput("NaN at /secret/path".to_owned());

        let response = ApiError::from(ServiceError::from(cause)).into_response();

        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-should-retry"], "false");
        let Cause(logged) = response.extensions().get::<Cause>().unwrap();
        assert_eq!(logged, "the model failed: model produced NaN at /secret/path");
    }

    #[test]
    fn a_panic_of_a_handler_is_a_500_with_its_words_in_the_log_only() {
        let response = panicked(Box::new("index out of bounds"));

        assert_eq!(response.status(), 500);
        let Cause(logged) = response.extensions().get::<Cause>().unwrap();
        assert_eq!(logged, "a handler panicked: index out of bounds");
    }

    #[tokio::test]
    async fn plain_text_errors_keep_their_status_and_headers_in_the_envelope() {
        let foreign = (StatusCode::RANGE_NOT_SATISFIABLE, [("x-own", "kept")], "no such range");

        let wrapped = wrap_foreign(foreign.into_response()).await;

        assert_eq!(wrapped.status(), 416);
        assert_eq!(wrapped.headers()["x-own"], "kept");
        assert_eq!(wrapped.headers()["content-type"], "application/json");
        assert!(!wrapped.headers().contains_key("content-length"));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let response = ApiError::from(ServiceError::Busy { waiting: 3 }).into_response();

        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "5");
    }
}
