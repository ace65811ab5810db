//! What requests are read against: the models, the settings, and what they may take.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::models::Models;
use super::parameters::{Accepted, DefaultResponseFormat};
use crate::imaging::codec::DecodeLimits;
use crate::service::{Client, RequestMemory};

/// What requests may be like, and what they mean where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSettings {
    /// What an input picture may be like.
    pub(crate) decode_limits: DecodeLimits,
    /// Pixels of all pictures of a request together.
    pub(crate) max_request_pixels: usize,
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
    /// Who asks.
    pub(crate) client: Client,
    /// Whether unfinished pictures are seen by other means than a stream.
    pub(crate) is_followed: bool,
}

/// What requests are read against; clones share all of it.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) models: Arc<Models>,
    pub(crate) settings: RequestSettings,
    /// What all requests together may hold.
    pub(crate) memory: RequestMemory,
    /// Pictures that may be decoded at a time: one processor is left for everything else.
    pub(super) decoders: Arc<Semaphore>,
}

impl RequestContext {
    pub(crate) fn new(models: Models, memory: RequestMemory, settings: RequestSettings) -> Self {
        let decoders = Arc::new(Semaphore::new(decoders()));
        Self { models: Arc::new(models), settings, memory, decoders }
    }

    /// The same for somebody who may use these models.
    pub(crate) fn with_models(&self, models: Arc<Models>) -> Self {
        Self { models, ..self.clone() }
    }
}

/// How many pictures are decoded at a time.
fn decoders() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.saturating_sub(1).max(1)
}
