//! How a job goes, as server-sent events.
//!
//! An event tells of a state, not of a change: whoever comes late, or comes back with the
//! number of the last event, gets what is the case now, and never twice. Steps that pass while
//! a client reads slowly are left out; the end is always told. Unfinished pictures have no
//! numbers: whoever comes back sees the last one again.

use std::convert::Infallible;
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
use crate::api::docs::JobEvent;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::wire::ErrorEnvelope;
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
    path = "/jobs/{id}/events",
    tag = "jobs",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event that the client has"),
    ),
    responses(
        (status = 200, description = "Events, each an `ImageJob`", body = JobEvent, content_type = "text/event-stream"),
        (status = 404, description = "There is none, or it is somebody else's", body = ErrorEnvelope),
    )
)]
pub(in crate::api) async fn events(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (permit, last) = (Permit::of(&request)?, last_event(request.headers()));
    let record = state.jobs.own(&permit, &id).await?;
    let changes = state.jobs.store.watch(record.id);
    let previews = state.jobs.previews.watch(record.id);
    let following = Following { id: record.id, state, changes, previews, last };
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
struct Following {
    id: JobId,
    state: AppState,
    changes: watch::Receiver<()>,
    previews: watch::Receiver<Preview>,
    /// The number of the last event that it has.
    last: u64,
}

fn told(following: Following) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(following), |following| async {
        let (event, rest) = following?.next().await?;
        Some((Ok(event), rest))
    })
}

impl Following {
    /// The next event, and whether more are to come. Nothing if there is nothing to tell any
    /// more, or the server stops: the client comes back.
    async fn next(mut self) -> Option<(Event, Option<Self>)> {
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
                let event = event_of(record, number, &self.state);
                return Some((event, (!is_over).then_some(self)));
            }
            if is_over {
                return None;
            }
            if let Some(preview) = unseen(&mut self.previews) {
                return Some((Event::default().event("partial_image").data(preview), Some(self)));
            }
            let is_running = record.state == JobState::Running;
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                // The desk has the other end for as long as this one is there. That it has
                // changed is not yet that it was looked at.
                _ = self.previews.changed() => self.previews.mark_changed(),
                () = self.state.service().until_shut_down(), if !is_running => return None,
            }
        }
    }

    async fn seen(&self) -> Result<Option<JobRecord>, JobStoreError> {
        self.state.jobs.store.get(self.id).await
    }
}

fn event_of(record: JobRecord, number: u64, state: &AppState) -> Event {
    let name = match record.state {
        JobState::Queued => "queued",
        JobState::Running => "progress",
        JobState::Succeeded => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    };
    // A job is always JSON, and JSON has no line breaks.
    let data = serde_json::to_string(&ImageJob::of(record, state)).unwrap_or_default();
    Event::default().event(name).id(number.to_string()).data(data)
}
