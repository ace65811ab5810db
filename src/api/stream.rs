//! Pictures as server-sent events, unfinished ones first.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, Stream};
use serde::Serialize;

use super::deadline::Deadline;
use super::error::ApiError;
use super::kept::Keeper;
use super::reply::{self, ReplyFacts, size_of};
use super::request_log::{Afterwards, Outcome};
use super::state::unix_seconds;
use super::wire::{Background, ImageEvent};
use crate::domain::{Picture, Seed};
use crate::model::TokenUsage;
use crate::requests::Endpoint;
use crate::service::{Finished, JobHandle, Unfinished};
use crate::telemetry::spans;

/// How often a silent stream says that it is alive: proxies give up after 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A job whose client reads along. Dropped, it is called off.
struct Streaming {
    handle: JobHandle,
    deadline: Deadline,
    facts: Arc<ReplyFacts>,
    /// Stores the finished picture, where that is wished for.
    keeper: Option<Keeper>,
    seed: Seed,
    prefix: &'static str,
    /// Unfinished pictures sent so far.
    sent: usize,
    /// For the log, once all is done.
    outcome: Arc<OnceLock<Outcome>>,
}

/// The answer to a request whose order has been taken.
pub(super) fn respond(
    (handle, deadline): (JobHandle, Deadline),
    (facts, keeper): (ReplyFacts, Option<Keeper>),
    endpoint: Endpoint,
    seed: Seed,
) -> Response {
    let outcome = Arc::default();
    let afterwards = Afterwards(Arc::clone(&outcome));
    let prefix = event_prefix(endpoint);
    let facts = Arc::new(facts);
    let job = Streaming { handle, deadline, facts, keeper, seed, prefix, sent: 0, outcome };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events(job)).keep_alive(keep_alive).into_response();
    // Proxies shall pass each event on at once.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response.extensions_mut().insert(afterwards);
    response
}

/// The beginning of the names of an endpoint's events.
fn event_prefix(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Edits | Endpoint::Variations => "image_edit",
        Endpoint::Generations => "image_generation",
    }
}

/// Unfinished pictures, then the finished one or what went wrong.
fn events(job: Streaming) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(job), |job| async {
        let (event, rest) = job?.next().await;
        Some((Ok(event), rest))
    })
}

impl Streaming {
    /// The next event, and the job if more are to come; at the deadline it is called off.
    async fn next(self) -> (Event, Option<Self>) {
        let (deadline, outcome) = (self.deadline, Arc::clone(&self.outcome));
        let next = deadline.bound(async { Ok(self.next_in_time().await) });
        next.await.unwrap_or_else(|error| (failed(error, &outcome), None))
    }

    async fn next_in_time(mut self) -> (Event, Option<Self>) {
        match self.handle.next_preview().await {
            Ok(Some(preview)) => match self.partial_image(preview).await {
                Ok(event) => (event, Some(self)),
                Err(error) => (self.failed(error), None),
            },
            Ok(None) => (self.completed().await, None),
            Err(error) => (self.failed(error.into()), None),
        }
    }

    async fn partial_image(&mut self, preview: Picture) -> Result<Event, ApiError> {
        let kind = format!("{}.partial_image", self.prefix);
        let index = self.sent;
        self.sent += 1;
        let (facts, seed) = (Arc::clone(&self.facts), self.seed);
        encoded(move || {
            let event = partial_image(&facts, &preview, (kind, index, seed))?;
            sse(&event.kind, &event)
        })
        .await
    }

    async fn completed(self) -> Event {
        let Self { handle, facts, keeper, seed, prefix, outcome, .. } = self;
        let kind = format!("{prefix}.completed");
        let completing = async {
            let Finished { generation, memory, loading } = handle.finish().await?;
            let usage: TokenUsage = generation.usage;
            let generated = generation.images.into_iter().next();
            let no_image = || ApiError::Internal("the model made no picture".to_owned());
            let picture = generated.ok_or_else(no_image)?.image;
            let work = facts.work_done(&picture, 1);
            let its_facts = Arc::clone(&facts);
            let encoding = tokio::task::spawn_blocking(spans::carried(move || {
                let shown = its_facts.timed(|| Shown::of(&its_facts, &picture, seed))?;
                Ok::<_, ApiError>((shown, memory))
            }));
            let (shown, memory) = encoding.await??;
            let (url, unstored) = shown.keep(keeper, &facts).await;
            let event = encoded(move || {
                let _held_until_encoded = memory;
                let mut event = shown.event(&facts, kind, seed);
                event.url = url;
                event.usage = Some(usage.into());
                event.skipped_blocks = generation.skipped_blocks;
                event.mask_convention = facts.mask_convention;
                event.model_load_ms = loading.map(reply::whole_ms);
                event.warnings = [facts.warnings.clone(), generation.warnings].concat();
                event.warnings.extend(unstored);
                sse(&event.kind, &event)
            });
            Ok((event.await?, work))
        };
        match completing.await {
            Ok((event, work)) => {
                let _ = outcome.set(Outcome::Made(work));
                event
            }
            Err(error) => failed(error, &outcome),
        }
    }

