//! What the server is and how it is doing.

use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;

use super::error::ApiError;
use super::origin::Origin;
use super::state::AppState;
use super::wire::{
    Endpoints, ErrorEnvelope, Health, ModelDetails, ModelList, ModelObject, QualityFacts,
    ServiceInfo, json_response,
};
use crate::requests::{RequestError, quote};

/// Whether the server works
///
/// Answers at once, also while a picture is being made.
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    responses(
        (status = 200, description = "It works", body = Health),
        (status = 503, description = "It does not, or takes no more requests", body = Health),
    )
)]
pub(super) async fn health(State(state): State<AppState>) -> Response {
    let service = state.requests.images.status();
    let (code, status) = if !service.accepting {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
    } else if service.worker_alive {
        (StatusCode::OK, "healthy")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "failed")
    };
    let health = Health {
        status,
        busy: service.busy,
        waiting: service.waiting,
        queue_capacity: service.capacity,
    };
    json_response(code, &health)
}

/// What the server is and what it can do
#[utoipa::path(
    get,
    path = "/",
    tag = "server",
    responses((status = 200, description = "Facts", body = ServiceInfo))
)]
pub(super) async fn service_info(State(state): State<AppState>) -> Response {
    let model = state.requests.images.info();
    let prefix = super::path_prefix(&state.config);
    let at = |path: &str| format!("{prefix}{path}");
    let endpoints = Endpoints {
        edits: at("/images/edits"),
        generations: at("/images/generations"),
        variations: at("/images/variations"),
        replay: at("/images/replay"),
        models: at("/models"),
        health: "/health",
    };
    let info = ServiceInfo {
        service: state.config.app_name.clone(),
        version: state.config.app_version.clone(),
        model: model.into(),
        capabilities: model.tasks.into(),
        endpoints,
        docs: super::docs::UI_PATH,
        openapi: super::docs::DOCUMENT_PATH,
    };
    json_response(StatusCode::OK, &info)
}

/// The loaded model, as OpenAI lists models
#[utoipa::path(
    get,
    path = "/models",
    tag = "models",
    responses((status = 200, description = "The model and its aliases", body = ModelList))
)]
pub(super) async fn models(State(state): State<AppState>) -> Response {
    let data = state.requests.names.listed().map(|name| model_object(&state, name)).collect();
    let list = ModelList { object: "list", data };
    json_response(StatusCode::OK, &list)
}

/// The loaded model, if it has this name
#[utoipa::path(
    get,
    path = "/models/{*id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's id, its last part, or a hosted name such as `gpt-image-1`")),
    responses(
        (status = 200, description = "The model", body = ModelDetails),
        (status = 404, description = "Another model", body = ErrorEnvelope),
    )
)]
pub(super) async fn model(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if !state.requests.names.include(&id) {
        return Err(RequestError::unknown_model(&id, &state.requests).into());
    }
    let model = state.requests.images.info();
    let details = ModelDetails {
        object: model_object(&state, &model.id),
        details: model.into(),
        capabilities: model.tasks.into(),
        qualities: QualityFacts::all_of(&state.requests.qualities),
        aliases: state.requests.names.aliases.clone(),
    };
    Ok(json_response(StatusCode::OK, &details))
}

fn model_object(state: &AppState, name: &str) -> ModelObject {
    ModelObject {
        id: name.to_owned(),
        object: "model",
        created: state.started,
        owned_by: state.config.app_name.clone(),
        shutdown_date: None,
    }
}

/// Answers paths that are none.
pub(super) async fn unknown_route(
    State(state): State<AppState>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> ApiError {
    let origin = Origin::of(request.headers(), &state.config);
    ApiError::UnknownRoute {
        method: request.method().clone(),
        path: quote(uri.path()),
        base_url: origin.url_of(&state.path("")),
        origin: origin.url_of(""),
    }
}

/// Answers methods that a path does not have; axum adds `Allow`.
pub(super) async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::WrongMethod { method, path: quote(uri.path()) }
}
