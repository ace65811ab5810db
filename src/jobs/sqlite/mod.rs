//! The store that needs nothing but a disk, or not even that: SQLite, with requests and
//! results as files beside it.
//!
//! The database may be in memory, and the files with it; then jobs end with the process, and
//! all else is the same. One process at a time has a database: a lock says so.

mod batches;
mod changes;
mod rows;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::config::{JobStoreLocation, JobsConfig};
use super::error::JobStoreError;
use super::files::Files;
use super::id::JobId;
use super::record::{JobFailure, JobProgress, JobRecord, JobResult, Owner, now_ms, whole_ms};
use super::store::{
    Cancelled, Claim, Claimed, Created, Idempotency, JobLine, JobList, JobStore, NewJob, Notice,
    Outcome, Page, Releasing, Wanted,
};
use super::watchers::Watchers;
use changes::End;

/// Jobs of this process; clones share them.
#[derive(Clone)]
pub struct EmbeddedStore(Arc<Inner>);

struct Inner {
    database: Mutex<Connection>,
    files: Files,
    /// What is in files of clients and in lines of batches.
    blobs: Files,
    config: JobsConfig,
    watchers: Watchers,
    /// Held as long as the store is.
    _lock: Option<File>,
}

/// What a row says of its result's file.
#[derive(Debug, Serialize, Deserialize)]
struct ResultNote {
    file: String,
    media_type: String,
    notes: Vec<(String, String)>,
}

impl EmbeddedStore {
    /// Opens the store, puts back what a process had that is no more, and removes files
    /// that no row knows. Not for the async runtime.
    ///
    /// # Errors
    /// [`JobStoreError::InUse`] if another process has it; or the disk fails.
    pub fn open(config: &JobsConfig) -> Result<Self, JobStoreError> {
        let (database, files, blobs, lock) = match &config.location {
            JobStoreLocation::Memory => {
                (schema::in_memory()?, Files::in_memory(), Files::in_memory(), None)
            }
            JobStoreLocation::Sqlite(file) => {
                let (database, lock) = schema::open(file)?;
                let folder = |extension| Files::in_folder(file.with_extension(extension));
                (database, folder("files")?, folder("batches")?, Some(lock))
            }
            JobStoreLocation::Postgres(_) => return Err(JobStoreError::NotEmbedded),
        };
        let (database, config) = (Mutex::new(database), config.clone());
        let watchers = Watchers::default();
        let inner = Inner { database, files, blobs, config, watchers, _lock: lock };
        inner.recover()?;
        inner.sweep_blobs()?;
        Ok(Self(Arc::new(inner)))
    }

    /// Does `work` on a thread for work that blocks.
    async fn off_the_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, JobStoreError> + Send + 'static,
    ) -> Result<T, JobStoreError> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&inner)).await?
    }
}

fn request_file(id: JobId) -> String {
    format!("{id}.request")
}

/// Another name each time: what comes too late replaces nothing.
fn result_file(id: JobId) -> String {
    format!("{id}.{}.result", uuid::Uuid::new_v4().simple())
}

impl Inner {
    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lifetime_ms(&self) -> u64 {
        whole_ms(self.config.lifetime)
    }

