//! The components of a checkpoint, from its files to the device.

use candle_core::DType;
use indicatif::{ProgressBar, ProgressStyle};

use super::agreement;
use super::config::{ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig};
use super::memory::{LayersOfComponents, MemoryPlan, WeightBytes};
use super::pipeline::Components;
use super::prompt::PromptTokenizer;
use super::text_encoder::{TextEncoder, TextEncoderResidency};
use super::transformer::{Transformer, TransformerResidency};
use super::vae::Vae;
use super::variant::{Shown, Variant};
use crate::checkpoint::{CheckpointError, Lora, Snapshot, Weights};
use crate::model::components::flow_match::SchedulerConfig;
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::loras::KEPT_BYTES;
use crate::model::precision::{matrix_format, precision_name, text_encoder_matrices};
use crate::model::residency::{Offloadable, Residency};
use crate::model::{EditKind, LoadError, LoraConfig, ModelCard, ModelPlan};

/// File stem of a diffusers component's weights.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of a transformers component's weights.
const TRANSFORMERS_STEM: &str = "model";

/// Room that a picture needs besides the weights, in bytes a pixel: the widest
/// feature maps of the autoencoder in 32 bits.
pub(super) const WORKING_BYTES_PER_PIXEL: usize = 2048;
/// Room for slices of attention scores and unfolded convolutions on a GPU, where nobody has
/// measured it yet.
const GPU_SCRATCH_BYTES: usize = 3 << 30;
/// The same on a CPU, whose slices are smaller: `docs/memory.md` has what was measured.
const CPU_SCRATCH_BYTES: usize = 1 << 29;

/// Loads every component of what `card` tells of. Returns the bytes of those weights that
/// stay, too, and the plan that was followed.
pub(super) fn load_components(
    context: &LoadContext,
    variant: &Variant,
    card: &ModelCard,
) -> Result<(Components, usize, ModelPlan), LoadError> {
    let configs = Configs::load(context.snapshot, variant)?;
    let opened = Opened::open(context)?;
    // Whatever is wrong with the files comes to light before the first is read.
    let bytes = opened.check(&configs)?;
    let planned = Planned::new(context, card.image_area, &bytes);
    planned.log(&bytes);
    let plan = planned.memory;
    let bar = progress_bar(plan.resident_bytes(&bytes));
    let opened = opened.reporting(&bar);

    let text_encoder = &configs.text_encoder;
    let tokenizer = PromptTokenizer::load(context.snapshot, text_encoder.image_token_id)?;
    tokenizer.check_ids(text_encoder.text.vocab_size)?;
    let processor = || ProcessorConfig::load(context.snapshot, &configs.text_encoder.vision);
    let components = Components {
        tokenizer,
        processor: (variant.shown != Shown::Nothing).then(processor).transpose()?,
        text_encoder: TextEncoder::load(
            &opened.text_encoder,
            &configs.text_encoder,
            plan.text_encoder(),
        )?,
        transformer: Transformer::load(
            &opened.transformer,
            &configs.transformer,
            plan.transformer(),
        )?,
        vae: Offloadable::new(plan.vae(), &opened.vae, {
            let config = configs.vae.clone();
            move |weights| Vae::load(weights, &config)
        })?,
        vae_in_float32: vae_in_float32(context, &opened.vae, &configs.vae)?,
        scheduler: SchedulerConfig::load(context.snapshot)?,
        vae_config: configs.vae,
        text_encoder_config: configs.text_encoder,
        dtype: context.dtype,
        matrices: matrix_format(context.config.dtype),
        device: context.device.clone(),
    };
    bar.finish_and_clear();
    Ok((components, opened.finish()?, planned.of_model(context, card, (&opened, &bytes))))
}

/// The way to the VAE in float32, if the model computes in 16 bits.
fn vae_in_float32(
    context: &LoadContext,
    weights: &Weights,
    config: &VaeConfig,
) -> Result<Option<Offloadable<Vae>>, LoadError> {
    if context.dtype == DType::F32 {
        return Ok(None);
    }
    let config = config.clone();
    let load = move |weights: &Weights| Vae::load(weights, &config);
    Ok(Some(Offloadable::new(Residency::OnDemand, &weights.with_dtype(DType::F32), load)?))
}

