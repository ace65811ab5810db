//! Spans on their way to a collector: OTLP, as protobuf over HTTP.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::Registry;

use super::{TelemetryError, spans};

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesConfig {
    /// The collector's address, without the path of the traces.
    pub endpoint: String,
    /// The share of requests that are traced, of those whose senders say nothing about it.
    pub sample_ratio: f64,
    /// Whom they are of.
    pub service_name: String,
    /// And in which version.
    pub service_version: String,
}

/// How long a collector may take for a batch.
const SENDING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of the program waits for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Steps that a picture may have at most, and some to spare.
const MAX_EVENTS: u32 = 256;

/// What makes spans and has them sent; or nothing, without a collector.
#[derive(Debug, Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Makes spans for the collector of `config`, and sends them on `runtime`.
    pub(super) fn start(config: &TracesConfig, runtime: &Handle) -> Result<Self, TelemetryError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(address_of(&config.endpoint))
            .with_timeout(SENDING_TIMEOUT)
            .build()?;
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", config.service_version.clone()))
            .build();
        let by_ratio = Sampler::TraceIdRatioBased(config.sample_ratio);
        let exporter = Arc::new(exporter);
        let exporter = Sender { exporter, runtime: runtime.clone(), losses: Losses::default() };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampler::ParentBased(Box::new(by_ratio)))
            .with_max_events_per_span(MAX_EVENTS)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(Some(provider)))
    }

    /// What takes the spans that are for the traces, and nothing else: what sends them has
    /// spans, too, which would never come to an end.
    pub(super) fn layer(&self) -> Option<impl Layer<Registry> + Send + Sync + use<>> {
        let tracer = self.0.as_ref()?.tracer(env!("CARGO_PKG_NAME"));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(Targets::new().with_target(spans::TARGET, Level::INFO)))
    }

    /// Sends the last spans, if the collector takes them soon. Blocks: not for the runtime,
    /// which has to live.
    pub fn shut_down(&self) {
        let Some(provider) = &self.0 else { return };
        // Whatever it is called: a collector that says nothing is a timeout of one or another.
        if let Err(error) = provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Where a collector takes traces, by OTLP's rule for the address of all signals.
fn address_of(endpoint: &str) -> String {
    format!("{}/v1/traces", endpoint.trim_end_matches('/'))
}

/// Sends batches on a runtime, which the client needs: the thread that collects them has
/// none.
#[derive(Debug)]
struct Sender {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    losses: Losses,
}

impl SpanExporter for Sender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exporter = Arc::clone(&self.exporter);
        let sending = self.runtime.spawn(async move { exporter.export(batch).await });
        let broken_off =
            |error: tokio::task::JoinError| Err(OTelSdkError::InternalFailure(error.to_string()));
        let sent = sending.await.unwrap_or_else(broken_off);
        if let Err(error) = &sent {
            self.losses.add(spans, error);
        }
        sent
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Before anything is sent, nobody else has it.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// How often it is told, at most, that the collector takes nothing.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Spans that nobody has taken.
#[derive(Debug, Default)]
struct Losses(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    spans: usize,
    told: Option<Instant>,
}

impl Losses {
    fn add(&self, spans: usize, error: &OTelSdkError) {
        if let Some(spans) = self.to_be_told(spans, Instant::now()) {
            tracing::warn!(spans, %error, "the collector of traces does not take them");
        }
    }

    /// How many spans were lost since that was told last, if it is time to tell.
    fn to_be_told(&self, spans: usize, now: Instant) -> Option<usize> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.spans += spans;
        let is_time = untold.told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        is_time.then(|| {
            untold.told = Some(now);
            std::mem::take(&mut untold.spans)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added_to_the_address_of_all_signals() {
        for (endpoint, address) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://collector/otlp/", "https://collector/otlp/v1/traces"),
        ] {
            assert_eq!(address_of(endpoint), address);
        }
    }

    #[test]
    fn losses_are_told_once_a_minute_and_all_of_them() {
        let (losses, start) = (Losses::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);

        let told = [(3, 0), (4, 5), (5, 59), (6, 60), (7, 61)];
        let told = told.map(|(spans, seconds)| losses.to_be_told(spans, at(seconds)));

        assert_eq!(told, [Some(3), None, None, Some(15), None]);
    }
}
