//! Files and batches in the database of the jobs.
//!
//! What is in a file, and what a line came to, lies in a folder of its own; short lines lie in
//! their rows. The file of a batch that has ended has no content but its lines: nothing is
//! copied.

mod changes;
mod content;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use async_trait::async_trait;
use rusqlite::Connection;

use super::{EmbeddedStore, Inner};
use crate::jobs::batches::{
    BatchEnd, BatchFault, BatchId, BatchList, BatchPage, BatchRecord, BatchStore, Content, FileId,
    FileList, FilePage, FileRecord, MOST_UNFINISHED, NewBatch, NewFile, ROW_BYTES, Received,
    Removed, Room, SettledLine, StoredLine,
};
use crate::jobs::error::JobStoreError;
use crate::jobs::record::Owner;

/// What files and batches take.
pub(super) fn bytes(database: &Connection) -> Result<u64, JobStoreError> {
    Ok(rows::bytes(database, ROW_BYTES)?)
}

impl Inner {
    /// Removes what is in no file and in no line.
    pub(super) fn sweep_blobs(&self) -> Result<(), JobStoreError> {
        let known: HashSet<String> = rows::blobs(&self.database())?;
        self.blobs.sweep(|name| known.contains(name))
    }

    /// How much may come in.
    fn room(&self) -> Result<Room, JobStoreError> {
        let max_bytes = self.config.max_bytes;
        Ok(Room::new(max_bytes, Self::taken_bytes(&self.database())?))
    }

    fn remove_blobs(&self, names: Vec<String>) {
        names.iter().for_each(|name| self.blobs.remove(name));
    }

    fn keep(&self, received: Received, file: &NewFile) -> Result<FileRecord, JobStoreError> {
        let id = FileId::new();
        let mut database = self.database();
        let transaction = database.transaction()?;
        self.check_bytes(&transaction, received.bytes().saturating_add(ROW_BYTES))?;
        changes::insert_file(&transaction, id, (&received, file))?;
        let record = rows::file(&transaction, id)?;
        transaction.commit()?;
        received.keep();
        let lost = || JobStoreError::Damaged("a file that was just stored is not there".to_owned());
        record.ok_or_else(lost)
    }

    fn remove_file(&self, id: FileId) -> Result<Removed, JobStoreError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        if rows::is_in_use(&transaction, id)? {
            return Ok(Removed::InUse);
        }
        let blobs = changes::remove_file(&transaction, id)?;
        transaction.commit()?;
        drop(database);
        self.remove_blobs(blobs);
        Ok(Removed::Gone)
    }

    fn create_batch(&self, batch: &NewBatch) -> Result<BatchRecord, JobStoreError> {
        let id = BatchId::new();
        let mut database = self.database();
        let transaction = database.transaction()?;
        if rows::unfinished_of(&transaction, &batch.owner)? >= MOST_UNFINISHED as u64 {
            return Err(JobStoreError::TooManyBatches { most: MOST_UNFINISHED });
        }
        self.check_bytes(&transaction, ROW_BYTES)?;
        changes::insert_batch(&transaction, id, batch)?;
        let record = rows::batch(&transaction, id)?;
        transaction.commit()?;
        let lost =
            || JobStoreError::Damaged("a batch that was just stored is not there".to_owned());
        record.ok_or_else(lost)
    }

    fn settle(&self, id: BatchId, lines: Vec<SettledLine>) -> Result<(), JobStoreError> {
        let lines = lines.into_iter().map(|line| self.stored(id, line));
        let lines = lines.collect::<Result<Vec<_>, _>>()?;
        let mut database = self.database();
        let transaction = database.transaction()?;
        let discarded = changes::settle(&transaction, id, &lines)?;
        transaction.commit()?;
        drop(database);
        self.remove_blobs(discarded);
        Ok(())
    }

    /// The line as its row has it; a long one is on the disk by then.
    fn stored(&self, id: BatchId, line: SettledLine) -> Result<StoredLine, JobStoreError> {
        let place = StoredLine::needs_place(&line)
            .then(|| format!("{id}.{}.{}.line", line.number, uuid::Uuid::new_v4().simple()));
        if let Some(blob) = &place {
            self.blobs.write(blob, &line.content)?;
        }
        Ok(StoredLine { line, place })
    }

    fn end_batch(&self, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        let has_ended = changes::end(&transaction, id, end)?;
        transaction.commit()?;
        Ok(has_ended)
    }

    fn clean_batches(&self) -> Result<(), JobStoreError> {
        let outlived = rows::outlived_files(&self.database())?;
        for id in outlived {
            self.remove_file(id)?;
        }
        changes::forget_batches(&self.database())
    }
}

