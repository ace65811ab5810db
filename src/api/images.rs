//! Pictures: edits, generations and variations.
//!
//! All three go the same way: body → fields → parameters → pictures → the
//! queue → files → reply. Whatever can be refused is refused before a picture
//! is decoded, and decoded before a place in the queue is taken.

use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::docs::{
    EditForm, EditJson, GenerationJson, MadePictures, PictureFile, ReplayForm, VariationForm,
};
use super::endpoint::Endpoint;
use super::error::ApiError;
use super::fields::{Fields, RawValue, wrong_type};
use super::form::{self, Encodings};
use super::origin::Asked;
use super::parameters::{Delivery, Output, Parameters};
use super::pictures::{DecodedInputs, Inputs};
use super::recipe::Recipe;
use super::reply::{self, ReplyFacts};
use super::state::AppState;
use super::stream;
use super::wire::ErrorEnvelope;
use crate::domain::{Task, ValidationError};
use crate::imaging::provenance;
use crate::model::{EditKind, ModelInfo};
use crate::service::{MemoryShare, Offer};

/// Edit pictures as a prompt says
///
/// Send the pictures as files (`multipart/form-data`) or as data URLs
/// (`application/json`). OpenAI's clients work unchanged; fields without effect
/// here are accepted and named in `warnings`.
#[utoipa::path(
    post,
    path = "/images/edits",
    tag = "images",
    request_body(content((EditForm = "multipart/form-data"), (EditJson = "application/json"))),
    params(("api-version" = Option<String>, Query, description = "Accepted for the sake of Azure's clients; has no effect here")),
    responses(MadePictures)
)]
pub(super) async fn edits(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Edits).await
}

/// Make pictures from words alone
#[utoipa::path(
    post,
    path = "/images/generations",
    tag = "images",
    request_body(content = GenerationJson, content_type = "application/json"),
    params(("api-version" = Option<String>, Query, description = "Accepted for the sake of Azure's clients; has no effect here")),
    responses(MadePictures)
)]
pub(super) async fn generations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Generations).await
}

/// Make pictures like a given one
#[utoipa::path(
    post,
    path = "/images/variations",
    tag = "images",
    request_body(content = VariationForm, content_type = "multipart/form-data"),
    params(("api-version" = Option<String>, Query, description = "Accepted for the sake of Azure's clients; has no effect here")),
    responses(MadePictures)
)]
pub(super) async fn variations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Variations).await
}

/// Make a picture again
///
/// Pictures of this server carry how they were made, but for what the client
/// had. Send such a file as `picture`, with the original inputs (the pictures,
/// the words, the mask): the same model makes the same picture. Fields that are
/// sent win over what the file says, so that a picture can be made again with,
/// say, more steps.
#[utoipa::path(
    post,
    path = "/images/replay",
    tag = "images",
    request_body(content = ReplayForm, content_type = "multipart/form-data"),
    params(("api-version" = Option<String>, Query, description = "Accepted for the sake of Azure's clients; has no effect here")),
    responses(MadePictures)
)]
pub(super) async fn replay(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = Asked::by(&request, &state.config);
    let (mut fields, mut memory) = form::read(request, Encodings::Multipart, &state).await?;
    // Looking for the recipe takes a copy.
    memory.grow_by(fields.held_bytes()).await?;
    let (recipe, mut fields, memory) = tokio::task::spawn_blocking(move || {
        recipe_of(&mut fields).map(|recipe| (recipe, fields, memory))
    })
    .await??;
    if !state.names.include(&recipe.model) {
        return Err(ApiError::unknown_model(&recipe.model, &state));
    }
    let endpoint = recipe.endpoint;
    state.images.check_offered(endpoint.offer())?;
    recipe.fill(&mut fields);
    fulfil(state, (fields, memory), endpoint, asked).await
}

/// The recipe in the file that a replay is about.
fn recipe_of(fields: &mut Fields) -> Result<Recipe, ValidationError> {
    let refuse = |code, message: &str| Err(ValidationError::new("picture", code, message));
    let text = match fields.take_all(&["picture"]).pop() {
        Some(RawValue::File(file)) => provenance::read(&file),
        Some(other) => return Err(wrong_type("picture", "a file", other.describe())),
        None => {
            let message = "Missing required parameter: 'picture'.";
            return refuse("missing_required_parameter", message);
        }
    };
    match text.as_deref().and_then(Recipe::parse) {
        Some(recipe) => Ok(recipe),
        None => refuse(
            "invalid_value",
            "Invalid 'picture': the file does not say how it was made, or was not made here.",
        ),
    }
}

