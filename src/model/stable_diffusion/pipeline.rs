//! One request, stage by stage: text to image, and image to image.
//!
//! Sources: diffusers 0.42.1, `StableDiffusionPipeline`,
//! `StableDiffusionXLPipeline` and their `Img2Img` siblings. Latents are float32
//! between the steps whatever the model's format; the first noise is drawn so, too.

use std::cell::RefCell;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use super::outlook;
use super::pictures::{to_picture, to_tensor};
use super::schedule::Schedule;
use super::scheduler::SchedulerConfig;
use super::unet::{Conditioning, Unet};
use crate::domain::{ImageRequest, ImageSize, OutputSize, Prompt, RgbImage, Strength, Task};
use crate::model::cache::{ContentCache, ContentHash};
use crate::model::components::autoencoder_kl::VaeConfig;
use crate::model::components::autoencoder_kl::{Posterior, Vae};
use crate::model::components::clip::TextEncoderConfig;
use crate::model::components::clip::text_encoder::TextEncoder;
use crate::model::components::clip::tokenizer::ClipTokenizer;
use crate::model::components::finite::{
    Arithmetic, StepSums, VaeHalf, expect_finite, finite_or_in_float32,
};
use crate::model::components::noise::TorchGenerator;
use crate::model::components::watched::observed;
use crate::model::residency::Offloadable;
use crate::model::{
    CutTokens, DiffusionModel, Estimate, GeneratedImage, Generation, Loaded, ModelCard, ModelError,
    ModelPlan, Stage, StepObserver, StepProgress, TokenUsage,
};

/// A text encoder with its tokenizer.
pub(crate) struct TextSide {
    /// Words to ids.
    pub tokenizer: ClipTokenizer,
    /// Ids to hidden states.
    pub encoder: TextEncoder,
    /// Its configuration.
    pub config: TextEncoderConfig,
}

/// How texts condition the U-Net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextUse {
    /// One encoder's last state.
    Last,
    /// All encoders' penultimate states, side by side; the last encoder's pooled
    /// text, and sizes.
    PenultimateAndPooled {
        /// Whether no negative prompt is all zeros, not the encoded "".
        force_zeros_for_empty_prompt: bool,
    },
}

/// The components of a checkpoint, loaded.
pub(crate) struct Components {
    /// One encoder, or SDXL's two.
    pub texts: Vec<TextSide>,
    /// What is made of their states.
    pub text_use: TextUse,
    /// Predicts the noise.
    pub unet: Unet,
    /// Pictures to latents and back.
    pub vae: Offloadable<Vae>,
    /// The same in float32, where that one computes in 16 bits.
    pub vae_in_float32: Option<Offloadable<Vae>>,
    /// The dtype of `vae`.
    pub vae_dtype: DType,
    /// Its configuration.
    pub vae_config: VaeConfig,
    /// The noise schedule.
    pub scheduler: SchedulerConfig,
    /// Dtype that the networks compute in.
    pub dtype: DType,
    /// Where they are.
    pub device: Device,
}

/// `StableDiffusionPipeline` and `StableDiffusionXLPipeline`.
pub(crate) struct Pipeline {
    pub(super) card: ModelCard,
    pub(super) loaded: Loaded,
    pub(super) plan: ModelPlan,
    pub(super) components: Components,
    /// Texts that were encoded before. The model's thread is its only user.
    pub(super) encoded: RefCell<ContentCache<EncodedPrompt>>,
}

/// A text as its encoders return it.
#[derive(Clone)]
pub(super) struct EncodedPrompt {
    embeds: Tensor,
    pooled: Option<Tensor>,
    tokens: usize,
    cut: Option<CutTokens>,
}

impl EncodedPrompt {
    fn bytes(&self) -> usize {
        let tensors = std::iter::once(&self.embeds).chain(&self.pooled);
        tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }
}

/// The prompts of one request.
struct Guidance {
    positive: Conditioning,
    /// With it, predictions are steered away from it.
    negative: Option<Conditioning>,
    scale: f64,
    tokens: usize,
    /// What of the prompts was left out: sentences for the client.
    warnings: Vec<String>,
}

/// What pictures are made from.
enum Source<'a> {
    Noise,
    Picture { image: &'a RgbImage, strength: Strength },
}

impl DiffusionModel for Pipeline {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        observed(observer, |observer| self.make(request, observer))
    }

    fn estimate(&mut self) -> Option<Estimate> {
        outlook::estimate(self)
    }
}

