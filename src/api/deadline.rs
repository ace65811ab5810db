//! How long a request may take: whoever asks for pictures may say when they are of no use
//! to anybody any more.

use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;

use super::ApiConfig;
use super::error::ApiError;
use crate::domain::{FaultKind, ValidationError};

/// The header that says so, in milliseconds from the request's head on.
pub(super) const HEADER: &str = "x-request-timeout-ms";
/// The most that can be asked for: a day.
pub(super) const MOST_MS: u64 = 86_400_000;

/// The moment from which on an answer is of no use, if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// None: as long as it takes.
    pub(super) const NEVER: Self = Self(None);

    /// What the client says or the settings, whichever is earlier.
    ///
    /// # Errors
    /// [`ValidationError`] if the header is no number of milliseconds up to a day.
    pub(super) fn of(headers: &HeaderMap, config: &ApiConfig) -> Result<Self, ValidationError> {
        Ok(Self::within(Self::asked(headers)?, config))
    }

    /// How long the client says that it waits.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(super) fn asked(headers: &HeaderMap) -> Result<Option<Duration>, ValidationError> {
        let asked = headers.get(HEADER).map(|value| {
            let ms = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            ms.filter(|ms| (1..=MOST_MS).contains(ms)).ok_or_else(|| {
                let message = format!("Invalid '{HEADER}': expected 1 to {MOST_MS} milliseconds.");
                ValidationError::new(HEADER, FaultKind::Invalid, message)
            })
        });
        Ok(asked.transpose()?.map(Duration::from_millis))
    }

    /// From now on so long, or as long as the settings say, if that is shorter.
    pub(super) fn within(asked: Option<Duration>, config: &ApiConfig) -> Self {
        let earliest = asked.into_iter().chain(config.request_timeout).min();
        Self(earliest.and_then(|duration| Instant::now().checked_add(duration)))
    }

    /// The result of `work`, which is dropped, and so called off, at the deadline.
    pub(super) async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        match self.0 {
            None => work.await,
            Some(at) => {
                let done = tokio::time::timeout_at(at, work).await;
                done.unwrap_or(Err(ApiError::DeadlineExceeded))
            }
        }
    }
}
