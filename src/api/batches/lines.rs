//! The lines of a batch: each becomes a job, and what that came to becomes a settled line.
//!
//! The job is removed then. If the process ends in between, it stays for as long as jobs are
//! kept that have ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinSet};

use super::driver::{Trouble, Work};
use super::input::{InputLines, Line, WholeLine};
use super::line::{self, Expected, LineFault, LineRequest};
use super::output::{Answered, NotMade};
use super::validation::custom_id;
use crate::api::error::ApiError;
use crate::api::images::Sent;
use crate::api::jobs::{self, Haste};
use crate::api::origin::Origin;
use crate::jobs::batches::SettledLine;
use crate::jobs::{Cancelled, Created, Idempotency, JobId, JobRecord, JobState};
use crate::requests::{Accepted, Asked};

/// How often a job is looked at, where nobody tells that it has changed.
const POLL: Duration = Duration::from_secs(5);

/// Lines that are settled in one step, where a batch is closed.
const LINES_AT_ONCE: usize = 256;

/// Makes all lines that are not settled. `false`: there is something left to be done.
pub(super) async fn make(work: &Work) -> Result<bool, Trouble> {
    if work.batch.counts.are_settled() {
        return Ok(work.store.finalize(work.batch.id).await?);
    }
    let mut left = Left::of(work).await?;
    let mut in_flight = JoinSet::new();
    let mut outcome = send(work, &mut left, &mut in_flight).await;
    // Those under way go on, whatever kept the next one from being sent.
    while let Some(done) = in_flight.join_next().await {
        outcome = outcome.and(flattened(done));
    }
    outcome?;
    Ok(work.store.finalize(work.batch.id).await?)
}

/// Sends line after line, as there are places for them, until there are none or one is in
/// trouble.
async fn send(work: &Work, left: &mut Left, in_flight: &mut Lines) -> Result<(), Trouble> {
    loop {
        let slot = tokio::select! {
            Some(done) = in_flight.join_next() => {
                flattened(done)?;
                continue;
            }
            slot = Arc::clone(&work.state.batches.slots).acquire_owned() => slot,
        };
        // The semaphore is never closed.
        let (Ok(slot), Some(line)) = (slot, left.next().await?) else { return Ok(()) };
        in_flight.spawn(serve(work.clone(), line, slot));
    }
}

/// Lines under way.
type Lines = JoinSet<Result<(), Trouble>>;

fn flattened(done: Result<Result<(), Trouble>, JoinError>) -> Result<(), Trouble> {
    done?
}

/// Settles all lines that are not, with what their jobs came to, or as not made.
pub(super) async fn close(work: &Work, why: NotMade) -> Result<(), Trouble> {
    // None is, too, where nobody knows yet what its lines are.
    if work.batch.counts.are_settled() {
        return Ok(());
    }
    let mut left = Left::of(work).await?;
    let mut settled = Vec::new();
    while let Some(line) = left.next().await? {
        let number = line.number();
        // It was well when the file was looked through.
        let custom_id = custom_id(work, line).await?.and_then(Result::ok);
        let answered = Answered { batch: work.batch.id, number, custom_id };
        match called_off(work, number).await? {
            Some(record) => settle_with(work, &answered, record).await?,
            None => settled.push(answered.not_made(why)),
        }
        if settled.len() >= LINES_AT_ONCE {
            work.store.settle(work.batch.id, std::mem::take(&mut settled)).await?;
        }
    }
    Ok(work.store.settle(work.batch.id, settled).await?)
}

/// Settles all lines that are not, where nobody knows what was in them.
pub(super) async fn abandon(work: &Work) -> Result<(), Trouble> {
    let settled: HashSet<u64> = work.store.settled(work.batch.id).await?.into_iter().collect();
    let missing = work.batch.counts.total.saturating_sub(settled.len() as u64);
    let missing = usize::try_from(missing).unwrap_or(usize::MAX);
    let mut numbers = (1..).filter(|number| !settled.contains(number)).take(missing);
    loop {
        let some: Vec<_> = numbers.by_ref().take(LINES_AT_ONCE).collect();
        if some.is_empty() {
            return Ok(());
        }
        let lost = |number| {
            let answered = Answered { batch: work.batch.id, number, custom_id: None };
            answered.not_made(NotMade::InputGone)
        };
        work.store.settle(work.batch.id, some.into_iter().map(lost).collect()).await?;
    }
}

/// The lines of a batch that are not settled.
struct Left {
    lines: InputLines,
    settled: HashSet<u64>,
}

impl Left {
    async fn of(work: &Work) -> Result<Self, Trouble> {
        let settled = work.store.settled(work.batch.id).await?;
        let lines = work.input().await?.ok_or(Trouble::InputGone)?;
        Ok(Self { lines, settled: settled.into_iter().collect() })
    }

