//! Who is still there: what a process has in hand is its own as long as it says so. What
//! nobody says any more is put back, or called off.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::postgres::PgPool;

use super::changes::{self, now_ms, telling};
use super::rows::{self, signed};
use super::{Inner, batches, claims, in_time};
use crate::causes;
use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
use crate::jobs::objects::SweepingAges;
use crate::jobs::record::{JobFailure, JobProgress};
use crate::jobs::store::Claim;

/// How long a job is somebody's who says no more.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// How often it is said.
const RENEWAL: Duration = Duration::from_secs(5);
/// How often it is stored how far jobs are.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often what has ended is looked through.
const CLEANING: Duration = Duration::from_secs(60);
/// How often objects are looked for that no row knows, and how old those must be that wait for
/// one.
const SWEEPING: Duration = Duration::from_secs(3600);

/// What this process has in hand.
#[derive(Debug, Default)]
pub(super) struct InHand {
    /// Jobs that it runs.
    claimed: Mutex<HashMap<JobId, Held>>,
    /// Jobs whose clients wait here.
    attached: Mutex<HashSet<JobId>>,
}

/// A job that runs here.
#[derive(Debug)]
struct Held {
    /// The number of the claim.
    number: u64,
    /// How far it is, where that is not stored yet.
    progress: Option<JobProgress>,
}

impl InHand {
    pub(super) fn claimed(&self, claim: Claim) {
        lock(&self.claimed).insert(claim.id, Held { number: claim.number, progress: None });
    }

    /// The claim is used up, or void.
    pub(super) fn gone(&self, claim: Claim) {
        let mut claimed = lock(&self.claimed);
        if claimed.get(&claim.id).is_some_and(|held| held.number == claim.number) {
            claimed.remove(&claim.id);
        }
    }

    pub(super) fn note(&self, claim: Claim, progress: JobProgress) {
        if let Some(held) = lock(&self.claimed).get_mut(&claim.id)
            && held.number == claim.number
        {
            held.progress = Some(progress);
        }
    }

    pub(super) fn attach(&self, id: JobId) {
        lock(&self.attached).insert(id);
    }

    pub(super) fn detach(&self, id: JobId) {
        lock(&self.attached).remove(&id);
    }

    fn claims(&self) -> Vec<(JobId, u64)> {
        lock(&self.claimed).iter().map(|(id, held)| (*id, held.number)).collect()
    }

    fn take_progress(&self) -> Vec<(Claim, JobProgress)> {
        let mut claimed = lock(&self.claimed);
        let news = claimed.iter_mut().filter_map(|(id, held)| {
            let claim = Claim { id: *id, number: held.number };
            held.progress.take().map(|progress| (claim, progress))
        });
        news.collect()
    }

