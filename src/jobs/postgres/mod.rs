//! The store that several processes share: PostgreSQL, with requests and results as objects
//! in a folder that all of them have, or in a bucket.
//!
//! Files and batches lie beside the jobs. A row is a job. Who takes one up has a lease on it and renews that; whoever finds one run
//! out puts the job back. Every write of a worker names its claim, so that one that comes too
//! late changes nothing. Changes are told by `NOTIFY`; whoever was not listening looks again.

mod batches;
mod changes;
mod claims;
mod leases;
mod listening;
mod registry;
mod rows;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::sync::{Notify, watch};

use super::config::{DatabaseUrl, JobsConfig};
use super::error::JobStoreError;
use super::fleet::{AnnouncedModel, Fleet};
use super::id::JobId;
use super::objects::{Objects, part_name, request_name, result_name};
use super::record::{JobProgress, JobRecord, JobResult, Owner, whole_ms};
use super::store::{
    Cancelled, Claim, Claimed, Created, Idempotency, JobLine, JobList, JobStore, NewJob, Notice,
    Outcome, Page, Releasing, Wanted,
};
use super::watchers::Watchers;
use crate::causes;
use changes::End;
use claims::Taker;
use leases::{InHand, LEASE};

/// Where it is told that a job has changed: its id.
const CHANGES: &str = "diffuser_jobs";
/// Where it is told that a job waits: its model.
const WORK: &str = "diffuser_work";
/// Where it is told that a worker has other models: its name.
const MODELS: &str = "diffuser_models";
/// Where it is told that a batch is to be looked at: its id.
const BATCHES: &str = "diffuser_batches";

/// How long the database may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of a process.
const MOST_CONNECTIONS: u32 = 10;
/// How often a worker looks whether there is work that it was not told of.
const LOOK: Duration = Duration::from_secs(2);

/// Jobs that this process shares with others; clones share them, too.
#[derive(Clone)]
pub struct SharedStore(Arc<Inner>);

struct Inner {
    pool: PgPool,
    objects: Objects,
    config: JobsConfig,
    /// What this process is called.
    worker: String,
    watchers: Watchers,
    in_hand: InHand,
    models_changed: Notify,
    batches_changed: Notify,
    reached: watch::Sender<bool>,
}

/// What a row says of its result's object.
#[derive(Debug, Serialize, Deserialize)]
struct ResultNote {
    object: String,
    media_type: String,
    notes: Vec<(String, String)>,
}

impl SharedStore {
    /// Opens the store, and makes its tables if there are none; waits for a database that is
    /// away. Needs a runtime.
    ///
    /// # Errors
    /// [`JobStoreError::Newer`], or what the database says.
    pub async fn open(
        url: &DatabaseUrl,
        objects: Arc<dyn ObjectStore>,
        config: &JobsConfig,
    ) -> Result<Self, JobStoreError> {
        let options: PgConnectOptions = url.as_str().parse()?;
        let options = options
            .application_name("diffuser-api")
            .options([("statement_timeout", PATIENCE.as_millis().to_string())]);
        let pool = PgPoolOptions::new()
            .max_connections(MOST_CONNECTIONS)
            .acquire_timeout(PATIENCE / 2)
            .connect_lazy_with(options);
        prepare(&pool).await?;
        let inner = Arc::new(Inner {
            pool,
            objects: Objects(objects),
            config: config.clone(),
            worker: uuid::Uuid::new_v4().simple().to_string(),
            watchers: Watchers::default(),
            in_hand: InHand::default(),
            models_changed: Notify::new(),
            batches_changed: Notify::new(),
            reached: watch::Sender::new(true),
        });
        tokio::spawn(listening::listen(Arc::downgrade(&inner)));
        tokio::spawn(leases::keep(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }
}

/// Has the tables made, once the database is there.
async fn prepare(pool: &PgPool) -> Result<(), JobStoreError> {
    loop {
        match in_time(schema::prepare(pool)).await {
            Err(error) if is_away(&error) => {
                tracing::warn!(
                    cause = causes::one_line(&error),
                    "waiting for the database of jobs"
                );
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            prepared => return prepared,
        }
    }
}

/// Whether the database is not there, or not yet; all else stays as it is.
fn is_away(error: &JobStoreError) -> bool {
    let JobStoreError::Shared(error) = error else {
        return matches!(error, JobStoreError::NotInTime);
    };
    // 57P03: it starts up or ends.
    let is_starting =
        |error: &dyn sqlx::error::DatabaseError| error.code().is_some_and(|code| code == "57P03");
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)
        || error.as_database_error().is_some_and(is_starting)
}

/// What a database does that may stop in the middle of an answer.
async fn in_time<T>(
    work: impl Future<Output = Result<T, JobStoreError>>,
) -> Result<T, JobStoreError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(JobStoreError::NotInTime))
}

