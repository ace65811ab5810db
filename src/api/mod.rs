//! HTTP and OpenAI's words; the only layer that knows either.
//!
//! [`router`] is the table of contents: each route names its handler; `address`
//! brings other ways to write an address to these routes. A request for pictures goes
//! through `form` (bytes → fields) and [`crate::requests`] (fields → what is to be done) to
//! the service; `wire` is what comes back, and `error` the one table of what does not. `jobs`
//! and `batches` send requests the same way later.

mod accept;
mod access;
mod address;
mod batches;
mod cors;
mod deadline;
mod docs;
mod error;
mod estimate;
mod files;
mod form;
mod guarded_body;
mod health;
mod images;
mod incoming;
mod jobs;
mod json;
mod kept;
mod meta;
mod metrics;
mod models;
mod multipart;
mod origin;
mod peer;
mod playground;
mod realtime;
mod reply;
mod request_log;
mod role;
mod security_headers;
mod serve;
mod site;
mod state;
mod stream;
mod unread;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::any;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use crate::imaging::codec::PngCompression;
pub use access::{
    Access, ApiKeys, Expiry, KeyHash, KeyName, Limits, NamedKey, Network, Scope, Scopes,
};
pub use batches::BatchesConfig;
pub use cors::CorsOrigins;
pub use metrics::MetricsAddress;
pub use peer::PeerLimits;
pub use role::{Role, UnknownRole};
pub use serve::serve;
pub use site::{OpenedSite, Opening, ServerParts, Site, StartPhase, announced_models};

use crate::domain::ImageSize;
use crate::imaging::codec::DecodeLimits;
use crate::jobs::JobsConfig;
use crate::pictures::StoreConfig;
use crate::requests::DefaultResponseFormat;
use crate::webhooks::WebhookConfig;
use address::Addresses;
use playground::Playground;
use request_log::{RequestLog, log_requests};
use state::AppState;

/// What the HTTP side can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    /// Name of the service, shown at `/` and in the logs.
    pub app_name: String,
    /// Version of the service, shown at `/`.
    pub app_version: String,
    /// Path prefix of OpenAI's endpoints, such as `/v1`; empty for none.
    pub api_prefix: String,
    /// The largest request body, in bytes.
    pub max_upload_bytes: usize,
    /// What all requests together may hold in memory, in bytes.
    pub request_memory_bytes: usize,
    /// How long a request waits for its share of that.
    pub memory_timeout: Duration,
    /// The largest file of an input picture, in bytes.
    pub max_image_bytes: usize,
    /// The largest input picture, in pixels.
    pub max_image_pixels: usize,
    /// Pixels of all input pictures of a request together.
    pub max_request_pixels: usize,
    /// Fields of a request, or parts of a form.
    pub max_parts: usize,
    /// How long peers may take.
    pub peers: PeerLimits,
    /// How long a request waits for the models at the start, before it is refused.
    pub loading_wait: Duration,
    /// How long a request may take to arrive.
    pub upload_timeout: Duration,
    /// How long a request may take from its head to its answer; as long as it takes if
    /// absent. A client may ask for less.
    pub request_timeout: Option<Duration>,
    /// Keys of which a client must have one; with none, nobody is asked.
    pub api_keys: ApiKeys,
    /// Keys of those who may load and unload models; without any, nobody may.
    pub admin_keys: ApiKeys,
    /// Keys with names, each with what it is good for.
    pub named_keys: Vec<NamedKey>,
    /// How much a client may ask for that comes without a key, by its address.
    pub limits: Limits,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
    /// The pages of other origins that may call.
    pub cors_origins: CorsOrigins,
    /// Names that stand for whichever model an endpoint has by default; one that ends with
    /// `*` stands for all that begin so.
    pub model_aliases: Vec<String>,
    /// How pictures come back whose request names no `response_format`.
    pub response_format: DefaultResponseFormat,
    /// How much time goes into making PNG files small.
    pub png_compression: PngCompression,
    /// Where pictures are kept that clients fetch by address.
    pub picture_store: StoreConfig,
    /// Scheme, host and port in the addresses of pictures; those of the request if
    /// absent.
    pub public_url: Option<String>,
    /// Whether `X-Forwarded-Host` and `-Proto` are believed, and the nearest address of
    /// `X-Forwarded-For` if there are no trusted proxies.
    pub trust_forwarded_headers: bool,
    /// Whether pictures carry the words that they were made from.
    pub write_prompts: bool,
    /// Whether there is a page to play with, for browsers at `/`.
    pub playground: bool,
    /// Whether each request is logged that was answered well.
    pub access_log: bool,
    /// Where `/metrics` is.
    pub metrics: MetricsAddress,
    /// Requests whose pictures are fetched later.
    pub jobs: JobsConfig,
    /// Who is told that they have ended.
    pub webhooks: WebhookConfig,
    /// What this process does.
    pub role: Role,
    /// Many of them in a file.
    pub batches: BatchesConfig,
}

