//! What every handler gets.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ApiConfig;
use crate::service::ImageService;

/// The state of the router; clones share all of it.
#[derive(Clone)]
pub(super) struct AppState {
    pub(super) images: ImageService,
    pub(super) config: Arc<ApiConfig>,
    pub(super) names: ModelNames,
    /// When the server started, in seconds since 1970.
    pub(super) started: u64,
}

impl AppState {
    pub(super) fn new(images: ImageService, config: &ApiConfig) -> Self {
        Self {
            names: ModelNames::new(&images.info().id),
            images,
            config: Arc::new(config.clone()),
            started: unix_seconds(),
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}

/// The names under which clients may ask for the loaded model.
#[derive(Debug, Clone)]
pub(super) struct ModelNames {
    id: Arc<str>,
}

impl ModelNames {
    /// Hosted models of OpenAI: several clients send one of these whatever
    /// server they talk to.
    const HOSTED_PREFIXES: [&str; 3] = ["gpt-image", "chatgpt-image", "dall-e"];

    pub(super) fn new(id: &str) -> Self {
        Self { id: id.into() }
    }

    /// Whether `asked` is the model's id, the last part of it, or a hosted name.
    pub(super) fn include(&self, asked: &str) -> bool {
        let last_part = self.id.rsplit('/').next();
        asked == &*self.id
            || last_part == Some(asked)
            || Self::HOSTED_PREFIXES.iter().any(|prefix| asked.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_goes_by_its_id_its_last_part_and_hosted_names() {
        let names = ModelNames::new("Qwen/Qwen-Image-Edit");

        for known in [
            "Qwen/Qwen-Image-Edit",
            "Qwen-Image-Edit",
            "gpt-image-1",
            "dall-e-2",
            "chatgpt-image-latest",
        ] {
            assert!(names.include(known), "{known}");
        }
        for unknown in ["Qwen", "qwen-image-edit", "", "gpt-4o"] {
            assert!(!names.include(unknown), "{unknown}");
        }
    }
}
