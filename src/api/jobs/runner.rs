//! Takes stored jobs up and sends each the way of any other request.
//!
//! So many are in hand at a time that the lines of the models always have a next one, and
//! requests that somebody waits for have room beside them. A job that finds no room goes back
//! into the store. When the service is shut down, no more are taken up; what waits in a line
//! goes back, what runs is finished, or goes back when the grace is over.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::Instrument;

use crate::api::access::client_of;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::images;
use crate::api::origin::Origin;
use crate::api::reply::ReplyWarnings;
use crate::api::request_log::{Afterwards, Outcome as StreamOutcome, WorkDone};
use crate::api::state::AppState;
use crate::api::stream::PreviewEvents;
use crate::causes;
use crate::jobs::{
    Claim, Claimed, Fleet, JobFailure, JobProgress, JobResult, JobState, JobStoreError, Outcome,
    Releasing, Wanted,
};
use crate::requests::{Asked, RequestContext, RequestError, StoredRequest, prepare};
use crate::service::{ErrorKind, ReplicaState, RunningJob};

/// Jobs in hand, at least: one that runs, and the next.
const FEWEST_IN_HAND: usize = 2;
/// How long a job stays away from a line that has no room.
const PAUSE: Duration = Duration::from_secs(1);
/// How often what has ended is looked through, and whether there is work.
const UPKEEP: Duration = Duration::from_secs(30);

/// What runs the jobs. Dropped, it ends at once, and leaves jobs as a crash would.
pub(in crate::api) struct Runner {
    task: JoinHandle<()>,
    /// Set once jobs that run are to go back.
    is_over: watch::Sender<bool>,
}

impl Runner {
    /// Needs a runtime.
    pub(in crate::api) fn start(state: AppState) -> Self {
        let (is_over, over) = watch::channel(false);
        Self { task: tokio::spawn(run(state, over)), is_over }
    }