impl ApiConfig {
    /// What an input picture may be like.
    #[must_use]
    pub fn decode_limits(&self) -> DecodeLimits {
        DecodeLimits {
            max_bytes: self.max_image_bytes,
            max_side: ImageSize::MAX_SIDE,
            max_pixels: self.max_image_pixels,
        }
    }
}

/// Everything that is served, as one router.
///
/// Other addresses of the same endpoints, such as Azure's, become these before
/// the routes are looked at. Jobs are taken in and not run: [`Opening::open`] has that done.
pub fn router(parts: ServerParts, config: &ApiConfig) -> Router {
    router_of(AppState::new(parts, config))
}

fn router_of(state: AppState) -> Router {
    let config = Arc::clone(&state.config);
    let prefix = path_prefix(&config);
    let request_log = RequestLog::of(state.metrics(), &config);
    let (endpoints, document) = endpoints(&prefix, &state).split_for_parts();
    let page = state.playground.as_ref().filter(|_| config.role != Role::Worker);
    let page = page.map(Playground::router).unwrap_or_default();
    let endpoints = match config.role {
        Role::Worker => endpoints,
        Role::All | Role::Gateway => {
            endpoints.merge(docs::router(document, &config, &state.requests.models))
        }
    };
    let routes = endpoints
        .merge(page)
        .fallback(meta::unknown_route)
        .method_not_allowed_fallback(meta::wrong_method)
        .layer(DefaultBodyLimit::max(config.max_upload_bytes))
        .layer(map_response(error::wrap_foreign))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn(unread::drain_afterwards))
        .layer(map_response(security_headers::add))
        .layer(cors::layer(&config.cors_origins))
        .layer(map_response(cors::keep_from_strangers))
        .layer(from_fn_with_state(request_log, log_requests))
        .with_state(state);
    let addresses = Addresses::new(prefix);
    let anywhere =
        ServiceExt::<Request>::map_request(routes, move |request| addresses.rewrite(request));
    Router::new().fallback_service(anywhere)
}

/// Each endpoint, at the address that stands beside its handler, where the OpenAPI
/// document has it from, too.
fn endpoints(prefix: &str, state: &AppState) -> OpenApiRouter<AppState> {
    let openai = OpenApiRouter::new()
        .routes(routes!(images::edits))
        .routes(routes!(images::generations))
        .routes(routes!(images::variations))
        .routes(routes!(images::replay))
        .routes(routes!(estimate::estimate))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::job, jobs::delete))
        .routes(routes!(jobs::result))
        .routes(routes!(jobs::events))
        .routes(routes!(batches::upload, batches::files))
        .routes(routes!(batches::file, batches::delete))
        .routes(routes!(batches::content))
        .routes(routes!(batches::create, batches::list))
        .routes(routes!(batches::batch))
        .routes(routes!(batches::cancel))
        .routes(routes!(realtime::images))
        .routes(routes!(meta::models))
        .route("/models/{*id}", any(models::of_one))
        .merge(OpenApiRouter::with_openapi(models::OfOne::openapi()))
        .routes(routes!(models::loras))
        .route_layer(from_fn_with_state(state.clone(), address::require_known_deployment))
        .route_layer(from_fn_with_state(state.access.clone(), access::admit))
        .routes(routes!(files::file));
    let own = OpenApiRouter::with_openapi(docs::base())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::deep))
        .routes(routes!(meta::service_info));
    let is_here = state.metrics().is_on() && state.config.metrics.port.is_none();
    let may_read = from_fn_with_state(state.access.clone(), access::require_metrics);
    let metrics = OpenApiRouter::new().routes(routes!(metrics::metrics)).route_layer(may_read);
    let own = if is_here { own.merge(metrics) } else { own };
    if state.config.role == Role::Worker {
        return own;
    }
    if prefix.is_empty() { own.merge(openai) } else { own.nest(prefix, openai) }
}

/// The configured prefix as `/v1`, or as nothing.
fn path_prefix(config: &ApiConfig) -> String {
    match config.api_prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("/{prefix}"),
    }
}
