//! What a file of weights is, told without loading it.

use std::collections::BTreeMap;
use std::path::Path;

use super::contents::{self, Kind};
use super::which;
use crate::checkpoint::{CheckpointError, FileFormat, FileListing};

/// What a file of weights is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// The file.
    pub file: String,
    /// `safetensors` or `GGUF`.
    pub format: &'static str,
    /// What of a model is in it, in words; empty, if nothing that is known.
    pub components: Vec<String>,
    /// What it is instead, if nothing that is known is in it.
    pub otherwise: Option<String>,
    /// How many tensors lie in which way, and their bytes.
    pub storages: BTreeMap<String, (usize, usize)>,
    /// Why its tensors cannot be read, if they cannot.
    pub fault: Option<String>,
}

/// What the file `path` is.
///
/// # Errors
/// [`CheckpointError`] if it cannot be read, or is no file of weights.
pub fn inspect(path: &Path) -> Result<Inspection, CheckpointError> {
    let listing = FileListing::open(path)?;
    let found = contents::components(&listing);
    let (components, otherwise) = match found {
        Ok(found) => (found, None),
        Err(otherwise) => (Vec::new(), Some(otherwise)),
    };
    let prefix = components.first().map_or("", |one| one.prefix.as_str());
    let scaled = FileListing::open_scaled(path, prefix);
    let (fault, storages) = match scaled {
        Ok(scaled) if components.len() < 2 => (None, scaled.storages()),
        Ok(_) => (None, listing.storages()),
        Err(error) => (Some(error.to_string()), listing.storages()),
    };
    Ok(Inspection {
        file: path.display().to_string(),
        format: match listing.format() {
            FileFormat::Safetensors => "safetensors",
            FileFormat::Gguf => "GGUF",
        },
        components: components.iter().map(|one| described(one.kind, path)).collect(),
        otherwise,
        storages,
        fault,
    })
}

fn described(kind: Kind, path: &Path) -> String {
    match kind {
        Kind::Transformer { .. } => match which::which(kind, path) {
            Some(which) => format!("the transformer of {} ({})", which.id, which.because),
            None => {
                "a transformer of Qwen-Image that does not tell which: set model.variant".to_owned()
            }
        },
        Kind::TextEncoder { has_vision: true } => {
            "the text encoder, with its vision tower".to_owned()
        }
        Kind::TextEncoder { has_vision: false } => {
            "the text encoder without its vision tower, which is another file (mmproj)".to_owned()
        }
        Kind::VisionTower => "the text encoder's vision tower (mmproj)".to_owned(),
        Kind::Vae => "the autoencoder".to_owned(),
    }
}
