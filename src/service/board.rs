//! What there is of each model, for those who ask: written by the threads of the devices.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::Loaded;

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

/// The states of all models.
pub(super) struct Board {
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
        Self { models: Mutex::new(states) }
    }

    pub(super) fn set(&self, model: usize, thread: usize, state: ReplicaState) {
        let mut models = self.lock();
        let replica = models[model].iter_mut().find(|(host, _)| *host == thread);
        if let Some((_, known)) = replica {
            *known = state;
        }
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
