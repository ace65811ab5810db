//! What every handler gets.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::ApiConfig;
use super::quality::QualityTable;
use super::store::PictureStore;
use crate::service::{ImageService, RequestMemory};

/// The state of the router; clones share all of it.
#[derive(Clone)]
pub(super) struct AppState {
    pub(super) images: ImageService,
    pub(super) config: Arc<ApiConfig>,
    pub(super) names: Arc<ModelNames>,
    pub(super) qualities: Arc<QualityTable>,
    pub(super) store: Arc<PictureStore>,
    /// What all requests together may hold.
    pub(super) memory: RequestMemory,
    /// Pictures that may be decoded at a time: one processor is left for everything else.
    pub(super) decoders: Arc<Semaphore>,
    /// When the server started, in seconds since 1970.
    pub(super) started: u64,
}

impl AppState {
    pub(super) fn new(images: ImageService, config: &ApiConfig) -> Self {
        Self {
            names: Arc::new(ModelNames::new(&images.info().id, &config.model_aliases)),
            qualities: Arc::new(QualityTable::new(images.info(), &config.quality)),
            store: Arc::new(PictureStore::new(config.picture_store)),
            memory: RequestMemory::new(config.request_memory_bytes, config.memory_timeout),
            decoders: Arc::new(Semaphore::new(decoders())),
            images,
            config: Arc::new(config.clone()),
            started: unix_seconds(),
        }
    }

    /// `path` behind the configured prefix.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", super::path_prefix(&self.config))
    }
}

/// How many pictures are decoded at a time.
fn decoders() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.saturating_sub(1).max(1)
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}

/// The names under which clients may ask for the loaded model.
#[derive(Debug, Clone)]
pub(super) struct ModelNames {
    id: String,
    /// Some end with `*`, for all names that begin so.
    pub(super) aliases: Vec<String>,
}

impl ModelNames {
    pub(super) fn new(id: &str, aliases: &[String]) -> Self {
        Self { id: id.to_owned(), aliases: aliases.to_owned() }
    }

    /// Whether `asked` is the model's id, the last part of it, or an alias.
    pub(super) fn include(&self, asked: &str) -> bool {
        let is_alias = |alias: &String| match alias.strip_suffix('*') {
            Some(beginning) => asked.starts_with(beginning),
            None => asked == alias,
        };
        let last_part = self.id.rsplit('/').next();
        asked == self.id || last_part == Some(asked) || self.aliases.iter().any(is_alias)
    }

    /// The id, then the aliases that are whole names.
    pub(super) fn listed(&self) -> impl Iterator<Item = &str> {
        let whole = self.aliases.iter().filter(|alias| !alias.ends_with('*') && **alias != self.id);
        std::iter::once(self.id.as_str()).chain(whole.map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ModelNames {
        let aliases = ["gpt-image-1", "gpt-image-*", "dall-e-2"].map(str::to_owned);
        ModelNames::new("Qwen/Qwen-Image-Edit", &aliases)
    }

    #[test]
    fn a_model_goes_by_its_id_its_last_part_and_its_aliases() {
        for known in [
            "Qwen/Qwen-Image-Edit",
            "Qwen-Image-Edit",
            "gpt-image-1",
            "gpt-image-2.5-flare",
            "dall-e-2",
        ] {
            assert!(names().include(known), "{known}");
        }
        for unknown in ["Qwen", "qwen-image-edit", "", "gpt-4o", "dall-e-3", "gpt-image"] {
            assert!(!names().include(unknown), "{unknown}");
        }
    }

    #[test]
    fn whole_names_are_listed() {
        let names = names();
        let listed: Vec<_> = names.listed().collect();

        assert_eq!(listed, ["Qwen/Qwen-Image-Edit", "gpt-image-1", "dall-e-2"]);
    }
}
