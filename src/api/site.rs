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
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use super::batches::Driver;
use super::error::{self, ApiError};
use super::jobs::{Announcing, Notices, Runner, announced_by, models_of};
use super::playground::{self, Playground};
use super::request_log::{RequestLog, log_requests};
use super::role::Role;
use super::state::AppState;
use super::wire::{Health, Readiness, json_response};
use super::{Access, ApiConfig, cors, router_of, security_headers, serve, unread};
use crate::causes;
use crate::jobs::batches::BatchStore;
use crate::jobs::{Fleet, JobStore};
use crate::metrics::Metrics;
use crate::pictures::PictureStore;
use crate::requests::{Announcement, ModelService};
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
    /// No worker has announced a model yet.
    WaitingForWorkers,
}

impl StartPhase {
    /// Its name, as `/ready` has it.
    fn name(self) -> &'static str {
        match self {
            Self::LookingForFiles => "looking_for_files",
            Self::LoadingModels => "loading_models",
            Self::WarmingUp => "warming_up",
            Self::WaitingForWorkers => "waiting_for_workers",
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
    /// The same, if other processes share them.
    pub fleet: Option<Arc<dyn Fleet>>,
    /// Files of requests, and what they came to, if that can be stored.
    pub batches: Option<Arc<dyn BatchStore>>,
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
    working: Arc<Working>,
}

/// What goes on beside requests, until it is told to end, or this is dropped.
struct Working {
    /// Runs the jobs.
    runner: Mutex<Option<Runner>>,
    /// Tells others of jobs that have ended, likewise.
    notices: Mutex<Option<Notices>>,
    /// Tells gateways of the models.
    announcing: Option<Announcing>,
    /// Sees to batches.
    driver: Driver,
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
        let is_there = PROBES.contains(&path) || path.starts_with(playground::PATH);
        if self.opened.borrow().is_none() && !is_there {
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
        let working = self.opened.borrow().as_ref().map(|opened| Arc::clone(&opened.working));
        let Some(working) = working else { return };
        if let Some(announcing) = &working.announcing {
            announcing.end().await;
        }
        working.driver.end().await;
        let runner = working.runner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runner) = runner {
            runner.finish(deadline).await;
        }
        let notices = working.notices.lock().unwrap_or_else(PoisonError::into_inner).take();
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
    /// jobs are run, but by a gateway. Needs a runtime.
    pub fn open(self, parts: ServerParts, config: &ApiConfig) -> OpenedSite {
        parts.store.start_cleaning();
        let announced = parts.fleet.clone().filter(|_| config.role != Role::Gateway);
        let announced = announced.map(|fleet| Announcing::start(parts.models.clone(), fleet));
        let state = AppState::new(parts, config);
        let runs = config.role != Role::Gateway;
        let runner = Mutex::new(runs.then(|| Runner::start(state.clone())));
        let notices = Mutex::new(Notices::start(state.clone()));
        let driver = Driver::start(state.clone());
        let working = Arc::new(Working { runner, notices, announcing: announced, driver });
        let site = OpenedSite { state, working, opened: self.opened };
        site.answer_with(&site.state);
        site
    }
}

/// A site that is open. Dropped, it stays as it is.
pub struct OpenedSite {
    state: AppState,
    working: Arc<Working>,
    opened: watch::Sender<Option<Opened>>,
}

impl OpenedSite {
    /// Keeps the models those that workers announce, for a gateway; never completes.
    pub async fn follow(&self, fleet: &dyn Fleet) -> std::convert::Infallible {
        let mut known = Vec::new();
        loop {
            let announced = announced(fleet).await;
            if announced != known {
                known.clone_from(&announced);
                let models = models_of(announced, self.state.metrics());
                self.answer_with(&self.state.with_models(models));
            }
            let _ = tokio::time::timeout(LOOK, fleet.until_models_change()).await;
        }
    }

    fn answer_with(&self, state: &AppState) {
        let services = state.requests.models.all().iter().map(|model| model.images.clone());
        self.opened.send_replace(Some(Opened {
            router: router_of(state.clone()),
            metrics_router: super::metrics::router(state.clone()),
            metrics: state.metrics().clone(),
            services: services.collect(),
            working: Arc::clone(&self.working),
        }));
    }
}

/// The models that workers have announced, once there is one.
pub async fn announced_models(fleet: &dyn Fleet, metrics: &Metrics) -> Vec<ModelService> {
    models_of(announced(fleet).await, metrics)
}

/// What workers have announced, once there is something.
async fn announced(fleet: &dyn Fleet) -> Vec<Announcement> {
    loop {
        match announced_by(fleet).await {
            Ok(announced) if announced.is_empty() => {}
            Ok(announced) => return announced,
            Err(error) => tracing::warn!(cause = causes::one_line(&error), "the workers' models"),
        }
        let _ = tokio::time::timeout(LOOK, fleet.until_models_change()).await;
    }
}

/// How often a gateway looks at models that it was not told of.
const LOOK: Duration = Duration::from_secs(10);

/// What those ask for who watch over a server: answered at once.
const PROBES: [&str; 2] = ["/health", "/ready"];

/// What is answered while there are no models.
fn starting(phase: watch::Receiver<StartPhase>, config: &ApiConfig) -> Router {
    let request_log = RequestLog { metrics: Metrics::off(), access: config.access_log };
    let page = config.playground.then(Playground::new);
    let pages = page.as_ref().map(Playground::router).unwrap_or_default();
    let root = move |headers: HeaderMap| async move {
        match page {
            Some(page) if playground::is_wished_for(&headers) => page.page(&headers),
            Some(_) | None => ApiError::Starting.into_response(),
        }
    };
    Router::new()
        .merge(pages)
        .route("/", any(root))
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
