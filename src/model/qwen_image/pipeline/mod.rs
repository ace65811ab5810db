//! One request, stage by stage, for every pipeline of the family.
//!
//! What differs between them is in [`Variant`]; the stages are shared: `job`
//! finds sizes and pictures, `conditioning` encodes prompts, `denoise` turns
//! noise into latents.
//!
//! Source: diffusers 0.42.1, `__call__` of `QwenImagePipeline`, its `Img2Img` and
//! `Inpaint`, of `QwenImageEditPipeline`, its `Inpaint` and `Plus`, and of
//! `QwenImageLayeredPipeline`.

pub(super) mod batching;
pub(super) mod cache;
mod conditioning;
mod denoise;
mod job;
pub(super) mod parts;

use std::ops::{ControlFlow, Range};

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use half::{bf16, f16};

use super::config::{
    ProcessorConfig, TextEncoderConfig, TransformerConfig, VaeConfig, VisionConfig,
};
use super::outlook;
use super::positions::Grid;
use super::preprocess::{self, PixelSize};
use super::prompt::PromptTokenizer;
use super::step_cache::BlockCount;
use super::text_encoder::TextEncoder;
use super::transformer::Transformer;
use super::vae::Vae;
use super::variant::{ScheduleBasis, Shown, Variant};
use crate::checkpoint::MatrixFormat;
use crate::domain::{ImageRequest, Picture, Seed};
use crate::imaging::region;
use crate::model::cache::ContentHash;
use crate::model::components::finite::{Arithmetic, VaeHalf, finite_or_in_float32};
use crate::model::components::flow_match::{Schedule, SchedulerConfig, skipped_steps};
use crate::model::components::latents::{pack_latents, unpack_latents};
use crate::model::components::noise::TorchGenerator;
use crate::model::components::watched::observed;
use crate::model::loras::LoraFolder;
use crate::model::residency::Offloadable;
use crate::model::{
    DiffusionModel, Estimate, GeneratedImage, Generation, Loaded, ModelCard, ModelError, ModelPlan,
    Stage, StepObserver, StepProgress, TokenUsage,
};
use crate::nn::{intermediate, trace};
use batching::Batching;
use cache::PipelineCache;
use denoise::{Denoising, InitialLatents, Known, StepInputs, Watch};
pub(super) use job::Job;
use job::Source;

/// The components of a checkpoint.
pub(crate) struct Components {
    /// Words to ids.
    pub tokenizer: PromptTokenizer,
    /// How pictures are shown to the encoder, if they are.
    pub processor: Option<ProcessorConfig>,
    /// The encoder's configuration.
    pub text_encoder_config: TextEncoderConfig,
    /// Words and pictures to hidden states.
    pub text_encoder: TextEncoder,
    /// Predicts the flow.
    pub transformer: Transformer,
    /// The autoencoder's configuration.
    pub vae_config: VaeConfig,
    /// Pictures to latents and back.
    pub vae: Offloadable<Vae>,
    /// The same in float32, where the model computes in 16 bits.
    pub vae_in_float32: Option<Offloadable<Vae>>,
    /// The noise schedule.
    pub scheduler: SchedulerConfig,
    /// Dtype that they compute in.
    pub dtype: DType,
    /// What the matrices of the transformer's blocks are kept in.
    pub matrices: MatrixFormat,
    /// Where they are.
    pub device: Device,
}

/// Pixels of a side of what becomes one token of the transformer.
pub(super) fn token_side(vae: &VaeConfig) -> usize {
    vae.spatial_factor() * TransformerConfig::PATCH_SIZE
}

/// A pipeline of the family with its components.
pub(crate) struct Pipeline {
    pub(super) card: ModelCard,
    pub(super) loaded: Loaded,
    pub(super) plan: ModelPlan,
    pub(super) variant: Variant,
    pub(super) components: Components,
    pub(super) cache: PipelineCache,
    /// What requests may have the transformer changed by.
    pub(super) loras: LoraFolder,
    /// Whether the transformer is told the noise level exactly.
    pub(super) exact_timesteps: bool,
    /// How pictures go through the transformer, where that is not left to what was measured.
    pub(super) batching: Option<Batching>,
}