impl Pipeline {
    /// The pictures of `request`, stage by stage.
    fn make(
        &self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        if request.cache_threshold.is_some() {
            return Err(ModelError::Unsuitable {
                field: "cache_threshold",
                reason: "This model computes every step: it has no use for 'cache_threshold'."
                    .to_owned(),
            });
        }
        let source = source(&request.task)?;
        refuse_changes(request)?;

        // 1. Size and schedule.
        let size = self.size(&source, request.size)?;
        let schedule = self.schedule(&source, request.steps.get())?;
        let total_steps = schedule.timesteps().len();
        // 2. Prompts → what steers the U-Net.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        observer.on_stage(Stage::EncodingPrompts);
        let mut guidance = self.encode_prompts(request, size)?;
        let mut warnings = std::mem::take(&mut guidance.warnings);
        // 3. Picture → the distribution of its latents.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        observer.on_stage(Stage::EncodingLatents);
        let (posterior, arithmetic) = self.encode_picture(&source, size)?;
        let vae_dtype = self.components.vae_dtype;
        arithmetic.tell(&mut warnings, VaeHalf::Encoder, vae_dtype);
        let passes = if guidance.negative.is_some() { 2 } else { 1 };
        observer.on_decoding_cost(outlook::decoding_steps(self, size, passes));
        let mut images = Vec::with_capacity(request.count.get());
        for index in 0..request.count.get() {
            let seed = request.seed.of_image(index);
            let mut noise = self.noise(seed.get(), size);
            // 4. Noise, alone or over the picture.
            let start = self.start(posterior.as_ref(), &schedule, &mut noise)?;
            // 5. Noise → latents.
            observer.on_stage(Stage::Denoising);
            let mut watch = Watch { observer: &mut *observer, image: index, total_steps };
            let latents = self.denoise(start, &schedule, &guidance, &mut noise, &mut watch)?;
            // 6. Latents → picture.
            observer.on_stage(Stage::Decoding);
            let (image, arithmetic) = self.decode(&latents)?;
            arithmetic.tell(&mut warnings, VaeHalf::Decoder, vae_dtype);
            images.push(GeneratedImage { image: image.into(), seed });
        }
        let places = self.latent_shape(size)[2..].iter().product::<usize>();
        let usage = TokenUsage {
            input_text_tokens: guidance.tokens,
            input_image_tokens: if posterior.is_some() { places } else { 0 },
            output_image_tokens: places * images.len(),
        };
        Ok(Generation { images, usage, warnings, skipped_blocks: None })
    }
}

fn observe(observer: &mut dyn StepObserver, progress: StepProgress) -> Result<(), ModelError> {
    match observer.on_step(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Cancelled),
    }
}

/// Whoever watches the steps of one picture.
struct Watch<'a> {
    observer: &'a mut dyn StepObserver,
    image: usize,
    total_steps: usize,
}

impl Watch<'_> {
    /// After `step` steps. `preview` is made only if somebody wants to see it.
    fn step(
        &mut self,
        step: usize,
        preview: impl FnOnce() -> Result<(RgbImage, Arithmetic), ModelError>,
    ) -> Result<(), ModelError> {
        let progress = StepProgress { image: self.image, step, total_steps: self.total_steps };
        if (1..self.total_steps).contains(&step) && self.observer.wants_preview(progress) {
            match preview() {
                Ok((preview, _)) => self.observer.on_preview(progress, preview.into()),
                // There is nothing to see; the latents are looked at after the last step.
                Err(ModelError::NotFinite { .. }) => {
                    tracing::debug!(step, "no preview: not finite")
                }
                Err(error) => return Err(error),
            }
        }
        observe(self.observer, progress)
    }
}

/// Refuses what would change these models for a request.
fn refuse_changes(request: &ImageRequest) -> Result<(), ModelError> {
    let unsuitable =
        |field, reason: &str| Err(ModelError::Unsuitable { field, reason: reason.to_owned() });
    if !request.loras.is_empty() {
        return unsuitable("loras", "This model takes no LoRAs: Qwen-Image models do.");
    }
    if request.schedule_shift.is_some() {
        return unsuitable("schedule_shift", "This model's schedule has no shift.");
    }
    Ok(())
}

fn source(task: &Task) -> Result<Source<'_>, ModelError> {
    match task {
        Task::Generate => Ok(Source::Noise),
        Task::ImageToImage { image, strength } => {
            Ok(Source::Picture { image: image.colour(), strength: *strength })
        }
        Task::Edit { .. } | Task::Inpaint { .. } | Task::Decompose { .. } => {
            Err(ModelError::Unsuitable {
                field: "image",
                reason: "This model makes pictures from a prompt, or from a prompt and one whole \
                         picture."
                    .to_owned(),
            })
        }
    }
}