    async fn next(&mut self) -> Result<Option<Line>, Trouble> {
        while let Some(line) = self.lines.next().await.map_err(Trouble::of_input)? {
            if !self.settled.contains(&line.number()) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}

/// Makes a line, and settles it.
async fn serve(work: Work, line: Line, _slot: OwnedSemaphorePermit) -> Result<(), Trouble> {
    let (number, batch) = (line.number(), work.batch.id);
    let nameless = Answered { batch, number, custom_id: None };
    let too_long = || LineFault::too_long(work.state.config.max_upload_bytes);
    let line = match line {
        Line::Whole(line) => line,
        // The setting was another one when the file was looked through.
        Line::TooLong { .. } => return refuse(&work, &nameless, too_long()).await,
    };
    let (request, memory) = match read(&work, line).await? {
        (Ok(request), memory) => (request, memory),
        (Err(fault), _) => return refuse(&work, &nameless, fault).await,
    };
    let LineRequest { custom_id, mut fields } = request;
    let answered = Answered { batch, number, custom_id: Some(custom_id) };
    fields.resolve_aliases();
    // It is in the background in any case.
    fields.take_in_background();
    let permit = Arc::new(work.line_permit());
    let sent = Sent {
        endpoint: work.outside.endpoint,
        origin: Origin::stored(work.outside.origin.clone()),
        asked: Asked {
            deployment: None,
            accepted: Accepted::Json,
            client: permit.client(),
            is_followed: true,
        },
        idempotency_key: Some(name_of(&work, number)),
    };
    // Models come and go while a batch is made.
    let state = work.state.latest();
    let created = match permit.context_of_models(&state.requests) {
        Ok(context) => {
            let asking = (&state, &permit, &context);
            jobs::store(asking, (fields, memory), sent, Haste::None)
                .await
                .map(|stored| stored.created)
        }
        Err(error) => Err(error),
    };
    match created {
        Ok(Created::New(job) | Created::Same(job) | Created::Other(job)) => {
            // One that is gone was settled, or is sent again.
            let job = ended(&work, job.id).await?.ok_or(Trouble::Later)?;
            settle_with(&work, &answered, job).await
        }
        Err(error) => {
            permit.give_back();
            if error.is_for_now() {
                tracing::info!(number, reason = error.body().error.message, "a line waits");
                return Err(Trouble::Later);
            }
            settle(&work, answered.refused(&error)).await
        }
    }
}

/// What is the line's own name for its job.
fn name_of(work: &Work, number: u64) -> String {
    format!("{}:{number}", work.batch.id)
}

/// Takes a line apart; the memory is that of its fields.
async fn read(
    work: &Work,
    line: WholeLine,
) -> Result<(Result<LineRequest, LineFault>, crate::service::MemoryShare), Trouble> {
    let (addresses, max_fields) = (Arc::clone(&work.addresses), work.state.config.max_parts);
    let reading = tokio::task::spawn_blocking(move || {
        let WholeLine { bytes, mut memory, .. } = line;
        let expected = Expected { addresses: &addresses, max_fields };
        let request = line::read(&bytes, expected);
        memory.shrink_to(request.as_ref().map_or(0, |request| request.fields.held_bytes()));
        (request, memory)
    });
    Ok(reading.await?)
}

async fn refuse(work: &Work, answered: &Answered, fault: LineFault) -> Result<(), Trouble> {
    settle(work, answered.refused(&ApiError::Malformed(fault.message))).await
}

async fn settle(work: &Work, line: SettledLine) -> Result<(), Trouble> {
    Ok(work.store.settle(work.batch.id, vec![line]).await?)
}

/// The job once it has ended; `None` if it is gone.
async fn ended(work: &Work, id: JobId) -> Result<Option<JobRecord>, Trouble> {
    let store = &work.state.jobs.store;
    let mut changes = store.watch(id);
    loop {
        changes.mark_unchanged();
        match store.get(id).await? {
            None => return Ok(None),
            Some(job) if job.state.is_final() => return Ok(Some(job)),
            Some(_) => {}
        }
        let _ = tokio::time::timeout(POLL, changes.changed()).await;
    }
}

/// Settles a line with what its job came to, which is not needed any more then.
async fn settle_with(work: &Work, answered: &Answered, job: JobRecord) -> Result<(), Trouble> {
    let store = &work.state.jobs.store;
    let name = job.id.to_string();
    let line = match (job.state, job.failure) {
        (JobState::Succeeded, _) => {
            let mut memory = work.state.requests.memory.share();
            let bytes = usize::try_from(job.result_bytes).unwrap_or(usize::MAX);
            memory.grow_to(bytes.saturating_mul(2)).await.map_err(|_| Trouble::Later)?;
            let result = store.result(job.id).await?.ok_or(Trouble::Later)?;
            let line = answered.succeeded(&name, &result.body);
            drop(result);
            settle(work, line).await?;
            return Ok(store.remove(job.id).await?);
        }
        (_, Some(failure)) => answered.failed(&name, failure),
        // Nobody but a batch that is closed calls it off.
        (_, None) => answered.not_made(NotMade::Cancelled),
    };
    settle(work, line).await?;
    Ok(store.remove(job.id).await?)
}

/// Calls the job of a line off; gives it if it had come to something before.
async fn called_off(work: &Work, number: u64) -> Result<Option<JobRecord>, Trouble> {
    let store = &work.state.jobs.store;
    // Whatever it asks for.
    let name = Idempotency { key: name_of(work, number), digest: String::new() };
    let found = store.named(&work.owner, &name).await?;
    let Some(Created::New(job) | Created::Same(job) | Created::Other(job)) = found else {
        return Ok(None);
    };
    match store.cancel(job.id).await? {
        Some(Cancelled::Ended(job)) if job.state != JobState::Cancelled => Ok(Some(job)),
        Some(Cancelled::Now(_) | Cancelled::Ended(_)) => {
            if let Some(permit) = work.state.jobs.forget(job.id) {
                permit.give_back();
            }
            store.remove(job.id).await?;
            Ok(None)
        }
        None => Ok(None),
    }
}