/// How much a request is, in pictures and tokens.
pub(super) struct Extent {
    /// Of the picture made.
    pub(super) output: PixelSize,
    /// Of each picture that the autoencoder encodes.
    pub(super) encoded: Vec<PixelSize>,
    /// Patches of each picture that the text encoder sees.
    pub(super) shown: Vec<Grid>,
    /// Tokens of the text encoder for each.
    pub(super) shown_grids: Vec<Grid>,
    /// Image tokens of a pass of the transformer.
    pub(super) image_tokens: usize,
    /// Those of them that are of what is made.
    pub(super) made_tokens: usize,
}

impl Extent {
    /// Tokens that the shown pictures become.
    pub(super) fn shown_tokens(&self) -> usize {
        self.shown_grids.iter().map(|grid| grid.len()).sum()
    }
}

/// The input pictures as latents.
struct InputLatents {
    /// (1, tokens, numbers) of all reference pictures, in order.
    references: Option<Tensor>,
    /// What the picture is made from.
    source: Option<SourceLatents>,
    /// What they were computed in.
    arithmetic: Arithmetic,
}

/// What is made of the VAE's output for a picture.
type Finish = fn(&Vae, Tensor) -> TensorResult<Tensor>;

struct SourceLatents {
    /// What [`Vae::encode`] returns.
    parameters: Tensor,
    /// (1, tokens, numbers): 1 where the picture is made anew.
    mask: Option<Tensor>,
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

    fn release_caches(&mut self) {
        self.cache.clear();
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
        // 1. Sizes, pictures at those sizes, and the schedule.
        let mut stage = trace::stage("plan");
        let job = self.plan(request)?;
        let grids = self.grids(&job);
        let schedule = self.schedule(&job, &grids, request)?;
        let total_steps = schedule.steps();
        // What changes the transformer, as long as this request takes.
        let transformer = &self.components.transformer;
        let (adapters, kind) = (transformer.adapters(), transformer.tensor_kind());
        let _changed = self.loras.activate(&request.loras, adapters, kind)?;
        // 2. Pictures and prompts → what steers the transformer.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        stage.next("text encoder");
        observer.on_stage(Stage::EncodingPrompts);
        let mut guidance = self.encode_prompts(&job.shown, request, &grids)?;
        intermediate::note("text encoder", &guidance.positive.embeds)?;
        let mut warnings = std::mem::take(&mut guidance.warnings);
        // 3. Pictures → latents.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        stage.next("vae encoder");
        observer.on_stage(Stage::EncodingLatents);
        let inputs = self.encode_pictures(&job)?;
        inputs.references.iter().try_for_each(|x| intermediate::note("vae encoder", x))?;
        let dtype = self.components.dtype;
        inputs.arithmetic.tell(&mut warnings, VaeHalf::Encoder, dtype);
        // 4. What the steps have in common.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        stage.next("modulation");
        observer.on_stage(Stage::Denoising);
        let modulations = self.cache.modulations(transformer, &self.noise_levels(&schedule))?;
        observer.on_decoding_cost(outlook::decoding_steps(self, &job, &guidance.words()));
        let batching = self.batching(request, &guidance, &grids)?;
        let step_inputs = StepInputs {
            guidance: &guidance,
            cfg_rescale: self.variant.cfg_rescale,
            modulations: &modulations,
            cache_threshold: request.cache_threshold,
            joining: batching.joining,
        };
        let denoising = Denoising::new(transformer, step_inputs, &grids, &schedule)?;
        let mut images = Vec::with_capacity(request.count.get() * job.made_frames().len());
        let mut blocks = BlockCount::default();
        for together in batching.groups(request.count.get()) {
            // 5. Noise from the seeds, over what the pictures are made from.
            stage.next("steps");
            observer.on_stage(Stage::Denoising);
            let seeds = together.clone().map(|index| request.seed.of_image(index));
            let start = |seed: Seed| self.start(seed.get(), &job, &inputs, &schedule);
            let starts = seeds.clone().map(start).collect::<TensorResult<_>>()?;
            // 6. Noise → latents.
            let mut watch = Watch {
                observer: &mut *observer,
                first_image: together.start,
                total_steps,
                decode: &|latents| self.preview(latents, &job),
            };
            let denoised = denoising.run(starts, &mut watch)?;
            blocks += denoised.blocks;
            // 7. Latents → pictures.
            stage.next("vae decoder");
            observer.on_stage(Stage::Decoding);
            for (seed, latents) in seeds.zip(&denoised.latents) {
                let (pictures, arithmetic) = self.decode(latents, &job, job.made_frames())?;
                arithmetic.tell(&mut warnings, VaeHalf::Decoder, dtype);
                images.extend(pictures.into_iter().map(|image| GeneratedImage { image, seed }));
            }
        }
        let shown_tokens = guidance.positive.embeds.dim(1)? - guidance.positive.words;
        let looked_at = grids[job.frames()..].iter().map(|grid| grid.len()).sum::<usize>();
        // A source that is no reference is an input all the same.
        let made_from = job.source.as_ref().filter(|source| !source.is_reference);
        let usage = TokenUsage {
            input_text_tokens: guidance.positive.words,
            input_image_tokens: shown_tokens + looked_at + made_from.map_or(0, |_| grids[0].len()),
            output_image_tokens: grids[0].len() * images.len(),
        };
        let skipped_blocks = request.cache_threshold.map(|_| blocks.share());
        Ok(Generation { images, usage, warnings, skipped_blocks })
    }
}

