//! Names of jobs: UUIDs of version 7, which sort by the time of their making.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::{Builder, Uuid};

use super::record::now_ms;

/// The name of a job. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

const PREFIX: &str = "job_";

/// The milliseconds of the last name, for none is like another's.
static LAST_MS: AtomicU64 = AtomicU64::new(0);

impl JobId {
    /// A new one, greater than all that this process made before.
    #[must_use]
    pub fn new() -> Self {
        Self(next())
    }
}

/// A UUID that is greater than all that this process made before.
pub(super) fn next() -> Uuid {
    let now = now_ms();
    let next = |last: u64| now.max(last + 1);
    let before =
        LAST_MS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
    let ms = before.map_or(now, next);
    let mut random = [0; 10];
    random.copy_from_slice(&Uuid::new_v4().as_bytes()[..10]);
    Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.0.simple())
    }
}

/// A text that names no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no name of a job")]
pub struct NoJobId;

impl FromStr for JobId {
    type Err = NoJobId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(NoJobId)?;
        let id = Uuid::try_parse(digits).map(Self).map_err(|_| NoJobId)?;
        // One way to write it.
        if id.to_string() == text { Ok(id) } else { Err(NoJobId) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_they_are_made_and_are_written_in_one_way() {
        let ids: Vec<JobId> = (0..1000).map(|_| JobId::new()).collect();

        assert!(ids.is_sorted_by(|one, next| one < next && one.to_string() < next.to_string()));
        assert_eq!(ids[0].to_string().parse(), Ok(ids[0]));
        assert_eq!(ids[0].0.get_version_num(), 7);
        let text = ids[0].to_string();
        for wrong in [&text[4..], "job_", "", &text.to_uppercase(), &format!("{text}0")] {
            assert_eq!(wrong.parse::<JobId>(), Err(NoJobId), "{wrong}");
        }
    }
}
