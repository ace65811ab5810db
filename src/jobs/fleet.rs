//! What several processes need of a store that they share, besides its jobs.

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::error::JobStoreError;
use super::record::JobRecord;
use super::store::{Claim, JobStore};

/// A model that workers have, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedModel {
    /// Its name.
    pub name: String,
    /// What its workers say of it.
    pub announcement: String,
    /// How many workers there are that have it.
    pub workers: u64,
}

/// A store that several processes share: gateways, which take requests in and answer them,
/// and workers, which make the pictures.
#[async_trait]
pub trait Fleet: JobStore {
    /// Says which models this process has, each with what it says of it. Holds for half a
    /// minute.
    async fn announce(&self, models: &[(String, String)]) -> Result<(), JobStoreError>;

    /// Says that this process has none any more.
    async fn leave(&self) -> Result<(), JobStoreError>;

    /// The models that were announced, whether a worker is there now or not.
    async fn models(&self) -> Result<Vec<AnnouncedModel>, JobStoreError>;

    /// Completes when models may have changed.
    async fn until_models_change(&self);

    /// Whether the store answers.
    fn reached(&self) -> watch::Receiver<bool>;

    /// Adds a part to the stream of a job's reply; there are `index` before it. `false`: the
    /// claim is void.
    async fn add_part(&self, claim: Claim, index: u64, part: Bytes) -> Result<bool, JobStoreError>;

    /// A part of the stream of a job, of those that [`JobRecord::parts`] counts.
    async fn part(&self, record: &JobRecord, index: u64) -> Result<Bytes, JobStoreError>;
}