impl Inner {
    fn lifetime_ms(&self) -> u64 {
        whole_ms(self.config.lifetime)
    }

    async fn check_room(&self, job: &NewJob) -> Result<(), JobStoreError> {
        let (capacity, max_bytes) = (self.config.capacity, self.config.max_bytes);
        if changes::unfinished(&self.pool).await? >= capacity as u64 {
            return Err(JobStoreError::TooManyJobs { capacity });
        }
        if self.taken_bytes().await?.saturating_add(job.request.len() as u64) > max_bytes {
            return Err(JobStoreError::NoRoom { max_bytes });
        }
        Ok(())
    }

    /// What requests, results, files and batches take.
    async fn taken_bytes(&self) -> Result<u64, JobStoreError> {
        let of_jobs = changes::bytes(&self.pool).await?;
        Ok(of_jobs.saturating_add(batches::bytes(&self.pool).await?))
    }

    async fn create(&self, job: NewJob) -> Result<Created, JobStoreError> {
        let id = JobId::new();
        in_time(self.check_room(&job)).await?;
        let name = request_name(id);
        self.objects.write(&name, job.request.clone()).await?;
        let created = in_time(self.insert(id, &job)).await;
        match &created {
            // Not before: if its client leaves meanwhile, its lease runs out.
            Ok(Created::New(_)) if job.is_attached => self.in_hand.attach(id),
            Ok(Created::New(_)) => {}
            Ok(Created::Same(_) | Created::Other(_)) | Err(_) => self.objects.remove(&name).await,
        }
        created
    }

    async fn insert(&self, id: JobId, job: &NewJob) -> Result<Created, JobStoreError> {
        if changes::insert(&self.pool, (id, job), LEASE.as_secs_f64()).await? {
            let record = changes::get(&self.pool, id).await?;
            let lost = "a job that was just stored is not there";
            return record.map(Created::New).ok_or_else(|| JobStoreError::Damaged(lost.to_owned()));
        }
        let Some(idempotency) = &job.idempotency else {
            return Err(JobStoreError::Damaged("a job was not stored".to_owned()));
        };
        let found = self.named(&job.owner, idempotency).await?;
        // It was forgotten in between.
        found.ok_or(JobStoreError::NotInTime)
    }

    async fn named(
        &self,
        owner: &Owner,
        idempotency: &Idempotency,
    ) -> Result<Option<Created>, JobStoreError> {
        let found = changes::named(&self.pool, owner, &idempotency.key).await?;
        let told = |(record, digest): (JobRecord, String)| {
            let is_same = digest == idempotency.digest;
            if is_same { Created::Same(record) } else { Created::Other(record) }
        };
        Ok(found.map(told))
    }

