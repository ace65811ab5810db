//! The Stable Diffusion family: CLIP's text encoders, a U-Net and a picture
//! autoencoder, from text to image and from image to image.
//!
//! `StableDiffusionPipeline` (1.5, 2.1, SD-Turbo) and `StableDiffusionXLPipeline`
//! (SDXL, SDXL-Turbo) are one `pipeline`; what sets them apart is read from the
//! checkpoint. Residual layers, time embeddings and the autoencoder's blocks are
//! candle-transformers' own `stable_diffusion`.
//!
//! Not served: the safety checker of the 1.x repositories (said at start), the
//! SDXL refiner, inpainting U-Nets, adapters.

pub mod config;
mod cost;
mod outlook;
mod pictures;
pub(crate) mod pipeline;
pub(crate) mod schedule;
pub mod scheduler;
pub mod unet;

use std::cell::RefCell;

use candle_core::DType;

use crate::model::components::autoencoder_kl::{Vae, VaeConfig};
use crate::model::components::clip::TextEncoderConfig;
use crate::model::components::clip::text_encoder::TextEncoder;
use crate::model::components::clip::tokenizer::{self, ClipTokenizer};
use config::UnetConfig;
use pipeline::{Components, Pipeline, TextSide, TextUse};
use scheduler::SchedulerConfig;
use unet::Unet;

use super::cache::ContentCache;
use super::loading::{CardContext, CheckpointDefaults, LoadContext, ModelEntry};
use super::residency::{Offloadable, Residency};
use super::{
    DiffusionModel, EditKind, GuidanceParameter, LoadError, Loaded, ModelCard, ModelPlan,
    PlannedComponent, RequestDefaults,
};
use crate::checkpoint::{CheckpointError, Snapshot, Weights};
use crate::device::DeviceError;
use crate::domain::{GuidanceScale, Steps, Strength, TaskKind, TaskKinds, ValidationError};

/// Stable Diffusion 1.5 and 2.1, SD-Turbo.
pub(super) const PLAIN: ModelEntry = ModelEntry {
    class_name: "StableDiffusionPipeline",
    takes_lora: false,
    offloads: false,
    quantizes_matrices: false,
    card: |context| card(context, &ONE_TEXT),
    load: |context| load(context, &ONE_TEXT),
    plan: |context| plan(context, &ONE_TEXT),
};

/// SDXL, SDXL-Turbo.
pub(super) const XL: ModelEntry = ModelEntry {
    class_name: "StableDiffusionXLPipeline",
    takes_lora: false,
    offloads: false,
    quantizes_matrices: false,
    card: |context| card(context, &TWO_TEXTS),
    load: |context| load(context, &TWO_TEXTS),
    plan: |context| plan(context, &TWO_TEXTS),
};

/// The largest picture that is made: twice SDXL's own.
const MAX_OUTPUT_AREA: usize = 2 * 1024 * 1024;
/// What models of the family offer.
const TASKS: TaskKinds =
    TaskKinds::of(&[TaskKind::TextToImage, TaskKind::Edit, TaskKind::Variation]);
/// The reference refuses sizes that are no multiples of it.
const SIZE_MULTIPLE: usize = 8;

/// File stem of a diffusers component's weights.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of a transformers component's weights.
const TRANSFORMERS_STEM: &str = "model";

/// What sets the two classes apart.
struct Variant {
    class_name: &'static str,
    /// Encoder, its class, its tokenizer.
    texts: &'static [(&'static str, &'static str, &'static str)],
    /// Whether the U-Net takes pooled text and sizes.
    has_text_time: bool,
    /// Defaults of the reference's `__call__`: guidance, strength.
    guidance: f64,
    strength: f64,
}

static ONE_TEXT: Variant = Variant {
    class_name: "StableDiffusionPipeline",
    texts: &[("text_encoder", "CLIPTextModel", "tokenizer")],
    has_text_time: false,
    guidance: 7.5,
    strength: 0.8,
};

