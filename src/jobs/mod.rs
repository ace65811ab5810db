//! Jobs: requests whose pictures are fetched later, and that outlive the process.
//!
//! What is promised of a job from the moment [`JobStore::create`] has returned:
//!
//! 1. It is not lost. Its row and its files are on the disk by then (not with the store
//!    `memory`), and whoever opens the store after a crash finds it queued again.
//! 2. It ends once: as succeeded, failed or cancelled, and stays so. A result is written by
//!    the holder of the job's claim alone; [`JobStore::finish`] by anybody whose claim has
//!    passed on is discarded.
//! 3. Cancelling wins: a job that was cancelled has no result, whatever its model still made.
//! 4. A job during which the process died is tried again, `jobs.max_tries` times in all, and
//!    has failed as `abandoned` then. Being stopped in good order is no try, and waiting while
//!    another job ended the process is a tenth of one.
//! 5. Each try gives the same pictures: the seed is drawn before the job is stored.
//! 6. A row never says that a file is there which is not: files are written under another
//!    name, synced and renamed first.
//! 7. Whoever is to be told of a job's end ([`NewJob::webhook`]) is told of by
//!    [`JobStore::claim_notice`] until that is settled, over restarts, too, for as long as the
//!    job is kept.
//! 8. What has ended is kept for `jobs.lifetime_s`; what has waited for longer fails as
//!    `expired`.
//!
//! Who may see a job is its [`Owner`]. What is in a request is no matter of this module, nor
//! is HTTP: a request is bytes, and a result is bytes with a few words about them.

pub mod batches;
mod config;
mod error;
mod files;
mod fleet;
mod id;
mod json;
mod objects;
mod postgres;
mod record;
mod sqlite;
mod store;
mod watchers;

pub use config::{DatabaseUrl, JobStoreLocation, JobsConfig};
pub use error::JobStoreError;
pub use fleet::{AnnouncedModel, Fleet};
pub use id::JobId;
pub use postgres::SharedStore;
pub use record::{JobFailure, JobProgress, JobRecord, JobResult, JobState, Owner};
pub use sqlite::EmbeddedStore;
pub use store::{
    Cancelled, Claim, Claimed, Created, Idempotency, JobLine, JobList, JobStore, NewJob, Notice,
    Outcome, Page, Releasing, Wanted,
};
