//! Sees to batches: each one's record says what is to be done next.
//!
//! Whatever a process has of a batch besides, it may lose: the next one looks at the record,
//! at which lines are settled, and at the jobs, whose names are made of the batch's and the
//! line's. So a line that was sent is found, and not sent again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::Instrument;

use super::input::InputLines;
use super::output::NotMade;
use super::{Outside, addresses_of, lines, owner_of_lines, validation};
use crate::api::access::Permit;
use crate::api::state::AppState;
use crate::causes;
use crate::jobs::batches::{BatchEnd, BatchId, BatchRecord, BatchState, BatchStore};
use crate::jobs::{JobStoreError, Owner};

/// How often batches are looked for that another process has left, and others told that this
/// one is there.
const LOOK: Duration = Duration::from_secs(5);
/// How often what was kept for long enough is looked for.
const UPKEEP: Duration = Duration::from_secs(30);
/// How often a batch's record is looked at, where nobody tells that it has changed.
const POLL: Duration = Duration::from_secs(5);
/// How long what went wrong is left alone, at first.
const PAUSE: Duration = Duration::from_millis(500);
/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What sees to batches. Dropped, it ends at once: nothing is lost.
pub(in crate::api) struct Driver {
    task: JoinHandle<()>,
    store: Option<Arc<dyn BatchStore>>,
}

impl Driver {
    /// Needs a runtime.
    pub(in crate::api) fn start(state: AppState) -> Self {
        let store = state.batches.store.clone();
        Self { task: tokio::spawn(run(state)), store }
    }