fn observe(observer: &mut dyn StepObserver, progress: StepProgress) -> Result<(), ModelError> {
    match observer.on_step(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Cancelled),
    }
}

impl Pipeline {
    /// How much `request` is.
    ///
    /// # Errors
    /// [`ModelError::Unsuitable`] if this model cannot serve it.
    pub(super) fn extent(&self, request: &ImageRequest) -> Result<Extent, ModelError> {
        Ok(self.extent_of(&self.plan(request)?))
    }

    pub(super) fn extent_of(&self, job: &Job) -> Extent {
        let vision = self.vision_config();
        let patches = |processor: &ProcessorConfig| {
            let grid = |image| preprocess::encoder_grid(image, processor, vision);
            job.shown.iter().map(grid).collect()
        };
        let sources = job.source.iter().map(|source| &source.picture);
        let shown: Vec<Grid> = self.components.processor.as_ref().map(patches).unwrap_or_default();
        let merge = vision.spatial_merge_size;
        let merged =
            |patches: &Grid| Grid { height: patches.height / merge, width: patches.width / merge };
        Extent {
            output: job.output,
            encoded: job.references.iter().chain(sources).map(PixelSize::of).collect(),
            shown_grids: shown.iter().map(merged).collect(),
            shown,
            image_tokens: self.grids(job).iter().map(|grid| grid.len()).sum(),
            made_tokens: self.grids(job)[..job.frames()].iter().map(|grid| grid.len()).sum(),
        }
    }

    pub(super) fn tensor_kind(&self) -> (DType, &Device) {
        (self.components.dtype, &self.components.device)
    }

    fn vision_config(&self) -> &VisionConfig {
        &self.components.text_encoder_config.vision
    }

    /// Tokens of a picture of `size` pixels.
    fn grid(&self, size: PixelSize) -> Grid {
        let token = token_side(&self.components.vae_config);
        Grid { height: size.height / token, width: size.width / token }
    }

    /// The pictures that the transformer knows: those being made, then the references.
    fn grids(&self, job: &Job) -> Vec<Grid> {
        let made = self.grid(job.output);
        let mut grids = vec![made; job.frames()];
        grids.extend(job.references.iter().map(|picture| self.grid(PixelSize::of(picture))));
        grids.extend(job.source.iter().filter(|source| source.is_reference).map(|_| made));
        grids
    }

