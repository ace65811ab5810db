//! Takes stored jobs up and sends each the way of any other request.
//!
//! So many are in hand at a time that the lines of the models always have a next one, and
//! requests that somebody waits for have room beside them. A job that finds no room goes back
//! into the store. When the service is shut down, no more are taken up; what waits in a line
//! goes back, what runs is finished, or goes back when the grace is over.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures::FutureExt;
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
use crate::api::request_log::WorkDone;
use crate::api::state::AppState;
use crate::causes;
use crate::jobs::{
    Claim, Claimed, JobFailure, JobId, JobProgress, JobResult, JobState, JobStoreError, Outcome,
    Releasing,
};
use crate::requests::{Asked, RequestContext, RequestError, StoredRequest, prepare};
use crate::service::{ErrorKind, RunningJob};

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
    let most = FEWEST_IN_HAND.max(state.service().status().capacity / 2);
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

/// The next job. A store that fails is asked again later.
async fn next(state: &AppState) -> Option<Claimed> {
    if !state.service().status().accepting {
        return None;
    }
    match state.jobs.store.claim().await {
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
        () = until_cancelled(&state, claim.id) => {
            tracing::info!("cancelled");
            return;
        }
        _ = over.wait_for(|is_over| *is_over) => Err(Unfinished::Later),
        ended = AssertUnwindSafe(attempt(&state, claimed)).catch_unwind() => {
            let panicked = |_| ApiError::Internal("what runs a job panicked".to_owned());
            ended.unwrap_or_else(|panic| Err(Unfinished::Failed(panicked(panic))))
        }
    };
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

/// Completes once the job was cancelled, or is not there any more.
async fn until_cancelled(state: &AppState, id: JobId) {
    let mut changes = state.jobs.store.watch(id);
    loop {
        changes.mark_unchanged();
        match state.jobs.store.get(id).await {
            Ok(Some(record)) if record.state != JobState::Cancelled => {}
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
    let asked = Asked {
        deployment: outside.deployment.clone(),
        accepted: outside.accepted(),
        client: client_of(&record.owner),
    };
    let endpoint = outside.endpoint;
    let prepared = prepare(&context, (fields, memory), endpoint, asked).await.map_err(failed)?;
    let origin = Origin::stored(outside.origin);
    let ordered = images::order(state, prepared, origin).await.map_err(failed)?;
    let progress = ordered.handle.progress();
    let response = tokio::select! {
        biased;
        response = ordered.deliver(Deadline::NEVER) => response,
        never = follow(state, claim, progress) => match never {},
    };
    let response = match response {
        Ok(response) => response,
        Err(error) => return Err(unfinished(state, error)),
    };
    note_work(state, &response);
    stored(response).await.map_err(Unfinished::Failed)
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
    if let JobStoreError::File { error: of_file, .. } = &error
        && of_file.kind() == io::ErrorKind::NotFound
    {
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

fn progress_of(seen: &RunningJob) -> JobProgress {
    let RunningJob { picture, pictures, step, steps, .. } = *seen;
    JobProgress { picture, pictures, step, total: steps, left_ms: seen.left_ms() }
}

/// Counts and logs what was made, as for a request that somebody waited for.
fn note_work(state: &AppState, response: &Response) {
    let Some(work) = response.extensions().get::<WorkDone>() else { return };
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
