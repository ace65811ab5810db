//! The Qwen-Image family: a text encoder that sees, a two-stream diffusion
//! transformer, and an autoencoder made for video.
//!
//! Files are named after the checkpoint's components; [`pipeline`] puts them
//! together. What the published pipelines differ by is data, in [`variant`].

pub mod benchmark;
pub mod config;
pub mod cost;
pub mod latents;
pub mod memory;
pub mod modulation;
pub mod pipeline;
pub mod positions;
pub mod preprocess;
pub mod prompt;
pub mod scheduler;
pub mod text_encoder;
pub mod transformer;
pub mod vae;
pub mod variant;
pub mod vision_tower;

use config::{ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig};
use memory::{MemoryPlan, WeightBytes};
use pipeline::cache::PipelineCache;
use pipeline::{Components, Pipeline};
use prompt::PromptTokenizer;
use scheduler::SchedulerConfig;
use text_encoder::TextEncoder;
use transformer::{Transformer, TransformerResidency};
use vae::Vae;
use variant::{Shown, Variant};

use super::loading::{CheckpointDefaults, LoadContext, ModelEntry, WeightSource};
use super::residency::Held;
use super::{DiffusionModel, EditKind, GuidanceParameter, LoadError, LoraConfig, ModelInfo};
use crate::checkpoint::{CheckpointError, ConfigFile, Lora, Weights};

/// Qwen/Qwen-Image and -2512.
pub(super) const TEXT_TO_IMAGE: ModelEntry = ModelEntry {
    class_name: variant::TEXT_TO_IMAGE.class_name,
    takes_lora: true,
    offloads: true,
    load: |context| load(context, &variant::TEXT_TO_IMAGE),
};

/// Qwen/Qwen-Image-Edit.
pub(super) const EDIT: ModelEntry = ModelEntry {
    class_name: variant::EDIT.class_name,
    takes_lora: true,
    offloads: true,
    load: |context| load(context, &variant::EDIT),
};

/// Qwen/Qwen-Image-Edit-2509 and -2511.
pub(super) const EDIT_PLUS: ModelEntry = ModelEntry {
    class_name: variant::EDIT_PLUS.class_name,
    takes_lora: true,
    offloads: true,
    load: |context| load(context, &variant::EDIT_PLUS),
};

/// Qwen/Qwen-Image-Layered.
pub(super) const LAYERED: ModelEntry = ModelEntry {
    class_name: variant::LAYERED.class_name,
    takes_lora: true,
    offloads: true,
    load: |context| load(context, &variant::LAYERED),
};

/// The largest picture that is made: four megapixels.
const MAX_OUTPUT_AREA: usize = 4 * 1024 * 1024;

/// File stem of a diffusers component's weights.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of a transformers component's weights.
const TRANSFORMERS_STEM: &str = "model";

fn load(context: &LoadContext, variant: &Variant) -> Result<Box<dyn DiffusionModel>, LoadError> {
    Ok(Box::new(load_pipeline(context, variant)?))
}

fn load_pipeline(context: &LoadContext, variant: &Variant) -> Result<Pipeline, LoadError> {
    check_components(context, variant)?;
    let mut defaults = CheckpointDefaults::load(context.snapshot)?;
    defaults.num_inference_steps = defaults.num_inference_steps.or(Some(variant.steps));
    let (components, weight_bytes) = load_components(context, variant)?;
    components.tokenizer.check(&variant.template)?;
    let mut variant = variant.clone();
    if let (Shown::Copy { area }, Some(configured)) =
        (&mut variant.shown, context.config.condition_area)
    {
        *area = configured;
    }
    let own_description = || variant.description.to_owned();
    let info = ModelInfo {
        id: context.id.clone(),
        pipeline: variant.class_name.to_owned(),
        description: defaults.description.clone().unwrap_or_else(own_description),
        instructions: defaults.instructions.clone().unwrap_or_default(),
        capabilities: variant.capabilities.restricted_by(&context.config.capabilities),
        defaults: context.request_defaults(&defaults)?,
        max_input_images: variant.max_input_images,
        size_multiple: components.vae_config.spatial_factor() * TransformerConfig::PATCH_SIZE,
        max_output_area: MAX_OUTPUT_AREA,
        image_area: context.config.image_area.or(defaults.image_area).unwrap_or(variant.image_area),
        edit_kind: variant.edit_kind,
        guidance_parameter: GuidanceParameter::TrueCfgScale,
        has_condition_picture: matches!(variant.shown, Shown::Copy { .. }),
        device: crate::device::device_name(&context.device),
        dtype: crate::device::dtype_name(context.dtype).to_owned(),
        weight_bytes,
    };
    let cache = PipelineCache::new(context.config.cache_bytes);
    let exact_timesteps = context.config.exact_timesteps;
    Ok(Pipeline { info, variant, components, cache, exact_timesteps })
}

/// Refuses a checkpoint whose components are of classes that we do not have.
fn check_components(context: &LoadContext, variant: &Variant) -> Result<(), CheckpointError> {
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
        // Pipelines that show the encoder no picture have no processor, mostly.
        let shows_pictures = variant.shown != Shown::Nothing;
        if component == "processor" && !shows_pictures && !index.has(component) {
            continue;
        }
        let names: Vec<String> = index.required(component);
        if !names.last().is_some_and(|name| classes.contains(&name.as_str())) {
            index.fault(format!("{component} = {names:?}: only {classes:?} is supported"));
        }
    }
    index.finish()
}

