//! One log line and one id per request.
//!
//! The line has the id, the route, the status and the time, and what was made.
//! It never has prompts, pictures, keys, or paths that are no routes of ours.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use tracing::{Instrument, Span};

use super::ApiConfig;
use super::access::UsedKey;
use super::error::Cause;
use crate::metrics::{ErrorCode, Metrics, Operation};
use crate::telemetry::spans;

/// The header that carries a request's id, both ways.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id of a client's own that is kept.
const MAX_ID_LENGTH: usize = 128;

/// What was made for a request; in its response's extensions.
#[derive(Debug, Clone)]
pub(super) struct WorkDone {
    pub(super) steps: usize,
    /// `WIDTHxHEIGHT`.
    pub(super) size: String,
    pub(super) images: usize,
    pub(super) model: String,
    pub(super) operation: Operation,
    /// Of all pictures together.
    pub(super) pixels: usize,
}

/// How a stream ended that had its 200 already.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Made(WorkDone),
    Failed(Option<Cause>, ErrorCode),
}

/// In a response's extensions: its body is a stream, which says how it went when
/// it has ended. Until then nothing is logged.
#[derive(Debug, Clone)]
pub(super) struct Afterwards(pub(super) Arc<OnceLock<Outcome>>);

/// What becomes of what is known of a request.
#[derive(Clone)]
pub(super) struct RequestLog {
    pub(super) metrics: Metrics,
    /// Whether those are logged, too, that the server did not fail.
    pub(super) access: bool,
}

impl RequestLog {
    pub(super) fn of(metrics: &Metrics, config: &ApiConfig) -> Self {
        Self { metrics: metrics.clone(), access: config.access_log }
    }
}

/// Middleware: gives the request an id and a span, and logs and counts how it went.
pub(super) async fn log_requests(
    State(log): State<RequestLog>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("(none)", MatchedPath::as_str).to_owned();
    let shown_id = id.to_str().unwrap_or_default();
    // Whatever the log's filter lets through is to have the id.
    let span = tracing::error_span!("request", id = shown_id);
    let span = spans::request(&span, request.method().as_str(), &route, request.headers());
    span.record("request_id", shown_id);
    let mut line = LogLine {
        log,
        span: span.clone(),
        method: request.method().as_str().to_owned(),
        route,
        started: Instant::now(),
        answer: None,
    };
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    let afterwards = response.extensions_mut().remove();
    line.note(&mut response);
    match afterwards {
        Some(Afterwards(outcome)) => log_afterwards(response, line, outcome),
        None => response,
    }
}

/// The method, as logs and metrics have it, of requests that come as messages.
const MESSAGE: &str = "MESSAGE";

/// A request that came as a message of a WebSocket at `route`: its id, its span, and its line.
pub(super) fn log_message(log: RequestLog, route: String) -> (String, Span, LogLine) {
    let id = uuid::Uuid::new_v4().to_string();
    let span = tracing::error_span!("request", id);
    let span = spans::request(&span, MESSAGE, &route, &HeaderMap::new());
    span.record("request_id", &id);
    let (method, started) = (MESSAGE.to_owned(), Instant::now());
    let line = LogLine { log, span: span.clone(), method, route, started, answer: None };
    (id, span, line)
}

/// Has the line written when the stream has ended or its client has gone.
fn log_afterwards(response: Response, line: LogLine, outcome: Arc<OnceLock<Outcome>>) -> Response {
    let span = line.span.clone();
    let mut ending = StreamEnd { line, outcome };
    response.map(|body| {
        let mut chunks = body.into_data_stream().inspect(move |_chunk| ending.look());
        Body::from_stream(futures::stream::poll_fn(move |context| {
            span.in_scope(|| chunks.poll_next_unpin(context))
        }))
    })
}

/// A log line that waits for the end of a stream.
struct StreamEnd {
    line: LogLine,
    outcome: Arc<OnceLock<Outcome>>,
}