#[async_trait]
impl BatchStore for EmbeddedStore {
    async fn receive(&self, content: Content<'_>) -> Result<Received, JobStoreError> {
        content::receive(&self.0, content).await
    }

    async fn keep(&self, received: Received, file: NewFile) -> Result<FileRecord, JobStoreError> {
        self.off_the_runtime(move |inner| inner.keep(received, &file)).await
    }

    async fn file(&self, id: FileId) -> Result<Option<FileRecord>, JobStoreError> {
        self.off_the_runtime(move |inner| rows::file(&inner.database(), id)).await
    }

    async fn files(&self, owner: &Owner, page: FilePage) -> Result<FileList, JobStoreError> {
        let owner = owner.clone();
        self.off_the_runtime(move |inner| rows::files(&inner.database(), &owner, page)).await
    }

    async fn content(&self, id: FileId) -> Result<Option<Content<'static>>, JobStoreError> {
        let place = self.off_the_runtime(move |inner| rows::place(&inner.database(), id)).await?;
        Ok(place.map(|place| content::of(&self.0, place)))
    }

    async fn remove_file(&self, id: FileId) -> Result<Removed, JobStoreError> {
        self.off_the_runtime(move |inner| inner.remove_file(id)).await
    }

    async fn create_batch(&self, batch: NewBatch) -> Result<BatchRecord, JobStoreError> {
        self.off_the_runtime(move |inner| inner.create_batch(&batch)).await
    }

    async fn batch(&self, id: BatchId) -> Result<Option<BatchRecord>, JobStoreError> {
        self.off_the_runtime(move |inner| rows::batch(&inner.database(), id)).await
    }

    async fn batches(&self, owner: &Owner, page: BatchPage) -> Result<BatchList, JobStoreError> {
        let owner = owner.clone();
        self.off_the_runtime(move |inner| rows::batches(&inner.database(), &owner, page)).await
    }

    async fn unfinished(&self) -> Result<Vec<BatchId>, JobStoreError> {
        self.off_the_runtime(|inner| rows::unfinished(&inner.database())).await
    }

    async fn is_given(&self, _id: BatchId) -> Result<bool, JobStoreError> {
        Ok(true)
    }

    async fn give_back(&self) -> Result<(), JobStoreError> {
        Ok(())
    }

    async fn until_batches_change(&self) {
        std::future::pending().await
    }

    async fn begin_batch(&self, id: BatchId, total: u64) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| changes::begin(&inner.database(), id, total)).await
    }

    async fn fail_batch(
        &self,
        id: BatchId,
        faults: Vec<BatchFault>,
    ) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| changes::fail(&inner.database(), id, &faults)).await
    }

    async fn settle(&self, id: BatchId, lines: Vec<SettledLine>) -> Result<(), JobStoreError> {
        self.off_the_runtime(move |inner| inner.settle(id, lines)).await
    }

    async fn settled(&self, id: BatchId) -> Result<Vec<u64>, JobStoreError> {
        self.off_the_runtime(move |inner| rows::settled(&inner.database(), id)).await
    }

    async fn finalize(&self, id: BatchId) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| changes::finalize(&inner.database(), id)).await
    }

    async fn cancel_batch(&self, id: BatchId) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| changes::cancel(&inner.database(), id)).await
    }

    async fn end_batch(&self, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError> {
        self.off_the_runtime(move |inner| inner.end_batch(id, end)).await
    }

    async fn clean_batches(&self) -> Result<(), JobStoreError> {
        self.off_the_runtime(Inner::clean_batches).await
    }
}