    fn failed(self, error: ApiError) -> Event {
        failed(error, &self.outcome)
    }
}

/// The error as an event, and in the log.
fn failed(error: ApiError, outcome: &OnceLock<Outcome>) -> Event {
    let (envelope, cause, code) = error.into_parts();
    let _ = outcome.set(Outcome::Failed(cause, code));
    // An envelope is always JSON, and JSON has no line breaks.
    let data = serde_json::to_string(&envelope).unwrap_or_default();
    Event::default().event("error").data(data)
}

/// What is told of an unfinished picture. Takes long: not for the async runtime.
fn partial_image(
    facts: &ReplyFacts,
    preview: &Picture,
    (kind, index, seed): (String, usize, Seed),
) -> Result<ImageEvent, ApiError> {
    let mut event = Shown::of(facts, preview, seed)?.event(facts, kind, seed);
    event.partial_image_index = Some(index);
    Ok(event)
}

/// The unfinished pictures of an order, as events tell of them, for whoever follows it by
/// other means than its reply.
pub(super) struct PreviewEvents {
    previews: Unfinished,
    facts: Arc<ReplyFacts>,
    prefix: &'static str,
    seed: Seed,
    /// The picture that was shown last, and how often it was.
    seen: (usize, usize),
}

impl PreviewEvents {
    pub(super) fn new(
        previews: Unfinished,
        facts: ReplyFacts,
        (endpoint, seed): (Endpoint, Seed),
    ) -> Self {
        let prefix = event_prefix(endpoint);
        Self { previews, facts: Arc::new(facts), prefix, seed, seen: (0, 0) }
    }

    /// The next one, as JSON; `None` once there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<String>, ApiError> {
        let Some((image, preview)) = self.previews.next().await? else { return Ok(None) };
        let kind = format!("{}.partial_image", self.prefix);
        let index = if self.seen.0 == image { self.seen.1 } else { 0 };
        self.seen = (image, index + 1);
        let (facts, seed) = (Arc::clone(&self.facts), self.seed.of_image(image));
        let written = tokio::task::spawn_blocking(spans::carried(move || {
            let event = partial_image(&facts, &preview, (kind, index, seed))?;
            serde_json::to_string(&event).map_err(|error| ApiError::internal(&error))
        }));
        written.await?.map(Some)
    }
}

/// A picture as events show it.
struct Shown {
    file: Bytes,
    size: String,
    background: Background,
}

impl Shown {
    /// Encodes a picture. Takes long: not for the async runtime.
    fn of(facts: &ReplyFacts, picture: &Picture, seed: Seed) -> Result<Self, ApiError> {
        Ok(Self {
            file: facts.file_of(picture, seed)?.into(),
            size: size_of(picture),
            background: Background::of(picture.alpha().is_some()),
        })
    }

    /// Stores it: its address, or a warning that there is none; neither without a keeper.
    async fn keep(
        &self,
        keeper: Option<Keeper>,
        facts: &ReplyFacts,
    ) -> (Option<String>, Option<String>) {
        let Some(keeper) = keeper else { return (None, None) };
        let files = std::slice::from_ref(&self.file);
        let (urls, warning) = keeper.keep_what_fits(files, facts.format.name()).await;
        (urls.into_iter().next().flatten(), warning)
    }

    /// An event with it. Takes long, too.
    fn event(self, facts: &ReplyFacts, kind: String, seed: Seed) -> ImageEvent {
        ImageEvent {
            kind,
            b64_json: STANDARD.encode(&self.file),
            partial_image_index: None,
            mask_convention: None,
            created_at: unix_seconds(),
            size: self.size,
            quality: facts.quality.name(),
            background: self.background,
            output_format: facts.format.name(),
            url: None,
            usage: None,
            model_load_ms: None,
            skipped_blocks: None,
            seed: seed.get(),
            warnings: Vec::new(),
        }
    }
}

fn sse(kind: &str, data: &impl Serialize) -> Result<Event, ApiError> {
    let data = serde_json::to_string(data).map_err(|error| ApiError::internal(&error))?;
    Ok(Event::default().event(kind).data(data))
}

/// Does `work` on a thread for work that blocks.
async fn encoded(
    work: impl FnOnce() -> Result<Event, ApiError> + Send + 'static,
) -> Result<Event, ApiError> {
    tokio::task::spawn_blocking(spans::carried(work)).await?
}
