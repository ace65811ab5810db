//! Finished pictures on their way to the client: in one JSON object, or one as a file.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tracing::Span;

use super::error::ApiError;
use super::kept::Keeper;
use super::request_log::WorkDone;
use super::state::unix_seconds;
use super::wire::{self, Background, ImageData, ImagesResponse, MaskConvention};
use crate::domain::{Picture, Seed};
use crate::imaging::codec::{self, OutputFormat, PngCompression};
use crate::imaging::provenance;
use crate::metrics::{Metrics, Operation, Stage};
use crate::model::{GeneratedImage, Generation, TokenUsage};
use crate::requests::{Delivery, Output, Quality, Recipe};
use crate::service::{Finished, JobHandle};
use crate::telemetry::spans;

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

    /// Tells the traces what the request of `span` is for: `count` pictures.
    pub(super) fn describe(&self, span: &Span, count: usize) {
        spans::asked(span, &self.model, self.operation.name(), (self.steps, count));
    }

    /// Encodes finished pictures with `work`, and notes how long that took.
    pub(super) fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let encoded = spans::stage(Stage::Encode.name()).in_scope(work);
        self.metrics.stage_took(&self.model, Stage::Encode, started.elapsed());
        encoded
    }
}

/// What a reply tells its client; in its extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplyWarnings(pub(super) Vec<String>);

/// `WIDTHxHEIGHT`
pub(super) fn size_of(picture: &Picture) -> String {
    format!("{}x{}", picture.width(), picture.height())
}

/// Waits for the pictures and sends them off.
pub(super) async fn respond(
    handle: JobHandle,
    mut facts: ReplyFacts,
    (output, keeper): (Output, Keeper),
) -> Result<Response, ApiError> {
    let Finished { mut generation, memory, loading } = handle.finish().await?;
    facts.warnings.append(&mut generation.warnings);
    let Some(first) = generation.images.first() else {
        return Err(ApiError::Internal("the model made no picture".to_owned()));
    };
    let work = facts.work_done(&first.image, generation.images.len());
    let encoding = tokio::task::spawn_blocking(spans::carried(move || {
        let made = facts.timed(|| MadeFiles::encode(generation, &facts))?;
        Ok::<_, ApiError>((made, facts, memory))
    }));
    let (mut made, mut facts, memory) = encoding.await??;
    made.keep(&mut facts, (output, keeper)).await?;
    let warnings = ReplyWarnings(facts.warnings.clone());
    let mut response = if output.delivery == Delivery::File {
        made.file_response(&facts)?
    } else {
        let writing = tokio::task::spawn_blocking(move || {
            let _held_until_written = memory;
            made.into_json(facts, output.delivery)
        });
        wire::json_bytes(StatusCode::OK, writing.await??)
    };
    response.extensions_mut().insert(work);
    response.extensions_mut().insert(warnings);
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

/// What a reply that is a file says in headers: the seed, as JSON the token counts and, if
/// there are any, the warnings, and the address, if it has one.
pub(super) const FILE_HEADERS: [&str; 4] =
    ["x-diffuser-seed", "x-diffuser-usage", "x-diffuser-warnings", "x-diffuser-url"];

/// All headers of ours that pages may read.
pub(super) const HEADERS: [&str; 5] =
    [FILE_HEADERS[0], FILE_HEADERS[1], FILE_HEADERS[2], FILE_HEADERS[3], MODEL_LOAD_MS];

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

/// Finished files, with what a reply says of them.
struct MadeFiles {
    files: Vec<Bytes>,
    seeds: Vec<Seed>,
    /// Where they can be fetched; empty, or one for each.
    urls: Vec<Option<String>>,
    size: String,
    is_transparent: bool,
    usage: TokenUsage,
    skipped_blocks: Option<f64>,
}

impl MadeFiles {
    /// Encodes the pictures. Not for the async runtime.
    fn encode(generation: Generation, facts: &ReplyFacts) -> Result<Self, ApiError> {
        let Some(first) = generation.images.first() else {
            return Err(ApiError::Internal("the model made no picture".to_owned()));
        };
        let mut made = Self {
            files: Vec::new(),
            seeds: Vec::new(),
            urls: Vec::new(),
            size: size_of(&first.image),
            is_transparent: first.image.alpha().is_some(),
            usage: generation.usage,
            skipped_blocks: generation.skipped_blocks,
        };
        for GeneratedImage { image, seed } in generation.images {
            made.files.push(facts.file_of(&image, seed)?.into());
            made.seeds.push(seed);
        }
        Ok(made)
    }

    /// Stores the files, where that is wished for.
    async fn keep(
        &mut self,
        facts: &mut ReplyFacts,
        (output, keeper): (Output, Keeper),
    ) -> Result<(), ApiError> {
        let extension = facts.format.name();
        if output.delivery == Delivery::Url {
            let urls = keeper.keep_all(&self.files, extension).await?;
            self.urls = urls.into_iter().map(Some).collect();
        } else if output.store {
            let (urls, warning) = keeper.keep_what_fits(&self.files, extension).await;
            self.urls = urls;
            facts.warnings.extend(warning);
        }
        Ok(())
    }

    /// The first picture as a file.
    fn file_response(self, facts: &ReplyFacts) -> Result<Response, ApiError> {
        let internal = |error: serde_json::Error| ApiError::internal(&error);
        let mut pictures = self.files.into_iter().zip(self.seeds);
        let Some((file, seed)) = pictures.next() else {
            return Err(ApiError::Internal("the model made no picture".to_owned()));
        };
        let usage = serde_json::to_string(&wire::Usage::from(self.usage)).map_err(internal)?;
        let warnings = serde_json::to_string(&facts.warnings).map_err(internal)?;
        let values = [
            Some(seed.get().to_string()),
            Some(usage),
            (!facts.warnings.is_empty()).then(|| in_ascii(&warnings)),
            self.urls.into_iter().next().flatten(),
        ];
        let mut response = Response::new(Body::from(file));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(facts.format.media_type()));
        for (name, value) in FILE_HEADERS.into_iter().zip(values) {
            if let Some(value) = value {
                headers.insert(name, value.parse().map_err(|error| ApiError::internal(&error))?);
            }
        }
        Ok(response)
    }

    /// Writes the reply's body. Not for the async runtime.
    fn into_json(self, facts: ReplyFacts, delivery: Delivery) -> Result<Vec<u8>, ApiError> {
        let has_files = delivery != Delivery::Url;
        let mut urls = self.urls.into_iter();
        let pictures = self.files.into_iter().zip(self.seeds);
        let data = pictures.map(|(file, seed)| ImageData {
            b64_json: has_files.then(|| STANDARD.encode(&file)),
            url: urls.next().flatten(),
            revised_prompt: None,
            seed: seed.get(),
        });
        let response = ImagesResponse {
            created: unix_seconds(),
            model: facts.model,
            data: data.collect(),
            size: self.size,
            quality: facts.quality.name(),
            output_format: facts.format.name(),
            background: Background::of(self.is_transparent),
            mask_convention: facts.mask_convention,
            usage: self.usage.into(),
            skipped_blocks: self.skipped_blocks,
            warnings: facts.warnings,
        };
        serde_json::to_vec(&response).map_err(|error| ApiError::internal(&error))
    }
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