static TWO_TEXTS: Variant = Variant {
    class_name: "StableDiffusionXLPipeline",
    texts: &[
        ("text_encoder", "CLIPTextModel", "tokenizer"),
        ("text_encoder_2", "CLIPTextModelWithProjection", "tokenizer_2"),
    ],
    has_text_time: true,
    guidance: 5.0,
    strength: 0.3,
};

/// What `model_index.json` says.
struct Index {
    scheduler_class: String,
    force_zeros_for_empty_prompt: bool,
    has_safety_checker: bool,
}

/// Width of the network's first block in every published checkpoint; of others it is not
/// known at which areas they work.
const PUBLISHED_WIDTH: usize = 320;

fn load(context: &LoadContext, variant: &Variant) -> Result<Box<dyn DiffusionModel>, LoadError> {
    Ok(Box::new(load_pipeline(context, variant)?))
}

fn load_pipeline(context: &LoadContext, variant: &Variant) -> Result<Pipeline, LoadError> {
    let index = read_index(&context.files(), variant)?;
    if index.has_safety_checker {
        let model = context.id;
        tracing::warn!(model, "its safety checker is not run: pictures are not screened");
    }
    check_number_format(context)?;
    let card = card(&context.files(), variant)?;
    let free_bytes = crate::device::free_memory_bytes(&context.device);
    let (components, parts) = load_components(context, variant, &index)?;
    let plan = plan_of(context, &card, (parts, free_bytes));
    let loaded = Loaded {
        device: plan.device.clone(),
        dtype: plan.dtype.clone(),
        weight_bytes: plan.weight_bytes(),
    };
    let encoded = RefCell::new(ContentCache::new(context.config.cache_bytes));
    Ok(Pipeline { card, loaded, plan, components, encoded })
}

/// What the model would take: everything stays.
fn plan(context: &LoadContext, variant: &Variant) -> Result<ModelPlan, LoadError> {
    check_number_format(context)?;
    let card = card(&context.files(), variant)?;
    let (snapshot, kind) = (context.snapshot, (context.dtype, &context.device));
    let checked = |weights: Weights, load: &dyn Fn(&Weights) -> candle_core::Result<()>| {
        let checking = weights.checking();
        checking.load::<_, LoadError>(load)?;
        weights.finish()?;
        Ok::<_, LoadError>(checking.checked().bytes())
    };
    let mut components = Vec::new();
    for (component, class, _) in variant.texts {
        let config = TextEncoderConfig::load(snapshot, component, class)?;
        let name = TextEncoder::canonical_name;
        let weights = Weights::open(snapshot, component, TRANSFORMERS_STEM, kind, name)?;
        let bytes = checked(weights, &|weights| TextEncoder::load(weights, &config).map(drop))?;
        components.push(PlannedComponent::resident(component, bytes));
    }
    let (unet, vae) = (UnetConfig::load(snapshot)?, VaeConfig::load(snapshot)?);
    let open = |component, dtype| {
        let kind = (dtype, &context.device);
        Weights::open(snapshot, component, DIFFUSERS_STEM, kind, str::to_owned)
    };
    let load_unet = |weights: &Weights| Unet::load(weights, &unet).map(drop);
    let bytes = checked(open("unet", context.dtype)?, &load_unet)?;
    components.push(PlannedComponent::resident("unet", bytes));
    let load_vae = |weights: &Weights| Vae::load(weights, &vae).map(drop);
    let bytes = checked(open("vae", vae_dtype(context, &vae))?, &load_vae)?;
    components.push(PlannedComponent::resident("vae", bytes));
    let free_bytes = crate::device::free_memory_bytes(&context.device);
    Ok(plan_of(context, &card, (components, free_bytes)))
}

/// `components` all stay; `free_bytes` there are without them.
fn plan_of(
    context: &LoadContext,
    card: &ModelCard,
    (components, free_bytes): (Vec<PlannedComponent>, Option<usize>),
) -> ModelPlan {
    ModelPlan {
        model: card.id.clone(),
        pipeline: card.pipeline.clone(),
        device: crate::device::device_name(&context.device),
        dtype: crate::device::dtype_name(context.dtype).to_owned(),
        image_area: card.image_area,
        total_bytes: components.iter().map(|component| component.bytes).sum(),
        components,
        activation_bytes: None,
        free_bytes,
    }
}

