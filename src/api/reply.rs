//! Finished pictures on their way to the client, in one JSON object.

use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::{ApiError, chain};
use super::origin::Origin;
use super::parameters::Delivery;
use super::quality::Quality;
use super::recipe::Recipe;
use super::request_log::WorkDone;
use super::state::{AppState, unix_seconds};
use super::wire::{self, Background, ImageData, ImagesResponse, MaskConvention};
use crate::domain::{Picture, Seed, ValidationError};
use crate::imaging::codec::{self, OutputFormat};
use crate::imaging::provenance;
use crate::model::{GeneratedImage, Generation};
use crate::service::Ticket;

/// What is known of a reply before its pictures are made.
#[derive(Debug, Clone)]
pub(super) struct ReplyFacts {
    pub(super) model: String,
    pub(super) steps: usize,
    pub(super) quality: Quality,
    pub(super) format: OutputFormat,
    pub(super) recipe: Recipe,
    pub(super) software: String,
    pub(super) mask_convention: Option<MaskConvention>,
    pub(super) warnings: Vec<String>,
}

impl ReplyFacts {
    /// The file of a picture, with its recipe inside. Takes long: not for the
    /// async runtime.
    ///
    /// # Errors
    /// [`ApiError::Internal`] if the format cannot hold the picture.
    pub(super) fn file_of(&self, picture: &Picture, seed: Seed) -> Result<Vec<u8>, ApiError> {
        let internal = |error: &dyn std::error::Error| ApiError::Internal(chain(error));
        let file = codec::encode(picture, self.format).map_err(|error| internal(&error))?;
        let recipe = self.recipe.text(&size_of(picture), seed);
        provenance::attach(file, &recipe, &self.software).map_err(|error| internal(&error))
    }

    /// What the log says of the work.
    pub(super) fn work_done(&self, size: &str, images: usize) -> WorkDone {
        WorkDone { steps: self.steps, size: size.to_owned(), images }
    }
}

/// `WIDTHxHEIGHT`
pub(super) fn size_of(picture: &Picture) -> String {
    format!("{}x{}", picture.width(), picture.height())
}

/// Waits for the pictures and sends them off.
pub(super) async fn respond(
    state: AppState,
    ticket: Ticket,
    mut facts: ReplyFacts,
    (delivery, origin): (Delivery, Origin),
) -> Result<Response, ApiError> {
    let mut generation = ticket.finish().await?;
    facts.warnings.append(&mut generation.warnings);
    let Some(first) = generation.images.first() else {
        return Err(ApiError::Internal("the model made no picture".to_owned()));
    };
    let work = facts.work_done(&size_of(&first.image), generation.images.len());
    let encoding =
        tokio::task::spawn_blocking(move || body(&state, generation, facts, (delivery, &origin)));
    let mut response = wire::json_bytes(StatusCode::OK, encoding.await??);
    response.extensions_mut().insert(work);
    Ok(response)
}

/// Encodes the pictures and writes the reply's body. Not for the async runtime.
fn body(
    state: &AppState,
    generation: Generation,
    facts: ReplyFacts,
    way: (Delivery, &Origin),
) -> Result<Vec<u8>, ApiError> {
    let first = generation.images.first();
    let size = first.map(|first| size_of(&first.image)).unwrap_or_default();
    let is_transparent = first.is_some_and(|first| first.image.alpha().is_some());
    let mut data = Vec::new();
    for generated in &generation.images {
        data.push(image_data(state, generated, &facts, way)?);
    }
    let response = ImagesResponse {
        created: unix_seconds(),
        model: facts.model,
        data,
        size,
        quality: facts.quality.name(),
        output_format: facts.format.name(),
        background: Background::of(is_transparent),
        mask_convention: facts.mask_convention,
        usage: generation.usage.into(),
        warnings: facts.warnings,
    };
    serde_json::to_vec(&response).map_err(|error| ApiError::Internal(chain(&error)))
}

fn image_data(
    state: &AppState,
    generated: &GeneratedImage,
    facts: &ReplyFacts,
    (delivery, origin): (Delivery, &Origin),
) -> Result<ImageData, ApiError> {
    let file = facts.file_of(&generated.image, generated.seed)?;
    let (b64_json, url) = if delivery == Delivery::Url {
        let name = state.store.keep(file.into(), facts.format.name());
        let name = name.ok_or_else(|| {
            let message = "Invalid value for 'response_format': the picture is larger than this \
                           server keeps for a 'url'. Use 'b64_json'.";
            ValidationError::new("response_format", "invalid_value", message)
        })?;
        (None, Some(origin.url_of(&state.path(&format!("/images/files/{name}")))))
    } else {
        (Some(STANDARD.encode(file)), None)
    };
    Ok(ImageData { b64_json, url, revised_prompt: None, seed: generated.seed.get() })
}
