//! Changes of layers that are loaded, for the time of one request.
//!
//! A component whose layers can be changed owns [`Adapters`] and hands them to the place
//! that it loads its layers from ([`Weights::adaptable`](super::super::Weights::adaptable)).
//! Each layer takes an [`AdapterSlot`] there, under its name, and asks it at each product.
//! So a layer that is loaded anew for each use finds its changes again, and one whose
//! matrix is rounded adds them exactly.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::LoraLayers;

/// What a layer adds to its product: factor · (x · downᵀ) · upᵀ.
#[derive(Clone)]
pub struct LowRank {
    /// (rank, inputs).
    pub down: Tensor,
    /// (outputs, rank).
    pub up: Tensor,
    /// The strength of the whole.
    pub factor: f64,
}

/// The layers of a component that can be changed, and what changes them now.
#[derive(Default)]
pub struct Adapters {
    /// Shapes (outputs, inputs) by name.
    layers: Mutex<BTreeMap<String, [usize; 2]>>,
    /// Whether anything does, without a lock: what the layers ask first.
    are_active: AtomicBool,
    active: Mutex<Active>,
}

#[derive(Default)]
struct Active {
    /// By the layers' names.
    changes: HashMap<String, Arc<[LowRank]>>,
    /// What they come from and how strong they are, as the caller names it.
    key: Option<Arc<str>>,
}

impl Adapters {
    /// The place of the layer `name`, whose matrix is (outputs, inputs).
    #[must_use]
    pub(in super::super) fn slot(self: &Arc<Self>, name: &str, shape: [usize; 2]) -> AdapterSlot {
        lock(&self.layers).insert(name.to_owned(), shape);
        AdapterSlot { adapters: self.clone(), name: name.into() }
    }

    /// Names and shapes (outputs, inputs) of all layers that have a slot.
    #[must_use]
    pub fn layers(&self) -> BTreeMap<String, [usize; 2]> {
        lock(&self.layers).clone()
    }

    /// Has `loras`, each with a strength of its own, change the layers until what is
    /// returned is dropped. `key` tells these changes from all others.
    pub fn activate(
        self: &Arc<Self>,
        loras: &[(Arc<LoraLayers>, f64)],
        key: &str,
    ) -> ActiveAdapters {
        let mut changes: HashMap<&String, Vec<LowRank>> = HashMap::new();
        for (lora, scale) in loras {
            for (name, change) in &lora.changes {
                let change = LowRank { factor: change.factor * scale, ..change.clone() };
                changes.entry(name).or_default().push(change);
            }
        }
        let changes = changes.into_iter().map(|(name, list)| (name.clone(), list.into()));
        *lock(&self.active) = Active { changes: changes.collect(), key: Some(key.into()) };
        self.are_active.store(true, Ordering::Release);
        ActiveAdapters(self.clone())
    }

    /// The key of what changes the layers now.
    #[must_use]
    pub fn active_key(&self) -> Option<Arc<str>> {
        lock(&self.active).key.clone()
    }
}

/// While it is there, layers are changed.
#[must_use = "the changes end when it is dropped"]
pub struct ActiveAdapters(Arc<Adapters>);

impl Drop for ActiveAdapters {
    fn drop(&mut self) {
        self.0.are_active.store(false, Ordering::Release);
        *lock(&self.0.active) = Active::default();
    }
}

/// The place of one layer among [`Adapters`].
#[derive(Clone)]
pub struct AdapterSlot {
    adapters: Arc<Adapters>,
    name: Arc<str>,
}

impl AdapterSlot {
    /// What the layer adds to its product now, if anything.
    #[must_use]
    pub fn changes(&self) -> Option<Arc<[LowRank]>> {
        if !self.adapters.are_active.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.adapters.active).changes.get(&*self.name).cloned()
    }
}

/// What a panic left in the mutex is as good as before: single values are set.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