    fn schedule(
        &self,
        job: &Job,
        grids: &[Grid],
        request: &ImageRequest,
    ) -> Result<Schedule, ModelError> {
        let scheduler = &self.components.scheduler;
        let steps = request.steps.get();
        let schedule = match (request.schedule_shift, self.variant.schedule_basis) {
            (Some(shift), _) => scheduler.shifted_by(shift.get()).schedule(steps, grids[0].len()),
            (None, ScheduleBasis::Made) => scheduler.schedule(steps, grids[0].len()),
            (None, ScheduleBasis::RootOfReference) => {
                let tokens = grids[job.frames()..].iter().map(|grid| grid.len()).sum::<usize>();
                scheduler.schedule_of_mu(steps, (tokens as f64 / 256.0).sqrt())
            }
        };
        let Some(source) = &job.source else {
            return Ok(schedule);
        };
        let skipped = skipped_steps(steps, source.strength);
        if skipped >= steps {
            let strength = source.strength;
            return Err(ModelError::Unsuitable {
                field: "strength",
                reason: format!(
                    "Strength {strength} leaves none of the {steps} steps to do: give a larger one."
                ),
            });
        }
        Ok(schedule.without_first(skipped))
    }

    /// The noise level before each step as the transformer is told it.
    fn noise_levels(&self, schedule: &Schedule) -> Vec<f32> {
        let dtype = self.components.dtype;
        let round: fn(f32) -> f32 = if self.exact_timesteps {
            return schedule.noise_levels();
        } else if dtype == DType::BF16 {
            |number| bf16::from_f32(number).to_f32()
        } else if dtype == DType::F16 {
            |number| f16::from_f32(number).to_f32()
        } else {
            |number| number
        };
        schedule.rounded_noise_levels(round)
    }