/// What the VAE computes in: in float16 some overflow.
fn vae_dtype(context: &LoadContext, vae: &VaeConfig) -> DType {
    let overflows = vae.force_upcast && context.dtype == DType::F16;
    if overflows { DType::F32 } else { context.dtype }
}

fn card(context: &CardContext, variant: &Variant) -> Result<ModelCard, LoadError> {
    let index = read_index(context, variant)?;
    let snapshot = context.snapshot;
    let defaults = CheckpointDefaults::load(snapshot)?;
    let scheduler = scheduler_config(snapshot, variant, &index)?;
    let (unet, vae) = (UnetConfig::load(snapshot)?, VaeConfig::load(snapshot)?);
    let factor = vae.spatial_factor();
    let side = picture_side(unet.sample_size, factor)?;
    let configured_area = context.config.image_area;
    let area = configured_area.or(defaults.image_area).unwrap_or(side * side);
    let is_published = unet.blocks.first().is_some_and(|block| block.channels == PUBLISHED_WIDTH);
    Ok(ModelCard {
        id: context.id.to_owned(),
        pipeline: variant.class_name.to_owned(),
        description: defaults.description.clone().unwrap_or_else(|| {
            "Makes pictures from a prompt, or from a prompt and a picture (Stable Diffusion)."
                .to_owned()
        }),
        instructions: defaults.instructions.clone().unwrap_or_default(),
        tasks: context.config.capabilities.left_of(TASKS),
        defaults: request_defaults(context, variant, &defaults, &scheduler)?,
        max_input_images: 1,
        size_multiple: defaults.size_multiple(SIZE_MULTIPLE.max(factor))?,
        max_output_area: MAX_OUTPUT_AREA.max(area),
        image_area: area,
        area_range: defaults.area_range(configured_area, area, is_published),
        fills_beyond_input: defaults.fills_beyond_input(),
        edit_kind: EditKind::ImageToImage,
        guidance_parameter: GuidanceParameter::GuidanceScale,
        takes_transparency: false,
        has_condition_picture: false,
        is_tunable: false,
    })
}

/// The noise schedule, as the pipeline of `variant` has it.
fn scheduler_config(
    snapshot: &Snapshot,
    variant: &Variant,
    index: &Index,
) -> Result<SchedulerConfig, CheckpointError> {
    let scheduler = SchedulerConfig::load(snapshot, &index.scheduler_class)?;
    if variant.has_text_time {
        return Ok(scheduler);
    }
    Ok(scheduler.as_the_plain_pipeline_has_it())
}

/// Pixels of a side of the pictures that the network was trained with.
fn picture_side(sample_size: usize, factor: usize) -> Result<usize, CheckpointError> {
    let side = sample_size * factor;
    if side * side <= CheckpointDefaults::LARGEST_AREA {
        return Ok(side);
    }
    let area = CheckpointDefaults::LARGEST_AREA;
    let fault = format!("sample_size = {sample_size} makes pictures of more than {area} pixels");
    Err(CheckpointError::Config { file: "unet/config.json".to_owned(), faults: vec![fault] })
}

/// Refuses a checkpoint whose components are of classes that we do not have.
fn read_index(context: &CardContext, variant: &Variant) -> Result<Index, CheckpointError> {
    let mut file = context.snapshot.config("model_index.json")?;
    let mut class_of = |component: &str, classes: &[&str]| {
        let names: Vec<Option<String>> = file.required(component);
        let name = names.last().cloned().flatten().unwrap_or_default();
        if !classes.contains(&name.as_str()) {
            file.fault(format!("{component} = {names:?}: only {classes:?} is supported"));
        }
        name
    };
    for (encoder, class, tokenizer) in variant.texts {
        class_of(encoder, &[class]);
        class_of(tokenizer, tokenizer::CLASSES);
    }
    class_of("unet", &["UNet2DConditionModel"]);
    class_of("vae", &["AutoencoderKL"]);
    let scheduler_class = class_of("scheduler", scheduler::CLASSES);
    let names: Option<Vec<Option<String>>> = file.optional("image_encoder");
    if let Some(name) = names.unwrap_or_default().into_iter().flatten().next_back() {
        file.fault(format!("image_encoder = {name}: picture prompts are not supported"));
    }
    let checker: Option<Vec<Option<String>>> = file.optional("safety_checker");
    let has_safety_checker = checker.is_some_and(|names| names.iter().any(Option::is_some));
    let force_zeros_for_empty_prompt = file.or("force_zeros_for_empty_prompt", true);
    file.only("requires_aesthetics_score", false);
    file.inert(&["add_watermarker", "feature_extractor", "requires_safety_checker"]);
    file.finish()?;
    Ok(Index { scheduler_class, force_zeros_for_empty_prompt, has_safety_checker })
}

