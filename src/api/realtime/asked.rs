//! What is asked for over a WebSocket, each in a task: pictures, which go the way of any
//! request, and how jobs go.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tracing::Instrument;

use super::messages::{Create, JobMessage, PreviewKind, ServerMessage};
use super::session::{Outbox, Slot, error_message};
use super::socket::COPIES;
use crate::api::access::{Permit, Readmission};
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::images::{self, Begun, Ordered, Sent};
use crate::api::jobs::{self, Following, Relayed, Told};
use crate::api::json;
use crate::api::origin::Origin;
use crate::api::reply::MODEL_LOAD_MS;
use crate::api::request_log::{RequestLog, log_message};
use crate::api::state::AppState;
use crate::api::stream::PreviewEvents;
use crate::api::wire::ErrorEnvelope;
use crate::domain::{FaultKind, ValidationError};
use crate::requests::{Accepted, Asked, Fields};
use crate::service::{MemoryShare, Position, RunningJob};
use crate::telemetry::spans;

/// How often it is looked how many are ahead of a request that waits.
const LOOK: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) state: AppState,
    /// With which the connection was opened.
    pub(super) permit: Arc<Permit>,
    pub(super) origin: Origin,
    /// How long it waits for each request.
    pub(super) patience: Option<Duration>,
    /// Where the connection was opened.
    pub(super) route: String,
}

/// A request on its way to its pictures.
struct Making<'a> {
    asker: &'a Asker,
    permit: &'a Arc<Permit>,
    id: String,
    outbox: &'a Outbox,
}

/// How the reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Job,
    Pictures,
}

impl Asker {
    /// Makes the pictures of a request, and tells how it goes.
    pub(super) async fn make(
        mut self,
        create: Create,
        memory: MemoryShare,
        (slot, outbox): (Slot, Outbox),
    ) {
        // The connection may be older than a model.
        self.state = self.state.latest();
        let config = &self.state.config;
        let log = RequestLog::of(self.state.metrics(), config);
        let (request_id, span, mut line) = log_message(log, self.route.clone());
        let Readmission { admitted, key } = self.state.access.admit_again(&self.permit);
        let deadline = Deadline::within(self.patience, config);
        let making = async {
            let (permit, _running) = admitted?;
            let making =
                Making { asker: &self, permit: &permit, id: slot.id.clone(), outbox: &outbox };
            let made = AssertUnwindSafe(deadline.bound(making.make(create, memory)));
            let panicked = |_| ApiError::Internal("what makes pictures panicked".to_owned());
            let made = made.catch_unwind().await.unwrap_or_else(|panic| Err(panicked(panic)));
            // What a worker could not make is told by a reply, as it is.
            if made.as_ref().map_or(true, |(response, _)| !response.status().is_success()) {
                permit.give_back();
            }
            made
        };
        let (mut response, written) = match making.instrument(span).await {
            Ok((response, reply)) => read(response, reply, (&slot.id, &request_id)).await,
            Err(error) => failed(error, (&slot.id, &request_id)),
        };
        response.extensions_mut().extend(key.map(one_extension).unwrap_or_default());
        line.note(&mut response);
        drop(line);
        if slot.end() {
            outbox.send(written).await;
        }
    }
}

/// Extensions of one value.
fn one_extension<T: Clone + Send + Sync + 'static>(value: T) -> axum::http::Extensions {
    let mut extensions = axum::http::Extensions::new();
    extensions.insert(value);
    extensions
}

