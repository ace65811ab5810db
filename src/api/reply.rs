//! Finished pictures on their way to the client: in one JSON object, or one as a file.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::ApiError;
use super::origin::Origin;
use super::request_log::WorkDone;
use super::state::{AppState, unix_seconds};
use super::wire::{self, Background, ImageData, ImagesResponse, MaskConvention};
use crate::domain::{FaultKind, Picture, Seed, ValidationError};
use crate::imaging::codec::{self, OutputFormat, PngCompression};
use crate::imaging::provenance;
use crate::metrics::{Metrics, Operation, Stage};
use crate::model::{GeneratedImage, Generation};
use crate::requests::{Delivery, Quality, Recipe};
use crate::service::{Finished, JobHandle};

/// What is known of a reply before its pictures are made.
#[derive(Debug, Clone)]
pub(super) struct ReplyFacts {
    pub(super) model: String,
    pub(super) steps: usize,
    pub(super) quality: Quality,
    pub(super) format: OutputFormat,
    pub(super) png_compression: PngCompression,
    pub(super) recipe: Recipe,
    pub(super) software: String,
    pub(super) mask_convention: Option<MaskConvention>,
    pub(super) warnings: Vec<String>,
    pub(super) operation: Operation,
    /// Where it is counted what becomes of it.
    pub(super) metrics: Metrics,
}

impl ReplyFacts {
    /// The file of a picture, with its recipe inside. Takes long: not for the
    /// async runtime.
    ///
    /// # Errors
    /// [`ApiError::Internal`] if the format cannot hold the picture.
    pub(super) fn file_of(&self, picture: &Picture, seed: Seed) -> Result<Vec<u8>, ApiError> {
        let file = codec::encode_with(picture, self.format, self.png_compression)
            .map_err(|error| ApiError::internal(&error))?;
        let recipe = self.recipe.text(&size_of(picture), seed);
        provenance::attach(file, &recipe, &self.software)
            .map_err(|error| ApiError::internal(&error))
    }

    /// What the log and the metrics say of the work: `images` like `first`.
    pub(super) fn work_done(&self, first: &Picture, images: usize) -> WorkDone {
        WorkDone {
            steps: self.steps,
            size: size_of(first),
            images,
            model: self.model.clone(),
            operation: self.operation,
            pixels: first.width() * first.height() * images,
        }
    }

    /// Encodes finished pictures with `work`, and notes how long that took.
    pub(super) fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let encoded = work();
        self.metrics.stage_took(&self.model, Stage::Encode, started.elapsed());
        encoded
    }
}

/// `WIDTHxHEIGHT`
pub(super) fn size_of(picture: &Picture) -> String {
    format!("{}x{}", picture.width(), picture.height())
}

/// Waits for the pictures and sends them off.
pub(super) async fn respond(
    state: AppState,
    handle: JobHandle,
    mut facts: ReplyFacts,
    (delivery, origin): (Delivery, Origin),
) -> Result<Response, ApiError> {
    let Finished { mut generation, memory, loading } = handle.finish().await?;
    facts.warnings.append(&mut generation.warnings);
    let Some(first) = generation.images.first() else {
        return Err(ApiError::Internal("the model made no picture".to_owned()));
    };
    let work = facts.work_done(&first.image, generation.images.len());
    let encoding = tokio::task::spawn_blocking(move || {
        let _held_until_encoded = memory;
        facts.timed(|| match delivery {
            Delivery::File => file_response(&generation, &facts),
            Delivery::Base64 | Delivery::Url | Delivery::Events { .. } => {
                let body = body(&state, generation, &facts, (delivery, &origin))?;
                Ok(wire::json_bytes(StatusCode::OK, body))
            }
        })
    });
    let mut response = encoding.await??;
    response.extensions_mut().insert(work);
    if let Some(loading) = loading {
        response.headers_mut().insert(MODEL_LOAD_MS, HeaderValue::from(whole_ms(loading)));
    }
    Ok(response)
}

/// Whole milliseconds.
pub(super) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long the request waited for its model to be loaded, if it did, in milliseconds.
pub(super) const MODEL_LOAD_MS: &str = "x-model-load-ms";

/// What a reply that is a file says in headers: the seed, and as JSON the token counts
/// and, if there are any, the warnings.
pub(super) const FILE_HEADERS: [&str; 3] =
    ["x-diffuser-seed", "x-diffuser-usage", "x-diffuser-warnings"];

/// All headers of ours that pages may read.
pub(super) const HEADERS: [&str; 4] =
    [FILE_HEADERS[0], FILE_HEADERS[1], FILE_HEADERS[2], MODEL_LOAD_MS];

/// The first picture as a file. Not for the async runtime.
fn file_response(generation: &Generation, facts: &ReplyFacts) -> Result<Response, ApiError> {
    let first = generation.images.first();
    let first = first.ok_or_else(|| ApiError::Internal("the model made no picture".to_owned()))?;
    let file = facts.file_of(&first.image, first.seed)?;
    let usage = serde_json::to_string(&wire::Usage::from(generation.usage));
    let warnings =
        serde_json::to_string(&facts.warnings).map_err(|error| ApiError::internal(&error))?;
    let values = [
        first.seed.get().to_string(),
        usage.map_err(|error| ApiError::internal(&error))?,
        in_ascii(&warnings),
    ];
    let mut response = Response::new(Body::from(file));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(facts.format.media_type()));
    for (name, value) in FILE_HEADERS.into_iter().zip(values) {
        if name != "x-diffuser-warnings" || !facts.warnings.is_empty() {
            headers.insert(name, value.parse().map_err(|error| ApiError::internal(&error))?);
        }
    }
    Ok(response)
}

/// JSON in which no character is outside of ASCII, as headers need it.
fn in_ascii(json: &str) -> String {
    let mut units = [0; 2];
    let escaped = |letter: char| -> String {
        if letter.is_ascii() {
            return letter.to_string();
        }
        letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    json.chars().map(escaped).collect()
}

/// Encodes the pictures and writes the reply's body. Not for the async runtime.
fn body(
    state: &AppState,
    generation: Generation,
    facts: &ReplyFacts,
    way: (Delivery, &Origin),
) -> Result<Vec<u8>, ApiError> {
    let first = generation.images.first();
    let size = first.map(|first| size_of(&first.image)).unwrap_or_default();
    let is_transparent = first.is_some_and(|first| first.image.alpha().is_some());
    let mut data = Vec::new();
    for generated in &generation.images {
        data.push(image_data(state, generated, facts, way)?);
    }
    let response = ImagesResponse {
        created: unix_seconds(),
        model: facts.model.clone(),
        data,
        size,
        quality: facts.quality.name(),
        output_format: facts.format.name(),
        background: Background::of(is_transparent),
        mask_convention: facts.mask_convention,
        usage: generation.usage.into(),
        skipped_blocks: generation.skipped_blocks,
        warnings: facts.warnings.clone(),
    };
    serde_json::to_vec(&response).map_err(|error| ApiError::internal(&error))
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
            ValidationError::new("response_format", FaultKind::Invalid, message)
        })?;
        (None, Some(origin.url_of(&state.path(&format!("/images/files/{name}")))))
    } else {
        (Some(STANDARD.encode(file)), None)
    };
    Ok(ImageData { b64_json, url, revised_prompt: None, seed: generated.seed.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_in_a_header_are_json_whatever_is_in_them() {
        let warnings = ["'größe' 🐱 \" is not known"];

        let text = in_ascii(&serde_json::to_string(&warnings).unwrap());

        assert!(text.is_ascii());
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), warnings);
    }
}
