//! What there is of each model, for those who ask: written by the threads of the devices.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::{Estimate, Loaded};

/// A model on one of its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    /// It is loaded when somebody asks for it.
    NotLoaded,
    /// It is being loaded.
    Loading,
    /// It is there.
    Loaded(Loaded),
    /// It could not be loaded, for a reason that clients may read; it is tried again.
    Failed(String),
}

/// The states of all models, what they said that a picture takes, and of devices that failed.
pub(super) struct Board {
    /// Of each model, once it has been loaded.
    estimates: Mutex<Vec<Option<Arc<Estimate>>>>,
    device_has_failed: watch::Sender<bool>,
    /// Of each model: the threads that host it, and what they have of it.
    models: Mutex<Vec<Vec<(usize, ReplicaState)>>>,
}

impl Board {
    /// `hosted`: the models of each thread.
    pub(super) fn new(models: usize, hosted: &[Vec<usize>]) -> Self {
        let mut states = vec![Vec::new(); models];
        for (thread, hosted) in hosted.iter().enumerate() {
            for model in hosted {
                states[*model].push((thread, ReplicaState::NotLoaded));
            }
        }
        Self {
            estimates: Mutex::new(vec![None; models]),
            device_has_failed: watch::Sender::new(false),
            models: Mutex::new(states),
        }
    }

    pub(super) fn set(&self, model: usize, thread: usize, state: ReplicaState) {
        let mut models = self.lock();
        let replica = models[model].iter_mut().find(|(host, _)| *host == thread);
        if let Some((_, known)) = replica {
            *known = state;
        }
    }

    pub(super) fn set_estimate(&self, model: usize, estimate: Option<Estimate>) {
        let mut estimates = self.estimates.lock().unwrap_or_else(PoisonError::into_inner);
        estimates[model] = estimate.map(Arc::new);
    }

    /// What a model said that a picture takes, when it was last loaded.
    pub(super) fn estimate(&self, model: usize) -> Option<Arc<Estimate>> {
        let estimates = self.estimates.lock().unwrap_or_else(PoisonError::into_inner);
        estimates[model].clone()
    }

    /// A device computes nothing more for this process.
    pub(super) fn report_device_fault(&self) {
        self.device_has_failed.send_replace(true);
    }

    /// Completes once a device has failed for good.
    pub(super) async fn until_device_fault(&self) {
        let mut has_failed = self.device_has_failed.subscribe();
        // The sender lives as long as the board.
        let _ = has_failed.wait_for(|has_failed| *has_failed).await;
    }

    /// The threads that host a model.
    pub(super) fn hosts(&self, model: usize) -> Vec<usize> {
        self.lock()[model].iter().map(|(thread, _)| *thread).collect()
    }

    pub(super) fn replicas(&self, model: usize) -> Vec<ReplicaState> {
        self.lock()[model].iter().map(|(_, state)| state.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<(usize, ReplicaState)>>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
