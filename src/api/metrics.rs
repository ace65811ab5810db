//! `/metrics`, on the server's own port or on one that is for it alone.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::access::require_metrics;
use super::error::ApiError;
use super::meta;
use super::state::AppState;
use crate::domain::RequestLoras;
use crate::jobs::JobLine;
use crate::metrics::{self, JobsState, RequestMemoryState};

/// Where `/metrics` is.
pub(super) const PATH: &str = "/metrics";

/// Prometheus's text format.
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where `/metrics` is alone, if it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsAddress {
    /// Address or host name of a port for it.
    pub host: String,
    /// That port; 0 takes any that is free. Without it, it is on the server's own.
    pub port: Option<u16>,
}

impl MetricsAddress {
    /// Listens there, if there is a port for it, and says where that is.
    pub(super) async fn listen(&self) -> io::Result<Option<TcpListener>> {
        let (host, Some(port)) = (self.host.as_str(), self.port) else { return Ok(None) };
        let listener = TcpListener::bind((host, port)).await.map_err(|error| {
            io::Error::new(error.kind(), format!("metrics on {host} port {port}: {error}"))
        })?;
        let address: SocketAddr = listener.local_addr()?;
        tracing::info!("metrics at http://{address}{PATH}");
        Ok(Some(listener))
    }
}

/// What is counted and timed, for Prometheus
///
/// Answers also while a picture is being made. No prompt, picture or key is in it.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses((status = 200, description = "Prometheus's text format", body = String,
        content_type = "text/plain")),
)]
pub(super) async fn metrics(State(state): State<AppState>) -> Result<Response, ApiError> {
    let jobs = jobs_of(&state).await;
    let text = tokio::task::spawn_blocking(move || text_of(&state, jobs)).await?;
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

/// The routes of the port that is for it alone.
pub(super) fn router(state: AppState) -> Router {
    Router::new()
        .route(PATH, get(metrics))
        .route_layer(from_fn_with_state(state.access.clone(), require_metrics))
        .fallback(meta::unknown_route)
        .method_not_allowed_fallback(meta::wrong_method)
        .with_state(state)
}

/// How long the store of jobs is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The jobs of each model. Nothing is told of a store that is away.
async fn jobs_of(state: &AppState) -> Vec<JobsState> {
    let lines = tokio::time::timeout(PATIENCE, state.jobs.store.lines()).await;
    let Ok(Ok(lines)) = lines else { return Vec::new() };
    let state_of = |model: &str| {
        let line = lines.iter().find(|line| line.model == model);
        let of_line = |line: &JobLine| JobsState {
            model: line.model.clone(),
            waiting: line.waiting,
            running: line.running,
            oldest_s: Duration::from_millis(line.oldest_ms).as_secs_f64(),
            work_s: line.work_s,
        };
        let none = || JobsState { model: model.to_owned(), ..JobsState::default() };
        line.map_or_else(none, of_line)
    };
    // A name in the store may be of a model that this process has no more.
    let models = state.requests.models.all().iter();
    models.map(|model| state_of(&model.images.card().id)).collect()
}

/// Reads files of the system: not for the async runtime.
fn text_of(state: &AppState, jobs: Vec<JobsState>) -> String {
    let models = state.requests.models.all();
    let memory = &state.requests.memory;
    let limit_bytes = memory.total_bytes();
    let held_bytes = limit_bytes.saturating_sub(memory.free_bytes());
    let mut observed = metrics::State {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        request_memory: RequestMemoryState { held_bytes, limit_bytes },
        jobs,
        ..state.service().observed()
    };
    let takes_loras = models.iter().any(|model| model.has_loras());
    observed.loras.most = if takes_loras { RequestLoras::MAX } else { 0 };
    state.metrics().render(&observed).unwrap_or_default()
}