/// candle's convolutions have no 16-bit arithmetic on a CPU.
fn check_number_format(context: &LoadContext) -> Result<(), DeviceError> {
    if !context.device.is_cpu() || context.dtype == DType::F32 {
        return Ok(());
    }
    Err(DeviceError {
        device: crate::device::device_name(&context.device),
        reason: format!(
            "Stable Diffusion cannot compute in {} on a CPU: use dtype 'float32' or 'auto'",
            crate::device::dtype_name(context.dtype)
        ),
    })
}

/// Loads every component. Returns what their weights take, too.
fn load_components(
    context: &LoadContext,
    variant: &Variant,
    index: &Index,
) -> Result<(Components, Vec<PlannedComponent>), LoadError> {
    let snapshot = context.snapshot;
    let scheduler = scheduler_config(snapshot, variant, index)?;
    let text_configs = variant
        .texts
        .iter()
        .map(|(encoder, class, _)| TextEncoderConfig::load(snapshot, encoder, class))
        .collect::<Result<Vec<_>, _>>()?;
    let unet_config = UnetConfig::load(snapshot)?;
    let vae_config = VaeConfig::load(snapshot)?;
    check_widths(variant, &text_configs, &unet_config, &vae_config)?;
    let open = |component, stem, dtype, canonical| {
        Weights::open(snapshot, component, stem, (dtype, &context.device), canonical)
    };
    let unchanged: fn(&str) -> String = str::to_owned;
    let mut parts = Vec::new();
    let mut texts = Vec::new();
    for ((component, _, tokenizer), config) in variant.texts.iter().zip(&text_configs) {
        let name = TextEncoder::canonical_name;
        let weights = open(component, TRANSFORMERS_STEM, context.dtype, name)?;
        let encoder = weights.load::<_, LoadError>(|weights| TextEncoder::load(weights, config))?;
        parts.push(PlannedComponent::resident(component, weights.finish()?));
        let positions = config.max_position_embeddings;
        let tokenizer = ClipTokenizer::load(snapshot, tokenizer, positions)?;
        tokenizer.check_ids(config.vocab_size)?;
        texts.push(TextSide { tokenizer, encoder, config: config.clone() });
    }
    check_text_lengths(&texts)?;
    let weights = open("unet", DIFFUSERS_STEM, context.dtype, unchanged)?;
    let unet = weights.load::<_, LoadError>(|weights| Unet::load(weights, &unet_config))?;
    parts.push(PlannedComponent::resident("unet", weights.finish()?));
    let vae_dtype = vae_dtype(context, &vae_config);
    let weights = open("vae", DIFFUSERS_STEM, vae_dtype, unchanged)?;
    let load_vae = {
        let config = vae_config.clone();
        move |weights: &Weights| Vae::load(weights, &config)
    };
    // Whatever is wrong with the files is told once.
    weights.checking().load::<_, LoadError>(&load_vae)?;
    let vae_in_float32 =
        (vae_dtype != DType::F32).then(|| in_float32(&weights, load_vae.clone())).transpose()?;
    let vae = Offloadable::new(Residency::Resident, &weights, load_vae)?;
    parts.push(PlannedComponent::resident("vae", weights.finish()?));
    let force_zeros_for_empty_prompt = index.force_zeros_for_empty_prompt;
    let text_use = if variant.has_text_time {
        TextUse::PenultimateAndPooled { force_zeros_for_empty_prompt }
    } else {
        TextUse::Last
    };
    let components = Components {
        texts,
        text_use,
        unet,
        vae,
        vae_in_float32,
        vae_dtype,
        vae_config,
        scheduler,
        dtype: context.dtype,
        device: context.device.clone(),
    };
    Ok((components, parts))
}

