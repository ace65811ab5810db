//! What a store of jobs does. The module above says what it promises.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::error::JobStoreError;
use super::id::JobId;
use super::record::{JobFailure, JobProgress, JobRecord, JobResult, Owner};

/// A job that is to be accepted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose it is.
    pub owner: Owner,
    /// What it was sent to.
    pub endpoint: String,
    /// The model that makes its pictures.
    pub model: String,
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// What the client should know.
    pub warnings: Vec<String>,
    /// What the client calls the request, if anything.
    pub idempotency: Option<Idempotency>,
    /// Whether others go first, for nobody waits for it.
    pub is_patient: bool,
    /// Where somebody is to be told once it has ended.
    pub webhook: Option<String>,
    /// The request.
    pub request: Bytes,
    /// How much work it is, in seconds of whatever device: only relations count.
    pub cost_s: f64,
    /// Whether its client waits for the reply, and the job is of no use without it.
    pub is_attached: bool,
}

/// The models whose jobs somebody takes up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those that are there.
    pub loaded: Vec<String>,
    /// Those that would have to be loaded first.
    pub loadable: Vec<String>,
}

/// A client's own name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The name.
    pub key: String,
    /// A digest of what is asked for.
    pub digest: String,
}

/// What came of accepting a job.
#[derive(Debug)]
pub enum Created {
    /// It is stored.
    New(JobRecord),
    /// There is one by this name, that asks for the same.
    Same(JobRecord),
    /// There is one by this name, that asks for something else.
    Other(JobRecord),
}

/// The right to run a job and to write its result: good until somebody else has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub id: JobId,
    /// Which claim on it.
    pub number: u64,
}

/// A job that is to be run.
#[derive(Debug)]
pub struct Claimed {
    /// The right to.
    pub claim: Claim,
    /// The job.
    pub record: JobRecord,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// With a result, and with all that the client should know.
    Succeeded(JobResult, Vec<String>),
    /// With none.
    Failed(JobFailure),
}

/// Why a job is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Releasing {
    /// There was no place or no time for it: no try is counted.
    Untried,
    /// What it was tried on has failed.
    AfterFault,
}

/// What became of a wish to cancel.
#[derive(Debug)]
pub enum Cancelled {
    /// It is cancelled now.
    Now(JobRecord),
    /// It had ended before.
    Ended(JobRecord),
}

/// Jobs of a model that have not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct JobLine {
    /// The model.
    pub model: String,
    /// Those that wait.
    pub waiting: u64,
    /// Those that run.
    pub running: u64,
    /// How long the oldest of the waiting ones has waited, in milliseconds.
    pub oldest_ms: u64,
    /// How much work the waiting ones are, in seconds.
    pub work_s: f64,
}

/// Which of an owner's jobs: the latest first.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// How many.
    pub limit: usize,
    /// Those accepted before this one.
    pub after: Option<JobId>,
}

/// The first `limit` of what was `found`, and whether there was more: a page asks for one more
/// than it has.
pub(super) fn page_of<T>(mut found: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let has_more = found.len() > limit;
    found.truncate(limit);
    (found, has_more)
}

/// Jobs of an owner.
#[derive(Debug)]
pub struct JobList {
    /// The latest first.
    pub jobs: Vec<JobRecord>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// A job that has ended, of which somebody is to be told.
#[derive(Debug)]
pub struct Notice {
    /// The job.
    pub job: JobRecord,
    /// Where.
    pub webhook: String,
    /// How often it was tried, with this time.
    pub tries: u32,
}

/// A store of jobs.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// Accepts a job. It is on the disk when this returns.
    async fn create(&self, job: NewJob) -> Result<Created, JobStoreError>;

    /// The owner's job by the client's own name for it.
    async fn named(
        &self,
        owner: &Owner,
        idempotency: &Idempotency,
    ) -> Result<Option<Created>, JobStoreError>;

    /// A job.
    async fn get(&self, id: JobId) -> Result<Option<JobRecord>, JobStoreError>;

    /// Jobs of an owner.
    async fn list(&self, owner: &Owner, page: Page) -> Result<JobList, JobStoreError>;

    /// Takes up the next job. A store of one process has the jobs of that alone, and its
    /// lines order them: of the owner who has fewest taken up, the oldest. One that is shared
    /// looks at which jobs are `wanted`, and orders them as those lines do. A patient one is
    /// next if there is no other.
    async fn claim(&self, wanted: &Wanted) -> Result<Option<Claimed>, JobStoreError>;

    /// The request of a job that has not ended.
    async fn request(&self, id: JobId) -> Result<Bytes, JobStoreError>;

    /// The model has begun. `false`: the claim is void.
    async fn begin(&self, claim: Claim) -> Result<bool, JobStoreError>;

    /// How far the model is. Not stored.
    fn progress(&self, claim: Claim, progress: JobProgress);

    /// Ends a job. `false`: the claim is void, and the outcome is discarded.
    async fn finish(&self, claim: Claim, outcome: Outcome) -> Result<bool, JobStoreError>;

    /// Puts a job back, unless the claim is void.
    async fn release(&self, claim: Claim, why: Releasing) -> Result<(), JobStoreError>;

    /// Calls a job off; `None` if there is none.
    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>, JobStoreError>;

    /// Forgets a job that has ended.
    async fn remove(&self, id: JobId) -> Result<(), JobStoreError>;

    /// What a job came to, if it has come to something.
    async fn result(&self, id: JobId) -> Result<Option<JobResult>, JobStoreError>;

    /// Forgets what was kept for long enough, and fails what has waited for too long.
    async fn clean(&self) -> Result<(), JobStoreError>;

    /// The lines of all models for which there are jobs that have not ended.
    async fn lines(&self) -> Result<Vec<JobLine>, JobStoreError>;

    /// Takes up a notice that is due. It is due again after `lease`, unless it is settled
    /// before: whoever sends it may die.
    async fn claim_notice(&self, lease: Duration) -> Result<Option<Notice>, JobStoreError>;

    /// Has the notice of a job, at try `tries`, sent again after a while or, without one, never.
    async fn settle_notice(
        &self,
        id: JobId,
        tries: u32,
        again: Option<Duration>,
    ) -> Result<(), JobStoreError>;

    /// Tells of each change of a job, but may tell of several at once.
    fn watch(&self, id: JobId) -> watch::Receiver<()>;

    /// Completes when there may be a job to take up.
    async fn until_work(&self);
}