    async fn finish(&self, claim: Claim, outcome: &Outcome) -> Result<bool, JobStoreError> {
        let mut end = End {
            state: "failed",
            failure: None,
            result: None,
            warnings: None,
            lifetime_ms: self.lifetime_ms(),
        };
        let name = result_name(claim.id, claim.number);
        match outcome {
            Outcome::Failed(failure) => end.failure = Some(failure),
            Outcome::Succeeded(result, warnings) => {
                self.objects.write(&name, result.body.clone()).await?;
                let (media_type, notes) = (result.media_type.clone(), result.notes.clone());
                let note = ResultNote { object: name.clone(), media_type, notes };
                end.state = "succeeded";
                end.warnings = Some(warnings);
                end.result = Some((rows::written(&note)?, result.body.len()));
            }
        }
        let is_written = in_time(changes::finish(&self.pool, claim, &end)).await?;
        self.in_hand.gone(claim);
        if is_written {
            self.objects.remove(&request_name(claim.id)).await;
        } else if self.result_object(claim.id).await?.as_ref() != Some(&name) {
            // Else it was written before, and the answer was lost.
            self.objects.remove(&name).await;
        }
        Ok(is_written)
    }

    async fn release(&self, claim: Claim, why: Releasing) -> Result<(), JobStoreError> {
        in_time(changes::release(&self.pool, claim, why)).await?;
        self.in_hand.gone(claim);
        if why == Releasing::AfterFault {
            let tries = self.config.max_tries;
            let message = format!("{tries} times a device failed while it made these pictures.");
            let failure = super::record::JobFailure::of_server("abandoned", message);
            let mut connection = self.pool.acquire().await?;
            let limits = (tries, self.lifetime_ms());
            in_time(changes::abandon(&mut connection, limits, &failure)).await?;
        }
        Ok(())
    }

    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, JobStoreError> {
        let is_now = in_time(changes::cancel(&self.pool, id, self.lifetime_ms())).await?;
        let record = in_time(changes::get(&self.pool, id)).await?;
        if is_now {
            self.objects.remove(&request_name(id)).await;
        }
        let told = |record| {
            if is_now { Cancelled::Now(record) } else { Cancelled::Ended(record) }
        };
        Ok(record.map(told))
    }

    /// The object that a job's row names.
    async fn result_object(&self, id: JobId) -> Result<Option<String>, JobStoreError> {
        let note = in_time(changes::result(&self.pool, id)).await?;
        let note = note.as_deref().map(rows::read::<ResultNote>).transpose()?;
        Ok(note.map(|note| note.object))
    }

    async fn result(&self, id: JobId) -> Result<Option<JobResult>, JobStoreError> {
        let Some(note) = in_time(changes::result(&self.pool, id)).await? else { return Ok(None) };
        let ResultNote { object, media_type, notes } = rows::read(&note)?;
        Ok(Some(JobResult { media_type, notes, body: self.objects.read(&object).await? }))
    }

    async fn remove(&self, id: JobId) -> Result<(), JobStoreError> {
        self.in_hand.detach(id);
        let Some(record) = in_time(changes::get(&self.pool, id)).await? else { return Ok(()) };
        let note = in_time(changes::remove(&self.pool, id)).await?;
        if let Some(note) = note {
            self.objects.remove(&rows::read::<ResultNote>(&note)?.object).await;
        }
        for index in 0..record.parts {
            self.objects.remove(&part_name(id, record.claims, index)).await;
        }
        self.watchers.tell(id);
        Ok(())
    }

    async fn clean(&self) -> Result<(), JobStoreError> {
        for id in in_time(changes::expire(&self.pool, self.lifetime_ms())).await? {
            self.objects.remove(&request_name(id)).await;
        }
        for id in in_time(changes::outlived(&self.pool)).await? {
            self.remove(id).await?;
        }
        in_time(claims::forget_shares(&self.pool)).await?;
        in_time(registry::forget(&self.pool, self.config.lifetime)).await
    }
}

#[async_trait]
impl JobStore for SharedStore {
    async fn create(&self, job: NewJob) -> Result<Created, JobStoreError> {
        self.0.create(job).await
    }

