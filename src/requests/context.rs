//! What requests are read against: the model, the settings, and what they may take.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::names::ModelNames;
use super::parameters::{Accepted, DefaultResponseFormat};
use super::quality::{QualityOverrides, QualityTable};
use crate::imaging::codec::DecodeLimits;
use crate::service::{ImageService, RequestMemory};

/// What requests may be like, and what they mean where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSettings {
    /// What an input picture may be like.
    pub(crate) decode_limits: DecodeLimits,
    /// How pictures come back whose request names no `response_format`.
    pub(crate) response_format: DefaultResponseFormat,
    /// Whether recipes have the words that pictures were made from.
    pub(crate) write_prompts: bool,
}

/// What a request says outside its fields.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The model, where the address names it.
    pub(crate) deployment: Option<String>,
    /// What the reply is to be.
    pub(crate) accepted: Accepted,
}

/// What requests are read against; clones share all of it.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) images: ImageService,
    pub(crate) settings: RequestSettings,
    pub(crate) names: Arc<ModelNames>,
    pub(crate) qualities: Arc<QualityTable>,
    /// What all requests together may hold.
    pub(crate) memory: RequestMemory,
    /// Pictures that may be decoded at a time: one processor is left for everything else.
    pub(super) decoders: Arc<Semaphore>,
}

impl RequestContext {
    /// `aliases`: other names of the model.
    pub(crate) fn new(
        images: ImageService,
        memory: RequestMemory,
        settings: RequestSettings,
        (aliases, qualities): (&[String], &QualityOverrides),
    ) -> Self {
        Self {
            names: Arc::new(ModelNames::new(&images.info().id, aliases)),
            qualities: Arc::new(QualityTable::new(images.info(), qualities)),
            decoders: Arc::new(Semaphore::new(decoders())),
            images,
            settings,
            memory,
        }
    }
}

/// How many pictures are decoded at a time.
fn decoders() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.saturating_sub(1).max(1)
}