impl Pipeline {
    /// The output's size, on the model's grid.
    fn size(&self, source: &Source, size: OutputSize) -> Result<ImageSize, ModelError> {
        let grid = self.card.size_multiple;
        let (field, width, height) = match (size, source) {
            (OutputSize::Exact(size), _) => ("size", size.width(), size.height()),
            (_, Source::Picture { image, .. }) => ("image", image.width(), image.height()),
            (_, Source::Noise) => {
                let side = self.card.image_area.isqrt();
                ("size", side, side)
            }
        };
        let unsuitable = |reason| ModelError::Unsuitable { field, reason };
        let size = ImageSize::new(width / grid * grid, height / grid * grid)
            .map_err(|_| unsuitable(format!("Both sides must be at least {grid} pixels.")))?;
        if !self.card.accepts(size) {
            return Err(unsuitable(format!(
                "{size} pixels are too many for this model: at most {} in all.",
                self.card.max_output_area
            )));
        }
        Ok(size)
    }

    /// The timesteps: all of `steps`, or as many as `strength` leaves.
    fn schedule(&self, source: &Source, steps: usize) -> Result<Schedule<'_>, ModelError> {
        let schedule = self.components.scheduler.schedule(steps);
        let Source::Picture { strength, .. } = source else {
            return Ok(schedule);
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to steps")]
        let kept = (steps as f64 * strength.get()) as usize;
        if kept == 0 {
            return Err(ModelError::Unsuitable {
                field: "strength",
                reason: format!(
                    "With {steps} steps a strength of {} leaves none to take: steps times strength \
                     must be at least 1.",
                    strength.get()
                ),
            });
        }
        Ok(schedule.without_first(steps - kept.min(steps)))
    }

    fn encode_prompts(
        &self,
        request: &ImageRequest,
        size: ImageSize,
    ) -> Result<Guidance, ModelError> {
        let positive = self.encode_prompt(request.prompt.as_str())?;
        let negative = || self.encode_negative(request.negative_prompt.as_ref(), &positive);
        let negative = request.guidance.acts().then(negative).transpose()?;
        let cut = |field, prompt: &EncodedPrompt| prompt.cut.map(|cut| cut.sentence(field));
        let mut warnings = Vec::from_iter(cut("prompt", &positive));
        warnings.extend(negative.as_ref().and_then(|prompt| cut("negative_prompt", prompt)));
        let condition = |prompt: &EncodedPrompt| self.condition(prompt, size);
        Ok(Guidance {
            tokens: positive.tokens,
            positive: condition(&positive)?,
            negative: negative.as_ref().map(condition).transpose()?,
            scale: request.guidance.get(),
            warnings,
        })
    }

    /// What predictions are steered away from. The empty text is a prompt like any
    /// other; none at all is zeros where the checkpoint says so, else the empty text.
    fn encode_negative(
        &self,
        prompt: Option<&Prompt>,
        positive: &EncodedPrompt,
    ) -> Result<EncodedPrompt, ModelError> {
        let zeros = TextUse::PenultimateAndPooled { force_zeros_for_empty_prompt: true };
        if prompt.is_some() || self.components.text_use != zeros {
            return self.encode_prompt(prompt.map_or("", Prompt::as_str));
        }
        let pooled = positive.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(EncodedPrompt { embeds: positive.embeds.zeros_like()?, pooled, tokens: 0, cut: None })
    }

    /// What the encoders make of `prompt`, or made of it before.
    fn encode_prompt(&self, prompt: &str) -> Result<EncodedPrompt, ModelError> {
        let key = ContentHash::of("prompt").bytes(prompt.as_bytes()).finish();
        if let Some(known) = self.encoded.borrow_mut().get(&key) {
            return Ok(known);
        }
        let encoded = self.encode_new(prompt)?;
        self.encoded.borrow_mut().insert(key, encoded.clone(), encoded.bytes());
        Ok(encoded)
    }

    fn encode_new(&self, prompt: &str) -> Result<EncodedPrompt, ModelError> {
        let mut states = Vec::new();
        let (mut pooled, mut tokens, mut cut) = (None, 0, None::<CutTokens>);
        for side in &self.components.texts {
            let text = side
                .tokenizer
                .tokenise(prompt)
                .map_err(|error| ModelError::BadOutput(format!("no tokens: {error}")))?;
            // Of two encoders, the one that reads less.
            cut = cut.into_iter().chain(text.cut).max_by_key(|cut| cut.cut);
            tokens = text.length;
            let encoded = side.encoder.forward(&text.ids)?;
            states.push(match self.components.text_use {
                TextUse::Last => encoded.last,
                TextUse::PenultimateAndPooled { .. } => encoded.penultimate,
            });
            pooled = encoded.pooled;
        }
        let embeds = expect_finite(Tensor::cat(&states, 2)?, "text encoder")?;
        let pooled = pooled.map(|pooled| expect_finite(pooled, "text encoder")).transpose()?;
        Ok(EncodedPrompt { embeds, pooled, tokens, cut })
    }

