//! Logs: one line per event, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::terminal::AboveBars;

/// Why logging was not set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log filter '{filter}' is not like 'info' or 'diffuser_api=debug,warn'")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging is set up already.
    #[error("logging was set up twice")]
    AlreadySet(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends the logs that pass `filter` (such as `info`, or
/// `diffuser_api=debug,warn`) to standard error. To be called once, first thing.
///
/// # Errors
/// [`TelemetryError`] if the filter is malformed or logging is set up already.
pub fn init(filter: &str) -> Result<(), TelemetryError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(|| AboveBars)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(TelemetryError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_refused_by_name() {
        let error = init("info,=,=").unwrap_err();

        assert!(error.to_string().contains("info,=,="), "{error}");
    }
}