    /// Leaves the batches to other processes.
    pub(in crate::api) async fn end(&self) {
        self.task.abort();
        if let Some(store) = &self.store
            && let Err(error) = store.give_back().await
        {
            tracing::warn!(cause = causes::one_line(&error), "batches are not left to others yet");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sees to all batches until the service is shut down.
async fn run(state: AppState) {
    let Some(store) = state.batches.store.clone() else { return };
    let mut changes = state.batches.changes.subscribe();
    let mut look = tokio::time::interval(LOOK);
    let upkeep = keep_clean(store.as_ref());
    let shut_down = state.service().until_shut_down();
    tokio::pin!(shut_down, upkeep);
    let (mut driven, mut ids) = (JoinSet::new(), HashSet::new());
    loop {
        changes.mark_unchanged();
        for id in unfinished(store.as_ref()).await {
            if ids.insert(id) {
                let span = tracing::info_span!("batch", %id);
                driven.spawn(seen_to(state.clone(), Arc::clone(&store), id).instrument(span));
            }
        }
        tokio::select! {
            () = &mut shut_down => return,
            Some(done) = driven.join_next() => {
                // A task gives its batch back also if it panicked within.
                let Ok(id) = done else { continue };
                ids.remove(&id);
            }
            _ = changes.changed() => {}
            () = store.until_batches_change() => state.batches.tell(),
            _ = look.tick() => {}
            never = &mut upkeep => match never {},
        }
    }
}

async fn unfinished(store: &dyn BatchStore) -> Vec<BatchId> {
    store.unfinished().await.unwrap_or_else(|error| {
        tracing::error!(cause = causes::one_line(&error), "batches cannot be looked up");
        Vec::new()
    })
}

async fn keep_clean(store: &dyn BatchStore) -> Infallible {
    let mut upkeep = tokio::time::interval(UPKEEP);
    loop {
        upkeep.tick().await;
        if let Err(error) = store.clean_batches().await {
            tracing::error!(cause = causes::one_line(&error), "batches cannot be looked through");
        }
    }
}

/// Sees to a batch to its end, and tells which it was.
async fn seen_to(state: AppState, store: Arc<dyn BatchStore>, id: BatchId) -> BatchId {
    let drive = AssertUnwindSafe(drive(&state, &store, id));
    if drive.catch_unwind().await.is_err() {
        tracing::error!("what sees to a batch panicked");
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
    state.batches.forget(id);
    id
}

/// Why a batch is left alone for a while.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A request has no room or no time now.
    Later,
    /// The file of the batch is lost.
    InputGone,
    Store(JobStoreError),
}

impl Trouble {
    /// Of a file of a batch that cannot be read.
    pub(super) fn of_input(error: JobStoreError) -> Self {
        if error.is_for_want_of_file() { Self::InputGone } else { Self::Store(error) }
    }
}

impl From<JobStoreError> for Trouble {
    fn from(error: JobStoreError) -> Self {
        Self::Store(error)
    }
}

impl From<JoinError> for Trouble {
    fn from(error: JoinError) -> Self {
        Self::Store(error.into())
    }
}

async fn drive(state: &AppState, store: &Arc<dyn BatchStore>, id: BatchId) {
    let mut pause = PAUSE;
    let mut changes = state.batches.changes.subscribe();
    loop {
        changes.mark_unchanged();
        match step(state, store, id).await {
            Ok(Some(state)) if state.is_final() => return,
            Ok(Some(_)) => {
                pause = PAUSE;
                continue;
            }
            Ok(None) => return,
            Err(Trouble::Later | Trouble::InputGone) => {}
            Err(Trouble::Store(error)) => {
                tracing::error!(cause = causes::one_line(&error), "a batch cannot go on");
            }
        }
        let _ = tokio::time::timeout(pause, changes.changed()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Does what is next, and tells where the batch was before; `None` if there is none, or none
/// that this process sees to.
async fn step(
    state: &AppState,
    store: &Arc<dyn BatchStore>,
    id: BatchId,
) -> Result<Option<BatchState>, Trouble> {
    if !store.is_given(id).await? {
        tracing::info!("another process sees to the batch");
        return Ok(None);
    }
    let Some(batch) = store.batch(id).await? else { return Ok(None) };
    let was = batch.state;
    if was.is_final() {
        tracing::info!(state = was.name(), counts = ?batch.counts, "batch over");
        return Ok(Some(was));
    }
    let work = Work::new(state.latest(), store, batch)?;
    let has_moved = match move_on(&work).await {
        Err(Trouble::InputGone) => without_input(&work).await?,
        moved => moved?,
    };
    if has_moved { Ok(Some(was)) } else { Err(Trouble::Later) }
}

/// Ends what cannot be done any more, for nobody knows what was asked for.
async fn without_input(work: &Work) -> Result<bool, Trouble> {
    tracing::error!("the file of a batch is lost");
    if work.batch.counts.total == 0 {
        return Ok(work.store.fail_batch(work.batch.id, vec![validation::input_gone()]).await?);
    }
    lines::abandon(work).await?;
    Ok(true)
}

/// Does what is next. `false`: it could not be done yet.
async fn move_on(work: &Work) -> Result<bool, Trouble> {
    let (store, id) = (&work.store, work.batch.id);
    Ok(match work.batch.state {
        BatchState::Validating | BatchState::InProgress if work.is_overdue() => {
            lines::close(work, NotMade::Expired).await?;
            store.end_batch(id, BatchEnd::Expired).await?
        }
        BatchState::Validating => work.unless_left(validation::validate(work)).await?,
        BatchState::InProgress => work.unless_left(lines::make(work)).await?,
        BatchState::Finalizing => store.end_batch(id, BatchEnd::Completed).await?,
        BatchState::Cancelling => {
            lines::close(work, NotMade::Cancelled).await?;
            store.end_batch(id, BatchEnd::Cancelled).await?
        }
        BatchState::Failed
        | BatchState::Completed
        | BatchState::Expired
        | BatchState::Cancelled => true,
    })
}

/// A batch, with what is needed to see to it.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) state: AppState,
    pub(super) store: Arc<dyn BatchStore>,
    pub(super) batch: Arc<BatchRecord>,
    pub(super) outside: Arc<Outside>,
    /// The ways to write its endpoint.
    pub(super) addresses: Arc<Vec<String>>,
    /// Whose its jobs are.
    pub(super) owner: Owner,
    /// What its pictures count as.
    pub(super) permit: Arc<Permit>,
}

impl Work {
    fn new(
        state: AppState,
        store: &Arc<dyn BatchStore>,
        batch: BatchRecord,
    ) -> Result<Self, JobStoreError> {
        let outside: Outside = serde_json::from_str(&batch.context)
            .map_err(|error| JobStoreError::Damaged(error.to_string()))?;
        let permit = state.batches.permit_of(batch.id).unwrap_or_else(|| {
            let permit = Arc::new(state.access.permit_of(&batch.owner));
            // What has been counted stays counted.
            state.batches.remember(batch.id, &permit);
            permit
        });
        Ok(Self {
            addresses: Arc::new(addresses_of(outside.endpoint, &state)),
            owner: owner_of_lines(&batch.owner),
            state,
            store: Arc::clone(store),
            batch: Arc::new(batch),
            outside: Arc::new(outside),
            permit,
        })
    }

    /// What its jobs may do.
    pub(super) fn line_permit(&self) -> Permit {
        self.permit.of_line(self.owner.clone(), self.outside.models.clone())
    }

    /// The lines of its file, if that is there.
    pub(super) async fn input(&self) -> Result<Option<InputLines>, JobStoreError> {
        let content = self.store.content(self.batch.input_file).await?;
        let (max_bytes, memory) =
            (self.state.config.max_upload_bytes, self.state.requests.memory.clone());
        Ok(content.map(|content| InputLines::new(content, max_bytes, memory)))
    }

    /// How long it may take yet.
    fn left(&self) -> Duration {
        let due = UNIX_EPOCH + Duration::from_millis(self.batch.times.due_ms);
        due.duration_since(SystemTime::now()).unwrap_or_default()
    }

    fn is_overdue(&self) -> bool {
        self.left().is_zero()
    }

    /// Does `part` of the work, unless the batch is called off meanwhile, or its time is over;
    /// then `part` is dropped.
    async fn unless_left(
        &self,
        part: impl Future<Output = Result<bool, Trouble>>,
    ) -> Result<bool, Trouble> {
        tokio::select! {
            biased;
            left = self.until_left() => left.map(|()| true),
            done = part => done,
        }
    }

    /// Completes once the batch is not where it was, its time is over, or another process sees
    /// to it.
    async fn until_left(&self) -> Result<(), Trouble> {
        let mut changes = self.state.batches.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let now = self.store.batch(self.batch.id).await?;
            let has_moved = now.is_none_or(|now| now.state != self.batch.state);
            if has_moved || !self.store.is_given(self.batch.id).await? {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(self.left()) => return Ok(()),
                _ = changes.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}
