//! What every handler gets.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::batches::BatchDesk;
use super::health::DeepChecks;
use super::jobs::JobDesk;
use super::playground::Playground;
use super::role::Role;
use super::{Access, ApiConfig, ServerParts};
use crate::metrics::Metrics;
use crate::pictures::PictureStore;
use crate::requests::{ModelService, Models, RequestContext, RequestSettings};
use crate::service::{ImageService, RequestMemory, ServiceError};

/// The state of the router; clones share all of it.
#[derive(Clone)]
pub(super) struct AppState {
    /// What requests for pictures are read against, with the way to the model.
    pub(super) requests: RequestContext,
    /// The models that there are by now, whatever `requests` has.
    latest: Arc<watch::Sender<Arc<Models>>>,
    pub(super) config: Arc<ApiConfig>,
    /// The keys and limits in force.
    pub(super) access: Access,
    pub(super) store: Arc<PictureStore>,
    /// The jobs, and what of them lives in this process alone.
    pub(super) jobs: Arc<JobDesk>,
    /// The batches, and what of them lives in this process alone.
    pub(super) batches: Arc<BatchDesk>,
    pub(super) deep_checks: Arc<DeepChecks>,
    /// The page, if there is to be one.
    pub(super) playground: Option<Playground>,
    /// When the server started, in seconds since 1970.
    pub(super) started: u64,
}

impl AppState {
    pub(super) fn new(parts: ServerParts, config: &ApiConfig) -> Self {
        let ServerParts { models, store, jobs, fleet, batches, access } = parts;
        let memory = RequestMemory::new(config.request_memory_bytes, config.memory_timeout);
        let settings = RequestSettings {
            decode_limits: config.decode_limits(),
            max_request_pixels: config.max_request_pixels,
            response_format: config.response_format,
            write_prompts: config.write_prompts,
        };
        let models = Models::new(models, &config.model_aliases);
        let requests = RequestContext::new(models, memory, settings);
        Self {
            latest: Arc::new(watch::Sender::new(Arc::clone(&requests.models))),
            requests,
            store: Arc::new(store),
            jobs: Arc::new(JobDesk::new(jobs, fleet)),
            batches: Arc::new(BatchDesk::new(batches, &config.batches)),
            deep_checks: Arc::default(),
            playground: config.playground.then(Playground::new),
            config: Arc::new(config.clone()),
            access,
            started: unix_seconds(),
        }
    }

    /// The same with other models, which are the latest ones from now on.
    pub(super) fn with_models(&self, models: Vec<ModelService>) -> Self {
        let models = Arc::new(Models::new(models, &self.config.model_aliases));
        self.latest.send_replace(Arc::clone(&models));
        Self { requests: self.requests.with_models(models), ..self.clone() }
    }

    /// The same with the models that there are by now: for what lives longer than a request.
    pub(super) fn latest(&self) -> Self {
        let models = Arc::clone(&self.latest.borrow());
        Self { requests: self.requests.with_models(models), ..self.clone() }
    }

    /// The way to whichever model, for what concerns all of them.
    pub(super) fn service(&self) -> &ImageService {
        &self.requests.models.first().images
    }

    /// Where everything is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        self.service().metrics()
    }

    /// Refuses `what` only a process with models can do.
    pub(super) fn refuse_on_gateway(&self, what: &'static str) -> Result<(), ServiceError> {
        match self.config.role {
            Role::Gateway => Err(ServiceError::NotOffered { what, field: None }),
            Role::All | Role::Worker => Ok(()),
        }
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
