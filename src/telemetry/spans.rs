//! The spans of traces: one for a request, one for each of its stages.
//!
//! They have names, numbers and words of the program's own; never prompts, keys, pictures, or
//! paths, for those of stored pictures are secrets. Where there are no traces they are
//! disabled, and cost a look at a flag.

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// What is for the traces, and not for the log. Its spans are of the level INFO: a finer one
/// would raise what the whole process makes lines of, other crates included.
pub const TARGET: &str = "diffuser_api::traces";

/// The body of a request arrives.
pub const READ_BODY: &str = "read_body";
/// A request waits for its turn.
pub const QUEUE: &str = "queue";
/// A request's model is loaded.
pub const LOAD_MODEL: &str = "load_model";

/// What watches over the server asks for these all the time: they make no traces.
pub const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The span of a request within `log`, that of its log; or `log` itself, without traces.
/// What calls itself the parent in `headers` is. `route` is one of the server's.
#[must_use]
pub fn request(log: &Span, method: &str, route: &str, headers: &HeaderMap) -> Span {
    if PROBES.contains(&route) {
        return log.clone();
    }
    let method = known_method(method);
    let span = tracing::info_span!(
        target: TARGET,
        parent: log,
        "request",
        otel.name = format!("{} {route}", if method == UNKNOWN_METHOD { "HTTP" } else { method }),
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        "error.type" = field::Empty,
        request_id = field::Empty,
        model = field::Empty,
        operation = field::Empty,
        size = field::Empty,
        steps = field::Empty,
        n = field::Empty,
    );
    if span.is_disabled() {
        return log.clone();
    }
    if headers.contains_key(TRACE_PARENT) {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        // It is new: nothing has begun it.
        let _ = span.set_parent(parent);
    }
    span
}

/// By W3C's Trace Context.
const TRACE_PARENT: &str = "traceparent";

/// What OpenTelemetry's conventions have for words that are no methods.
const UNKNOWN_METHOD: &str = "_OTHER";

fn known_method(method: &str) -> &'static str {
    const USUAL: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    USUAL.into_iter().find(|usual| *usual == method).unwrap_or(UNKNOWN_METHOD)
}

/// The request of `span` was answered; `code` is that of its error.
pub fn answered(span: &Span, status: u16, code: Option<&str>) {
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 || (code.is_some() && status < 400) {
        span.record("otel.status_code", "ERROR");
    }
    match code {
        Some(code) => span.record("error.type", code),
        None if status >= 500 => span.record("error.type", status.to_string()),
        None => span,
    };
}

/// What the request of `span` is for: `count` pictures, of `steps` each.
pub fn asked(span: &Span, model: &str, operation: &str, (steps, count): (usize, usize)) {
    span.record("model", model);
    span.record("operation", operation);
    span.record("steps", number(steps));
    span.record("n", number(count));
}

/// The request of `span` got pictures of this size, `WIDTHxHEIGHT`.
pub fn made(span: &Span, size: &str) {
    span.record("size", size);
}

/// The only whole numbers that spans have: others become texts.
fn number(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The client left before the request of `span` was answered.
pub fn abandoned(span: &Span) {
    span.record("error.type", "client_left");
}

/// A stage of the request that is worked on here, until the span is dropped. There is none
/// for what no client asked for.
#[must_use]
pub fn stage(name: &'static str) -> Span {
    if Context::map_current(TraceContextExt::has_active_span) {
        tracing::info_span!(target: TARGET, "stage", otel.name = name)
    } else {
        Span::none()
    }
}

/// A step within `stage` is done.
pub fn step(stage: &Span, picture: usize, step: usize) {
    let (picture, step) = (number(picture), number(step));
    tracing::info!(target: TARGET, parent: stage, picture, step, "step");
}

/// `work` in the spans of whoever calls this, on whichever thread it is done.
pub fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let span = Span::current();
    move || span.in_scope(work)
}

/// The headers of a request, as OpenTelemetry reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