    async fn named(
        &self,
        owner: &Owner,
        idempotency: &Idempotency,
    ) -> Result<Option<Created>, JobStoreError> {
        in_time(self.0.named(owner, idempotency)).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, JobStoreError> {
        in_time(changes::get(&self.0.pool, id)).await
    }

    async fn list(&self, owner: &Owner, page: Page) -> Result<JobList, JobStoreError> {
        in_time(changes::list(&self.0.pool, owner, page)).await
    }

    async fn claim(&self, wanted: &Wanted) -> Result<Option<Claimed>, JobStoreError> {
        let taker = Taker { worker: &self.0.worker, lease_s: LEASE.as_secs_f64() };
        let Some(record) = in_time(claims::next(&self.0.pool, wanted, taker)).await? else {
            return Ok(None);
        };
        let claim = Claim { id: record.id, number: record.claims };
        self.0.in_hand.claimed(claim);
        Ok(Some(Claimed { claim, record }))
    }

    async fn request(&self, id: JobId) -> Result<Bytes, JobStoreError> {
        self.0.objects.read(&request_name(id)).await
    }

    async fn begin(&self, claim: Claim) -> Result<bool, JobStoreError> {
        in_time(changes::begin(&self.0.pool, claim)).await
    }

    fn progress(&self, claim: Claim, progress: JobProgress) {
        self.0.in_hand.note(claim, progress);
    }

    async fn finish(&self, claim: Claim, outcome: Outcome) -> Result<bool, JobStoreError> {
        self.0.finish(claim, &outcome).await
    }

    async fn release(&self, claim: Claim, why: Releasing) -> Result<(), JobStoreError> {
        self.0.release(claim, why).await
    }

    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, JobStoreError> {
        self.0.cancel(id).await
    }

    async fn remove(&self, id: JobId) -> Result<(), JobStoreError> {
        self.0.remove(id).await
    }

    async fn result(&self, id: JobId) -> Result<Option<JobResult>, JobStoreError> {
        self.0.result(id).await
    }

    async fn clean(&self) -> Result<(), JobStoreError> {
        self.0.clean().await
    }

    async fn lines(&self) -> Result<Vec<JobLine>, JobStoreError> {
        in_time(changes::lines(&self.0.pool)).await
    }

    async fn claim_notice(&self, lease: Duration) -> Result<Option<Notice>, JobStoreError> {
        in_time(changes::claim_notice(&self.0.pool, whole_ms(lease))).await
    }

    async fn settle_notice(
        &self,
        id: JobId,
        tries: u32,
        again: Option<Duration>,
    ) -> Result<(), JobStoreError> {
        in_time(changes::settle_notice(&self.0.pool, (id, tries), again.map(whole_ms))).await
    }

    fn watch(&self, id: JobId) -> watch::Receiver<()> {
        self.0.watchers.watch(id)
    }

    async fn until_work(&self) {
        let _ = tokio::time::timeout(LOOK, self.0.watchers.until_work()).await;
    }
}

#[async_trait]
impl Fleet for SharedStore {
    async fn announce(&self, models: &[(String, String)]) -> Result<(), JobStoreError> {
        in_time(registry::announce(&self.0.pool, &self.0.worker, models)).await
    }

    async fn leave(&self) -> Result<(), JobStoreError> {
        in_time(registry::leave(&self.0.pool, &self.0.worker)).await
    }

    async fn models(&self) -> Result<Vec<AnnouncedModel>, JobStoreError> {
        in_time(registry::models(&self.0.pool)).await
    }

    async fn until_models_change(&self) {
        self.0.models_changed.notified().await;
    }

    fn reached(&self) -> watch::Receiver<bool> {
        self.0.reached.subscribe()
    }

    async fn add_part(&self, claim: Claim, index: u64, part: Bytes) -> Result<bool, JobStoreError> {
        self.0.objects.write(&part_name(claim.id, claim.number, index), part).await?;
        in_time(changes::add_part(&self.0.pool, claim, index + 1)).await
    }

    async fn part(&self, record: &JobRecord, index: u64) -> Result<Bytes, JobStoreError> {
        self.0.objects.read(&part_name(record.id, record.claims, index)).await
    }
}

impl std::fmt::Debug for SharedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SharedStore").field("worker", &self.0.worker).finish()
    }
}
