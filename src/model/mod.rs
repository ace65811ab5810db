//! The models, and the registry that finds one by name.

pub mod benchmark;
mod cache;
mod check;
pub mod components;
mod conversion;
mod diffusion;
mod embedded;
mod estimate;
mod file_source;
mod files;
mod loading;
mod location;
mod loras;
mod memory_limit;
mod plan;
mod precision;
mod published;
pub mod qwen_image;
mod registry;
mod residency;
pub mod stable_diffusion;
mod warnings;

pub use diffusion::{
    AreaRange, DiffusionModel, EditKind, GeneratedImage, Generation, GuidanceParameter,
    LayerProgress, LoadError, Loaded, ModelCard, ModelError, RequestDefaults, Stage, StepObserver,
    StepProgress, TokenUsage, Unobserved,
};

pub use crate::checkpoint::{OutputFormat, Progress as ConversionProgress, Written};
pub use crate::device::{DeviceChoice, DeviceFailure, DeviceMemory, DtypeChoice};
pub use check::{CheckError, PictureCheck, check_device};
pub use conversion::{Component, ConversionError, ConversionRequest, convert};
pub use estimate::{BytesPerPixel, Estimate};
pub use file_source::{FILE_SOURCES, FileSource};
pub use files::{Inspection, MissingPart, inspect, missing_parts, weight_files};
pub use loras::LoraNames;
pub use memory_limit::MemoryLimit;
pub use plan::{ModelPlan, PlannedComponent};
pub use registry::{ModelFiles, find_embedded, load};
pub use residency::{MemoryChoice, Offloadable, Residency};
pub use warnings::CutTokens;

use std::path::PathBuf;

use crate::domain::{GuidanceScale, Steps};

/// Bytes of memory that are free on the device that `choice` names, if that can be told.
#[must_use]
pub fn free_memory_bytes(choice: DeviceChoice) -> Option<usize> {
    crate::device::free_memory_bytes(&crate::device::open(choice).ok()?)
}

/// The memory of a device that is open, if it can be told.
#[must_use]
pub fn device_memory(choice: DeviceChoice) -> Option<DeviceMemory> {
    crate::device::memory(choice)
}

/// Which model to load, where, and what to change about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Name of an embedded model, a folder, a file here or on the hub (`hf:…`), or a
    /// repository id on the hub.
    pub id: String,
    /// The name that clients see; the id's last part if absent.
    pub name: Option<String>,
    /// Files in the place of a checkpoint's folder.
    pub files: FileChoices,
    /// Which published checkpoint the weights are of, where the files do not tell.
    pub variant: Option<String>,
    /// Commit, tag or branch of a repository on the hub; `main` if absent.
    pub revision: Option<String>,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Dtype of the weights.
    pub dtype: DtypeChoice,
    /// Pixels that a picture is scaled to for the VAE. Overrides the checkpoint's own.
    pub image_area: Option<usize>,
    /// Pixels that a picture is scaled to for the encoder, where the pipeline
    /// makes a copy of its own for it. Overrides the checkpoint's own.
    pub condition_area: Option<usize>,
    /// Overrides of what a request gets when it does not say otherwise.
    pub defaults: DefaultOverrides,
    /// Capabilities to switch off.
    pub capabilities: CapabilitySwitches,
    /// LoRA files to merge into the weights while they load, in this order.
    pub lora: Vec<LoraConfig>,
    /// The folder of the LoRAs that requests may name; without one, none may be.
    pub lora_dir: Option<PathBuf>,
    /// Which weights stay on the device.
    pub memory: MemoryChoice,
    /// How much of the device's memory it may take.
    pub memory_limit: MemoryLimit,
    /// Bytes of results that are kept for requests with the same pictures, prompts
    /// or schedules; 0 keeps nothing.
    pub cache_bytes: usize,
    /// Whether a 16-bit model is told the noise level exactly; else it is rounded
    /// to 16 bits twice, as the reference does.
    pub exact_timesteps: bool,
    /// Whether `dtype` fp8 and fp8-weights round all layers of the blocks, or spare
    /// those that lose most by it.
    pub fp8_all_layers: bool,
}

impl ModelConfig {
    /// The model that `id` names as it is, wherever it runs best, keeping nothing
    /// from one request to the next.
    #[must_use]
    pub fn of(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            name: None,
            files: FileChoices::default(),
            variant: None,
            revision: None,
            device: DeviceChoice::Auto,
            dtype: DtypeChoice::Auto,
            image_area: None,
            condition_area: None,
            defaults: DefaultOverrides::default(),
            capabilities: CapabilitySwitches::default(),
            lora: Vec::new(),
            lora_dir: None,
            memory: MemoryChoice::Auto,
            memory_limit: MemoryLimit::Free,
            cache_bytes: 0,
            exact_timesteps: true,
            fp8_all_layers: true,
        }
    }
}

/// Files of weights, and whose configuration they have: what is not named here comes from
/// the base, if that has it, or from files beside those that are named.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileChoices {
    /// The diffusion transformer.
    pub transformer: Option<FileSource>,
    /// The language model that reads prompts, with or without its vision tower.
    pub text_encoder: Option<FileSource>,
    /// The vision tower, where it is a file of its own.
    pub mmproj: Option<FileSource>,
    /// The autoencoder.
    pub vae: Option<FileSource>,
    /// The published checkpoint, or the folder, that configurations, tokenizer and whatever
    /// has no file here are taken from.
    pub base: Option<String>,
}

impl FileChoices {
    /// Whether any file is named.
    #[must_use]
    pub fn are_named(&self) -> bool {
        [&self.transformer, &self.text_encoder, &self.mmproj, &self.vae]
            .into_iter()
            .any(Option::is_some)
    }
}

/// A LoRA file, and how strongly it acts.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// A safetensors file.
    pub file: PathBuf,
    /// 1: as it was trained.
    pub scale: f64,
}

/// Overrides of [`RequestDefaults`]; `None` leaves the model's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DefaultOverrides {
    /// Denoising steps.
    pub num_inference_steps: Option<Steps>,
    /// Strength of guidance of models whose users know it as `true_cfg_scale`.
    pub true_cfg_scale: Option<GuidanceScale>,
    /// Strength of guidance of models whose users know it as `guidance_scale`.
    pub guidance_scale: Option<GuidanceScale>,
    /// What to steer away from.
    pub negative_prompt: Option<String>,
}

/// `Some(false)` switches a capability off; `Some(true)` never adds one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySwitches {
    /// Pictures from words alone.
    pub text_to_image: Option<bool>,
    /// Pictures changed as a prompt says.
    pub image_edit: Option<bool>,
    /// Pictures like a given one.
    pub image_variation: Option<bool>,
    /// Repainting only a part of a picture.
    pub inpainting: Option<bool>,
    /// The `mask` parameter of an edit.
    pub mask: Option<bool>,
}
