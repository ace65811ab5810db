//! Who wants to hear of changes, and how far jobs are that run here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::id::JobId;
use super::record::JobProgress;
use super::store::Claim;

/// What of the jobs lives in this process alone.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    watched: Mutex<HashMap<JobId, watch::Sender<()>>>,
    progress: Mutex<HashMap<JobId, (u64, JobProgress)>>,
    work: Notify,
}

impl Watchers {
    pub(super) fn watch(&self, id: JobId) -> watch::Receiver<()> {
        let mut watched = lock(&self.watched);
        watched.retain(|_, sender| sender.receiver_count() > 0);
        watched.entry(id).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Tells those who watch the job.
    pub(super) fn tell(&self, id: JobId) {
        if let Some(sender) = lock(&self.watched).get(&id) {
            sender.send_replace(());
        }
    }

    /// Tells everybody: something may have changed.
    pub(super) fn tell_all(&self) {
        lock(&self.watched).values().for_each(|sender| sender.send_replace(()));
        self.work.notify_one();
    }

    pub(super) fn note(&self, claim: Claim, progress: JobProgress) {
        lock(&self.progress).insert(claim.id, (claim.number, progress));
        self.tell(claim.id);
    }

    /// How far the holder of claim `number` is.
    pub(super) fn progress(&self, id: JobId, number: u64) -> Option<JobProgress> {
        let progress = lock(&self.progress);
        progress.get(&id).filter(|(of, _)| *of == number).map(|(_, progress)| *progress)
    }

    pub(super) fn forget(&self, id: JobId) {
        lock(&self.progress).remove(&id);
    }

    /// There may be a job to take up.
    pub(super) fn work_came(&self) {
        self.work.notify_one();
    }

    pub(super) async fn until_work(&self) {
        self.work.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
