//! Breaking off work that nobody waits for any more.
//!
//! A network computes for minutes on a thread of its own. Whoever starts that says with
//! [`watched`] how to ask whether it is still wanted; whatever takes long calls [`check`]
//! between two pieces of work that take at most a second or two: layers, attention slices,
//! strips of large products, tensors that are read. The question belongs to the thread, as
//! a tensor operation has no argument for it, nor have the blocks that come from crates; it
//! is there for the duration of [`watched`] alone.
//!
//! Asking costs nothing worth counting and waits for no device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use scoped_tls_hkt::scoped_thread_local;

scoped_thread_local!(static IS_CANCELLED: for<'a> &'a dyn Fn() -> bool);
scoped_thread_local!(static ON_LAYER: for<'a> &'a dyn Fn(usize, usize));

/// The error of work that was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub(crate) struct Cancelled;

/// What `work` returns, during which each [`check`] of this thread asks `is_cancelled`.
pub(crate) fn watched<R>(is_cancelled: &dyn Fn() -> bool, work: impl FnOnce() -> R) -> R {
    IS_CANCELLED.set(is_cancelled, work)
}

/// Whether [`check`] asks anybody on this thread.
#[must_use]
pub(crate) fn is_watched() -> bool {
    IS_CANCELLED.is_set()
}

/// What `work` returns, during which each [`check_layer`] of this thread tells `on_layer`
/// how many layers are computed, and of how many.
pub(crate) fn told_of_layers<R>(on_layer: &dyn Fn(usize, usize), work: impl FnOnce() -> R) -> R {
    ON_LAYER.set(on_layer, work)
}

/// As [`check`], before layer `index` of `count`.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_layer(index: usize, count: usize) -> candle_core::Result<()> {
    if ON_LAYER.is_set() {
        ON_LAYER.with(|on_layer| on_layer(index, count));
    }
    check()
}

/// Asks whether to go on.
///
/// # Errors
/// A candle error of [`Cancelled`] if nobody waits for the work any more.
pub(crate) fn check() -> candle_core::Result<()> {
    if is_watched() && IS_CANCELLED.with(|is_cancelled| is_cancelled()) {
        return Err(candle_core::Error::wrap(Cancelled));
    }
    Ok(())
}

/// What `work` returns, which may use other threads: what they do under
/// [`Watch::over`] is broken off with the work of this one.
///
/// # Panics
/// If `work` does.
pub(crate) fn shared<R: Send>(work: impl FnOnce(Watch<'_>) -> R + Send) -> R {
    const BETWEEN_QUESTIONS: Duration = Duration::from_millis(5);
    if !is_watched() {
        return work(Watch(None));
    }
    let is_cancelled = AtomicBool::new(false);
    let (done, finished) = mpsc::channel::<()>();
    let told = &is_cancelled;
    std::thread::scope(|scope| {
        let working = scope.spawn(move || {
            let _dropped_at_the_end = done;
            work(Watch(Some(told)))
        });
        while finished.recv_timeout(BETWEEN_QUESTIONS) == Err(RecvTimeoutError::Timeout) {
            // Only the thread that is watched may ask.
            told.fetch_or(check().is_err(), Ordering::Relaxed);
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What tells other threads that their work is broken off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch<'a>(Option<&'a AtomicBool>);

impl Watch<'_> {
    /// Of work that is not broken off.
    #[must_use]
    pub(crate) fn of_nothing() -> Self {
        Self(None)
    }

    /// What `work` returns, during which each [`check`] knows what the thread knows that
    /// [`shared`] was called on.
    pub(crate) fn over<R>(self, work: impl FnOnce() -> R) -> R {
        match self.0 {
            Some(is_cancelled) => watched(&|| is_cancelled.load(Ordering::Relaxed), work),
            None => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn work_is_broken_off_at_the_next_check_and_only_while_it_is_watched() {
        let asked = Cell::new(0);
        let third = || {
            asked.set(asked.get() + 1);
            asked.get() >= 3
        };

        let done = watched(&third, || (0..10).take_while(|_| check().is_ok()).count());

        assert_eq!((done, asked.get()), (2, 3));
        assert!(check().is_ok());
        assert!(!is_watched());
    }

    #[test]
    fn whoever_listens_is_told_of_layers_and_the_check_is_made_all_the_same() {
        let told = Cell::new((0, 0));
        let on_layer = |done, layers| told.set((done, layers));

        let broken_off = watched(&|| true, || told_of_layers(&on_layer, || check_layer(3, 60)));

        assert!(broken_off.is_err());
        assert_eq!(told.get(), (3, 60));
        assert!(check_layer(4, 60).is_ok());
        assert_eq!(told.get(), (3, 60));
    }

    #[test]
    fn other_threads_are_stopped_with_the_one_that_is_watched() {
        // Without an end but this.
        let endless = |watch: Watch<'_>| watch.over(|| while check().is_ok() {});
        let asked = Cell::new(0);
        let third = || {
            asked.set(asked.get() + 1);
            asked.get() >= 3
        };

        watched(&third, || shared(endless));

        assert!(asked.get() >= 3);
        // Whoever is not watched works on its own thread.
        let here = std::thread::current().id();
        assert_eq!(shared(|watch| watch.over(|| std::thread::current().id())), here);
    }

    #[test]
    fn a_panic_ends_the_watch_too() {
        let panicking = || watched(&|| true, || panic!("the work's own fault"));

        assert!(std::panic::catch_unwind(panicking).is_err());
        assert!(check().is_ok());
    }
}