    fn attached(&self) -> Vec<String> {
        lock(&self.attached).iter().map(JobId::to_string).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what is in hand, and puts back what others had who are no more, until the store is
/// dropped.
pub(super) async fn keep(store: Weak<Inner>) {
    let mut ticks = tokio::time::interval(PROGRESS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Due::default();
    loop {
        ticks.tick().await;
        let Some(inner) = store.upgrade() else { return };
        if let Err(error) = due.turn(&inner).await {
            due.reached_since = None;
            tracing::warn!(cause = causes::one_line(&error), "the jobs are out of reach");
        }
        inner.reached.send_replace(due.reached_since.is_some());
    }
}

/// When what is to be done.
#[derive(Debug, Default)]
struct Due {
    renewed: Option<Instant>,
    cleaned: Option<Instant>,
    swept: Option<Instant>,
    /// Since when the database has answered without a fault.
    reached_since: Option<Instant>,
}

impl Due {
    async fn turn(&mut self, inner: &Arc<Inner>) -> Result<(), JobStoreError> {
        if is_due(self.renewed, RENEWAL) {
            self.renewed = Some(Instant::now());
            in_time(renew(inner)).await?;
            let reached_since = *self.reached_since.get_or_insert_with(Instant::now);
            // Others may have been cut off as this process was: they get time to come back.
            if reached_since.elapsed() > LEASE {
                in_time(put_back(inner)).await?;
            }
        }
        in_time(store_progress(inner)).await?;
        if is_due(self.cleaned, CLEANING) {
            self.cleaned = Some(Instant::now());
            inner.clean().await?;
        }
        if is_due(self.swept, SWEEPING) {
            self.swept = Some(Instant::now());
            let passing = inner.config.lifetime * 2 + SWEEPING;
            let ages = SweepingAges { passing, unnamed: SWEEPING };
            let unknown = |names| in_time(batches::unknown(&inner.pool, names));
            inner.objects.sweep(ages, unknown).await?;
        }
        Ok(())
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

async fn renew(inner: &Inner) -> Result<(), JobStoreError> {
    let claims = inner.in_hand.claims();
    let lease_s = LEASE.as_secs_f64();
    if !claims.is_empty() {
        let kept: HashSet<JobId> =
            claims::renew(&inner.pool, &claims, lease_s).await?.into_iter().collect();
        for (id, number) in claims.into_iter().filter(|(id, _)| !kept.contains(id)) {
            inner.in_hand.gone(Claim { id, number });
            inner.watchers.tell(id);
        }
    }
    let attached = inner.in_hand.attached();
    if !attached.is_empty() {
        let sql = "UPDATE diffuser_jobs SET attached_until = clock_timestamp() + \
                   make_interval(secs => $2) WHERE id = ANY($1)";
        sqlx::query(sql).bind(attached).bind(lease_s).execute(&inner.pool).await?;
    } else {
        sqlx::query("SELECT 1").execute(&inner.pool).await?;
    }
    Ok(())
}

async fn store_progress(inner: &Inner) -> Result<(), JobStoreError> {
    for (claim, progress) in inner.in_hand.take_progress() {
        let change = "UPDATE diffuser_jobs SET progress = $3 WHERE id = $1 AND claims = $2 AND \
                      is_claimed";
        let query = sqlx::query(telling(change))
            .bind(claim.id.to_string())
            .bind(signed(claim.number))
            .bind(rows::written(&progress)?);
        query.fetch_optional(&inner.pool).await?;
    }
    Ok(())
}

/// Puts back what nobody has any more, fails what was tried often enough, and calls off what
/// nobody waits for.
async fn put_back(inner: &Inner) -> Result<(), JobStoreError> {
    let lost = "UPDATE diffuser_jobs SET state = 'queued', is_claimed = FALSE, parts = 0, \
                progress = NULL, claims = claims + 1, cut_offs = cut_offs + 1 WHERE is_claimed AND \
                leased_until < clock_timestamp()";
    let again = sqlx::query(telling(lost)).fetch_all(&inner.pool).await?;
    if !again.is_empty() {
        tracing::info!(jobs = again.len(), "jobs whose worker is gone are tried again");
        let tries = inner.config.max_tries;
        let message = format!("{tries} times a worker was lost while it made these pictures.");
        let failure = JobFailure::of_server("abandoned", message);
        let mut connection = inner.pool.acquire().await?;
        let limits = (tries, inner.lifetime_ms());
        changes::abandon(&mut connection, limits, &failure).await?;
    }
    for id in call_off(&inner.pool).await? {
        inner.remove(id).await?;
    }
    Ok(())
}

/// Those whose client waited at a process that is no more.
async fn call_off(pool: &PgPool) -> Result<Vec<JobId>, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET state = CASE WHEN state IN ('queued', 'running') THEN \
         'cancelled' ELSE state END, is_claimed = FALSE, request_bytes = 0, ended_ms = \
         coalesce(ended_ms, ",
        now_ms!(),
        "), expires_ms = ",
        now_ms!(),
        " WHERE is_attached AND attached_until < clock_timestamp()"
    );
    changes::ids(&sqlx::query(telling(change)).fetch_all(pool).await?)
}
