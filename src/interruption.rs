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

use scoped_tls_hkt::scoped_thread_local;

scoped_thread_local!(static IS_CANCELLED: for<'a> &'a dyn Fn() -> bool);

/// The error of work that was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// What `work` returns, during which each [`check`] of this thread asks `is_cancelled`.
pub fn watched<R>(is_cancelled: &dyn Fn() -> bool, work: impl FnOnce() -> R) -> R {
    IS_CANCELLED.set(is_cancelled, work)
}

/// Whether [`check`] asks anybody on this thread.
#[must_use]
pub fn is_watched() -> bool {
    IS_CANCELLED.is_set()
}

/// Asks whether to go on.
///
/// # Errors
/// A candle error of [`Cancelled`] if nobody waits for the work any more.
pub fn check() -> candle_core::Result<()> {
    if is_watched() && IS_CANCELLED.with(|is_cancelled| is_cancelled()) {
        return Err(candle_core::Error::wrap(Cancelled));
    }
    Ok(())
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
    fn a_panic_ends_the_watch_too() {
        let panicking = || watched(&|| true, || panic!("the work's own fault"));

        assert!(std::panic::catch_unwind(panicking).is_err());
        assert!(check().is_ok());
    }
}
