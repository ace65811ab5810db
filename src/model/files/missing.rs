//! What files lack to be a model, and how it may be named.

use std::fmt;
use std::path::{Path, PathBuf};

use super::contents::Kind;
use super::{Parts, folders, has_vision, is_text, is_vae, is_vision, which};

/// A component that no file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingPart {
    /// The language model that reads prompts.
    TextEncoder,
    /// Its eyes, where they are a file of their own.
    VisionTower,
    /// The autoencoder.
    Vae,
}

impl MissingPart {
    fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text encoder (Qwen2.5-VL-7B)",
            Self::VisionTower => "text encoder's vision tower (mmproj)",
            Self::Vae => "VAE",
        }
    }

    /// The component that `setting` names.
    pub(super) fn of_setting(setting: &str) -> Option<Self> {
        let parts = [Self::TextEncoder, Self::VisionTower, Self::Vae];
        parts.into_iter().find(|part| part.example().starts_with(setting))
    }

    /// Settings that name a file of it that is published.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::TextEncoder => {
                "model.files.text_encoder = \"hf:unsloth/Qwen2.5-VL-7B-Instruct-GGUF/\
                 Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf\", or with its vision tower inside \
                 \"hf:Comfy-Org/Qwen-Image_ComfyUI/split_files/text_encoders/\
                 qwen_2.5_vl_7b_fp8_scaled.safetensors\""
            }
            Self::VisionTower => {
                "model.files.mmproj = \"hf:unsloth/Qwen2.5-VL-7B-Instruct-GGUF/mmproj-F16.gguf\", \
                 unless the text encoder is a safetensors file, which has it inside"
            }
            Self::Vae => {
                "model.files.vae = \"hf:Comfy-Org/Qwen-Image_ComfyUI/split_files/vae/\
                 qwen_image_vae.safetensors\""
            }
        }
    }
}

impl fmt::Display for MissingPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the {} is missing: name its file, as in {}", self.name(), self.example())
    }
}

/// What the transformer among `files` lacks to run, if one is among them: components that
/// neither they have nor what lies in `folder`.
#[must_use]
pub fn missing_parts(files: &[PathBuf], folder: &Path) -> Vec<MissingPart> {
    let mut parts = Parts::default();
    parts.add_readable(files);
    let Some(transformer) = parts.transformer() else { return Vec::new() };
    let known = which::which(transformer.found.kind, &transformer.path);
    let edits = known.is_none_or(|which| which.id.contains("Edit"));
    parts.add_missing(&folders::inside(folder));
    let has = |kind: fn(&Kind) -> bool| parts.candidates.iter().any(|one| kind(&one.found.kind));
    let sees = has(is_vision) || has(has_vision);
    [
        (has(is_text), MissingPart::TextEncoder),
        (sees || !edits, MissingPart::VisionTower),
        (has(is_vae), MissingPart::Vae),
    ]
    .into_iter()
    .filter_map(|(is_there, part)| (!is_there).then_some(part))
    .collect()
}
