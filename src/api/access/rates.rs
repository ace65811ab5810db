//! How much a client may ask for: requests a minute, requests at a time, pictures a day.
//!
//! An [`Account`] is what one client has used. The [`Limits`] are not part of it: when they
//! change, what was used stays.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::time::{SECONDS_OF_A_DAY, Time};

/// How much a client may ask for; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in a minute; as many may come at once after a minute without any.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Requests at a time.
    pub concurrent_requests: Option<NonZeroU32>,
    /// Pictures in a day of UTC.
    pub pictures_per_day: Option<NonZeroU32>,
}

impl Limits {
    /// Whether anything is limited.
    pub(super) fn are_any(&self) -> bool {
        *self != Self::default()
    }
}

/// How many requests a client has left in its minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestRate {
    pub(super) limit: NonZeroU32,
    pub(super) remaining: u32,
    /// Until all of them are back.
    pub(super) reset_after: Duration,
}

/// Why a request is not taken: its minute has no room before `wait` is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFast {
    pub(super) rate: RequestRate,
    pub(super) wait: Duration,
}

/// Why pictures are not made: the day has no room for them before `wait` is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PicturesSpent {
    pub(super) limit: NonZeroU32,
    pub(super) left: u32,
    pub(super) wait: Duration,
}

/// Pictures that count for a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Booked {
    day: u64,
    pictures: u32,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Time, StateInformationMiddleware>;

/// What a client has used of its minute, with the limit that this is counted by.
#[derive(Debug)]
struct Minute {
    limit: NonZeroU32,
    limiter: Limiter,
}

/// The pictures of a day so far.
#[derive(Debug, Default)]
struct Day {
    day: u64,
    pictures: u32,
}

/// What one client has used.
#[derive(Debug)]
pub(super) struct Account {
    time: Time,
    minute: Mutex<Option<Minute>>,
    running: AtomicU32,
    day: Mutex<Day>,
}

impl Account {
    pub(super) fn new(time: Time) -> Arc<Self> {
        Arc::new(Self {
            time,
            minute: Mutex::default(),
            running: AtomicU32::new(0),
            day: Mutex::default(),
        })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// [`TooFast`]; then it is not counted.
    pub(super) fn take_request(&self, limit: NonZeroU32) -> Result<RequestRate, TooFast> {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.as_ref().is_none_or(|minute| minute.limit != limit) {
            let limiter =
                RateLimiter::direct_with_clock(Quota::per_minute(limit), self.time.clone());
            *minute = Some(Minute { limit, limiter: limiter.with_middleware() });
        }
        let Some(minute) = minute.as_ref() else {
            return Ok(RequestRate { limit, remaining: limit.get(), reset_after: Duration::ZERO });
        };
        let one = Quota::per_minute(limit).replenish_interval();
        match minute.limiter.check() {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let reset_after = one * limit.get().saturating_sub(remaining);
                Ok(RequestRate { limit, remaining, reset_after })
            }
            Err(refused) => {
                let wait = refused.wait_time_from(self.time.now());
                let reset_after = wait + one * (limit.get() - 1);
                Err(TooFast { rate: RequestRate { limit, remaining: 0, reset_after }, wait })
            }
        }
    }

    /// A request that is under way until what this gives is dropped; `None` if there are
    /// `limit` already.
    pub(super) fn begin(self: &Arc<Self>, limit: Option<NonZeroU32>) -> Option<Running> {
        let most = limit.map_or(u32::MAX, NonZeroU32::get);
        let one_more = |running: u32| (running < most).then_some(running + 1);
        let begun = self.running.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        begun.ok().map(|_| Running(Arc::clone(self)))
    }

    /// Counts `pictures` of the day.
    ///
    /// # Errors
    /// [`PicturesSpent`]; then none is counted.
    pub(super) fn book(
        &self,
        limit: Option<NonZeroU32>,
        pictures: u32,
    ) -> Result<Booked, PicturesSpent> {
        let mut day = self.today();
        self.check_room(&day, limit, pictures)?;
        day.pictures = day.pictures.saturating_add(pictures);
        Ok(Booked { day: day.day, pictures })
    }

    /// Whether the day has room for a picture.
    ///
    /// # Errors
    /// [`PicturesSpent`].
    pub(super) fn check_pictures(&self, limit: Option<NonZeroU32>) -> Result<(), PicturesSpent> {
        self.check_room(&self.today(), limit, 1)
    }