/// A finished picture that a reply gave the address of
#[utoipa::path(
    get,
    path = "/images/files/{name}",
    tag = "images",
    params(("name" = String, Path, description = "The last part of the address")),
    responses(
        (status = 200, description = "The file", content(
            (PictureFile = "image/png"), (PictureFile = "image/jpeg"), (PictureFile = "image/webp"),
        )),
        (status = 404, description = "There is none, or it was there too long", body = ErrorEnvelope),
    )
)]
pub(super) async fn file(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let (file, left) = state.store.find(&name).ok_or(ApiError::UnknownPicture)?;
    let media_type = match name.rsplit('.').next() {
        Some("jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        _ => "image/png",
    };
    let caching = format!("private, max-age={}, immutable", left.as_secs());
    Ok(([(CONTENT_TYPE, media_type.to_owned()), (CACHE_CONTROL, caching)], file).into_response())
}

/// Reads a request and does what it asks for. What the model does not do is
/// refused before the body is read.
async fn answer(
    state: AppState,
    request: Request,
    endpoint: Endpoint,
) -> Result<Response, ApiError> {
    state.images.check_offered(endpoint.offer())?;
    let asked = Asked::by(&request, &state.config);
    let read = form::read(request, endpoint.encodings(), &state).await?;
    fulfil(state, read, endpoint, asked).await
}

/// Fields → parameters → pictures → the queue → reply.
async fn fulfil(
    state: AppState,
    (mut fields, mut memory): (Fields, MemoryShare),
    endpoint: Endpoint,
    asked: Asked,
) -> Result<Response, ApiError> {
    let Asked { origin, deployment, accepted } = asked;
    let mut parameters = Parameters::take(&mut fields, endpoint, (deployment, accepted), &state)?;
    let inputs = Inputs::take(&mut fields, endpoint, state.images.info())?;
    if inputs.has_mask() {
        state.images.check_offered(Offer::Masks)?;
    } else {
        parameters.note_missing_mask();
    }
    parameters.report_unknown(&fields);
    drop(fields);
    memory.shrink_to(inputs.held_bytes());

    let (mut inputs, memory) = inputs.decode(&state, memory).await?;
    parameters.warnings.append(&mut inputs.warnings);
    let mask_convention = inputs.mask_convention;
    let task = task_of(endpoint, &mut parameters, inputs, state.images.info())?;
    if let Task::Decompose { layers, .. } = &task {
        parameters.output.check_count("layers", layers.get())?;
    }
    let recipe = parameters.recipe(endpoint, &task, &state);
    let request = parameters.request(task);
    let (steps, seed) = (request.steps.get(), request.seed);
    let Output { format, delivery } = parameters.output;
    let framing = parameters.framing();
    let facts = ReplyFacts {
        model: state.images.info().id.clone(),
        steps,
        quality: parameters.quality,
        format,
        png_compression: state.config.png_compression,
        recipe,
        software: format!("{} {}", state.config.app_name, state.config.app_version),
        mask_convention,
        warnings: parameters.warnings,
    };
    match delivery {
        Delivery::Events { partial_images } => {
            let ticket = state.images.order(request, framing, partial_images, memory).await?;
            Ok(stream::respond(ticket, facts, endpoint, seed))
        }
        Delivery::Base64 | Delivery::Url | Delivery::File => {
            let ticket = state.images.order(request, framing, 0, memory).await?;
            reply::respond(state, ticket, facts, (delivery, origin)).await
        }
    }
}

/// What the request is to the loaded model.
fn task_of(
    endpoint: Endpoint,
    parameters: &mut Parameters,
    inputs: DecodedInputs,
    model: &ModelInfo,
) -> Result<Task, ApiError> {
    let DecodedInputs { images, mask, .. } = inputs;
    let mut images = images.into_iter();
    let mut first = || {
        let none = || ApiError::Internal("a request lost its picture".to_owned());
        images.next().ok_or_else(none)
    };
    let default = model.defaults.strength;
    Ok(match (endpoint, mask) {
        (Endpoint::Generations, _) => Task::Generate,
        (Endpoint::Variations, _) => {
            Task::ImageToImage { image: first()?, strength: parameters.variation_strength()? }
        }
        (Endpoint::Edits, Some(mask)) => Task::Inpaint {
            image: first()?,
            mask,
            strength: parameters.strength_or(default),
            crop_padding: parameters.masking.crop_padding(),
        },
        (Endpoint::Edits, None) => match model.edit_kind {
            EditKind::Instruction => {
                parameters.refuse_strength()?;
                Task::Edit { images: images.collect() }
            }
            EditKind::ImageToImage => {
                let strength = parameters.strength_or(default);
                Task::ImageToImage { image: first()?, strength }
            }
            EditKind::Layers => {
                parameters.refuse_strength()?;
                Task::Decompose { image: first()?, layers: parameters.layers()? }
            }
        },
    })
}
