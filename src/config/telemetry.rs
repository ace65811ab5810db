//! The settings of logs and traces.

use http::Uri;

use super::environment::Environment;
use super::{Layers, keys, number};
use crate::api::ApiConfig;
use crate::telemetry::{LogFormat, TracesConfig};

/// What OpenTelemetry's own tools read for the name of a service.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

impl Layers {
    pub(super) fn log_filter(&mut self) -> String {
        let expected = "a filter such as info or warn,diffuser_api=debug";
        self.read(keys::LOG_FILTER, expected, |value| {
            let filter = value.as_str()?;
            tracing_subscriber::EnvFilter::try_new(filter).ok()?;
            Some(filter.to_owned())
        })
        .unwrap_or_default()
    }

    pub(super) fn log_format(&mut self) -> LogFormat {
        self.read(keys::LOG_FORMAT, LogFormat::CHOICES, |value| value.as_str()?.parse().ok())
            .unwrap_or_default()
    }

    /// Where traces go, and whom they are of.
    pub(super) fn traces(
        &mut self,
        environment: &Environment,
        api: &ApiConfig,
    ) -> Option<TracesConfig> {
        let ratio = self.read(keys::TRACES_SAMPLE_RATIO, "a number from 0 to 1", |value| {
            number(value).filter(|ratio| (0.0..=1.0).contains(ratio))
        });
        let expected = "an address such as http://127.0.0.1:4318";
        let endpoint = self.read(keys::TRACES_ENDPOINT, expected, |value| {
            value.as_str().filter(|text| is_base_address(text)).map(str::to_owned)
        })?;
        Some(TracesConfig {
            endpoint,
            sample_ratio: ratio.unwrap_or_default(),
            service_name: environment.non_empty(SERVICE_NAME).unwrap_or(&api.app_name).to_owned(),
            service_version: api.app_version.clone(),
        })
    }
}

/// Whether a path can be added to `text`.
fn is_base_address(text: &str) -> bool {
    let Ok(address) = text.parse::<Uri>() else { return false };
    let is_web = matches!(address.scheme_str(), Some("http" | "https"));
    is_web && address.host().is_some_and(|host| !host.is_empty()) && address.query().is_none()
}