    /// A prompt for a picture of `size`, which is taken for uncropped.
    fn condition(&self, prompt: &EncodedPrompt, size: ImageSize) -> TensorResult<Conditioning> {
        let (height, width) = (size.height(), size.width());
        let sizes = [height, width, 0, 0, height, width];
        let unet = &self.components.unet;
        let added = prompt.pooled.as_ref().map(|pooled| unet.embed_added(pooled, &sizes));
        Ok(Conditioning { embeds: prompt.embeds.clone(), added: added.transpose()?.flatten() })
    }

    fn encode_picture(
        &self,
        source: &Source,
        size: ImageSize,
    ) -> Result<(Option<Posterior>, Arithmetic), ModelError> {
        let Source::Picture { image, .. } = source else {
            return Ok((None, Arithmetic::OfModel));
        };
        let pixels = to_tensor(image, size, &self.components.device)?;
        let (moments, arithmetic) =
            self.with_vae(VaeHalf::Encoder, |vae| vae.encode_moments(&pixels))?;
        Ok((Some(Posterior::of_moments(&moments)?), arithmetic))
    }

    /// What `action` makes of the VAE; of the one in float32 if that overflows.
    fn with_vae(
        &self,
        half: VaeHalf,
        action: impl Fn(&Vae) -> TensorResult<Tensor>,
    ) -> Result<(Tensor, Arithmetic), ModelError> {
        let Components { vae, vae_in_float32, vae_dtype, .. } = &self.components;
        finite_or_in_float32((vae, *vae_dtype), vae_in_float32.as_ref(), half, action)
    }

    /// (1, latent channels, rows, columns)
    fn latent_shape(&self, size: ImageSize) -> [usize; 4] {
        let config = &self.components.vae_config;
        let factor = config.spatial_factor();
        [1, config.latent_channels, size.height() / factor, size.width() / factor]
    }

    /// Draws noise of the latents' shape from a generator of its own.
    fn noise(&self, seed: u64, size: ImageSize) -> impl FnMut() -> TensorResult<Tensor> {
        let mut generator = TorchGenerator::new(seed);
        let shape = self.latent_shape(size);
        let device = &self.components.device;
        move || {
            let numbers = generator.normal(shape.iter().product());
            Tensor::from_vec(numbers, shape.as_slice(), &Device::Cpu)?.to_device(device)
        }
    }

    /// The state before the first step. With a picture, its latents are drawn
    /// from their distribution before the noise is.
    fn start(
        &self,
        posterior: Option<&Posterior>,
        schedule: &Schedule,
        noise: &mut dyn FnMut() -> TensorResult<Tensor>,
    ) -> TensorResult<Tensor> {
        let Some(posterior) = posterior else {
            return noise()? * schedule.initial_scale();
        };
        let latents = (&posterior.mean + (&posterior.deviation * noise()?)?)?;
        let (clean, noisy) = schedule.start_weights();
        let clean = clean * self.components.vae_config.scaling_factor;
        (latents * clean)? + (noise()? * noisy)?
    }

    /// Follows the schedule from `state` to scaled latents.
    fn denoise(
        &self,
        mut state: Tensor,
        schedule: &Schedule,
        guidance: &Guidance,
        noise: &mut dyn FnMut() -> TensorResult<Tensor>,
        watch: &mut Watch,
    ) -> Result<Tensor, ModelError> {
        let mut walk = schedule.walk();
        let mut sums = StepSums::default();
        watch.step(0, || self.decode(&state))?;
        for (step, timestep) in schedule.timesteps().iter().enumerate() {
            let input = (&state * schedule.input_scale(step))?;
            let prediction = self.predict(&input, *timestep, guidance)?;
            let made = walk.step(step, &state, &prediction, noise)?;
            sums.note(&made.next)?;
            watch.step(step + 1, || self.decode(&made.clean))?;
            state = made.next;
        }
        sums.expect_finite("U-Net", self.components.dtype)?;
        Ok(state)
    }

    /// The prediction, with guidance away from the negative one.
    fn predict(&self, input: &Tensor, timestep: f64, guidance: &Guidance) -> TensorResult<Tensor> {
        let unet = &self.components.unet;
        let positive = unet.forward(input, timestep, &guidance.positive)?;
        let Some(negative) = &guidance.negative else {
            return Ok(positive);
        };
        let negative = unet.forward(input, timestep, negative)?;
        &negative + ((positive - &negative)? * guidance.scale)?
    }

    /// `latents`: scaled, as the U-Net sees them.
    fn decode(&self, latents: &Tensor) -> Result<(RgbImage, Arithmetic), ModelError> {
        let scaling_factor = self.components.vae_config.scaling_factor;
        let latents = (latents.to_dtype(DType::F32)? / scaling_factor)?;
        let (pixels, arithmetic) = self.with_vae(VaeHalf::Decoder, |vae| vae.decode(&latents))?;
        Ok((to_picture(&pixels)?, arithmetic))
    }
}

#[cfg(test)]
mod tests;
