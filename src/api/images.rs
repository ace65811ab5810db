//! Pictures: edits, generations and variations.
//!
//! All three go the same way: body → fields → parameters → pictures → the
//! queue → files → reply. Whatever can be refused is refused before a picture
//! is decoded, and decoded before a place in the queue is taken.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::docs::{EditForm, EditJson, GenerationJson, VariationForm};
use super::endpoint::Endpoint;
use super::error::ApiError;
use super::form::{self, Encodings};
use super::parameters::Parameters;
use super::pictures;
use super::request_log::WorkDone;
use super::state::{AppState, unix_seconds};
use super::wire::{self, ErrorEnvelope, ImagesResponse, ReplyFacts};
use crate::domain::Task;
use crate::model::Generation;

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
    responses(
        (status = 200, description = "The finished pictures", body = ImagesResponse),
        (status = 400, description = "A field is missing or wrong; `param` names it", body = ErrorEnvelope),
        (status = 404, description = "No such model", body = ErrorEnvelope),
        (status = 413, description = "The upload is too large", body = ErrorEnvelope),
        (status = 415, description = "Another media type", body = ErrorEnvelope),
        (status = 429, description = "The queue is full; see `Retry-After`", body = ErrorEnvelope),
        (status = 500, description = "The model failed", body = ErrorEnvelope),
        (status = 501, description = "The loaded model does not do this", body = ErrorEnvelope),
        (status = 503, description = "The server is shutting down", body = ErrorEnvelope),
    )
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
    responses(
        (status = 200, description = "The finished pictures", body = ImagesResponse),
        (status = 400, description = "A field is missing or wrong; `param` names it", body = ErrorEnvelope),
        (status = 429, description = "The queue is full; see `Retry-After`", body = ErrorEnvelope),
        (status = 501, description = "The loaded model does not do this", body = ErrorEnvelope),
    )
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
    responses(
        (status = 200, description = "The finished pictures", body = ImagesResponse),
        (status = 400, description = "A field is missing or wrong; `param` names it", body = ErrorEnvelope),
        (status = 429, description = "The queue is full; see `Retry-After`", body = ErrorEnvelope),
        (status = 501, description = "The loaded model does not do this", body = ErrorEnvelope),
    )
)]
pub(super) async fn variations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Variations).await
}

async fn answer(
    state: AppState,
    request: Request,
    endpoint: Endpoint,
) -> Result<Response, ApiError> {
    state.images.check_offered(endpoint.offer())?;
    let model = state.images.info();
    let (encodings, max_pictures) = match endpoint {
        Endpoint::Edits => (Encodings::JsonOrMultipart, model.max_input_images),
        Endpoint::Generations => (Encodings::Json, 0),
        Endpoint::Variations => (Encodings::Multipart, 1),
    };
    let mut fields = form::read(request, encodings, state.config.max_upload_bytes).await?;
    let mut parameters = Parameters::take(&mut fields, endpoint, model, &state.names)?;
    let pictures = match endpoint {
        Endpoint::Generations => Vec::new(),
        Endpoint::Edits | Endpoint::Variations => pictures::take(&mut fields, max_pictures)?,
    };
    parameters.report_unknown(&fields);
    drop(fields);

    let images = pictures::decode(pictures, state.config.decode_limits()).await?;
    let task = match endpoint {
        Endpoint::Generations => Task::Generate,
        Endpoint::Edits => Task::Edit { images },
        Endpoint::Variations => {
            let image = images.into_iter().next();
            let no_image = || ApiError::Internal("a variation lost its picture".to_owned());
            let image = image.ok_or_else(no_image)?;
            Task::ImageToImage { image, strength: parameters.strength() }
        }
    };
    let request = parameters.request(task);
    let steps = request.steps.get();
    let generation = state.images.generate(request).await?;
    reply(generation, parameters, model.id.clone(), steps).await
}

/// Encodes the finished pictures and sends them off.
async fn reply(
    generation: Generation,
    parameters: Parameters,
    model: String,
    steps: usize,
) -> Result<Response, ApiError> {
    let Some(first) = generation.images.first() else {
        return Err(ApiError::Internal("the model made no picture".to_owned()));
    };
    let size = format!("{}x{}", first.image.width(), first.image.height());
    let exact_size = parameters.exact_size();
    let mut warnings = parameters.warnings;
    if let Some(asked) = exact_size.filter(|asked| asked.to_string() != size) {
        warnings.push(format!("'size' {asked} was floored to the model's grid: {size}."));
    }
    let work = WorkDone { steps, size: size.clone(), images: generation.images.len() };
    let facts =
        ReplyFacts { created: unix_seconds(), model, size, format: parameters.format, warnings };
    let encoding = tokio::task::spawn_blocking(move || wire::images_body(&generation, facts));
    let mut response = wire::json_bytes(StatusCode::OK, encoding.await??);
    response.extensions_mut().insert(work);
    Ok(response)
}