/// The way to the VAE of `weights` in float32.
fn in_float32(
    weights: &Weights,
    load: impl Fn(&Weights) -> candle_core::Result<Vae> + Send + 'static,
) -> candle_core::Result<Offloadable<Vae>> {
    Offloadable::new(Residency::OnDemand, &weights.with_dtype(DType::F32), load)
}

/// Refuses encoders whose texts could not be laid side by side.
fn check_text_lengths(texts: &[TextSide]) -> Result<(), LoadError> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.tokenizer.text_length()).collect();
    if lengths.iter().all(|length| *length == lengths[0]) {
        return Ok(());
    }
    Err(LoadError::Tokenizer(format!("the tokenizers differ in model_max_length: {lengths:?}")))
}

/// Refuses components that do not fit each other.
fn check_widths(
    variant: &Variant,
    texts: &[TextEncoderConfig],
    unet: &UnetConfig,
    vae: &VaeConfig,
) -> Result<(), CheckpointError> {
    let mut faults = Vec::new();
    let mut check = |key: &str, value: usize, expected: usize, from: &str| {
        if value != expected {
            faults.push(format!("{key} = {value}, but {from} {expected}"));
        }
    };
    let width = texts.iter().map(|text| text.hidden_size).sum();
    check("cross_attention_dim", unet.cross_attention_dim, width, "the text encoders make");
    check("in_channels", unet.in_channels, vae.latent_channels, "the vae's latents have");
    check("out_channels", unet.out_channels, vae.latent_channels, "the vae's latents have");
    if let Some(added) = unet.text_time {
        let pooled = texts.iter().filter_map(|text| text.projection_dim).sum::<usize>();
        let expected = pooled + 6 * added.addition_time_embed_dim;
        let width = added.projection_class_embeddings_input_dim;
        let from = "the pooled text and six sizes make";
        check("projection_class_embeddings_input_dim", width, expected, from);
    }
    let positions = texts.iter().map(|text| text.max_position_embeddings);
    if positions.clone().min() != positions.max() {
        faults.push("the text encoders differ in max_position_embeddings".to_owned());
    }
    if unet.text_time.is_some() != variant.has_text_time {
        let class = variant.class_name;
        faults.push(format!("addition_embed_type does not fit a {class}"));
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(CheckpointError::Config { file: "unet/config.json".to_owned(), faults })
}

/// The settings' defaults, else the checkpoint's, else the reference's; the
/// few-step models' are those of their published examples.
fn request_defaults(
    context: &CardContext,
    variant: &Variant,
    checkpoint: &CheckpointDefaults,
    scheduler: &SchedulerConfig,
) -> Result<RequestDefaults, CheckpointError> {
    let fault = |error: ValidationError| CheckpointError::Malformed {
        file: CheckpointDefaults::FILE.to_owned(),
        reason: error.to_string(),
    };
    let (steps, guidance, strength) = if scheduler.is_few_step() {
        (4, 0.0, 0.5)
    } else {
        (50, variant.guidance, variant.strength)
    };
    let settings = &context.config.defaults;
    let steps = Steps::new(checkpoint.num_inference_steps.unwrap_or(steps)).map_err(fault)?;
    let guidance =
        GuidanceScale::new(checkpoint.guidance_scale.unwrap_or(guidance)).map_err(fault)?;
    let negative = settings.negative_prompt.clone().or(checkpoint.negative_prompt.clone());
    Ok(RequestDefaults {
        num_inference_steps: settings.num_inference_steps.unwrap_or(steps),
        guidance: settings.guidance_scale.unwrap_or(guidance),
        negative_prompt: negative,
        strength: Strength::new(strength).map_err(fault)?,
    })
}
