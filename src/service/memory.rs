//! The memory that requests may hold, all of them together.
//!
//! A request takes its share *before* it allocates: for its body as it arrives, for what
//! a decoder will need, for what waits in the queue, for what is encoded. It waits its
//! turn for it, so long and no longer; what could never fit is refused at once. A
//! [`MemoryShare`] gives back what it holds when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one permit stands for, in bytes.
const UNIT: usize = 1 << 10;

/// The budget. Clones share it.
#[derive(Debug, Clone)]
pub struct RequestMemory {
    free: Arc<Semaphore>,
    total_units: usize,
    patience: Duration,
}

/// Why a request did not get the memory that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// It is more than all requests together may hold.
    #[error(
        "the request needs {needed} bytes of memory, all requests together may hold {total} \
         (server.request_memory_bytes): send fewer or smaller pictures"
    )]
    NeverFits {
        /// Bytes that the request would hold.
        needed: usize,
        /// The budget.
        total: usize,
    },
    /// Other requests held it for too long.
    #[error("the memory for requests is taken: try again in a moment")]
    NotInTime,
}

impl RequestMemory {
    /// A budget of `bytes`, for which a request waits at most for `patience`.
    #[must_use]
    pub fn new(bytes: usize, patience: Duration) -> Self {
        let total_units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { free: Arc::new(Semaphore::new(total_units)), total_units, patience }
    }

    /// A share of nothing, to begin with.
    #[must_use]
    pub fn share(&self) -> MemoryShare {
        MemoryShare { budget: self.clone(), held: None }
    }

    /// Bytes that all shares together may be.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.total_units * UNIT
    }

    /// Bytes that nobody holds.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free.available_permits() * UNIT
    }
}

/// What one request holds of the budget.
#[derive(Debug)]
pub struct MemoryShare {
    budget: RequestMemory,
    held: Option<OwnedSemaphorePermit>,
}

impl MemoryShare {
    /// Bytes that it stands for, rounded up.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.units() * UNIT
    }

    fn units(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Takes as much as makes it `bytes` in all, in the order in which requests ask.
    ///
    /// # Errors
    /// [`MemoryError::NeverFits`] at once, [`MemoryError::NotInTime`] after a while.
    pub async fn grow_to(&mut self, bytes: usize) -> Result<(), MemoryError> {
        let total = self.budget.total_units;
        let wanted = bytes.div_ceil(UNIT);
        if wanted > total {
            return Err(MemoryError::NeverFits { needed: bytes, total: total * UNIT });
        }
        let missing = wanted.saturating_sub(self.units());
        if missing == 0 {
            return Ok(());
        }
        // The budget has at most `u32::MAX` units.
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let asking = Arc::clone(&self.budget.free).acquire_many_owned(missing);
        let given = tokio::time::timeout(self.budget.patience, asking).await;
        // The semaphore is never closed.
        let given = given.ok().and_then(Result::ok).ok_or(MemoryError::NotInTime)?;
        self.take_in(given);
        Ok(())
    }

    /// Takes `bytes` more than it has; as [`Self::grow_to`].
    ///
    /// # Errors
    /// As [`Self::grow_to`].
    pub async fn grow_by(&mut self, bytes: usize) -> Result<(), MemoryError> {
        self.grow_to(self.bytes().saturating_add(bytes)).await
    }

    /// Takes what is free of `bytes` more, and does not wait for the rest: for finished
    /// work, which is not thrown away for want of memory. There is one model, so there is
    /// little of it at a time.
    pub fn grow_by_what_is_free(&mut self, bytes: usize) {
        let wanted = bytes.div_ceil(UNIT).min(self.budget.free.available_permits());
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        if let Ok(given) = Arc::clone(&self.budget.free).try_acquire_many_owned(wanted) {
            self.take_in(given);
        }
    }

    fn take_in(&mut self, given: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(given),
            None => self.held = Some(given),
        }
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.units().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.held.as_mut().and_then(|held| held.split(surplus)));
    }

    /// Parts with up to `bytes` of it: for what goes another way from here.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let units = bytes.div_ceil(UNIT).min(self.units());
        let held = self.held.as_mut().and_then(|held| held.split(units));
        Self { budget: self.budget.clone(), held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn budget() -> RequestMemory {
        RequestMemory::new(8 * MIB, Duration::from_millis(50))
    }

    #[tokio::test]
    async fn what_a_share_holds_comes_back_when_it_shrinks_or_is_dropped() {
        let budget = budget();
        let mut share = budget.share();
        share.grow_to(6 * MIB).await.unwrap();
        share.grow_to(5 * MIB).await.unwrap();
        assert_eq!((share.bytes(), budget.free_bytes()), (6 * MIB, 2 * MIB));

        let part = share.split(2 * MIB);
        assert_eq!((share.bytes(), part.bytes(), budget.free_bytes()), (4 * MIB, 2 * MIB, 2 * MIB));
        share.shrink_to(MIB);
        assert_eq!(budget.free_bytes(), 5 * MIB);
        drop((share, part));

        assert_eq!(budget.free_bytes(), 8 * MIB);
    }

    #[tokio::test]
    async fn what_never_fits_is_told_from_what_does_not_fit_now() {
        let budget = budget();
        let mut first = budget.share();
        first.grow_to(6 * MIB).await.unwrap();
        let mut second = budget.share();

        let never = second.grow_to(9 * MIB).await.unwrap_err();
        let not_now = second.grow_to(3 * MIB).await.unwrap_err();

        assert_eq!(never, MemoryError::NeverFits { needed: 9 * MIB, total: 8 * MIB });
        assert_eq!(not_now, MemoryError::NotInTime);
        assert_eq!(second.bytes(), 0);
        second.grow_by_what_is_free(3 * MIB);
        assert_eq!(second.bytes(), 2 * MIB);
    }

    #[tokio::test]
    async fn a_share_that_is_given_back_goes_to_whoever_waits() {
        let budget = RequestMemory::new(8 * MIB, Duration::from_secs(60));
        let mut first = budget.share();
        first.grow_to(8 * MIB).await.unwrap();
        let mut second = budget.share();
        let waiting = tokio::spawn(async move { second.grow_by(MIB).await.map(|()| second) });
        tokio::task::yield_now().await;

        drop(first);

        assert_eq!(waiting.await.unwrap().unwrap().bytes(), MIB);
    }
}