/// Bytes of the components' weights.
pub(super) fn weight_bytes(
    context: &LoadContext,
    variant: &Variant,
) -> Result<WeightBytes, LoadError> {
    let configs = Configs::load(context.snapshot, variant)?;
    Opened::open(context)?.check(&configs)
}

/// What the components' configuration files say.
struct Configs {
    text_encoder: TextEncoderConfig,
    transformer: TransformerConfig,
    vae: VaeConfig,
}

impl Configs {
    fn load(snapshot: &Snapshot, variant: &Variant) -> Result<Self, CheckpointError> {
        let configs = Self {
            text_encoder: TextEncoderConfig {
                needs_vision: variant.shown != Shown::Nothing,
                ..TextEncoderConfig::load(snapshot)?
            },
            transformer: TransformerConfig::load(snapshot)?,
            vae: VaeConfig::load(snapshot)?,
        };
        check_widths(&configs.text_encoder, &configs.transformer, &configs.vae)?;
        check_variant(variant, &configs.transformer, &configs.vae)?;
        if variant.edit_kind == EditKind::Instruction {
            // The difference between Edit-2509 and -2511, and in none of their tensors.
            let zero_cond_t = configs.transformer.zero_cond_t;
            tracing::info!(
                zero_cond_t,
                "transformer/config.json: reference pictures at noise level 0"
            );
        }
        Ok(configs)
    }
}

/// The components' weights, of which nothing has been read.
struct Opened {
    text_encoder: Weights,
    transformer: Weights,
    vae: Weights,
}

impl Opened {
    fn open(context: &LoadContext) -> Result<Self, CheckpointError> {
        let open = |component, stem, canonical| {
            let kind = (context.dtype, &context.device);
            match context.weights {
                WeightSource::Stored => {
                    let own = Weights::open(context.snapshot, component, stem, kind, canonical)?;
                    Ok(if context.card_bytes.is_some() { own.for_gpu() } else { own })
                }
                WeightSource::Random(components) if components.contains(&component) => {
                    Ok(Weights::random(component, kind))
                }
                WeightSource::Random(_) | WeightSource::Placeholders => {
                    Ok(Weights::recording(component, context.dtype))
                }
            }
        };
        let unchanged: fn(&str) -> String = str::to_owned;
        let loras = open_loras(context)?;
        Ok(Self {
            text_encoder: open("text_encoder", TRANSFORMERS_STEM, TextEncoder::canonical_name)?
                .with_matrices(text_encoder_matrices(context.config.dtype)),
            transformer: open("transformer", DIFFUSERS_STEM, unchanged)?
                .merging(loras)
                .with_matrices(matrix_format(context.config.dtype))
                .sparing_sensitive(!context.config.fp8_all_layers),
            vae: open("vae", DIFFUSERS_STEM, unchanged)?,
        })
    }

    /// Holds every tensor against what the components ask for, and counts them. What is
    /// wrong is told by setting where settings are at fault.
    fn check(&self, configs: &Configs) -> Result<WeightBytes, LoadError> {
        self.check_tensors(configs).or_else(|error| {
            agreement::check_transformer(&self.transformer, &configs.transformer)?;
            agreement::check_text_encoder(&self.text_encoder, &configs.text_encoder)?;
            agreement::check_vae(&self.vae, &configs.vae)?;
            Err(error)
        })
    }

    fn check_tensors(&self, configs: &Configs) -> Result<WeightBytes, LoadError> {
        let [text_encoder, transformer, vae] = self.each().map(Weights::checking);
        text_encoder.load::<_, LoadError>(|weights| {
            TextEncoder::load(weights, &configs.text_encoder, TextEncoderResidency::RESIDENT)
        })?;
        transformer.load::<_, LoadError>(|weights| {
            Transformer::load(weights, &configs.transformer, TransformerResidency::RESIDENT)
        })?;
        vae.load::<_, LoadError>(|weights| Vae::load(weights, &configs.vae))?;
        self.finish()?;
        let layers = LayersOfComponents {
            transformer: configs.transformer.num_layers,
            text: configs.text_encoder.text.num_hidden_layers,
            vision: configs.text_encoder.vision.depth,
        };
        let checked = [text_encoder, transformer, vae].map(|weights| weights.checked());
        Ok(WeightBytes::new(&checked, layers))
    }

