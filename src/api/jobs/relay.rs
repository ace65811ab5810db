//! A gateway's requests: each becomes a job for a worker, whose reply goes to the client that
//! waits for it. A client that leaves takes its job with it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use tokio::sync::watch;

use super::accept::{self, Accepted, Haste};
use super::events::Following;
use super::{envelope_of, failed, succeeded};
use crate::api::access::Permit;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::images::Sent;
use crate::api::state::AppState;
use crate::api::wire::ErrorEnvelope;
use crate::causes;
use crate::jobs::{Created, Fleet, JobFailure, JobId, JobRecord, JobState, JobStoreError, NewJob};
use crate::requests::{Delivery, Fields, RequestContext};
use crate::service::MemoryShare;

/// How often a silent stream says that it is alive: proxies give up after 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The job was called off by others, who had not heard of this gateway for too long.
const LOST: ApiError = ApiError::Jobs(JobStoreError::NotInTime);
/// How often a job is looked at that nobody has told of.
const LOOK: Duration = Duration::from_secs(5);

/// Has a worker make what is asked for.
pub(in crate::api) async fn relay(
    (state, permit, context): (&AppState, &Arc<Permit>, &RequestContext),
    read: (Fields, MemoryShare),
    sent: Sent,
) -> Result<Relayed, ApiError> {
    let asking = (state, permit, context);
    let Accepted { delivery, waiting, .. } =
        accept::store(asking, read, sent, Haste::Attached).await?;
    Ok(Relayed { waiting: waiting.ok_or(LOST)?, delivery })
}

/// Stores a job for a client that waits. If that leaves meanwhile the job is stored all the
/// same, by then may be run, and is called off.
pub(super) async fn create(state: &AppState, job: NewJob) -> Result<(Created, Waiting), ApiError> {
    let state = state.clone();
    let creating = tokio::spawn(async move {
        let created = state.jobs.store.create(job).await?;
        let (Created::New(record) | Created::Same(record) | Created::Other(record)) = &created;
        let waiting = Waiting::new(&state, record.id);
        Ok::<_, ApiError>((created, waiting))
    });
    creating.await?
}

/// A request that a worker makes. Dropped, it is called off.
pub(in crate::api) struct Relayed {
    waiting: Waiting,
    delivery: Delivery,
}

impl Relayed {
    /// Tells how it goes, to whoever does not get the reply.
    pub(in crate::api) fn following(&self) -> Following {
        Following::of(self.waiting.state.clone(), self.waiting.id, 0)
    }

    /// The reply.
    pub(in crate::api) async fn deliver(self, deadline: Deadline) -> Result<Response, ApiError> {
        let Self { waiting, delivery } = self;
        match (delivery, waiting.state.jobs.fleet.clone()) {
            (Delivery::Events, Some(fleet)) => {
                Ok(streamed(RelayedStream { waiting, fleet, sent: 0, deadline }))
            }
            _ => waiting.reply().await,
        }
    }
}

/// A client that waits for its job. Dropped, the job is called off and forgotten.
pub(super) struct Waiting {
    id: JobId,
    state: AppState,
    changes: watch::Receiver<()>,
}

impl Waiting {
    fn new(state: &AppState, id: JobId) -> Self {
        Self { id, state: state.clone(), changes: state.jobs.store.watch(id) }
    }

    async fn reply(mut self) -> Result<Response, ApiError> {
        loop {
            self.changes.mark_unchanged();
            let record = self.record().await?;
            if record.state.is_final() {
                return self.reply_of(record).await;
            }
            self.changed().await;
        }
    }

    async fn record(&self) -> Result<JobRecord, ApiError> {
        self.state.jobs.store.get(self.id).await?.ok_or(LOST)
    }

    /// Completes when something may have changed.
    async fn changed(&mut self) {
        let _ = tokio::time::timeout(LOOK, self.changes.changed()).await;
    }

    async fn reply_of(&self, record: JobRecord) -> Result<Response, ApiError> {
        if let Some(failure) = record.failure {
            return Ok(failed(failure));
        }
        if record.state != JobState::Succeeded {
            return Err(LOST);
        }
        let mut memory = self.state.requests.memory.share();
        memory.grow_to(usize::try_from(record.result_bytes).unwrap_or(usize::MAX)).await?;
        let result = self.state.jobs.store.result(self.id).await?.ok_or(LOST)?;
        succeeded(result)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (state, id) = (self.state.clone(), self.id);
        tokio::spawn(async move {
            let store = &state.jobs.store;
            let forgotten = async {
                store.cancel(id).await?;
                store.remove(id).await
            };
            if let Err(error) = forgotten.await {
                // Its lease runs out.
                tracing::warn!(cause = causes::one_line(&error), "a job cannot be forgotten");
            }
        });
    }
}

/// A stream of a worker on its way to the client.
struct RelayedStream {
    waiting: Waiting,
    fleet: Arc<dyn Fleet>,
    /// Parts that the client has. A worker that begins anew makes the same ones again.
    sent: u64,
    deadline: Deadline,
}

/// What comes next of a stream.
enum Next {
    Part(Bytes),
    Failed(JobFailure),
    End,
}

fn streamed(relayed: RelayedStream) -> Response {
    let parts = stream::unfold(Some(relayed), |relayed| async {
        let (part, rest) = relayed?.next().await?;
        Some((Ok::<_, std::convert::Infallible>(part), rest))
    });
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies shall pass each event on at once.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    response
}

impl RelayedStream {
    /// The next part, and whether there may be more.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        let next = tokio::time::timeout(KEEP_ALIVE, self.deadline.bound(self.part())).await;
        match next {
            Err(_silence) => Some((Bytes::from_static(b": keep-alive\n\n"), Some(self))),
            Ok(Ok(Next::Part(part))) => Some((part, Some(self))),
            Ok(Ok(Next::Failed(failure))) => Some((event_of(&envelope_of(failure)), None)),
            Ok(Ok(Next::End)) => None,
            Ok(Err(error)) => Some((ended(error), None)),
        }
    }

    /// What comes after the parts that the client has.
    async fn part(&mut self) -> Result<Next, ApiError> {
        loop {
            self.waiting.changes.mark_unchanged();
            let record = self.waiting.record().await?;
            if record.parts > self.sent {
                match self.fleet.part(&record, self.sent).await {
                    Ok(part) => {
                        self.sent += 1;
                        return Ok(Next::Part(part));
                    }
                    // Another worker has begun anew in between, or what keeps it is away.
                    Err(error) => tracing::warn!(cause = causes::one_line(&error), "a part"),
                }
            } else if let Some(failure) = record.failure {
                return Ok(Next::Failed(failure));
            } else if record.state.is_final() {
                return Ok(Next::End);
            }
            self.waiting.changed().await;
        }
    }
}

/// An error in the middle of a stream, which is logged here.
fn ended(error: ApiError) -> Bytes {
    let (envelope, cause, _code) = error.into_parts();
    if let Some(cause) = cause {
        tracing::error!(cause = cause.0, "a stream ends");
    }
    event_of(&envelope)
}

fn event_of(envelope: &ErrorEnvelope) -> Bytes {
    let data = serde_json::to_string(envelope).unwrap_or_default();
    Bytes::from(format!("event: error\ndata: {data}\n\n"))
}
