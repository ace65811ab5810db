//! Logs, to standard error, and traces, to a collector of OpenTelemetry's.
//!
//! The two go by spans that are told apart by [`spans::TARGET`]: the log has one span for a
//! request, which gives each of its lines the request's id; a trace has one for the request
//! and one for each of its stages. What is logged is never exported, and the other way round.

mod logs;
pub mod spans;
mod traces;

use std::io::Write;
use std::str::FromStr;
use std::sync::OnceLock;

use tokio::runtime::Handle;
use tracing::Metadata;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;
use tracing_subscriber::util::SubscriberInitExt;

pub use traces::{Traces, TracesConfig};

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line, for programs.
    Json,
}

impl LogFormat {
    /// The ways to write one.
    pub const CHOICES: &'static str = "text or json";
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

/// Why logs or traces were not set up.
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
    /// Nothing can be sent to the collector.
    #[error("cannot set up the traces")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
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
    init_logs(filter, LogFormat::Text)
}

/// The same for a server, with traces if there is somewhere to send them: on `runtime`, which
/// is to live until [`Traces::shut_down`] was called.
///
/// # Errors
/// [`TelemetryError`], also if nothing can be sent to that address.
pub fn init_server(
    (filter, format): (&str, LogFormat),
    traces: Option<&TracesConfig>,
    runtime: &Handle,
) -> Result<Traces, TelemetryError> {
    let traces = traces.map(|config| Traces::start(config, runtime)).transpose()?;
    match traces.as_ref().and_then(Traces::layer) {
        // Beside no layer at all: an empty place for one would have spans made for nobody.
        None => init_logs(filter, format)?,
        Some(exported) => {
            let filter = log_filter(filter, LevelFilter::INFO)?.and(filter_fn(is_logged));
            let lines = logs::lines(format, true).with_filter(filter);
            registry().with(exported).with(lines).try_init().map_err(already_set)?;
        }
    }
    if format == LogFormat::Json {
        logs::log_panics();
    }
    // It was not set: that would have been refused.
    let _ = FORMAT.set(format);
    Ok(traces.unwrap_or_default())
}

/// How the log of this process is written.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Tells as the log's format has it why the program ends.
pub fn tell_end(cause: &str) {
    match FORMAT.get() {
        Some(LogFormat::Json) => tracing::error!(cause, "the program ends"),
        Some(LogFormat::Text) | None => {
            // There may be no log yet, and nobody who reads.
            let _ = writeln!(std::io::stderr(), "diffuser-api: {cause}");
        }
    }
}

fn already_set(error: tracing_subscriber::util::TryInitError) -> TelemetryError {
    TelemetryError::AlreadySet(Box::new(error))
}

fn init_logs(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let lines = logs::lines(format, false).with_filter(log_filter(filter, LevelFilter::OFF)?);
    registry().with(lines).try_init().map_err(already_set)
}

/// What is logged, with what is for the `traces`.
fn log_filter(filter: &str, traces: LevelFilter) -> Result<EnvFilter, TelemetryError> {
    let refused = |source| TelemetryError::Filter { filter: filter.to_owned(), source };
    let of_traces = format!("{}={traces}", spans::TARGET).parse().map_err(refused)?;
    Ok(EnvFilter::try_new(filter).map_err(refused)?.add_directive(of_traces))
}

/// The log goes by the spans of traces, for lines stand in them, and has none of their lines.
fn is_logged(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() || metadata.target() != spans::TARGET
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
