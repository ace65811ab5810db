//! Checkpoints on disk, copied to be changed, and loaded without a hub.

use std::path::Path;

use diffuser_api::hub::HubConfig;
use diffuser_api::model::{DeviceChoice, DiffusionModel, LoadError, ModelConfig};

/// Copies the content of a folder into another one.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// Loads a model on the CPU that works at 64x64 pixels.
pub(crate) fn load(id: &str) -> Result<Box<dyn DiffusionModel>, LoadError> {
    let config = ModelConfig {
        device: DeviceChoice::Cpu,
        image_area: Some(64 * 64),
        ..ModelConfig::of(id.to_owned())
    };
    diffuser_api::model::load(&config, &offline_hub())
}

/// A hub that is never asked, and has nothing.
pub(crate) fn offline_hub() -> HubConfig {
    HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        cache: std::env::temp_dir().join("no-such-cache"),
        token: None,
        offline: true,
    }
}