    /// The same, with every byte that is read told to `bar`.
    fn reporting(self, bar: &ProgressBar) -> Self {
        let to_bar = || {
            let bar = bar.clone();
            move |bytes: usize| bar.inc(bytes as u64)
        };
        Self {
            text_encoder: self.text_encoder.reporting(to_bar()),
            transformer: self.transformer.reporting(to_bar()),
            vae: self.vae.reporting(to_bar()),
        }
    }

    /// Bytes taken so far, or everything that is wrong.
    fn finish(&self) -> Result<usize, CheckpointError> {
        self.each().into_iter().map(Weights::finish).sum()
    }

    fn each(&self) -> [&Weights; 3] {
        [&self.text_encoder, &self.transformer, &self.vae]
    }
}

/// A bar on standard error, if that is a terminal.
fn progress_bar(bytes: usize) -> ProgressBar {
    let template = "loading {bytes}/{total_bytes} [{bar:20}] {bytes_per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes as u64).with_style(style)
}

/// Which weights stay, and what that was planned for.
#[derive(Clone, Copy)]
struct Planned {
    memory: MemoryPlan,
    free: Option<usize>,
    working: usize,
    area: usize,
}

impl Planned {
    /// For pictures of `area` pixels.
    fn new(context: &LoadContext, area: usize, bytes: &WeightBytes) -> Self {
        let config = context.config;
        let loras = config.lora_dir.as_ref().map_or(0, |_| KEPT_BYTES);
        let is_on_cpu = context.device.is_cpu() && context.card_bytes.is_none();
        let scratch = if is_on_cpu { CPU_SCRATCH_BYTES } else { GPU_SCRATCH_BYTES };
        let working = area * WORKING_BYTES_PER_PIXEL + scratch + config.cache_bytes + loras;
        let here = || crate::device::free_memory_bytes(&context.device);
        let free = context.card_bytes.or_else(here);
        let free = free.map(|free| config.memory_limit.of(free));
        Self { memory: MemoryPlan::new(config.memory, bytes, free, working), free, working, area }
    }

    /// Tells of it.
    fn log(&self, bytes: &WeightBytes) {
        let readable = |bytes: usize| indicatif::BinaryBytes(bytes as u64).to_string();
        tracing::info!(
            free = self.free.map(readable),
            weights = readable(bytes.total()),
            at_most_at_a_time = readable(self.memory.peak_bytes(bytes)),
            loaded_when_needed = self.memory.on_demand(bytes),
            "memory plan"
        );
    }

    fn of_model(
        &self,
        context: &LoadContext,
        card: &ModelCard,
        (opened, bytes): (&Opened, &WeightBytes),
    ) -> ModelPlan {
        ModelPlan {
            model: card.id.clone(),
            pipeline: card.pipeline.clone(),
            device: match context.card_bytes {
                Some(_) => "a card".to_owned(),
                None => crate::device::device_name(&context.device),
            },
            dtype: precision_name(
                context.dtype,
                matrix_format(context.config.dtype),
                &opened.transformer.quantized_formats(),
            ),
            image_area: self.area,
            components: self.memory.components(bytes),
            activation_bytes: Some(self.working),
            total_bytes: self.memory.peak_bytes(bytes) + self.working,
            free_bytes: self.free,
        }
    }
}

/// What the model of `card` would take, without a tensor being read.
pub(super) fn plan(
    context: &LoadContext,
    variant: &Variant,
    card: &ModelCard,
) -> Result<ModelPlan, LoadError> {
    let configs = Configs::load(context.snapshot, variant)?;
    let opened = Opened::open(context)?;
    let bytes = opened.check(&configs)?;
    let planned = Planned::new(context, card.image_area, &bytes);
    Ok(planned.of_model(context, card, (&opened, &bytes)))
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
