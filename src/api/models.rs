//! Loading and unloading of models, for administrators; and what changes them.

use std::collections::BTreeMap;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::access::Permit;
use super::error::ApiError;
use super::meta::details;
use super::state::AppState;
use super::wire::{ErrorEnvelope, LoraListing, LoraObject, ModelDetails, json_response};

/// What can be done with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Load,
    Unload,
}

/// Load or unload a model
///
/// For administrators (`server.admin_keys`). `{id}/load` loads the model if it is not there;
/// `{id}/unload` frees its memory, after what runs. A request for it loads it again.
#[utoipa::path(
    post,
    path = "/models/{*id}",
    tag = "models",
    params((
        "id" = String,
        Path,
        description = "The model's id, then `/load` or `/unload`",
        pattern = "^.+/(load|unload)$",
    )),
    responses(
        (status = 200, description = "The model as it is now", body = ModelDetails),
        (status = 403, description = "Not an administrator's key", body = ErrorEnvelope),
        (status = 404, description = "No such model", body = ErrorEnvelope),
        (status = 405, description = "Neither `/load` nor `/unload`", body = ErrorEnvelope),
        (status = 503, description = "It cannot be loaded", body = ErrorEnvelope),
    )
)]
pub(super) async fn change(
    State(state): State<AppState>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::wrong_method(&request);
    let (id, action) = path.rsplit_once('/').ok_or_else(unknown)?;
    let change = match action {
        "load" => Change::Load,
        "unload" => Change::Unload,
        _ => return Err(unknown()),
    };
    state.access.check_administrator(request.headers())?;
    state.refuse_on_gateway("loading of models")?;
    let models = Permit::of(&request)?.models(&state.requests.models);
    let model = models.named(id, None)?;
    match change {
        Change::Load => model.images.load().await?,
        Change::Unload => model.images.unload().await?,
    }
    Ok(json_response(StatusCode::OK, &details(&state, model)))
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
