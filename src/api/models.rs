//! What is asked of one model: to be loaded and unloaded, by administrators; and what changes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::access::Permit;
use super::error::ApiError;
use super::meta::{self, details};
use super::state::AppState;
use super::wire::{ErrorEnvelope, LoraListing, LoraObject, ModelDetails, json_response};
use crate::requests::ServedModel;

/// What can be done with one model, in the OpenAPI document. To the router all of it is one
/// path, for an id may have slashes and nothing can follow a parameter that spans them.
#[derive(utoipa::OpenApi)]
#[openapi(paths(meta::model, load, unload))]
pub(super) struct OfOne;

/// What is asked of one model, by the last part of the path.
pub(super) async fn of_one(
    state: State<AppState>,
    Path(path): Path<String>,
    request: Request,
) -> Response {
    let is_post = request.method() == Method::POST;
    let is_get = [Method::GET, Method::HEAD].contains(request.method());
    let answer = match path.rsplit_once('/') {
        Some((id, "load")) if is_post => load(state, Path(id.to_owned()), request).await,
        Some((id, "unload")) if is_post => unload(state, Path(id.to_owned()), request).await,
        Some((_, "load" | "unload")) => return wrong_method(&request, "POST"),
        _ if is_get => meta::model(state, Path(path), &request),
        _ => return wrong_method(&request, "GET,HEAD"),
    };
    answer.into_response()
}

fn wrong_method(request: &Request, allowed: &'static str) -> Response {
    ([(header::ALLOW, allowed)], ApiError::wrong_method(request)).into_response()
}

/// Load a model
///
/// For administrators (`server.admin_keys`). Nothing happens to one that is loaded.
#[utoipa::path(
    post,
    path = "/models/{id}/load",
    tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "The model as it is now", body = ModelDetails),
        (status = 401, description = "No key, or one that is not known", body = ErrorEnvelope),
        (status = 403, description = "Not an administrator's key", body = ErrorEnvelope),
        (status = 404, description = "No such model", body = ErrorEnvelope),
        (status = 503, description = "It cannot be loaded", body = ErrorEnvelope),
    )
)]
async fn load(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let model = administered(&state, &id, &request)?;
    model.images.load().await?;
    Ok(json_response(StatusCode::OK, &details(&state, &model)))
}

/// Unload a model
///
/// For administrators (`server.admin_keys`). Its memory is free once what runs is done. A
/// request for it loads it again.
#[utoipa::path(
    post,
    path = "/models/{id}/unload",
    tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, description = "The model as it is now", body = ModelDetails),
        (status = 401, description = "No key, or one that is not known", body = ErrorEnvelope),
        (status = 403, description = "Not an administrator's key", body = ErrorEnvelope),
        (status = 404, description = "No such model", body = ErrorEnvelope),
        (status = 503, description = "The server is shutting down", body = ErrorEnvelope),
    )
)]
async fn unload(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let model = administered(&state, &id, &request)?;
    model.images.unload().await?;
    Ok(json_response(StatusCode::OK, &details(&state, &model)))
}

/// The model `id`, for a client that may change it.
fn administered(
    state: &AppState,
    id: &str,
    request: &Request,
) -> Result<Arc<ServedModel>, ApiError> {
    state.access.check_administrator(request.headers())?;
    state.refuse_on_gateway("loading of models")?;
    let models = Permit::of(request)?.models(&state.requests.models);
    Ok(Arc::clone(models.named(id, None)?))
}

/// The LoRAs that requests may name
///
/// What lies in the folders of the settings now; one that is added can be used at once.
#[utoipa::path(
    get,
    path = "/loras",
    tag = "models",
    responses((status = 200, description = "Their names", body = LoraListing))
)]
pub(super) async fn loras(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let models = Permit::of(&request)?.models(&state.requests.models).all().to_vec();
    let listing = tokio::task::spawn_blocking(move || {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for model in &models {
            for name in model.loras() {
                by_name.entry(name).or_default().push(model.images.card().id.clone());
            }
        }
        let object = |(id, models)| LoraObject { id, object: "lora", models };
        LoraListing { object: "list", data: by_name.into_iter().map(object).collect() }
    });
    Ok(json_response(StatusCode::OK, &listing.await?))
}
