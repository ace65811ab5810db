//! The Qwen-Image family: a text encoder that sees, a two-stream diffusion
//! transformer, and an autoencoder made for video.
//!
//! Files are named after the checkpoint's components; `pipeline` puts them
//! together. What the published pipelines differ by is data, in `variant`.

mod agreement;
pub mod benchmark;
pub mod config;
pub(crate) mod cost;
mod loading;
pub(crate) mod memory;
pub(crate) mod modulation;
mod outlook;
pub mod passes;
pub(crate) mod pipeline;
pub mod positions;
pub mod preprocess;
pub mod prompt;
pub mod step_cache;
pub mod text_encoder;
pub mod transformer;
pub mod vae;
pub(crate) mod variant;
pub mod vision_tower;

use config::{TransformerConfig, VaeConfig};
use pipeline::Pipeline;
use pipeline::cache::PipelineCache;
use variant::{Shown, Variant};

use super::loading::{CardContext, CheckpointDefaults, LoadContext, ModelEntry};
use super::loras::LoraFolder;
use super::{DiffusionModel, GuidanceParameter, LoadError, Loaded, ModelCard, ModelPlan};
use crate::checkpoint::{CheckpointError, ConfigFile};

/// Qwen/Qwen-Image and -2512.
pub(super) const TEXT_TO_IMAGE: ModelEntry = ModelEntry {
    class_name: variant::TEXT_TO_IMAGE.class_name,
    takes_lora: true,
    offloads: true,
    quantizes_matrices: true,
    card: |context| card(context, &variant::TEXT_TO_IMAGE),
    load: |context| load(context, &variant::TEXT_TO_IMAGE),
    plan: |context| plan(context, &variant::TEXT_TO_IMAGE),
};

/// Qwen/Qwen-Image-Edit.
pub(super) const EDIT: ModelEntry = ModelEntry {
    class_name: variant::EDIT.class_name,
    takes_lora: true,
    offloads: true,
    quantizes_matrices: true,
    card: |context| card(context, &variant::EDIT),
    load: |context| load(context, &variant::EDIT),
    plan: |context| plan(context, &variant::EDIT),
};

/// Qwen/Qwen-Image-Edit-2509 and -2511.
pub(super) const EDIT_PLUS: ModelEntry = ModelEntry {
    class_name: variant::EDIT_PLUS.class_name,
    takes_lora: true,
    offloads: true,
    quantizes_matrices: true,
    card: |context| card(context, &variant::EDIT_PLUS),
    load: |context| load(context, &variant::EDIT_PLUS),
    plan: |context| plan(context, &variant::EDIT_PLUS),
};

/// Qwen/Qwen-Image-Layered.
pub(super) const LAYERED: ModelEntry = ModelEntry {
    class_name: variant::LAYERED.class_name,
    takes_lora: true,
    offloads: true,
    quantizes_matrices: true,
    card: |context| card(context, &variant::LAYERED),
    load: |context| load(context, &variant::LAYERED),
    plan: |context| plan(context, &variant::LAYERED),
};

/// The largest picture that is made: four megapixels.
const MAX_OUTPUT_AREA: usize = 4 * 1024 * 1024;

/// Width of the transformer in every published checkpoint, which were trained at about a
/// megapixel; of others it is not known at which areas they work.
const PUBLISHED_WIDTH: usize = 3072;

fn load(context: &LoadContext, variant: &Variant) -> Result<Box<dyn DiffusionModel>, LoadError> {
    Ok(Box::new(load_pipeline(context, variant)?))
}

fn plan(context: &LoadContext, variant: &Variant) -> Result<ModelPlan, LoadError> {
    loading::plan(context, variant, &card(&context.files(), variant)?)
}

fn load_pipeline(context: &LoadContext, variant: &Variant) -> Result<Pipeline, LoadError> {
    let card = card(&context.files(), variant)?;
    let (components, weight_bytes, plan) = loading::load_components(context, variant, &card)?;
    components.tokenizer.check(&variant.template)?;
    let mut variant = variant.clone();
    if let (Shown::Copy { area }, Some(configured)) =
        (&mut variant.shown, context.config.condition_area)
    {
        *area = configured;
    }
    let loaded = Loaded {
        device: crate::device::device_name(&context.device),
        dtype: plan.dtype.clone(),
        weight_bytes,
    };
    let cache = PipelineCache::new(context.config.cache_bytes);
    let exact_timesteps = context.config.exact_timesteps;
    let loras = LoraFolder::new(context.config.lora_dir.clone());
    Ok(Pipeline {
        card,
        loaded,
        plan,
        variant,
        components,
        cache,
        loras,
        exact_timesteps,
        batching: None,
    })
}

fn card(context: &CardContext, variant: &Variant) -> Result<ModelCard, LoadError> {
    check_components(context, variant)?;
    let mut defaults = CheckpointDefaults::load(context.snapshot)?;
    defaults.num_inference_steps = defaults.num_inference_steps.or(Some(variant.steps));
    let transformer = TransformerConfig::load(context.snapshot)?;
    let vae = VaeConfig::load(context.snapshot)?;
    let own_description = || variant.description.to_owned();
    let configured_area = context.config.image_area;
    let image_area = configured_area.or(defaults.image_area).unwrap_or(variant.image_area);
    let is_published = transformer.inner_dim() == PUBLISHED_WIDTH;
    Ok(ModelCard {
        id: context.id.to_owned(),
        pipeline: variant.class_name.to_owned(),
        description: defaults.description.clone().unwrap_or_else(own_description),
        instructions: defaults.instructions.clone().unwrap_or_default(),
        tasks: context.config.capabilities.left_of(variant.tasks),
        defaults: context.request_defaults(&defaults)?,
        max_input_images: variant.max_input_images,
        size_multiple: defaults.size_multiple(pipeline::token_side(&vae))?,
        max_output_area: MAX_OUTPUT_AREA,
        image_area,
        area_range: defaults.area_range(configured_area, image_area, is_published),
        fills_beyond_input: defaults.fills_beyond_input(),
        edit_kind: variant.edit_kind,
        guidance_parameter: GuidanceParameter::TrueCfgScale,
        takes_transparency: variant.image_channels > 3,
        has_condition_picture: matches!(variant.shown, Shown::Copy { .. }),
        is_tunable: true,
    })
}

/// Refuses a checkpoint whose components are of classes that we do not have.
fn check_components(context: &CardContext, variant: &Variant) -> Result<(), CheckpointError> {
    let mut index: ConfigFile = context.snapshot.config("model_index.json")?;
    let known: [(&str, &[&str]); 6] = [
        ("scheduler", &["FlowMatchEulerDiscreteScheduler"]),
        ("text_encoder", &["Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"]),
        ("transformer", &["QwenImageTransformer2DModel"]),
        ("vae", &["AutoencoderKLQwenImage"]),
        (
            "tokenizer",
            &[
                "Qwen2Tokenizer",
                "Qwen2TokenizerFast",
                "PreTrainedTokenizerFast",
                "TokenizersBackend",
            ],
        ),
        ("processor", &["Qwen2VLProcessor", "Qwen2_5_VLProcessor"]),
    ];
    for (component, classes) in known {
        // A pipeline that shows the encoder no picture needs no processor.
        if component == "processor" && variant.shown == Shown::Nothing {
            index.inert(&[component]);
            continue;
        }
        let names: Vec<Option<String>> = index.required(component);
        let name = names.last().and_then(Option::as_deref);
        if !name.is_some_and(|name| classes.contains(&name)) {
            index.fault(format!("{component} = {names:?}: only {classes:?} is supported"));
        }
    }
    index.finish()
}