impl StreamEnd {
    /// Takes note of the outcome, if there is one by now.
    fn look(&mut self) {
        let Some(answer) = &mut self.line.answer else { return };
        match self.outcome.get() {
            None => {}
            Some(Outcome::Made(work)) => answer.work = Some(work.clone()),
            Some(Outcome::Failed(cause, code)) => {
                answer.cause.clone_from(cause);
                answer.code = Some(*code);
            }
        }
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.look();
        if self.outcome.get().is_none() {
            self.line.answer = None;
        }
    }
}

/// The client's own id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_sane = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID_LENGTH).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(REQUEST_ID).filter(is_sane).cloned();
    given.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        // A UUID is plain ASCII: the alternative is never taken.
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

/// A log line that is written when it is dropped: also when the client leaves
/// and the request is dropped half way.
pub(super) struct LogLine {
    log: RequestLog,
    /// That of the request.
    span: Span,
    method: String,
    route: String,
    started: Instant,
    /// `None` until the response is there.
    answer: Option<Answer>,
}

struct Answer {
    status: StatusCode,
    cause: Option<Cause>,
    code: Option<ErrorCode>,
    work: Option<WorkDone>,
    key: Option<UsedKey>,
}

/// What the metrics have as the status of a request whose client left.
const CLIENT_LEFT: u16 = 499;

impl LogLine {
    /// Takes note of how the request was answered, and takes what only the log wants.
    pub(super) fn note(&mut self, response: &mut Response) {
        self.answer = Some(Answer {
            status: response.status(),
            cause: response.extensions_mut().remove(),
            code: response.extensions_mut().remove(),
            work: response.extensions_mut().remove(),
            key: response.extensions_mut().remove(),
        });
    }

    fn count(&self) {
        let status = self.answer.as_ref().map_or(CLIENT_LEFT, |answer| answer.status.as_u16());
        let took = self.started.elapsed();
        let metrics = &self.log.metrics;
        metrics.request_answered(&self.method, &self.route, status, took);
        let Some(Answer { code, work, .. }) = &self.answer else { return };
        if let Some(code) = code {
            metrics.request_failed(*code);
        }
        if let Some(WorkDone { model, operation, images, pixels, .. }) = work {
            metrics.pictures_made(model, *operation, *images, *pixels);
        }
    }
}

impl LogLine {
    fn trace(&self) {
        let Some(Answer { status, code, work, .. }) = &self.answer else {
            return spans::abandoned(&self.span);
        };
        spans::answered(&self.span, status.as_u16(), code.map(|ErrorCode(code)| code));
        if let Some(WorkDone { size, .. }) = work {
            spans::made(&self.span, size);
        }
    }

    fn write(&self) {
        let (method, route, access) = (&self.method, &self.route, self.log.access);
        let milliseconds = self.started.elapsed().as_millis();
        let Some(Answer { status, cause, work, key, .. }) = &self.answer else {
            if access {
                tracing::info!(%method, route, milliseconds, "client went away");
            }
            return;
        };
        let status = status.as_u16();
        let key = key.as_ref().map(|UsedKey(name)| &**name);
        if let Some(Cause(cause)) = cause {
            tracing::error!(%method, route, status, milliseconds, key, cause, "request failed");
        } else if spans::PROBES.contains(&route.as_str()) {
            tracing::debug!(%method, route, status, milliseconds, key, "request answered");
        } else if !access && status < 500 {
            // Nobody wants to know.
        } else if let Some(WorkDone { steps, size, images, .. }) = work {
            tracing::info!(
                %method, route, status, milliseconds, key, steps, size, n = images, "request answered"
            );
        } else {
            tracing::info!(%method, route, status, milliseconds, key, "request answered");
        }
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        self.count();
        self.trace();
        self.span.in_scope(|| self.write());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_ids_are_kept_and_others_replaced() {
        let id_for = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            request_id(&headers)
        };

        assert_eq!(id_for(b"trace-7:a/b"), "trace-7:a/b");
        for odd in [b"".as_slice(), b"two words", b"\xff", &[b'a'; 129]] {
            assert_eq!(id_for(odd).len(), 36, "{odd:?}");
        }
    }
}