    fn recover(&self) -> Result<(), JobStoreError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        let limits = (self.config.max_tries, self.lifetime_ms());
        let again = changes::recover(&transaction, limits)?;
        let known = known_files(&transaction)?;
        transaction.commit()?;
        drop(database);
        if again > 0 {
            tracing::info!(jobs = again, "jobs that were cut off are tried again");
        }
        self.files.sweep(|name| known.contains(name))
    }

    /// The job, with how far it is.
    fn seen(&self, record: JobRecord) -> JobRecord {
        JobRecord { progress: self.watchers.progress(record.id, record.claims), ..record }
    }

    fn create(&self, job: &NewJob) -> Result<Created, JobStoreError> {
        let id = JobId::new();
        self.check_room(job)?;
        let file = request_file(id);
        self.files.write(&file, &job.request)?;
        let created = self.insert(id, job);
        if !matches!(created, Ok(Created::New(_))) {
            self.files.remove(&file);
        }
        self.watchers.work_came();
        created
    }

    fn insert(&self, id: JobId, job: &NewJob) -> Result<Created, JobStoreError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        if let Some(idempotency) = &job.idempotency
            && let Some(found) = find_named(&transaction, &job.owner, idempotency)?
        {
            return Ok(found);
        }
        changes::insert(&transaction, id, job)?;
        let record = rows::get(&transaction, id)?;
        transaction.commit()?;
        let lost = || JobStoreError::Damaged("a job that was just stored is not there".to_owned());
        record.map(Created::New).ok_or_else(lost)
    }

    fn check_room(&self, job: &NewJob) -> Result<(), JobStoreError> {
        let capacity = self.config.capacity;
        let database = self.database();
        let unfinished: u64 = database.query_row(
            "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')",
            [],
            |row| row.get(0),
        )?;
        if unfinished >= capacity as u64 {
            return Err(JobStoreError::TooManyJobs { capacity });
        }
        self.check_bytes(&database, job.request.len() as u64)
    }

    /// Whether there is room for so many bytes more.
    fn check_bytes(&self, database: &Connection, more: u64) -> Result<(), JobStoreError> {
        let max_bytes = self.config.max_bytes;
        if Self::taken_bytes(database)?.saturating_add(more) > max_bytes {
            return Err(JobStoreError::NoRoom { max_bytes });
        }
        Ok(())
    }

    /// What requests, results, files and batches take.
    fn taken_bytes(database: &Connection) -> Result<u64, JobStoreError> {
        let of_jobs: u64 = database.query_row(
            "SELECT coalesce(sum(request_bytes + result_bytes), 0) FROM jobs",
            [],
            |row| row.get(0),
        )?;
        Ok(of_jobs.saturating_add(batches::bytes(database)?))
    }

    fn claim(&self) -> Result<Option<Claimed>, JobStoreError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        let Some(mut record) = rows::next(&transaction)? else { return Ok(None) };
        let claim = changes::claim(&transaction, &mut record)?;
        transaction.commit()?;
        Ok(Some(Claimed { claim, record }))
    }

    fn finish(&self, claim: Claim, outcome: &Outcome) -> Result<bool, JobStoreError> {
        let mut end = End {
            state: "failed",
            failure: None,
            result: None,
            warnings: None,
            lifetime_ms: self.lifetime_ms(),
        };
        let file = result_file(claim.id);
        match outcome {
            Outcome::Failed(failure) => end.failure = Some(failure),
            Outcome::Succeeded(result, warnings) => {
                self.files.write(&file, &result.body)?;
                let (media_type, notes) = (result.media_type.clone(), result.notes.clone());
                let note = ResultNote { file: file.clone(), media_type, notes };
                let note = rows::written(&note)?;
                end.state = "succeeded";
                end.warnings = Some(warnings);
                end.result = Some((note, result.body.len()));
            }
        }
        let is_written = changes::finish(&self.database(), claim, &end)?;
        if is_written {
            self.files.remove(&request_file(claim.id));
            self.watchers.forget(claim.id);
        } else {
            self.files.remove(&file);
        }
        self.watchers.tell(claim.id);
        Ok(is_written)
    }

    fn release(&self, claim: Claim, why: Releasing) -> Result<(), JobStoreError> {
        let database = self.database();
        changes::release(&database, claim, why)?;
        let tries = self.config.max_tries;
        let message = format!("{tries} times a device failed while it made these pictures.");
        let failure = JobFailure::of_server("abandoned", message);
        let expires = now_ms().saturating_add(self.lifetime_ms());
        if why == Releasing::AfterFault {
            changes::abandon(&database, tries, &failure, expires)?;
        }
        drop(database);
        self.watchers.forget(claim.id);
        self.watchers.tell(claim.id);
        self.watchers.work_came();
        Ok(())
    }

    fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, JobStoreError> {
        let database = self.database();
        let is_now = changes::cancel(&database, id, self.lifetime_ms())?;
        let record = rows::get(&database, id)?;
        drop(database);
        if is_now {
            self.files.remove(&request_file(id));
            self.watchers.forget(id);
            self.watchers.tell(id);
        }
        Ok(record.map(
            |record| {
                if is_now { Cancelled::Now(record) } else { Cancelled::Ended(record) }
            },
        ))
    }

    fn result_note(&self, id: JobId) -> Result<Option<ResultNote>, JobStoreError> {
        use rusqlite::OptionalExtension;
        let sql = "SELECT result FROM jobs WHERE id = ?1";
        let database = self.database();
        let found: Option<Option<String>> =
            database.query_row(sql, [id.to_string()], |row| row.get(0)).optional()?;
        found.flatten().as_deref().map(rows::read).transpose()
    }

    fn result(&self, id: JobId) -> Result<Option<JobResult>, JobStoreError> {
        let Some(ResultNote { file, media_type, notes }) = self.result_note(id)? else {
            return Ok(None);
        };
        Ok(Some(JobResult { media_type, notes, body: self.files.read(&file)? }))
    }

    fn remove(&self, id: JobId) -> Result<(), JobStoreError> {
        let note = self.result_note(id)?;
        let is_removed = changes::remove(&self.database(), id)?;
        if let Some(note) = note.filter(|_| is_removed) {
            self.files.remove(&note.file);
        }
        self.watchers.tell(id);
        Ok(())
    }

    fn clean(&self) -> Result<(), JobStoreError> {
        let expired = changes::expire(&self.database(), self.lifetime_ms())?;
        for id in expired {
            self.files.remove(&request_file(id));
            self.watchers.tell(id);
        }
        let outlived = changes::outlived(&self.database())?;
        outlived.into_iter().try_for_each(|id| self.remove(id))
    }
}

