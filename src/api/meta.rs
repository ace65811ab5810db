//! What the server is and how it is doing.

use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

use super::access::Permit;
use super::error::ApiError;
use super::origin::Origin;
use super::playground;
use super::state::AppState;
use super::wire::{
    Endpoints, ErrorEnvelope, ModelDetails, ModelFacts, ModelList, ModelObject, QualityFacts,
    ServiceInfo, json_response,
};
use crate::domain::{TaskKind, TaskKinds};
use crate::requests::{Models, ServedModel, quote};

/// What the server is and what it can do
///
/// Browsers (`Accept: text/html`) get a page to play with.
#[utoipa::path(
    get,
    path = "/",
    tag = "server",
    responses((status = 200, description = "Facts", body = ServiceInfo))
)]
pub(super) async fn service_info(State(state): State<AppState>, headers: HeaderMap) -> Response {
    match &state.playground {
        Some(page) if playground::is_wished_for(&headers) => page.page(&headers),
        Some(_) | None => facts(&state),
    }
}

fn facts(state: &AppState) -> Response {
    let models = &state.requests.models;
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
        model: ModelFacts::of(&models.first().images),
        models: models.all().iter().map(|model| model.images.card().id.clone()).collect(),
        capabilities: all_tasks(models).into(),
        endpoints,
        playground: state.playground.is_some().then_some(playground::PATH),
        docs: super::docs::UI_PATH,
        openapi: super::docs::DOCUMENT_PATH,
    };
    let mut response = json_response(StatusCode::OK, &info);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// The models, as OpenAI lists them
#[utoipa::path(
    get,
    path = "/models",
    tag = "models",
    responses((status = 200, description = "The models and their aliases", body = ModelList))
)]
pub(super) async fn models(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let models = Permit::of(&request)?.models(&state.requests.models);
    let names = models.listed();
    let data = names.into_iter().map(|name| model_object(&state, name)).collect();
    let list = ModelList { object: "list", data };
    Ok(json_response(StatusCode::OK, &list))
}

/// A model, by any of its names
#[utoipa::path(
    get,
    path = "/models/{id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's id, its last part, or a hosted name such as `gpt-image-1`")),
    responses(
        (status = 200, description = "The model", body = ModelDetails),
        (status = 404, description = "There is none of this name", body = ErrorEnvelope),
    )
)]
pub(super) fn model(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: &Request,
) -> Result<Response, ApiError> {
    let models = Permit::of(request)?.models(&state.requests.models);
    let model = models.named(&id, None)?;
    Ok(json_response(StatusCode::OK, &details(&state, model)))
}

/// All that is told of one model.
pub(super) fn details(state: &AppState, model: &ServedModel) -> ModelDetails {
    let card = model.images.card();
    let models = &state.requests.models;
    // Names that stand for any model lead to the first where nothing else is asked.
    let is_first = models.first().images.card().id == card.id;
    let shared = models.aliases.aliases.iter().filter(|_| is_first);
    ModelDetails {
        object: model_object(state, &card.id),
        details: ModelFacts::of(&model.images),
        capabilities: card.tasks.into(),
        qualities: QualityFacts::all_of(&model.qualities),
        aliases: model.names.aliases.iter().chain(shared).cloned().collect(),
    }
}

/// What any of the models does.
fn all_tasks(models: &Models) -> TaskKinds {
    let offered = |kind| models.check_offered(kind).is_ok();
    let kinds = TaskKind::ALL.into_iter().filter(|kind| offered(*kind));
    kinds.fold(TaskKinds::default(), TaskKinds::with)
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