    fn check_room(
        &self,
        day: &Day,
        limit: Option<NonZeroU32>,
        pictures: u32,
    ) -> Result<(), PicturesSpent> {
        let Some(limit) = limit else { return Ok(()) };
        let left = limit.get().saturating_sub(day.pictures);
        if pictures <= left {
            return Ok(());
        }
        Err(PicturesSpent { limit, left, wait: self.time.until_tomorrow() })
    }

    /// Counts `booked` no more.
    pub(super) fn give_back(&self, booked: Booked) {
        let mut day = self.today();
        if day.day == booked.day {
            day.pictures = day.pictures.saturating_sub(booked.pictures);
        }
    }

    /// The day's count, which begins anew with the day.
    fn today(&self) -> std::sync::MutexGuard<'_, Day> {
        let mut day = self.day.lock().unwrap_or_else(PoisonError::into_inner);
        let today = self.time.seconds_since_1970() / SECONDS_OF_A_DAY;
        if day.day != today {
            *day = Day { day: today, pictures: 0 };
        }
        day
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(in crate::api) struct Running(Arc<Account>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();

    /// Two hours before midnight.
    fn account() -> (Arc<Account>, governor::clock::FakeRelativeClock) {
        let (time, clock) = Time::fake(22 * 3600);
        (Account::new(time), clock)
    }

    #[test]
    fn a_minute_has_so_many_requests_at_once_or_spread() {
        let (account, clock) = account();
        let seconds = Duration::from_secs;

        for remaining in [2, 1, 0] {
            let rate = account.take_request(THREE).unwrap();
            assert_eq!((rate.limit, rate.remaining), (THREE, remaining));
            assert_eq!(rate.reset_after, seconds(20 * u64::from(3 - remaining)));
        }
        clock.advance(seconds(5));
        let refused = account.take_request(THREE).unwrap_err();
        assert_eq!((refused.wait, refused.rate.remaining), (seconds(15), 0));
        assert_eq!(refused.rate.reset_after, seconds(55));
        clock.advance(seconds(15));
        assert_eq!(account.take_request(THREE).unwrap().remaining, 0, "one is back");
        account.take_request(THREE).unwrap_err();
        clock.advance(seconds(60));
        assert_eq!(account.take_request(THREE).unwrap().remaining, 2, "all are back, and no more");
    }

    #[test]
    fn another_limit_counts_anew_and_the_same_one_goes_on() {
        let (account, _clock) = account();
        account.take_request(NonZeroU32::MIN).unwrap();

        account.take_request(NonZeroU32::MIN).unwrap_err();
        assert_eq!(account.take_request(THREE).unwrap().remaining, 2);
    }

    #[test]
    fn so_many_requests_are_under_way_and_one_that_ends_makes_room() {
        let (account, _clock) = account();
        let two = NonZeroU32::new(2);
        let first = account.begin(two).unwrap();
        let _second = account.begin(two).unwrap();

        assert!(account.begin(two).is_none());
        assert!(account.begin(None).is_some(), "without a limit there is always room");
        drop(first);
        assert!(account.begin(two).is_some());
    }

    #[test]
    fn pictures_count_for_the_day_and_those_given_back_do_not() {
        let (account, clock) = account();
        let limit = Some(THREE);
        let booked = account.book(limit, 2).unwrap();

        let spent = account.book(limit, 2).unwrap_err();
        assert_eq!((spent.limit, spent.left), (THREE, 1));
        assert_eq!(spent.wait, Duration::from_secs(2 * 3600), "until midnight");
        account.book(limit, 1).unwrap();
        account.give_back(booked);
        let late = account.book(limit, 2).unwrap();
        account.book(limit, 1).unwrap_err();

        clock.advance(Duration::from_secs(2 * 3600));
        account.book(limit, 3).unwrap();
        account.give_back(late);
        assert_eq!(account.book(limit, 1).unwrap_err().left, 0, "yesterday's make no room today");
    }

    #[test]
    fn pictures_count_before_there_is_a_limit() {
        let (account, _clock) = account();
        account.book(None, 2).unwrap();

        assert_eq!(account.book(Some(THREE), 2).unwrap_err().left, 1);
    }
}