    fn encode_pictures(&self, job: &Job) -> Result<InputLatents, ModelError> {
        let mut used = Vec::new();
        let mut encoded = |kind: &'static str, picture: &Picture, finish: Finish| {
            let (latents, arithmetic) = self.encoded(kind, picture, finish)?;
            used.push(arithmetic);
            Ok::<_, ModelError>(latents)
        };
        let most_likely: Finish = |vae, parameters| pack_latents(&vae.most_likely(&parameters)?);
        let references = job
            .references
            .iter()
            .map(|picture| encoded("most_likely_latents", picture, most_likely))
            .collect::<Result<Vec<_>, _>>()?;
        let source = |source: &Source| {
            let (z_dim, kind) = (self.components.vae_config.z_dim, self.tensor_kind());
            let factor = self.components.vae_config.spatial_factor();
            let mask = |mask| preprocess::mask_tokens(mask, factor, 4 * z_dim, kind);
            Ok::<_, ModelError>(SourceLatents {
                parameters: encoded("latents", &source.picture, |_, parameters| Ok(parameters))?,
                mask: source.mask.as_ref().map(mask).transpose()?,
            })
        };
        let source = job.source.as_ref().map(source).transpose()?;
        let is_upcast = used.contains(&Arithmetic::Upcast);
        Ok(InputLatents {
            references: (!references.is_empty())
                .then(|| Tensor::cat(&references, 1))
                .transpose()?,
            source,
            arithmetic: if is_upcast { Arithmetic::Upcast } else { Arithmetic::OfModel },
        })
    }

    /// What `finish` makes of the VAE's output for `picture`; `kind` says which that is.
    fn encoded(
        &self,
        kind: &'static str,
        picture: &Picture,
        finish: Finish,
    ) -> Result<(Tensor, Arithmetic), ModelError> {
        let hash = ContentHash::of(kind).bytes(&picture.width().to_le_bytes());
        let hash = hash.bytes(picture.colour().pixels());
        let key = match picture.alpha() {
            Some(alpha) => hash.bytes(alpha.pixels()).finish(),
            None => hash.finish(),
        };
        if let Some(known) = self.cache.tensor(&key) {
            return Ok((known, Arithmetic::OfModel));
        }
        let (dtype, device) = self.tensor_kind();
        let channels = self.components.vae_config.input_channels;
        let (made, arithmetic) = self.with_vae(VaeHalf::Encoder, |vae| {
            let input = preprocess::vae_input(picture, channels, (vae.dtype(), device))?;
            finish(vae, vae.encode(&input)?)
        })?;
        let made = made.to_dtype(dtype)?;
        // What had overflowed is made again for the next request, so that it hears of it.
        if arithmetic == Arithmetic::OfModel {
            self.cache.keep(key, &made);
        }
        Ok((made, arithmetic))
    }

    /// What `action` makes of the VAE; of the one in float32 if that overflows.
    fn with_vae(
        &self,
        half: VaeHalf,
        action: impl Fn(&Vae) -> TensorResult<Tensor>,
    ) -> Result<(Tensor, Arithmetic), ModelError> {
        let Components { vae, vae_in_float32, dtype, .. } = &self.components;
        finite_or_in_float32((vae, *dtype), vae_in_float32.as_ref(), half, action)
    }

    /// What the denoising of one picture starts from. The seed's numbers are drawn
    /// in the reference's order: for the source's latents, then for the noise.
    fn start(
        &self,
        seed: u64,
        job: &Job,
        inputs: &InputLatents,
        schedule: &Schedule,
    ) -> TensorResult<InitialLatents> {
        let mut generator = TorchGenerator::new(seed);
        let grid = self.grid(job.output);
        let (Some(source), Some(latents)) = (&job.source, &inputs.source) else {
            let noise = self.noise(&mut generator, grid, job.frames())?;
            let latents = Self::pack_frames(&noise)?;
            return Ok(InitialLatents {
                latents,
                references: inputs.references.clone(),
                known: None,
            });
        };
        let variation = self.noise(&mut generator, grid, 1)?;
        let sample = |vae: &Vae| vae.sample(&latents.parameters, &variation);
        let clean = pack_latents(&self.components.vae.with(sample)?)?;
        let noise = Self::pack_frames(&self.noise(&mut generator, grid, 1)?)?;
        let start = denoise::noised(&clean, &noise, schedule.sigmas[0])?;
        let known = latents.mask.clone().map(|mask| Known { clean: clean.clone(), noise, mask });
        let references = if source.is_reference { Some(clean) } else { inputs.references.clone() };
        Ok(InitialLatents { latents: start, references, known })
    }

    /// (frames, channels, height, width), drawn in that order in 32 bits.
    fn noise(
        &self,
        generator: &mut TorchGenerator,
        grid: Grid,
        frames: usize,
    ) -> TensorResult<Tensor> {
        let (height, width) = (2 * grid.height, 2 * grid.width);
        let shape = (frames, self.components.vae_config.z_dim, height, width);
        let numbers = generator.normal(shape.0 * shape.1 * height * width);
        let (dtype, device) = self.tensor_kind();
        Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    /// (frames, channels, height, width) → (1, tokens frame by frame, numbers)
    fn pack_frames(latents: &Tensor) -> TensorResult<Tensor> {
        let tokens = pack_latents(latents)?;
        let (frames, count, numbers) = tokens.dims3()?;
        tokens.reshape((1, frames * count, numbers))
    }

    fn preview(&self, latents: &Tensor, job: &Job) -> Result<Picture, ModelError> {
        let (pictures, _) = self.decode(latents, job, 0..1)?;
        let first = pictures.into_iter().next();
        first.ok_or_else(|| ModelError::BadOutput("no preview".to_owned()))
    }

    /// The pictures of some `frames` of `latents`: (1, tokens, numbers).
    fn decode(
        &self,
        latents: &Tensor,
        job: &Job,
        frames: Range<usize>,
    ) -> Result<(Vec<Picture>, Arithmetic), ModelError> {
        let grid = self.grid(job.output);
        let decode = |vae: &Vae, frame: usize| {
            let tokens = latents.narrow(1, frame * grid.len(), grid.len())?;
            let latents = unpack_latents(&tokens, grid.height, grid.width)?;
            vae.decode_latents(&latents.to_dtype(vae.dtype())?)
        };
        let (pixels, arithmetic) = self.with_vae(VaeHalf::Decoder, |vae| {
            let frames = frames.clone().map(|frame| decode(vae, frame));
            Tensor::cat(&frames.collect::<TensorResult<Vec<_>>>()?, 0)
        })?;
        let finish = |frame: usize| {
            let picture = preprocess::output_picture(&pixels.narrow(0, frame, 1)?)?;
            Ok(match job.source.as_ref().and_then(|source| source.whole.as_ref()) {
                Some(whole) => {
                    region::overlay(&whole.image, &whole.mask, picture.colour(), whole.region)
                        .into()
                }
                None => picture,
            })
        };
        let pictures = (0..pixels.dim(0)?).map(finish).collect::<Result<_, ModelError>>()?;
        Ok((pictures, arithmetic))
    }
}

#[cfg(test)]
mod tests;
