//! Components that stay in memory, and components that are loaded for each use.

use std::str::FromStr;

use candle_core::Result as TensorResult;

use crate::checkpoint::{CheckedTensors, Weights};
use crate::domain::UnknownChoice;

/// How a model shall share the device's memory with everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryChoice {
    /// As much stays on the device as fits.
    Auto,
    /// All weights stay on the device.
    Resident,
    /// What a request needs only at its start and its end is loaded for that, layer by
    /// layer.
    Offload,
    /// So is each block of the transformer, for each step: nothing stays.
    Stream,
}

impl MemoryChoice {
    /// The ways to write one.
    pub const CHOICES: &str = "auto, resident, offload or stream";
}

impl FromStr for MemoryChoice {
    type Err = UnknownChoice;

    /// Reads the choice's name, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "resident" => Ok(Self::Resident),
            "offload" => Ok(Self::Offload),
            "stream" => Ok(Self::Stream),
            _ => Err(UnknownChoice { expected: Self::CHOICES }),
        }
    }
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

impl Residency {
    /// Of the layer number `index` if the first `resident` ones stay.
    #[must_use]
    pub fn of_layer(index: usize, resident: usize) -> Self {
        if index < resident { Self::Resident } else { Self::OnDemand }
    }
}

/// A component, or the means to load it.
pub struct Offloadable<T>(State<T>);

enum State<T> {
    Resident(T),
    OnDemand { weights: Box<Weights>, tensors: CheckedTensors, load: Loader<T> },
}

/// Makes a component from its place in the checkpoint.
type Loader<T> = Box<dyn Fn(&Weights) -> TensorResult<T> + Send>;

impl<T> Offloadable<T> {
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
                let weights = weights.for_one_use();
                let checking = weights.checking();
                load(&checking)?;
                let tensors = checking.checked();
                let weights = Box::new(weights);
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

    /// The component, or the way to it: if a GPU has to load it, that begins now,
    /// beside what the GPU computes.
    ///
    /// # Errors
    /// What the loading fails with.
    pub fn start_loading(&self) -> TensorResult<Loading<'_, T>> {
        match &self.0 {
            State::OnDemand { weights, load, .. } if weights.device().is_cuda() => {
                let weights = weights.prefetching();
                let component = load(&weights)?;
                Ok(Loading::Prefetched(Prefetched { component, weights }))
            }
            State::Resident(_) | State::OnDemand { .. } => Ok(Loading::Later(self)),
        }
    }

    /// Whether it is there all the time.
    #[must_use]
    pub fn stays(&self) -> bool {
        matches!(self.0, State::Resident(_))
    }

    /// Has the system read the component's files, if it is going to be loaded.
    /// Returns at once.
    pub fn read_ahead(&self) {
        if let State::OnDemand { weights, tensors, .. } = &self.0 {
            weights.read_ahead(tensors);
        }
    }
}

/// What becomes of `state` on its way through `layers`, one after another. While one is at
/// work, the next one is read, or loaded by a GPU.
///
/// # Errors
/// What `step` fails with, which is given a layer and its index, or the loading.
pub(super) fn through<T, S>(
    layers: &[Offloadable<T>],
    mut state: S,
    mut step: impl FnMut(&T, usize, S) -> TensorResult<S>,
) -> TensorResult<S> {
    let mut loading = layers.first().map(Offloadable::start_loading).transpose()?;
    for index in 0.. {
        let Some(layer) = loading.take() else { break };
        let next = layers.get(index + 1);
        next.inspect(|next| next.read_ahead());
        let work = |layer: &T| step(layer, index, state);
        let load_next = |_: &S| next.map(Offloadable::start_loading).transpose();
        (state, loading) = layer.with(work, load_next)?;
    }
    Ok(state)
}

/// A component that is going to be used.
pub enum Loading<'a, T> {
    /// It is there, or is loaded when it is used.
    Later(&'a Offloadable<T>),
    /// A GPU is loading it.
    Prefetched(Prefetched<T>),
}