/// Loads every component. Returns the bytes of their weights, too.
fn load_components(
    context: &LoadContext,
    variant: &Variant,
) -> Result<(Components, usize), LoadError> {
    let snapshot = context.snapshot;
    let text_encoder_config = TextEncoderConfig::load(snapshot)?;
    let transformer_config = TransformerConfig::load(snapshot)?;
    let vae_config = VaeConfig::load(snapshot)?;
    check_widths(&text_encoder_config, &transformer_config, &vae_config)?;
    check_variant(variant, &transformer_config, &vae_config)?;
    if variant.edit_kind == EditKind::Instruction {
        // The difference between Edit-2509 and -2511, and in none of their tensors.
        let zero_cond_t = transformer_config.zero_cond_t;
        tracing::info!(zero_cond_t, "transformer/config.json: reference pictures at noise level 0");
    }
    let open = |component, stem, canonical| {
        let kind = (context.dtype, &context.device);
        match context.weights {
            WeightSource::Stored => Weights::open(snapshot, component, stem, kind, canonical),
            WeightSource::Random => Ok(Weights::random(component, kind)),
        }
    };
    let unchanged: fn(&str) -> String = str::to_owned;
    let text_weights = open("text_encoder", TRANSFORMERS_STEM, TextEncoder::canonical_name)?;
    let loras = open_loras(context)?;
    let transformer_weights = open("transformer", DIFFUSERS_STEM, unchanged)?.merging(loras);
    let vae_weights = open("vae", DIFFUSERS_STEM, unchanged)?;
    let check = [&text_weights, &transformer_weights, &vae_weights].map(Weights::checking);
    TextEncoder::load(&check[0], &text_encoder_config)?;
    Transformer::load(&check[1], &transformer_config, TransformerResidency::RESIDENT)?;
    Vae::load(&check[2], &vae_config)?;
    let bytes = check.map(|checking| checking.checked().bytes);
    let bytes = WeightBytes::new(bytes, &transformer_config, context.dtype.size_in_bytes());
    // Whatever is wrong with the files comes to light before the first is read.
    for weights in [&text_weights, &transformer_weights, &vae_weights] {
        weights.finish()?;
    }
    let plan = memory_plan(context, variant, &bytes, transformer_config.num_layers);
    let components = Components {
        tokenizer: PromptTokenizer::load(snapshot, text_encoder_config.image_token_id)?,
        processor: (variant.shown != Shown::Nothing)
            .then(|| ProcessorConfig::load(snapshot, &text_encoder_config.vision))
            .transpose()?,
        text_encoder: Held::new(plan.text_encoder, &text_weights, {
            let config = text_encoder_config.clone();
            move |weights| TextEncoder::load(weights, &config)
        })?,
        transformer: Transformer::load(
            &transformer_weights,
            &transformer_config,
            plan.transformer,
        )?,
        vae: Held::new(plan.vae, &vae_weights, {
            let config = vae_config.clone();
            move |weights| Vae::load(weights, &config)
        })?,
        scheduler: SchedulerConfig::load(snapshot)?,
        vae_config,
        text_encoder_config,
        dtype: context.dtype,
        device: context.device.clone(),
    };
    let bytes = text_weights.finish()? + transformer_weights.finish()? + vae_weights.finish()?;
    Ok((components, bytes))
}

/// Room that a picture needs besides the weights, in bytes a pixel: the widest
/// feature maps of the autoencoder in 32 bits.
const WORKING_BYTES_PER_PIXEL: usize = 2048;
/// Room for slices of attention scores and unfolded convolutions.
const SCRATCH_BYTES: usize = 1 << 30;

/// Which weights stay, told in the log.
fn memory_plan(
    context: &LoadContext,
    variant: &Variant,
    bytes: &WeightBytes,
    blocks: usize,
) -> MemoryPlan {
    let config = context.config;
    let area = config.image_area.unwrap_or(variant.image_area);
    let working = area * WORKING_BYTES_PER_PIXEL + SCRATCH_BYTES + config.cache_bytes;
    let free = crate::device::free_memory_bytes(&context.device);
    let plan = MemoryPlan::new(config.memory, bytes, free, working);
    let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    tracing::info!(
        free = free.map(gib),
        weights = gib(bytes.total()),
        at_most_at_a_time = gib(plan.peak_bytes(bytes)),
        loaded_when_needed = plan.on_demand(blocks),
        "memory plan"
    );
    plan
}

/// The LoRA files of the settings: changes of the transformer.
fn open_loras(context: &LoadContext) -> Result<Vec<Lora>, CheckpointError> {
    let open = |config: &LoraConfig| {
        let lora = Lora::open(&config.file, config.scale)?;
        let (file, modules, scale) = (lora.file(), lora.len(), config.scale);
        tracing::info!(file, modules, scale, "merging a LoRA");
        Ok(lora)
    };
    context.config.lora.iter().map(open).collect()
}

/// Refuses components that are of another pipeline.
fn check_variant(
    variant: &Variant,
    transformer: &TransformerConfig,
    vae: &VaeConfig,
) -> Result<(), CheckpointError> {
    let class_name = variant.class_name;
    let layered = variant.edit_kind == EditKind::Layers;
    let mut faults = Vec::new();
    for (key, value) in [
        ("use_layer3d_rope", transformer.use_layer3d_rope),
        ("use_additional_t_cond", transformer.use_additional_t_cond),
    ] {
        if value != layered {
            faults.push(format!("{key} = {value} does not go with {class_name}"));
        }
    }
    if !faults.is_empty() {
        return Err(CheckpointError::Config { file: "transformer/config.json".to_owned(), faults });
    }
    let channels = vae.input_channels;
    if channels != variant.image_channels {
        let faults = vec![format!("input_channels = {channels} does not go with {class_name}")];
        return Err(CheckpointError::Config { file: "vae/config.json".to_owned(), faults });
    }
    Ok(())
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