    /// Waits for the jobs that run, until `deadline`; then they go back. The service has been
    /// shut down before.
    pub(in crate::api) async fn finish(mut self, deadline: Instant) {
        if tokio::time::timeout_at(deadline, &mut self.task).await.is_ok() {
            return;
        }
        tracing::warn!("the grace is over: jobs that run go back into the store");
        self.is_over.send_replace(true);
        if tokio::time::timeout(PAUSE, &mut self.task).await.is_err() {
            tracing::error!("jobs could not be put back; the next start finds them");
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes jobs up until the service is shut down, and waits for them.
async fn run(state: AppState, over: watch::Receiver<bool>) {
    let most = most_in_hand(&state);
    let mut in_hand = JoinSet::new();
    let mut upkeep = tokio::time::interval(UPKEEP);
    let shut_down = state.service().until_shut_down();
    tokio::pin!(shut_down);
    loop {
        while in_hand.len() < most
            && let Some(claimed) = next(&state).await
        {
            let span = tracing::info_span!("job", id = %claimed.claim.id);
            in_hand.spawn(serve(state.clone(), claimed, over.clone()).instrument(span));
        }
        let is_full = in_hand.len() >= most;
        tokio::select! {
            () = &mut shut_down => break,
            _ = in_hand.join_next(), if !in_hand.is_empty() => {}
            () = state.jobs.store.until_work(), if !is_full => {}
            _ = upkeep.tick() => clean(&state).await,
        }
    }
    while in_hand.join_next().await.is_some() {}
}

/// How many jobs to have in hand. Of a store that others share no more are taken than run
/// here: what waited in a line of this process would have its turn earlier somewhere else.
fn most_in_hand(state: &AppState) -> usize {
    let status = state.service().status();
    match state.jobs.fleet {
        Some(_) => status.threads.max(1),
        None => FEWEST_IN_HAND.max(status.capacity / 2),
    }
}

/// The models whose jobs are taken up.
fn wanted(state: &AppState) -> Wanted {
    let mut wanted = Wanted::default();
    for model in state.requests.models.all() {
        let is_loaded = |replica: &ReplicaState| matches!(replica, ReplicaState::Loaded(_));
        let is_loaded = model.images.replicas().iter().any(is_loaded);
        let names = if is_loaded { &mut wanted.loaded } else { &mut wanted.loadable };
        names.push(model.images.card().id.clone());
    }
    wanted
}

/// The next job. A store that fails is asked again later.
async fn next(state: &AppState) -> Option<Claimed> {
    if !state.service().status().accepting {
        return None;
    }
    match state.jobs.store.claim(&wanted(state)).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::error!(cause = causes::one_line(&error), "no job can be taken up");
            None
        }
    }
}

async fn clean(state: &AppState) {
    if let Err(error) = state.jobs.store.clean().await {
        tracing::error!(cause = causes::one_line(&error), "jobs cannot be looked through");
    }
}

/// Why a job has no result yet, or never.
enum Unfinished {
    /// There was no room for it, or no time.
    Later,
    /// Its device computes nothing more.
    DeviceFault,
    Failed(ApiError),
}

/// Runs a job to its end, or puts it back.
async fn serve(state: AppState, claimed: Claimed, mut over: watch::Receiver<bool>) {
    let claim = claimed.claim;
    let ended = tokio::select! {
        // Before the work, for cancelling wins.
        biased;
        () = until_lost(&state, claim) => {
            tracing::info!("the job is called off, or somebody else's");
            state.jobs.previews.forget(claim.id);
            return;
        }
        _ = over.wait_for(|is_over| *is_over) => Err(Unfinished::Later),
        ended = AssertUnwindSafe(attempt(&state, claimed)).catch_unwind() => {
            let panicked = |_| ApiError::Internal("what runs a job panicked".to_owned());
            ended.unwrap_or_else(|panic| Err(Unfinished::Failed(panicked(panic))))
        }
    };
    state.jobs.previews.forget(claim.id);
    match ended {
        Ok(outcome) => finish(&state, claim, outcome).await,
        Err(Unfinished::Failed(error)) => {
            let failure = failure_of(&state, error);
            if let Some(permit) = state.jobs.forget(claim.id) {
                permit.give_back();
            }
            finish(&state, claim, Outcome::Failed(failure)).await;
        }
        Err(Unfinished::Later) => release(&state, claim, Releasing::Untried).await,
        Err(Unfinished::DeviceFault) => release(&state, claim, Releasing::AfterFault).await,
    }
}

/// Completes once the job was cancelled, is somebody else's, or is not there any more.
async fn until_lost(state: &AppState, claim: Claim) {
    let mut changes = state.jobs.store.watch(claim.id);
    loop {
        changes.mark_unchanged();
        match state.jobs.store.get(claim.id).await {
            Ok(Some(record))
                if record.state != JobState::Cancelled && record.claims == claim.number => {}
            Ok(_) => return,
            Err(error) => tracing::warn!(%error, "cannot see whether a job was cancelled"),
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Makes the pictures of a job.
async fn attempt(state: &AppState, claimed: Claimed) -> Result<Outcome, Unfinished> {
    let Claimed { claim, record } = claimed;
    let mut memory = state.requests.memory.share();
    // As it was stored, and taken apart.
    let bytes = usize::try_from(record.request_bytes).unwrap_or(usize::MAX);
    memory.grow_to(bytes.saturating_mul(2)).await.map_err(failed)?;
    let request = state.jobs.store.request(claim.id).await.map_err(unreadable)?;
    let reading = tokio::task::spawn_blocking(move || StoredRequest::read(&request));
    let read =
        reading.await.map_err(failed)?.map_err(|error| failed(ApiError::internal(&error)))?;
    let StoredRequest { fields, outside } = read;
    memory.shrink_to(fields.held_bytes());
    let context = context_of(&state.requests, outside.models.as_deref());
    let client = client_of(&record.owner);
    let asked = Asked {
        deployment: outside.deployment.clone(),
        accepted: outside.accepted(),
        client: if record.is_patient { client.patient() } else { client },
        is_followed: !record.is_attached || outside.is_followed,
    };
    let endpoint = outside.endpoint;
    let prepared = prepare(&context, (fields, memory), endpoint, asked).await.map_err(failed)?;
    let origin = Origin::stored(outside.origin);
    let mut ordered = images::order(state, prepared, origin).await.map_err(failed)?;
    let progress = ordered.handle.progress();
    // A stream has its unfinished pictures in itself.
    let previews = (!ordered.is_streamed()).then(|| ordered.take_previews());
    tokio::select! {
        biased;
        outcome = delivered(state, claim, ordered) => outcome,
        never = follow(state, claim, progress) => match never {},
        never = show(state, claim, previews) => match never {},
    }
}

/// The reply, as it is stored.
async fn delivered(
    state: &AppState,
    claim: Claim,
    ordered: images::Ordered,
) -> Result<Outcome, Unfinished> {
    let response = ordered.deliver(Deadline::NEVER).await;
    let response = response.map_err(|error| unfinished(state, error))?;
    match (response.extensions().get::<Afterwards>(), &state.jobs.fleet) {
        (Some(Afterwards(outcome)), Some(fleet)) => {
            let outcome = Arc::clone(outcome);
            streamed((state, fleet), claim, response, &outcome).await
        }
        _ => {
            note_work(state, response.extensions().get::<WorkDone>());
            stored(response).await.map_err(Unfinished::Failed)
        }
    }
}

/// A stream, part by part: the client reads it while it is made.
async fn streamed(
    (state, fleet): (&AppState, &Arc<dyn Fleet>),
    claim: Claim,
    response: Response,
    outcome: &OnceLock<StreamOutcome>,
) -> Result<Outcome, Unfinished> {
    let mut parts = response.into_body().into_data_stream();
    let mut index = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| Unfinished::Failed(ApiError::internal(&error)))?;
        if part.starts_with(b":") {
            // It is alive: whoever sends the parts on says so, too.
            continue;
        }
        if let Some(StreamOutcome::Failed(..)) = outcome.get()
            && state.service().until_device_fault().now_or_never().is_some()
        {
            return Err(Unfinished::DeviceFault);
        }
        persist(|| fleet.add_part(claim, index, part.clone())).await;
        index += 1;
    }
    match outcome.get() {
        Some(StreamOutcome::Made(work)) => note_work(state, Some(work)),
        Some(StreamOutcome::Failed(_, code)) => state.metrics().request_failed(*code),
        None => {}
    }
    let media_type = "text/event-stream".to_owned();
    let nothing = JobResult { media_type, notes: Vec::new(), body: Bytes::new() };
    Ok(Outcome::Succeeded(nothing, Vec::new()))
}

/// What the request is read against: the models that its key might use when it came.
fn context_of(requests: &RequestContext, models: Option<&[String]>) -> RequestContext {
    match models {
        Some(names) => requests.with_models(Arc::new(requests.models.restricted_to(names))),
        None => requests.clone(),
    }
}

fn failed(error: impl Into<ApiError>) -> Unfinished {
    let error = error.into();
    let has_no_room = matches!(
        kind_of(&error),
        Some(ErrorKind::Busy { .. } | ErrorKind::ShuttingDown | ErrorKind::OutOfMemory)
    );
    if has_no_room { Unfinished::Later } else { Unfinished::Failed(error) }
}

/// A request that is not there will not be there later; a disk may be.
fn unreadable(error: JobStoreError) -> Unfinished {
    if error.is_for_want_of_file() {
        return Unfinished::Failed(ApiError::internal(&error));
    }
    tracing::error!(cause = causes::one_line(&error), "a job's request cannot be read");
    Unfinished::Later
}

fn kind_of(error: &ApiError) -> Option<ErrorKind> {
    if let ApiError::Request(RequestError::Service(error)) = error {
        return Some(error.kind());
    }
    None
}

/// What an error means that came while the model was at work.
fn unfinished(state: &AppState, error: ApiError) -> Unfinished {
    let is_device_lost = state.service().until_device_fault().now_or_never().is_some();
    if is_device_lost { Unfinished::DeviceFault } else { failed(error) }
}

/// Notes how far the model is, for as long as it is at work.
async fn follow(
    state: &AppState,
    claim: Claim,
    mut progress: watch::Receiver<Option<RunningJob>>,
) -> std::convert::Infallible {
    let store = &state.jobs.store;
    let mut has_begun = false;
    while progress.changed().await.is_ok() {
        let Some(seen) = progress.borrow_and_update().clone() else { continue };
        store.progress(claim, progress_of(&seen));
        if !has_begun {
            has_begun = true;
            if let Err(error) = store.begin(claim).await {
                tracing::error!(cause = causes::one_line(&error), "a job's begin is not stored");
            }
        }
    }
    std::future::pending().await
}

/// Shows those who follow the job its unfinished pictures, for as long as there are any:
/// those who follow it at other processes by the store that they share.
async fn show(
    state: &AppState,
    claim: Claim,
    previews: Option<PreviewEvents>,
) -> std::convert::Infallible {
    let Some(mut previews) = previews else { return std::future::pending().await };
    let mut parts = 0;
    loop {
        let cause = match (previews.next().await, &state.jobs.fleet) {
            (Ok(Some(event)), None) => {
                state.jobs.previews.show(claim.id, event);
                continue;
            }
            (Ok(Some(event)), Some(fleet)) => {
                match fleet.add_part(claim, parts, event.into()).await {
                    Ok(_) => {
                        parts += 1;
                        continue;
                    }
                    Err(error) => Some(causes::one_line(&error)),
                }
            }
            (Ok(None), _) => return std::future::pending().await,
            (Err(error), _) => error.into_parts().1.map(|cause| cause.0),
        };
        tracing::warn!(cause, "an unfinished picture is not shown");
    }
}

fn progress_of(seen: &RunningJob) -> JobProgress {
    let RunningJob { picture, pictures, step, steps, .. } = *seen;
    JobProgress { picture, pictures, step, total: steps, left_ms: seen.left_ms() }
}

/// Counts and logs what was made, as for a request that somebody waited for.
fn note_work(state: &AppState, work: Option<&WorkDone>) {
    let Some(work) = work else { return };
    let WorkDone { steps, size, images, model, operation, pixels } = work;
    state.metrics().pictures_made(model, *operation, *images, *pixels);
    tracing::info!(model, steps, size, n = images, "job done");
}

/// The reply as it is stored.
async fn stored(response: Response) -> Result<Outcome, ApiError> {
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await;
    let body = body.map_err(|error| ApiError::internal(&error))?;
    let (media_type, notes) = written(&parts.headers);
    let ReplyWarnings(warnings) = parts.extensions.remove().unwrap_or_default();
    Ok(Outcome::Succeeded(JobResult { media_type, notes, body }, warnings))
}

/// The media type, and the other headers.
fn written(headers: &HeaderMap) -> (String, Vec<(String, String)>) {
    let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let media_type = headers.get(header::CONTENT_TYPE).map(text).unwrap_or_default();
    let others = headers.iter().filter(|(name, _)| *name != header::CONTENT_TYPE);
    (media_type, others.map(|(name, value)| (name.to_string(), text(value))).collect())
}

/// What the client reads of the error, which is logged and counted here.
fn failure_of(state: &AppState, error: ApiError) -> JobFailure {
    let status = error.status().as_u16();
    let (envelope, cause, code) = error.into_parts();
    state.metrics().request_failed(code);
    match cause {
        Some(cause) => tracing::error!(cause = cause.0, "job failed"),
        None => tracing::info!(status, "job failed"),
    }
    let error = envelope.error;
    let (message, kind) = (error.message, error.kind);
    JobFailure { message, kind, param: error.param, code: error.code, status }
}

/// Writes how a job ended, however long the store is away.
async fn finish(state: &AppState, claim: Claim, outcome: Outcome) {
    let is_success = matches!(outcome, Outcome::Succeeded(..));
    let is_written = persist(|| state.jobs.store.finish(claim, outcome.clone())).await;
    if !is_written {
        tracing::info!("the outcome is discarded: the job has ended, or is somebody else's");
    }
    if is_success {
        state.jobs.forget(claim.id);
    }
}

async fn release(state: &AppState, claim: Claim, why: Releasing) {
    if state.service().status().accepting {
        tokio::time::sleep(PAUSE).await;
    }
    persist(|| state.jobs.store.release(claim, why)).await;
}

/// Does `write` until it succeeds.
async fn persist<T, F>(write: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, JobStoreError>>,
{
    loop {
        match write().await {
            Ok(written) => return written,
            Err(error) => {
                tracing::error!(cause = causes::one_line(&error), "a job cannot be stored");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
