//! What every handler gets.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::health::DeepChecks;
use super::jobs::JobDesk;
use super::playground::Playground;
use super::{Access, ApiConfig, ServerParts};
use crate::metrics::Metrics;
use crate::pictures::PictureStore;
use crate::requests::{Models, RequestContext, RequestSettings};
use crate::service::{ImageService, RequestMemory};

/// The state of the router; clones share all of it.
#[derive(Clone)]
pub(super) struct AppState {
    /// What requests for pictures are read against, with the way to the model.
    pub(super) requests: RequestContext,
    pub(super) config: Arc<ApiConfig>,
    /// The keys and limits in force.
    pub(super) access: Access,
    pub(super) store: Arc<PictureStore>,
    /// The jobs, and what of them lives in this process alone.
    pub(super) jobs: Arc<JobDesk>,
    pub(super) deep_checks: Arc<DeepChecks>,
    /// The page, if there is to be one.
    pub(super) playground: Option<Playground>,
    /// When the server started, in seconds since 1970.
    pub(super) started: u64,
}

impl AppState {
    pub(super) fn new(parts: ServerParts, config: &ApiConfig) -> Self {
        let ServerParts { models, store, jobs, access } = parts;
        let memory = RequestMemory::new(config.request_memory_bytes, config.memory_timeout);
        let settings = RequestSettings {
            decode_limits: config.decode_limits(),
            max_request_pixels: config.max_request_pixels,
            response_format: config.response_format,
            write_prompts: config.write_prompts,
        };
        let models = Models::new(models, &config.model_aliases);
        Self {
            requests: RequestContext::new(models, memory, settings),
            store: Arc::new(store),
            jobs: Arc::new(JobDesk::new(jobs)),
            deep_checks: Arc::default(),
            playground: config.playground.then(Playground::new),
            config: Arc::new(config.clone()),
            access,
            started: unix_seconds(),
        }
    }

    /// The way to whichever model, for what concerns all of them.
    pub(super) fn service(&self) -> &ImageService {
        &self.requests.models.first().images
    }

    /// Where everything is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        self.service().metrics()
    }

    /// `path` behind the configured prefix.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", super::path_prefix(&self.config))
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}
