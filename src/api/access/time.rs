//! What time it is: by the system's clocks, or by one that a test turns.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use governor::clock::Clock;
use governor::nanos::Nanos;

/// In UTC no day is longer or shorter.
pub(super) const SECONDS_OF_A_DAY: u64 = 86_400;

/// What time it is.
#[derive(Debug, Clone)]
pub(super) enum Time {
    System {
        started: Instant,
    },
    #[cfg(test)]
    Fake {
        clock: governor::clock::FakeRelativeClock,
        /// Seconds since 1970 at which the clock began.
        began: u64,
    },
}

impl Time {
    pub(super) fn of_the_system() -> Self {
        Self::System { started: Instant::now() }
    }

    /// A clock that stands still unless it is turned, from `began` on.
    #[cfg(test)]
    pub(super) fn fake(began: u64) -> (Self, governor::clock::FakeRelativeClock) {
        let clock = governor::clock::FakeRelativeClock::default();
        (Self::Fake { clock: clock.clone(), began }, clock)
    }

    pub(super) fn seconds_since_1970(&self) -> u64 {
        self.since_1970().as_secs()
    }

    /// Until the next day begins.
    pub(super) fn until_tomorrow(&self) -> Duration {
        let into_the_day = self.seconds_since_1970() % SECONDS_OF_A_DAY;
        Duration::from_secs(SECONDS_OF_A_DAY - into_the_day)
    }

    pub(super) fn utc(&self) -> DateTime<Utc> {
        DateTime::from(UNIX_EPOCH + self.since_1970())
    }

    fn since_1970(&self) -> Duration {
        match self {
            Self::System { .. } => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            #[cfg(test)]
            Self::Fake { clock, began } => {
                Duration::from_secs(*began) + Duration::from(clock.now())
            }
        }
    }
}

impl Clock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match self {
            Self::System { started } => started.elapsed().into(),
            #[cfg(test)]
            Self::Fake { clock, .. } => clock.now(),
        }
    }
}