/// The job by that name, told by whether it asks for the same.
fn find_named(
    database: &Connection,
    owner: &Owner,
    idempotency: &Idempotency,
) -> Result<Option<Created>, JobStoreError> {
    let found = rows::named(database, owner, &idempotency.key)?;
    Ok(found.map(|(record, digest)| {
        if digest == idempotency.digest { Created::Same(record) } else { Created::Other(record) }
    }))
}

/// The files that rows name.
fn known_files(database: &Connection) -> Result<HashSet<String>, JobStoreError> {
    let mut known = HashSet::new();
    let mut statement = database.prepare("SELECT id, state, result FROM jobs")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (id, state): (String, String) = (row.get(0)?, row.get(1)?);
        if ["queued", "running"].contains(&state.as_str()) {
            known.insert(format!("{id}.request"));
        }
        if let Some(note) = row.get::<_, Option<String>>(2)? {
            known.insert(rows::read::<ResultNote>(&note)?.file);
        }
    }
    Ok(known)
}

#[async_trait]
impl JobStore for EmbeddedStore {
    async fn create(&self, job: NewJob) -> Result<Created, JobStoreError> {
        self.off_the_runtime(move |inner| inner.create(&job)).await
    }

    async fn named(
        &self,
        owner: &Owner,
        idempotency: &Idempotency,
    ) -> Result<Option<Created>, JobStoreError> {
        let (owner, idempotency) = (owner.clone(), idempotency.clone());
        self.off_the_runtime(move |inner| find_named(&inner.database(), &owner, &idempotency)).await
    }

    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, JobStoreError> {
        self.off_the_runtime(move |inner| {
            let found = rows::get(&inner.database(), id)?;
            Ok(found.map(|record| inner.seen(record)))
        })
        .await
    }

    async fn list(&self, owner: &Owner, page: Page) -> Result<JobList, JobStoreError> {
        let owner = owner.clone();
        self.off_the_runtime(move |inner| {
            let mut list = rows::list(&inner.database(), &owner, page)?;
            list.jobs = list.jobs.into_iter().map(|record| inner.seen(record)).collect();
            Ok(list)
        })
        .await
    }

    async fn claim(&self, _wanted: &Wanted) -> Result<Option<Claimed>, JobStoreError> {
        self.off_the_runtime(Inner::claim).await
    }

    async fn request(&self, id: JobId) -> Result<Bytes, JobStoreError> {
        self.off_the_runtime(move |inner| inner.files.read(&request_file(id))).await
    }

    async fn begin(&self, claim: Claim) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| {
            let has_begun = changes::begin(&inner.database(), claim)?;
            inner.watchers.tell(claim.id);
            Ok(has_begun)
        })
        .await
    }

    fn progress(&self, claim: Claim, progress: JobProgress) {
        self.0.watchers.note(claim, progress);
    }

    async fn finish(&self, claim: Claim, outcome: Outcome) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| inner.finish(claim, &outcome)).await
    }

    async fn release(&self, claim: Claim, why: Releasing) -> Result<(), JobStoreError> {
        self.off_the_runtime(move |inner| inner.release(claim, why)).await
    }

    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, JobStoreError> {
        self.off_the_runtime(move |inner| inner.cancel(id)).await
    }

    async fn remove(&self, id: JobId) -> Result<(), JobStoreError> {
        self.off_the_runtime(move |inner| inner.remove(id)).await
    }

    async fn result(&self, id: JobId) -> Result<Option<JobResult>, JobStoreError> {
        self.off_the_runtime(move |inner| inner.result(id)).await
    }

    async fn clean(&self) -> Result<(), JobStoreError> {
        self.off_the_runtime(Inner::clean).await
    }

    async fn lines(&self) -> Result<Vec<JobLine>, JobStoreError> {
        self.off_the_runtime(|inner| rows::lines(&inner.database())).await
    }

    async fn claim_notice(&self, lease: Duration) -> Result<Option<Notice>, JobStoreError> {
        self.off_the_runtime(move |inner| changes::claim_notice(&inner.database(), whole_ms(lease)))
            .await
    }

    async fn settle_notice(
        &self,
        id: JobId,
        tries: u32,
        again: Option<Duration>,
    ) -> Result<(), JobStoreError> {
        let again_ms = again.map(whole_ms);
        self.off_the_runtime(move |inner| {
            changes::settle_notice(&inner.database(), (id, tries), again_ms)
        })
        .await
    }

    fn watch(&self, id: JobId) -> watch::Receiver<()> {
        self.0.watchers.watch(id)
    }

    async fn until_work(&self) {
        self.0.watchers.until_work().await;
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EmbeddedStore").field("location", &self.0.config.location).finish()
    }
}
