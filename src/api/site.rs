//! What answers requests: a few words while the models are looked for and loaded, then the
//! whole API.
//!
//! The server listens from the beginning, so that whoever watches over it can ask whether
//! it lives, and how far it is. A request for anything else waits a moment, for most small
//! models are there by then, and is told to come back otherwise.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use super::error::{self, ApiError};
use super::jobs::{Notices, Runner};
use super::request_log::{RequestLog, log_requests};
use super::state::AppState;
use super::wire::{Health, Readiness, json_response};
use super::{Access, ApiConfig, cors, router_of, security_headers, serve, unread};
use crate::jobs::JobStore;
use crate::metrics::Metrics;
use crate::pictures::PictureStore;
use crate::requests::ModelService;
use crate::service::ImageService;

/// How far the start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPhase {
    /// The files of the models are looked for, perhaps fetched.
    LookingForFiles,
    /// Models are loaded onto their devices.
    LoadingModels,
    /// A first picture is made.
    WarmingUp,
}

impl StartPhase {
    /// Its name, as `/ready` has it.
    fn name(self) -> &'static str {
        match self {
            Self::LookingForFiles => "looking_for_files",
            Self::LoadingModels => "loading_models",
            Self::WarmingUp => "warming_up",
        }
    }
}

/// What the connections of a server are answered by. Clones share it.
#[derive(Clone)]
pub struct Site {
    starting: Router,
    opened: watch::Receiver<Option<Opened>>,
    patience: Duration,
    part: Part,
}

/// What of it is served on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Api,
    Metrics,
}

/// What the API is made of.
pub struct ServerParts {
    /// The models, the default one first; there must be one.
    pub models: Vec<ModelService>,
    /// The pictures that are fetched by address.
    pub store: PictureStore,
    /// The requests whose pictures are fetched later.
    pub jobs: Arc<dyn JobStore>,
    /// The keys and limits in force.
    pub access: Access,
}

/// The way to open a [`Site`]. Dropped, the site stays as it is.
pub struct Opening {
    phase: watch::Sender<StartPhase>,
    opened: watch::Sender<Option<Opened>>,
}

/// The whole API, with what is behind it.
struct Opened {
    router: Router,
    /// What a port answers that is for the metrics alone.
    metrics_router: Router,
    metrics: Metrics,
    services: Vec<ImageService>,
    /// Runs the jobs, until it is told to end, or this is dropped.
    runner: Mutex<Option<Runner>>,
    /// Tells others of jobs that have ended, likewise.
    notices: Mutex<Option<Notices>>,
}

impl Opened {
    fn router(&self, part: Part) -> &Router {
        match part {
            Part::Api => &self.router,
            Part::Metrics => &self.metrics_router,
        }
    }
}

impl Site {
    /// One that has no models yet.
    #[must_use]
    pub fn new(config: &ApiConfig) -> (Self, Opening) {
        let (phase, phases) = watch::channel(StartPhase::LookingForFiles);
        let (opening, opened) = watch::channel(None);
        let (starting, patience) = (starting(phases, config), config.loading_wait);
        let site = Self { starting, opened, patience, part: Part::Api };
        (site, Opening { phase, opened: opening })
    }

    /// Serves on `listener` until `shutdown` completes, whether there are models by then or
    /// not. Then the services are shut down (running pictures are finished, waiting requests
    /// are refused), what is in flight is answered, and new connections are told so, until
    /// all that was begun before is done: within the grace of the settings, whatever peers do.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        config: &ApiConfig,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        serve::serve_site(listener, self, config, shutdown).await
    }

    /// Answers a request.
    pub(super) async fn answer(&self, request: Request) -> Response {
        let router = self.router_for(request.uri().path()).await;
        router.oneshot(request).await.unwrap_or_else(|never| match never {})
    }

    async fn router_for(&self, path: &str) -> Router {
        if self.opened.borrow().is_none() && !PROBES.contains(&path) {
            let mut opened = self.opened.clone();
            // Whatever comes of it is looked at below.
            let _ = tokio::time::timeout(self.patience, opened.wait_for(Option::is_some)).await;
        }
        let opened = self.opened.borrow();
        opened.as_ref().map_or(&self.starting, |opened| opened.router(self.part)).clone()
    }

    /// The same, of which the metrics alone are served.
    pub(super) fn of_metrics(&self) -> Self {
        Self { part: Part::Metrics, ..self.clone() }
    }

    /// What is counted, once there are models; `None` if there never will be any.
    pub(super) async fn metrics(&self) -> Option<Metrics> {
        let mut opened = self.opened.clone();
        let opened = opened.wait_for(Option::is_some).await.ok()?;
        opened.as_ref().map(|opened| opened.metrics.clone())
    }

    /// Lets no more requests in.
    pub(super) fn shut_down(&self) {
        self.opened.borrow().iter().flat_map(|opened| &opened.services).for_each(|service| {
            service.shut_down();
        });
    }
}

impl Site {
    /// Waits for the jobs that run, until `deadline`; those that are not done by then are
    /// put back. Comes after [`Self::shut_down`].
    pub(super) async fn finish_jobs(&self, deadline: Instant) {
        let runner =
            self.opened.borrow().as_ref().and_then(|opened| {
                opened.runner.lock().unwrap_or_else(PoisonError::into_inner).take()
            });
        if let Some(runner) = runner {
            runner.finish(deadline).await;
        }
        let notices = self.opened.borrow().as_ref().and_then(|opened| {
            opened.notices.lock().unwrap_or_else(PoisonError::into_inner).take()
        });
        if let Some(notices) = notices {
            notices.finish().await;
        }
    }
}

impl Opening {
    /// Tells how far the start is.
    pub fn reach(&self, phase: StartPhase) {
        self.phase.send_replace(phase);
    }

    /// From now on there is all that is in `parts`, its store is cleaned, and its
    /// jobs are run. Needs a runtime.
    pub fn open(self, parts: ServerParts, config: &ApiConfig) {
        parts.store.start_cleaning();
        let services = parts.models.iter().map(|model| model.images.clone()).collect();
        let state = AppState::new(parts, config);
        let metrics = state.metrics().clone();
        let metrics_router = super::metrics::router(state.clone());
        let runner = Mutex::new(Some(Runner::start(state.clone())));
        let notices = Mutex::new(Notices::start(state.clone()));
        let router = router_of(state);
        self.opened.send_replace(Some(Opened {
            router,
            metrics_router,
            metrics,
            services,
            runner,
            notices,
        }));
    }
}

/// What those ask for who watch over a server: answered at once.
const PROBES: [&str; 2] = ["/health", "/ready"];

/// What is answered while there are no models.
fn starting(phase: watch::Receiver<StartPhase>, config: &ApiConfig) -> Router {
    let request_log = RequestLog { metrics: Metrics::off(), access: config.access_log };
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .fallback(refuse)
        .layer(map_response(error::wrap_foreign))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn(unread::drain_afterwards))
        .layer(map_response(security_headers::add))
        .layer(cors::layer(&config.cors_origins))
        .layer(map_response(cors::keep_from_strangers))
        .layer(from_fn_with_state(request_log, log_requests))
        .with_state(phase)
}

async fn health() -> Response {
    json_response(StatusCode::OK, &Health::starting())
}

async fn ready(State(phase): State<watch::Receiver<StartPhase>>) -> Response {
    let phase = *phase.borrow();
    json_response(StatusCode::SERVICE_UNAVAILABLE, &Readiness::not_yet(phase.name()))
}

async fn refuse() -> ApiError {
    ApiError::Starting
}