impl<T> Loading<'_, T> {
    /// What `action` makes of the component. Then it is dropped, if it does not stay,
    /// after `meanwhile`, which is shown that and is done while a GPU is at work.
    ///
    /// # Errors
    /// What `action` or `meanwhile` fails with, or the loading.
    pub fn with<R, M, E>(
        self,
        action: impl FnOnce(&T) -> Result<R, E>,
        meanwhile: impl FnOnce(&R) -> Result<M, E>,
    ) -> Result<(R, M), E>
    where
        E: From<candle_core::Error>,
    {
        match self {
            Self::Later(held) => {
                let made = held.with(action)?;
                let meanwhile = meanwhile(&made)?;
                Ok((made, meanwhile))
            }
            Self::Prefetched(prefetched) => {
                prefetched.weights.await_uploads()?;
                let made = action(&prefetched.component)?;
                let meanwhile = meanwhile(&made)?;
                Ok((made, meanwhile))
            }
        }
    }
}

/// A component that a GPU loads beside its work.
pub struct Prefetched<T> {
    component: T,
    weights: Weights,
}

impl<T> Drop for Prefetched<T> {
    fn drop(&mut self) {
        // It may be dropped without having been used, or while it is used.
        if let Err(error) = self.weights.await_uploads().and_then(|()| self.weights.release()) {
            tracing::warn!(%error, "a card does not say when it is done");
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
    fn a_component_is_there_until_the_next_one_is_on_its_way() {
        let weights = Weights::recording("component", DType::F32);
        let alive = Arc::new(AtomicUsize::new(0));
        let counted = || {
            alive.fetch_add(1, Ordering::SeqCst);
            Counted(alive.clone())
        };
        let now = || Ok::<_, candle_core::Error>(alive.load(Ordering::SeqCst));
        let prefetched =
            || Loading::Prefetched(Prefetched { component: counted(), weights: weights.clone() });

        assert_eq!(prefetched().with(|_| now(), |_| now()).unwrap(), (1, 1));
        let failed =
            prefetched().with(|_| candle_core::bail!("no") as candle_core::Result<()>, |()| now());
        assert!(failed.is_err());
        drop(prefetched());
        assert_eq!(now().unwrap(), 0);

        let on_demand = Offloadable::new(Residency::OnDemand, &weights, {
            let alive = alive.clone();
            move |_| {
                alive.fetch_add(1, Ordering::SeqCst);
                Ok(Counted(alive.clone()))
            }
        });
        // A CPU has it only while it is used.
        let on_demand = on_demand.unwrap();
        assert_eq!(on_demand.start_loading().unwrap().with(|_| now(), |_| now()).unwrap(), (1, 0));
    }

    #[test]
    fn layers_are_there_one_at_a_time_but_for_those_that_stay() {
        let weights = Weights::recording("component", DType::F32);
        let alive = Arc::new(AtomicUsize::new(0));
        let layer = |index| {
            let alive = alive.clone();
            Offloadable::new(Residency::of_layer(index, 2), &weights, move |_| {
                alive.fetch_add(1, Ordering::SeqCst);
                Ok(Counted(alive.clone()))
            })
        };
        let layers = (0..5).map(layer).collect::<TensorResult<Vec<_>>>().unwrap();

        let seen = through(&layers, Vec::new(), |_, index, mut seen: Vec<_>| {
            seen.push((index, alive.load(Ordering::SeqCst)));
            Ok(seen)
        });

        assert_eq!(seen.unwrap(), [(0, 2), (1, 2), (2, 3), (3, 3), (4, 3)]);
        let stopped = through(&layers, (), |_, index, ()| match index {
            3 => candle_core::bail!("no"),
            _ => Ok(()),
        });
        assert!(stopped.is_err());
        assert_eq!(alive.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_resident_component_stays_and_one_on_demand_is_gone_after_its_use() {
        let weights = Weights::recording("component", DType::F32);
        for (residency, at_rest) in [(Residency::Resident, 1), (Residency::OnDemand, 0)] {
            let alive = Arc::new(AtomicUsize::new(0));
            let count = alive.clone();
            let held = Offloadable::new(residency, &weights, move |_| {
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
