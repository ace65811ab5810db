//! How a job goes, as server-sent events.
//!
//! An event tells of a state, not of a change: whoever comes late, or comes back with the
//! number of the last event, gets what is the case now, and never twice. Steps that pass while
//! a client reads slowly are left out; the end is always told. Unfinished pictures have no
//! numbers: whoever comes back sees the last one again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use tokio::sync::watch;

use super::previews::{Preview, unseen};
use super::wire::ImageJob;
use crate::api::access::Permit;
use crate::api::docs;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::wire::ErrorEnvelope;
use crate::causes;
use crate::jobs::{JobId, JobRecord, JobState, JobStoreError};

/// How often a silent stream says that it is alive: proxies give up after 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The header with the number of the last event that a client has.
const LAST_EVENT_ID: &str = "last-event-id";

/// How a job goes, as server-sent events
///
/// `queued`, `progress`, then `completed`, `failed` or `cancelled`, each with the job as
/// JSON. They are numbered: with `Last-Event-ID`, those after that one are sent, also by a
/// server that was started again. With `partial_images` in the request there are
/// `partial_image` in between, without a number: each an `ImageEvent` as JSON.
#[utoipa::path(
    get,
    operation_id = "job_events",
    path = "/jobs/{id}/events",
    tag = "jobs",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event that the client has"),
    ),
    responses(
        (status = 200, description = "Events, each an `ImageJob`", body = docs::JobEvent, content_type = "text/event-stream"),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (permit, last) = (Permit::of(&request)?, last_event(request.headers()));
    let following = Following::begin(state, (&permit, &id), last).await?;
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(told(following)).keep_alive(keep_alive).into_response();
    // Proxies shall pass each event on at once.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    Ok(response)
}

/// The number of the last event that the client has; 0 if it says none, or nonsense.
fn last_event(headers: &HeaderMap) -> u64 {
    let text = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// A client that follows a job.
pub(in crate::api) struct Following {
    id: JobId,
    state: AppState,
    changes: watch::Receiver<()>,
    /// What this process shows of it.
    previews: watch::Receiver<Preview>,
    /// How many unfinished pictures there were in a store that others share.
    parts: u64,
    /// The number of the last event that it has.
    last: u64,
}

fn told(following: Following) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(following), |following| async {
        let (event, rest) = following?.next().await?;
        Some((Ok(event.into()), rest))
    })
}

/// What is told of a job.
pub(in crate::api) enum Told {
    Job(Box<JobEvent>),
    /// An unfinished picture: an `ImageEvent` as JSON.
    Preview(Arc<str>),
}

/// How a job is, at some time.
pub(in crate::api) struct JobEvent {
    /// `queued`, `progress`, `completed`, `failed` or `cancelled`.
    pub(in crate::api) name: &'static str,
    /// Of two events the later one has the greater number.
    pub(in crate::api) number: u64,
    pub(in crate::api) job: ImageJob,
}

impl Following {
    /// Follows the job that is called `id`, which must be of whoever asks, from the event
    /// after `last` on.
    pub(in crate::api) async fn begin(
        state: AppState,
        (permit, id): (&Permit, &str),
        last: u64,
    ) -> Result<Self, ApiError> {
        let record = state.jobs.own(permit, id).await?;
        Ok(Self::of(state, record.id, last))
    }

    /// Follows a job of whoever it is.
    pub(super) fn of(state: AppState, id: JobId, last: u64) -> Self {
        let (changes, previews) = (state.jobs.store.watch(id), state.jobs.previews.watch(id));
        Self { id, state, changes, previews, parts: 0, last }
    }

    /// The next event, and whether more are to come. Nothing if there is nothing to tell any
    /// more, or the server stops: the client comes back.
    pub(in crate::api) async fn next(mut self) -> Option<(Told, Option<Self>)> {
        loop {
            self.changes.mark_unchanged();
            let record = match self.seen().await {
                Ok(record) => record?,
                Err(error) => {
                    tracing::warn!(%error, "events of a job end");
                    return None;
                }
            };
            let (number, is_over) = (record.event_number(), record.state.is_final());
            if number > self.last {
                self.last = number;
                let event = JobEvent::of(record, number, &self.state);
                return Some((Told::Job(Box::new(event)), (!is_over).then_some(self)));
            }
            if is_over {
                return None;
            }
            let is_running = record.state == JobState::Running;
            if let Some(preview) = self.preview(record).await {
                return Some((Told::Preview(preview), Some(self)));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                // The desk has the other end for as long as this one is there. That it has
                // changed is not yet that it was looked at.
                _ = self.previews.changed() => self.previews.mark_changed(),
                () = self.state.service().until_shut_down(), if !is_running => return None,
            }
        }
    }

    /// The unfinished picture that was not told of yet.
    async fn preview(&mut self, record: JobRecord) -> Preview {
        let Some(fleet) = &self.state.jobs.fleet else { return unseen(&mut self.previews) };
        // One that begins anew has none at first.
        let newest = record.parts.checked_sub(1).filter(|_| record.parts > self.parts);
        self.parts = record.parts;
        match fleet.part(&record, newest?).await {
            Ok(part) => std::str::from_utf8(&part).ok().map(Arc::from),
            Err(error) => {
                tracing::warn!(cause = causes::one_line(&error), "an unfinished picture is gone");
                None
            }
        }
    }

    async fn seen(&self) -> Result<Option<JobRecord>, JobStoreError> {
        self.state.jobs.store.get(self.id).await
    }
}

impl JobEvent {
    fn of(record: JobRecord, number: u64, state: &AppState) -> Self {
        let name = match record.state {
            JobState::Queued => "queued",
            JobState::Running => "progress",
            JobState::Succeeded => "completed",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        };
        Self { name, number, job: ImageJob::of(record, state) }
    }
}

impl From<Told> for Event {
    fn from(told: Told) -> Self {
        let JobEvent { name, number, job } = match told {
            Told::Job(event) => *event,
            Told::Preview(preview) => return Self::default().event("partial_image").data(preview),
        };
        // A job is always JSON, and JSON has no line breaks.
        let data = serde_json::to_string(&job).unwrap_or_default();
        Self::default().event(name).id(number.to_string()).data(data)
    }
}
