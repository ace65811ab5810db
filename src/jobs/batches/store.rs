//! What a store of batches does. The module above says what it promises.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::id::{BatchId, FileId};
use super::record::{BatchFault, BatchRecord, FilePurpose, FileRecord};
use crate::jobs::error::JobStoreError;
use crate::jobs::record::Owner;

/// A file's bytes, piece by piece.
pub type Content<'a> = BoxStream<'a, Result<Bytes, JobStoreError>>;

/// Content that has come in and is no file yet. Dropped, it is removed.
pub struct Received {
    name: String,
    bytes: u64,
    discard: Option<Discard>,
}

/// What removes content by its name.
type Discard = Box<dyn FnOnce(&str) + Send + Sync>;

impl Received {
    /// Content that the store calls `name`, and what removes it.
    pub fn new(
        name: String,
        bytes: u64,
        discard: impl FnOnce(&str) + Send + Sync + 'static,
    ) -> Self {
        Self { name, bytes, discard: Some(Box::new(discard)) }
    }

    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the store calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It belongs to a file now, and is not removed.
    pub fn keep(mut self) {
        self.discard = None;
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(discard) = self.discard.take() {
            discard(&self.name);
        }
    }
}

/// A file that is to be kept.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// Whose it is.
    pub owner: Owner,
    /// What its owner calls it.
    pub name: String,
    /// How long it is kept, in milliseconds.
    pub lifetime_ms: u64,
}

/// By what time files are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOrder {
    /// The latest first.
    Latest,
    /// The first ones first.
    First,
}

/// Which of an owner's files.
#[derive(Debug, Clone, Copy)]
pub struct FilePage {
    /// How many.
    pub limit: usize,
    /// Those that come behind this one.
    pub after: Option<FileId>,
    /// Which come first.
    pub order: FileOrder,
    /// Those that are for this alone.
    pub purpose: Option<FilePurpose>,
}

/// Files of an owner.
#[derive(Debug)]
pub struct FileList {
    /// In the order that was asked for.
    pub files: Vec<FileRecord>,
    /// Whether there are more behind them.
    pub has_more: bool,
}

/// What became of a wish to remove a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, or never was.
    Gone,
    /// A batch that has not ended needs it.
    InUse,
}

/// A batch that is to be accepted.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Whose it is.
    pub owner: Owner,
    /// What its requests are sent to.
    pub endpoint: String,
    /// The file with its requests.
    pub input_file: FileId,
    /// What else whoever drives it has to know.
    pub context: String,
    /// Its owner's notes.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How long it may take, in milliseconds.
    pub window_ms: u64,
    /// How long it is known once it has ended, in milliseconds.
    pub lifetime_ms: u64,
    /// How long its files are kept, in milliseconds.
    pub files_lifetime_ms: u64,
}

/// Which of an owner's batches: the latest first.
#[derive(Debug, Clone, Copy)]
pub struct BatchPage {
    /// How many.
    pub limit: usize,
    /// Those accepted before this one.
    pub after: Option<BatchId>,
}

/// Batches of an owner.
#[derive(Debug)]
pub struct BatchList {
    /// The latest first.
    pub batches: Vec<BatchRecord>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// The file that a line goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinePart {
    /// Of requests that succeeded.
    Output,
    /// Of all others.
    Error,
}

/// What a line came to.
#[derive(Debug, Clone)]
pub struct SettledLine {
    /// Its place in the input file, from 1.
    pub number: u64,
    /// Where it goes.
    pub part: LinePart,
    /// The line that goes there, with its end.
    pub content: Bytes,
}

/// How a batch ends whose lines are all settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchEnd {
    /// From `Finalizing`.
    Completed,
    /// From `Validating` or `InProgress`.
    Expired,
    /// From `Cancelling`.
    Cancelled,
}

/// A store of files and batches. What says `bool` says whether the batch was where it could
/// be done; else nothing was.
#[async_trait]
pub trait BatchStore: Send + Sync + 'static {
    /// What is in memory at most of content that comes in, in bytes.
    fn upload_bytes(&self) -> usize {
        0
    }

    /// Takes content in, piece by piece. It is on the disk when this returns.
    async fn receive(&self, content: Content<'_>) -> Result<Received, JobStoreError>;

    /// Makes a file of it.
    async fn keep(&self, received: Received, file: NewFile) -> Result<FileRecord, JobStoreError>;

    /// A file.
    async fn file(&self, id: FileId) -> Result<Option<FileRecord>, JobStoreError>;

    /// Files of an owner.
    async fn files(&self, owner: &Owner, page: FilePage) -> Result<FileList, JobStoreError>;

    /// What is in a file.
    async fn content(&self, id: FileId) -> Result<Option<Content<'static>>, JobStoreError>;

    /// Forgets a file.
    async fn remove_file(&self, id: FileId) -> Result<Removed, JobStoreError>;

    /// Accepts a batch.
    async fn create_batch(&self, batch: NewBatch) -> Result<BatchRecord, JobStoreError>;

    /// A batch.
    async fn batch(&self, id: BatchId) -> Result<Option<BatchRecord>, JobStoreError>;

    /// Batches of an owner.
    async fn batches(&self, owner: &Owner, page: BatchPage) -> Result<BatchList, JobStoreError>;

    /// Batches that have not ended, the oldest first. Of a store of several processes those
    /// that this one is to drive for the next few seconds: all that it drives, and those that
    /// nobody does. It has to ask again by then, or others take them up.
    async fn unfinished(&self) -> Result<Vec<BatchId>, JobStoreError>;

    /// Whether this process is to drive a batch yet that it was given. If it was out of reach
    /// for a while, another one may have it.
    async fn is_given(&self, id: BatchId) -> Result<bool, JobStoreError>;

    /// Gives back all that this process drives, for others to take up.
    async fn give_back(&self) -> Result<(), JobStoreError>;

    /// Completes when another process has changed a batch; it may not tell of each time.
    async fn until_batches_change(&self);

    /// `Validating` → `InProgress`: its file has so many requests.
    async fn begin_batch(&self, id: BatchId, total: u64) -> Result<bool, JobStoreError>;

    /// `Validating` → `Failed`.
    async fn fail_batch(&self, id: BatchId, faults: Vec<BatchFault>)
    -> Result<bool, JobStoreError>;

    /// Notes what lines came to, in `InProgress` and `Cancelling`; of a line that has been
    /// settled before, nothing.
    async fn settle(&self, id: BatchId, lines: Vec<SettledLine>) -> Result<(), JobStoreError>;

    /// The numbers of the lines that are settled.
    async fn settled(&self, id: BatchId) -> Result<Vec<u64>, JobStoreError>;

    /// `InProgress` → `Finalizing`, once all lines are settled.
    async fn finalize(&self, id: BatchId) -> Result<bool, JobStoreError>;

    /// `Validating`, `InProgress` → `Cancelling`.
    async fn cancel_batch(&self, id: BatchId) -> Result<bool, JobStoreError>;

    /// Ends a batch whose lines are all settled, and makes files of them.
    async fn end_batch(&self, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError>;

    /// Forgets what was kept for long enough.
    async fn clean_batches(&self) -> Result<(), JobStoreError>;
}
