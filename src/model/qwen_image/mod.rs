//! The Qwen-Image family: a text encoder that sees, a two-stream diffusion
//! transformer, and an autoencoder made for video.
//!
//! Files are named after the checkpoint's components; [`pipeline`] puts them
//! together. Served so far: `QwenImageEditPipeline` (Qwen/Qwen-Image-Edit).

pub mod config;
pub mod latents;
pub mod pipeline;
pub mod positions;
pub mod preprocess;
pub mod prompt;
pub mod scheduler;
pub mod text_encoder;
pub mod transformer;
pub mod vae;
pub mod vision_tower;

use config::{ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig};
use pipeline::{Components, EditPipeline};
use prompt::PromptTokenizer;
use scheduler::SchedulerConfig;
use text_encoder::TextEncoder;
use transformer::Transformer;
use vae::Vae;

use super::loading::{CheckpointDefaults, LoadContext, ModelEntry};
use super::{Capabilities, DiffusionModel, EditKind, GuidanceParameter, LoadError, ModelInfo};
use crate::checkpoint::{CheckpointError, ConfigFile, Weights};

/// Qwen/Qwen-Image-Edit.
pub(super) const EDIT: ModelEntry =
    ModelEntry { class_name: "QwenImageEditPipeline", load: load_edit };

/// Pixels that the published pipelines scale a picture to.
const PUBLISHED_IMAGE_AREA: usize = 1024 * 1024;
/// The largest picture that is made: four times the published area.
const MAX_OUTPUT_AREA: usize = 4 * PUBLISHED_IMAGE_AREA;

/// File stem of a diffusers component's weights.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of a transformers component's weights.
const TRANSFORMERS_STEM: &str = "model";

fn load_edit(context: &LoadContext) -> Result<Box<dyn DiffusionModel>, LoadError> {
    Ok(Box::new(load_pipeline(context)?))
}

fn load_pipeline(context: &LoadContext) -> Result<EditPipeline, LoadError> {
    check_components(context)?;
    let defaults = CheckpointDefaults::load(context.snapshot)?;
    let (components, weight_bytes) = load_components(context)?;
    let image_area =
        context.config.image_area.or(defaults.image_area).unwrap_or(PUBLISHED_IMAGE_AREA);
    let info = ModelInfo {
        id: context.id.clone(),
        pipeline: EDIT.class_name.to_owned(),
        description: defaults
            .description
            .clone()
            .unwrap_or_else(|| "Edits a picture as the prompt says (Qwen-Image-Edit).".to_owned()),
        capabilities: Capabilities { image_edit: true, ..Capabilities::NONE }
            .restricted_by(&context.config.capabilities),
        defaults: context.request_defaults(&defaults)?,
        max_input_images: 1,
        size_multiple: components.vae.spatial_factor() * TransformerConfig::PATCH_SIZE,
        max_output_area: MAX_OUTPUT_AREA,
        image_area,
        edit_kind: EditKind::Instruction,
        guidance_parameter: GuidanceParameter::TrueCfgScale,
        has_condition_picture: false,
        device: crate::device::device_name(&context.device),
        dtype: crate::device::dtype_name(context.dtype).to_owned(),
        weight_bytes,
    };
    Ok(EditPipeline { info, components })
}

/// Refuses a checkpoint whose components are of classes that we do not have.
fn check_components(context: &LoadContext) -> Result<(), CheckpointError> {
    let mut index: ConfigFile = context.snapshot.config("model_index.json")?;
    let known: [(&str, &[&str]); 6] = [
        ("scheduler", &["FlowMatchEulerDiscreteScheduler"]),
        ("text_encoder", &["Qwen2_5_VLForConditionalGeneration"]),
        ("transformer", &["QwenImageTransformer2DModel"]),
        ("vae", &["AutoencoderKLQwenImage"]),
        ("tokenizer", &["Qwen2Tokenizer", "Qwen2TokenizerFast"]),
        ("processor", &["Qwen2VLProcessor", "Qwen2_5_VLProcessor"]),
    ];
    for (component, classes) in known {
        let names: Vec<String> = index.required(component);
        if !names.last().is_some_and(|name| classes.contains(&name.as_str())) {
            index.fault(format!("{component} = {names:?}: only {classes:?} is supported"));
        }
    }
    index.finish()
}

/// Loads every component. Returns the bytes of their weights, too.
fn load_components(context: &LoadContext) -> Result<(Components, usize), LoadError> {
    let snapshot = context.snapshot;
    let text_encoder_config = TextEncoderConfig::load(snapshot)?;
    let transformer_config = TransformerConfig::load(snapshot)?;
    let vae_config = VaeConfig::load(snapshot)?;
    check_widths(&text_encoder_config, &transformer_config, &vae_config)?;
    let open = |component, stem, canonical| {
        let kind = (context.dtype, &context.device);
        Weights::open(snapshot, component, stem, kind, canonical)
    };
    let unchanged: fn(&str) -> String = str::to_owned;
    let text_weights = open("text_encoder", TRANSFORMERS_STEM, TextEncoder::canonical_name)?;
    let transformer_weights = open("transformer", DIFFUSERS_STEM, unchanged)?;
    let vae_weights = open("vae", DIFFUSERS_STEM, unchanged)?;
    let components = Components {
        tokenizer: PromptTokenizer::load(snapshot, text_encoder_config.image_token_id)?,
        processor: ProcessorConfig::load(snapshot, &text_encoder_config.vision)?,
        text_encoder: TextEncoder::load(&text_weights, &text_encoder_config)?,
        transformer: Transformer::load(&transformer_weights, &transformer_config)?,
        vae: Vae::load(&vae_weights, &vae_config)?,
        scheduler: SchedulerConfig::load(snapshot)?,
        text_encoder_config,
        dtype: context.dtype,
        device: context.device.clone(),
    };
    let bytes = text_weights.finish()? + transformer_weights.finish()? + vae_weights.finish()?;
    Ok((components, bytes))
}

/// Refuses components that do not fit each other.
fn check_widths(
    text_encoder: &TextEncoderConfig,
    transformer: &TransformerConfig,
    vae: &VaeConfig,
) -> Result<(), CheckpointError> {
    let mut faults = Vec::new();
    let (text, expected) = (text_encoder.text.hidden_size, transformer.joint_attention_dim);
    if text != expected {
        faults.push(format!("joint_attention_dim = {expected}, the text encoder makes {text}"));
    }
    let (z_dim, expected) = (vae.z_dim, transformer.out_channels);
    if z_dim != expected {
        faults.push(format!("out_channels = {expected}, the vae has z_dim = {z_dim}"));
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(CheckpointError::Config { file: "transformer/config.json".to_owned(), faults })
}
