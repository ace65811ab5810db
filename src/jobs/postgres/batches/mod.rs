//! Files and batches that processes share.
//!
//! What is in a file, and what a line came to, is an object; short lines lie in their rows.
//! The file of a batch that has ended has no content but its lines: nothing is copied. A batch
//! belongs to the process that says that it sees to it, until that says so no more.

mod changes;
mod content;
mod driving;
mod rows;
#[cfg(test)]
mod tests;

use async_trait::async_trait;

use super::leases::LEASE;
use super::{Inner, SharedStore, in_time};
use crate::jobs::batches::{
    BatchEnd, BatchFault, BatchId, BatchList, BatchPage, BatchRecord, BatchStore, Content, FileId,
    FileList, FilePage, FileRecord, NewBatch, NewFile, ROW_BYTES, Received, Removed, Room,
    SettledLine, StoredLine,
};
use crate::jobs::error::JobStoreError;
use crate::jobs::objects::line_name;
use crate::jobs::record::Owner;
pub(super) use rows::{bytes, unknown};

/// How much may come in.
async fn room(inner: &Inner) -> Result<Room, JobStoreError> {
    Ok(Room::new(inner.config.max_bytes, inner.taken_bytes().await?))
}

impl Inner {
    async fn keep(&self, received: &Received, file: &NewFile) -> Result<FileRecord, JobStoreError> {
        room(self).await?.take(received.bytes().saturating_add(ROW_BYTES))?;
        let id = FileId::new();
        changes::insert_file(&self.pool, id, (received, file)).await?;
        let lost = || JobStoreError::Damaged("a file that was just stored is not there".to_owned());
        rows::file(&self.pool, id).await?.ok_or_else(lost)
    }

    async fn remove_file(&self, id: FileId) -> Result<Removed, JobStoreError> {
        let (removed, objects) = in_time(changes::remove_file(&self.pool, id)).await?;
        self.discard(objects);
        Ok(removed)
    }

    /// Removes objects that no row names, while nobody waits for it: what is left of them if
    /// the process ends is swept up.
    fn discard(&self, names: Vec<String>) {
        if !names.is_empty() {
            let objects = self.objects.clone();
            tokio::spawn(async move { objects.remove_all(names).await });
        }
    }

    async fn create_batch(&self, batch: &NewBatch) -> Result<BatchRecord, JobStoreError> {
        room(self).await?.take(ROW_BYTES)?;
        let id = BatchId::new();
        let driver = (self.worker.as_str(), LEASE.as_secs_f64());
        changes::insert_batch(&self.pool, (id, batch), driver).await?;
        let lost =
            || JobStoreError::Damaged("a batch that was just stored is not there".to_owned());
        rows::batch(&self.pool, id).await?.ok_or_else(lost)
    }

    async fn settle(&self, id: BatchId, lines: Vec<SettledLine>) -> Result<(), JobStoreError> {
        let mut stored = Vec::with_capacity(lines.len());
        for line in lines {
            let place = StoredLine::needs_place(&line).then(|| line_name(id, line.number));
            if let Some(name) = &place {
                self.objects.write(name, line.content.clone()).await?;
            }
            stored.push(StoredLine { line, place });
        }
        // If the answer is lost, the objects may be in the rows: they are left to the sweep.
        let discarded = in_time(changes::settle(&self.pool, id, &stored)).await?;
        self.discard(discarded);
        Ok(())
    }

    async fn clean_batches(&self) -> Result<(), JobStoreError> {
        for id in in_time(rows::outlived_files(&self.pool)).await? {
            self.remove_file(id).await?;
        }
        in_time(changes::forget_batches(&self.pool)).await
    }
}

#[async_trait]
impl BatchStore for SharedStore {
    fn upload_bytes(&self) -> usize {
        content::UPLOAD_BYTES
    }

    async fn receive(&self, content: Content<'_>) -> Result<Received, JobStoreError> {
        content::receive(&self.0, content).await
    }

    async fn keep(&self, received: Received, file: NewFile) -> Result<FileRecord, JobStoreError> {
        let kept = in_time(self.0.keep(&received, &file)).await;
        // If the answer is lost, it may be in the row: it is left to the sweep.
        if !matches!(kept, Err(JobStoreError::NoRoom { .. })) {
            received.keep();
        }
        kept
    }

    async fn file(&self, id: FileId) -> Result<Option<FileRecord>, JobStoreError> {
        in_time(rows::file(&self.0.pool, id)).await
    }

    async fn files(&self, owner: &Owner, page: FilePage) -> Result<FileList, JobStoreError> {
        in_time(rows::files(&self.0.pool, owner, page)).await
    }

    async fn content(&self, id: FileId) -> Result<Option<Content<'static>>, JobStoreError> {
        let place = in_time(rows::place(&self.0.pool, id)).await?;
        Ok(place.map(|place| content::of(&self.0, place)))
    }

    async fn remove_file(&self, id: FileId) -> Result<Removed, JobStoreError> {
        self.0.remove_file(id).await
    }

    async fn create_batch(&self, batch: NewBatch) -> Result<BatchRecord, JobStoreError> {
        in_time(self.0.create_batch(&batch)).await
    }

    async fn batch(&self, id: BatchId) -> Result<Option<BatchRecord>, JobStoreError> {
        in_time(rows::batch(&self.0.pool, id)).await
    }

    async fn batches(&self, owner: &Owner, page: BatchPage) -> Result<BatchList, JobStoreError> {
        in_time(rows::batches(&self.0.pool, owner, page)).await
    }

    async fn unfinished(&self) -> Result<Vec<BatchId>, JobStoreError> {
        in_time(driving::take(&self.0.pool, &self.0.worker)).await
    }

    async fn is_given(&self, id: BatchId) -> Result<bool, JobStoreError> {
        in_time(driving::is_given(&self.0.pool, &self.0.worker, id)).await
    }

    async fn give_back(&self) -> Result<(), JobStoreError> {
        in_time(driving::give_back(&self.0.pool, &self.0.worker)).await
    }

    async fn until_batches_change(&self) {
        self.0.batches_changed.notified().await;
    }

    async fn begin_batch(&self, id: BatchId, total: u64) -> Result<bool, JobStoreError> {
        in_time(changes::begin(&self.0.pool, id, total)).await
    }

    async fn fail_batch(
        &self,
        id: BatchId,
        faults: Vec<BatchFault>,
    ) -> Result<bool, JobStoreError> {
        in_time(changes::fail(&self.0.pool, id, &faults)).await
    }

    async fn settle(&self, id: BatchId, lines: Vec<SettledLine>) -> Result<(), JobStoreError> {
        self.0.settle(id, lines).await
    }

    async fn settled(&self, id: BatchId) -> Result<Vec<u64>, JobStoreError> {
        in_time(rows::settled(&self.0.pool, id)).await
    }

    async fn finalize(&self, id: BatchId) -> Result<bool, JobStoreError> {
        in_time(changes::finalize(&self.0.pool, id)).await
    }

    async fn cancel_batch(&self, id: BatchId) -> Result<bool, JobStoreError> {
        in_time(changes::cancel(&self.0.pool, id)).await
    }

    async fn end_batch(&self, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError> {
        in_time(changes::end(&self.0.pool, id, end)).await
    }

    async fn clean_batches(&self) -> Result<(), JobStoreError> {
        self.0.clean_batches().await
    }
}
