//! The unfinished pictures of the jobs that run here: the last of each, for those who follow it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::jobs::JobId;

/// An unfinished picture, as its event tells of it.
pub(super) type Preview = Option<Arc<str>>;

/// What was last seen of each job. They are not stored: a job that begins anew shows others.
#[derive(Default)]
pub(super) struct JobPreviews(Mutex<HashMap<JobId, watch::Sender<Preview>>>);

impl JobPreviews {
    /// Hears of the job's unfinished pictures from now on; of the last one, too.
    pub(super) fn watch(&self, id: JobId) -> watch::Receiver<Preview> {
        let mut jobs = self.lock();
        jobs.retain(|_, sender| sender.borrow().is_some() || sender.receiver_count() > 0);
        let mut previews = jobs.entry(id).or_default().subscribe();
        previews.mark_changed();
        previews
    }

    /// Shows those who follow the job what it looks like.
    pub(super) fn show(&self, id: JobId, event: String) {
        self.lock().entry(id).or_default().send_replace(Some(event.into()));
    }

    /// The job has ended, or goes back into the store.
    pub(super) fn forget(&self, id: JobId) {
        if let Some(sender) = self.lock().get(&id) {
            sender.send_replace(None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, watch::Sender<Preview>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of it has not been looked at.
pub(super) fn unseen(previews: &mut watch::Receiver<Preview>) -> Preview {
    if previews.has_changed().unwrap_or_default() {
        previews.borrow_and_update().clone()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_late_sees_the_last_picture_once_and_none_after_the_end() {
        let (jobs, id) = (JobPreviews::default(), JobId::new());
        jobs.show(id, "first".to_owned());
        jobs.show(id, "second".to_owned());

        let mut late = jobs.watch(id);

        assert_eq!(unseen(&mut late).as_deref(), Some("second"));
        assert_eq!(unseen(&mut late), None);
        jobs.forget(id);
        assert_eq!(unseen(&mut late), None);
        drop(late);
        let _another = jobs.watch(JobId::new());
        assert_eq!(jobs.lock().len(), 1);
    }
}