impl Making<'_> {
    async fn make(
        &self,
        create: Create,
        memory: MemoryShare,
    ) -> Result<(Response, Reply), ApiError> {
        let Create { endpoint, body, idempotency_key, .. } = create;
        let state = &self.asker.state;
        let context = self.permit.context(&state.requests)?;
        context.models.check_offered(endpoint.task_kind())?;
        let idempotency_key = jobs::checked_key(idempotency_key)?;
        let (mut fields, memory) = read_fields(state, body, memory).await?;
        if idempotency_key.is_some() && !fields.is_in_background() {
            let message = "Unsupported parameter: 'idempotency_key' needs 'background': true.";
            let kind = FaultKind::Unsupported;
            return Err(ValidationError::new("idempotency_key", kind, message).into());
        }
        if !fields.is_in_background() {
            fields.take_stream()?;
        }
        let (accepted, client) = (Accepted::Json, self.permit.client());
        let asked = Asked { deployment: None, accepted, client, is_followed: true };
        let sent = Sent { endpoint, origin: self.asker.origin.clone(), asked, idempotency_key };
        match images::begin((state, self.permit, &context), (fields, memory), sent).await? {
            Begun::Accepted(response) => Ok((response, Reply::Job)),
            Begun::Relayed(relayed) => Ok((self.relay(relayed).await?, Reply::Pictures)),
            Begun::Ordered(ordered) => Ok((self.deliver(*ordered).await?, Reply::Pictures)),
        }
    }

    /// Waits for the pictures, and tells how far they are.
    async fn deliver(&self, mut ordered: Ordered) -> Result<Response, ApiError> {
        let position = ordered.handle.position();
        let ahead = position.ahead().unwrap_or_default();
        self.outbox.send(ServerMessage::Queued { id: &self.id, position: ahead }.written()).await;
        let progress = ordered.handle.progress();
        let mut previews = ordered.take_previews();
        tokio::select! {
            shown = self.show(&mut previews) => shown?,
            never = self.tell((progress, ahead), &position) => match never {},
        }
        // It is bound as a whole.
        ordered.deliver(Deadline::NEVER).await
    }

    /// Waits for what a worker makes, and tells how it goes.
    async fn relay(&self, relayed: Relayed) -> Result<Response, ApiError> {
        let following = relayed.following();
        tokio::select! {
            response = relayed.deliver(Deadline::NEVER) => response,
            never = self.tell_of_job(following) => match never {},
        }
    }

    /// Tells of a job that a worker has, as of any other request.
    async fn tell_of_job(&self, following: Following) -> Infallible {
        let mut next = Some(following);
        while let Some(following) = next {
            let Some((told, rest)) = following.next().await else { break };
            next = rest;
            match told {
                Told::Job(event) => {
                    if let Some(message) = ServerMessage::of_job(&self.id, &event.job) {
                        self.outbox.offer(message.written());
                    }
                }
                Told::Preview(preview) => {
                    self.outbox.show(PreviewKind::OfRequest, &self.id, preview).await;
                }
            }
        }
        std::future::pending().await
    }

    /// Shows the unfinished pictures; done once the model is.
    async fn show(&self, previews: &mut PreviewEvents) -> Result<(), ApiError> {
        while let Some(preview) = previews.next().await? {
            self.outbox.show(PreviewKind::OfRequest, &self.id, preview.into()).await;
        }
        Ok(())
    }

    /// Tells how many are ahead, and then how far the model is.
    async fn tell(
        &self,
        (mut progress, mut told): (watch::Receiver<Option<RunningJob>>, usize),
        position: &Position,
    ) -> Infallible {
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                changed = progress.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    if let Some(job) = &*progress.borrow_and_update() {
                        self.outbox.offer(progress_message(&self.id, job));
                    }
                }
                _ = look.tick() => if let Some(ahead) = position.ahead().filter(|it| *it != told) {
                    told = ahead;
                    let queued = ServerMessage::Queued { id: &self.id, position: ahead };
                    self.outbox.offer(queued.written());
                }
            }
        }
    }
}

fn progress_message(id: &str, job: &RunningJob) -> String {
    let RunningJob { picture, pictures, step, steps, .. } = *job;
    let (stage, eta_ms) = (Some(job.stage.name()), job.left_ms());
    let total = (steps > 0).then_some(steps);
    ServerMessage::Progress { id, stage, picture, pictures, step, total, eta_ms }.written()
}

/// Takes a body apart, off the runtime.
async fn read_fields(
    state: &AppState,
    body: Bytes,
    mut memory: MemoryShare,
) -> Result<(Fields, MemoryShare), ApiError> {
    memory.grow_to(body.len().saturating_mul(COPIES)).await?;
    let max_fields = state.config.max_parts;
    let parse = move || json::parse(&body, max_fields).map(|fields| (fields, memory));
    let (mut fields, mut memory) = tokio::task::spawn_blocking(spans::carried(parse)).await??;
    fields.resolve_aliases();
    memory.shrink_to(fields.held_bytes());
    Ok((fields, memory))
}

