//! Components that stay in memory, and components that are loaded for each use.

use candle_core::Result as TensorResult;

use crate::checkpoint::{CheckedTensors, Weights};

/// How a model shall share the device's memory with everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryChoice {
    /// As much stays on the device as fits.
    Auto,
    /// All weights stay on the device.
    Resident,
    /// What a request needs only at its start and its end is loaded for that.
    Offload,
    /// So is each block of the transformer, for each step.
    Stream,
}

/// Whether a component's weights stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// From the start on.
    Resident,
    /// Only while they are used; then they are read from their files again, which
    /// the system keeps in memory as long as there is room.
    OnDemand,
}

/// A component, or the means to load it.
pub struct Held<T>(State<T>);

enum State<T> {
    Resident(T),
    OnDemand { weights: Box<Weights>, tensors: CheckedTensors, load: Loader<T> },
}

/// Makes a component from its place in the checkpoint.
type Loader<T> = Box<dyn Fn(&Weights) -> TensorResult<T> + Send>;

impl<T> Held<T> {
    /// Loads a component from `weights` at once, or checks that it can be loaded.
    ///
    /// # Errors
    /// What `load` fails with.
    pub fn new(
        residency: Residency,
        weights: &Weights,
        load: impl Fn(&Weights) -> TensorResult<T> + Send + 'static,
    ) -> TensorResult<Self> {
        Ok(Self(match residency {
            Residency::Resident => State::Resident(load(weights)?),
            Residency::OnDemand => {
                let checking = weights.checking();
                load(&checking)?;
                let tensors = checking.checked();
                let weights = Box::new(weights.clone());
                State::OnDemand { weights, tensors, load: Box::new(load) }
            }
        }))
    }

    /// What `action` makes of the component, which is dropped afterwards if it
    /// does not stay.
    ///
    /// # Errors
    /// What `action` fails with, or the loading.
    pub fn with<R, E>(&self, action: impl FnOnce(&T) -> Result<R, E>) -> Result<R, E>
    where
        E: From<candle_core::Error>,
    {
        match &self.0 {
            State::Resident(component) => action(component),
            State::OnDemand { weights, load, .. } => action(&load(weights)?),
        }
    }

    /// Has the system read the component's files, if it is going to be loaded.
    /// Returns at once.
    pub fn read_ahead(&self) {
        if let State::OnDemand { weights, tensors, .. } = &self.0 {
            weights.read_ahead(tensors);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::DType;

    use super::*;

    /// A component that counts how many of its kind there are.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_resident_component_stays_and_one_on_demand_is_gone_after_its_use() {
        let weights = Weights::recording("component", DType::F32);
        for (residency, at_rest) in [(Residency::Resident, 1), (Residency::OnDemand, 0)] {
            let alive = Arc::new(AtomicUsize::new(0));
            let count = alive.clone();
            let held = Held::new(residency, &weights, move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(Counted(count.clone()))
            })
            .unwrap();

            for _ in 0..2 {
                assert_eq!(alive.load(Ordering::SeqCst), at_rest, "{residency:?}");
                let in_use =
                    held.with(|_| Ok::<_, candle_core::Error>(alive.load(Ordering::SeqCst)));
                assert_eq!(in_use.unwrap(), 1, "{residency:?}");
            }
        }
    }
}