/// The reply as a message, and what else the log wants of it.
async fn read(response: Response, reply: Reply, names: (&str, &str)) -> (Response, String) {
    let (parts, body) = response.into_parts();
    let loading = parts.headers.get(MODEL_LOAD_MS).and_then(|ms| ms.to_str().ok()?.parse().ok());
    // It was made whole.
    let body = to_bytes(body, usize::MAX).await.map_err(|error| ApiError::internal(&error));
    let written = match body {
        Ok(body) if parts.status.is_success() => written(body, (reply, loading), names).await,
        Ok(body) => retold(&body, (parts.status, &parts.headers), names),
        Err(error) => Err(error),
    };
    match written {
        Ok(written) => (Response::from_parts(parts, axum::body::Body::empty()), written),
        Err(error) => failed(error, names),
    }
}

/// Writes a message with the JSON of a reply in it, off the runtime.
async fn written(
    body: Bytes,
    (reply, model_load_ms): (Reply, Option<u64>),
    (id, request_id): (&str, &str),
) -> Result<String, ApiError> {
    let (id, request_id) = (id.to_owned(), request_id.to_owned());
    let writing = tokio::task::spawn_blocking(move || {
        let (id, request_id) = (id.as_str(), request_id.as_str());
        let json: &RawValue = serde_json::from_slice(&body)?;
        let message = match reply {
            Reply::Job => ServerMessage::Accepted { id, request_id, job: json },
            Reply::Pictures => {
                ServerMessage::Completed { id, request_id, model_load_ms, response: json }
            }
        };
        Ok::<_, serde_json::Error>(message.written())
    });
    writing.await?.map_err(|error| ApiError::internal(&error))
}

/// A message of an error that somebody else has answered with.
fn retold(
    body: &[u8],
    (status, headers): (StatusCode, &HeaderMap),
    (id, request_id): (&str, &str),
) -> Result<String, ApiError> {
    let told: ErrorEnvelope =
        serde_json::from_slice(body).map_err(|error| ApiError::internal(&error))?;
    let (retry_after_ms, status) = (retry_after_ms(status, headers), status.as_u16());
    let error = told.error;
    Ok(ServerMessage::Failed { id, request_id, status, retry_after_ms, error }.written())
}

/// An error as HTTP would answer it, and as a message.
fn failed(error: ApiError, (id, request_id): (&str, &str)) -> (Response, String) {
    let (status, body) = (error.status(), error.body().error);
    let response = error.into_response();
    let retry_after_ms = retry_after_ms(status, response.headers());
    let status = status.as_u16();
    let message = ServerMessage::Failed { id, request_id, status, retry_after_ms, error: body };
    (response, message.written())
}

/// When to ask again, if the answer says so.
fn retry_after_ms(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let seconds = || number(header::RETRY_AFTER.as_str()).map(|seconds| seconds * 1000);
    let wait = number("retry-after-ms").or_else(seconds);
    wait.filter(|_| status.is_client_error() || status.is_server_error())
}

/// Tells how a job goes, until it ends.
pub(super) async fn follow(
    asker: Asker,
    (job, last): (String, u64),
    (slot, outbox): (Slot, Outbox),
) {
    // As long as it is followed it counts as a request, of a key that is still good.
    let begun = async {
        let (permit, running) = asker.state.access.admit_again(&asker.permit).admitted?;
        let following = Following::begin(asker.state.clone(), (&permit, &job), last).await?;
        Ok::<_, ApiError>((following, running))
    };
    let (mut next, _running) = match begun.await {
        Ok((following, running)) => (Some(following), running),
        Err(error) => {
            if slot.end() {
                outbox.send(error_message(Some(&slot.id), &error)).await;
            }
            return;
        }
    };
    while let Some(following) = next {
        let Some((told, rest)) = following.next().await else { break };
        next = rest;
        match told {
            Told::Job(event) => outbox.send(JobMessage::written(&slot.id, *event)).await,
            Told::Preview(preview) => outbox.show(PreviewKind::OfJob, &slot.id, preview).await,
        }
    }
    slot.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_that_a_worker_answered_with_is_told_as_one() {
        let error =
            r#"{"error":{"message":"It broke.","type":"server_error","param":null,"code":null}}"#;
        let response = (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3")], error);

        let (response, written) =
            read(response.into_response(), Reply::Pictures, ("a", "trace-1")).await;

        let told: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((&told["type"], &told["id"]), (&"image.failed".into(), &"a".into()), "{told}");
        assert_eq!((&told["status"], &told["retry_after_ms"]), (&503.into(), &3000.into()));
        assert_eq!(told["error"]["message"], "It broke.");
    }
}
