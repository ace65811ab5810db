//! One edit, stage by stage.
//!
//! Source: diffusers 0.42.1, `QwenImageEditPipeline.__call__`.

use std::ops::ControlFlow;

use candle_core::{D, DType, Device, IndexOp, Result as TensorResult, Tensor};

use super::config::{ProcessorConfig, TextEncoderConfig, VisionConfig};
use super::latents::{pack_latents, unpack_latents};
use super::positions::{Grid, text_start};
use super::preprocess::{self, PixelSize};
use super::prompt::{PromptTemplate, PromptTokenizer};
use super::scheduler::{Schedule, SchedulerConfig};
use super::text_encoder::TextEncoder;
use super::transformer::{TokenPositions, Transformer};
use super::vae::Vae;
use crate::domain::{ImageRequest, OutputSize, Prompt, RgbImage, Task};
use crate::imaging::resample::{Resampler, resize};
use crate::model::noise::TorchGenerator;
use crate::model::{
    DiffusionModel, GeneratedImage, Generation, ModelError, ModelInfo, StepObserver, StepProgress,
    TokenUsage,
};

/// Longest sequence that the rotary tables of the reference reach.
const MAX_POSITION: usize = 4096;
/// The most elongated picture that the encoder's processor accepts.
const MAX_ASPECT_RATIO: usize = 200;

/// The components of a checkpoint, loaded.
pub struct Components {
    /// Words to ids.
    pub tokenizer: PromptTokenizer,
    /// How pictures are shown to the encoder.
    pub processor: ProcessorConfig,
    /// The encoder's configuration.
    pub text_encoder_config: TextEncoderConfig,
    /// Words and pictures to hidden states.
    pub text_encoder: TextEncoder,
    /// Predicts the flow.
    pub transformer: Transformer,
    /// Pictures to latents and back.
    pub vae: Vae,
    /// The noise schedule.
    pub scheduler: SchedulerConfig,
    /// Number format that they compute in.
    pub dtype: DType,
    /// Where they are.
    pub device: Device,
}

/// `QwenImageEditPipeline`: one picture and a prompt → that picture, edited.
pub struct EditPipeline {
    pub(super) info: ModelInfo,
    pub(super) components: Components,
}

/// A prompt as the transformer takes it.
struct Conditioning {
    /// (1, tokens, text width).
    embeds: Tensor,
    /// How many of the tokens are words; the others are the picture.
    words: usize,
}

/// The prompts of one request.
struct Guidance {
    positive: Conditioning,
    /// With it, and above scale 1, predictions are steered away from it.
    negative: Option<Conditioning>,
    scale: f64,
}

/// The sizes of one request.
struct Sizes {
    /// Of the input, for encoder and VAE.
    reference: PixelSize,
    /// Of the finished picture.
    output: PixelSize,
}

impl DiffusionModel for EditPipeline {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        let image = edited_image(&request.task)?;
        let total_steps = request.steps.get();

        // 1. Sizes.
        let sizes = self.sizes(image, request.size)?;
        // 2. Picture and prompts → what steers the transformer.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        let resized =
            resize(image, sizes.reference.width, sizes.reference.height, Resampler::PillowLanczos);
        let guidance = self.encode_prompts(&resized, request, sizes.output)?;
        // 3. Picture → the latents that the transformer looks at.
        observe(observer, StepProgress { image: 0, step: 0, total_steps })?;
        let references = self.encode_reference(&resized)?;
        // 4. Where all tokens stand, and the schedule.
        let grids = [self.grid(sizes.output), self.grid(sizes.reference)];
        let schedule = self.components.scheduler.schedule(total_steps, grids[0].len());
        let denoising =
            Denoising::new(&self.components, &guidance, &references, &grids, &schedule)?;
        let mut images = Vec::with_capacity(request.count.get());
        for index in 0..request.count.get() {
            let seed = request.seed.of_image(index);
            // 5. Noise from the seed.
            let noise = self.noise(seed.get(), sizes.output)?;
            // 6. Noise → latents.
            let mut watch = Watch {
                observer: &mut *observer,
                image: index,
                total_steps,
                decode: &|latents| self.decode(latents, sizes.output),
            };
            let latents = denoising.run(noise, &mut watch)?;
            // 7. Latents → picture.
            let image = self.decode(&latents, sizes.output)?.into();
            images.push(GeneratedImage { image, seed });
        }
        let usage = TokenUsage {
            input_text_tokens: guidance.positive.words,
            input_image_tokens: guidance.positive.embeds.dim(1)? - guidance.positive.words
                + grids[1].len(),
            output_image_tokens: grids[0].len() * images.len(),
        };
        Ok(Generation { images, usage })
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
    decode: &'a dyn Fn(&Tensor) -> Result<RgbImage, ModelError>,
}

impl Watch<'_> {
    /// After `step` steps. `predicted` makes the clean latents as far as they
    /// can be told now; it is asked only if somebody wants to see them.
    fn step(
        &mut self,
        step: usize,
        predicted: impl FnOnce() -> TensorResult<Tensor>,
    ) -> Result<(), ModelError> {
        let progress = StepProgress { image: self.image, step, total_steps: self.total_steps };
        let unfinished = (1..self.total_steps).contains(&step);
        if unfinished && self.observer.wants_preview(progress) {
            let preview = (self.decode)(&predicted()?)?;
            self.observer.on_preview(progress, preview.into());
        }
        observe(self.observer, progress)
    }
}

/// The one picture of an edit.
fn edited_image(task: &Task) -> Result<&RgbImage, ModelError> {
    match task {
        Task::Edit { images } if images.len() == 1 => Ok(images[0].colour()),
        Task::Edit { images } => Err(ModelError::Unsuitable {
            field: "image",
            reason: format!("This model edits exactly one picture, got {}.", images.len()),
        }),
        Task::Generate
        | Task::ImageToImage { .. }
        | Task::Inpaint { .. }
        | Task::Decompose { .. } => Err(ModelError::Unsuitable {
            field: "image",
            reason: "This model only edits pictures.".to_owned(),
        }),
    }
}

impl EditPipeline {
    fn tensor_kind(&self) -> (DType, &Device) {
        (self.components.dtype, &self.components.device)
    }

    fn vision_config(&self) -> &VisionConfig {
        &self.components.text_encoder_config.vision
    }

    fn sizes(&self, image: &RgbImage, size: OutputSize) -> Result<Sizes, ModelError> {
        let (width, height) = (image.width(), image.height());
        let reference = preprocess::size_of_area(self.info.image_area, width, height);
        let (short, long) =
            (reference.width.min(reference.height), reference.width.max(reference.height));
        if short == 0 || long > MAX_ASPECT_RATIO * short {
            return Err(ModelError::Unsuitable {
                field: "image",
                reason: format!(
                    "A picture of {width}x{height} pixels is too long and narrow for this model."
                ),
            });
        }
        let (reference, output) = match size {
            OutputSize::Reference => (reference, reference),
            OutputSize::Exact(size) => {
                (reference, PixelSize { width: size.width(), height: size.height() })
            }
            OutputSize::AsInput => (PixelSize { width, height }, PixelSize { width, height }),
        };
        Ok(Sizes { reference, output: output.floored_to(self.info.size_multiple) })
    }

    /// Tokens of a picture of `size` pixels.
    fn grid(&self, size: PixelSize) -> Grid {
        let token = self.info.size_multiple;
        Grid { height: size.height / token, width: size.width / token }
    }

    fn encode_prompts(
        &self,
        resized: &RgbImage,
        request: &ImageRequest,
        output: PixelSize,
    ) -> Result<Guidance, ModelError> {
        let input = preprocess::encoder_input(
            resized,
            &self.components.processor,
            self.vision_config(),
            self.tensor_kind(),
        )?;
        let picture =
            self.components.text_encoder.encode_pictures(&input.patches, &[input.grid])?;
        let merge = self.vision_config().spatial_merge_size;
        let tokens = Grid { height: input.grid.height / merge, width: input.grid.width / merge };
        let encode = |field, prompt: &Prompt| {
            self.encode_prompt(field, prompt, &picture, tokens, self.grid(output))
        };
        let scale = request.guidance.get();
        let negative = request.negative_prompt.as_ref().filter(|_| scale > 1.0);
        Ok(Guidance {
            positive: encode("prompt", &request.prompt)?,
            negative: negative.map(|prompt| encode("negative_prompt", prompt)).transpose()?,
            scale,
        })
    }

    fn encode_prompt(
        &self,
        field: &'static str,
        prompt: &Prompt,
        picture: &Tensor,
        picture_tokens: Grid,
        output: Grid,
    ) -> Result<Conditioning, ModelError> {
        let unsuitable = |reason: String| ModelError::Unsuitable { field, reason };
        let template = PromptTemplate::EDIT;
        let tokens = self
            .components
            .tokenizer
            .tokenise(&template, prompt.as_str(), &[picture_tokens])
            .map_err(|error| ModelError::BadOutput(format!("no tokens: {error}")))?
            .map_err(|reserved| unsuitable(format!("The {field} {reserved}.")))?;
        let length = tokens.token_ids.len() - template.drop_tokens;
        let longest = MAX_POSITION - text_start(&[output]).min(MAX_POSITION);
        if length > longest {
            return Err(unsuitable(format!(
                "The {field} is too long for this model: with the picture it makes {length} \
                 tokens, at most {longest} fit."
            )));
        }
        let hidden_states = self.components.text_encoder.forward(
            &tokens.token_ids,
            &tokens.segments,
            Some(picture),
        )?;
        Ok(Conditioning {
            embeds: hidden_states.narrow(1, template.drop_tokens, length)?.contiguous()?,
            words: length - picture_tokens.len(),
        })
    }

    /// (1, tokens, in channels)
    fn encode_reference(&self, resized: &RgbImage) -> TensorResult<Tensor> {
        let pixels = preprocess::vae_input(resized, self.tensor_kind())?;
        pack_latents(&self.components.vae.encode_to_latents(&pixels)?)
    }

    /// (1, tokens, in channels), drawn in the unpacked order in 32 bits.
    fn noise(&self, seed: u64, output: PixelSize) -> TensorResult<Tensor> {
        let grid = self.grid(output);
        let (height, width) = (2 * grid.height, 2 * grid.width);
        let channels = self.components.vae.z_dim();
        let numbers = TorchGenerator::new(seed).normal(channels * height * width);
        let (dtype, device) = self.tensor_kind();
        let noise = Tensor::from_vec(numbers, (1, channels, height, width), &Device::Cpu)?;
        pack_latents(&noise)?.to_dtype(dtype)?.to_device(device)
    }

    fn decode(&self, latents: &Tensor, output: PixelSize) -> Result<RgbImage, ModelError> {
        let grid = self.grid(output);
        let latents = unpack_latents(latents, grid.height, grid.width)?;
        let pixels = preprocess::output_pixels(&self.components.vae.decode_latents(&latents)?)?;
        RgbImage::new(output.width, output.height, pixels)
            .map_err(|error| ModelError::BadOutput(error.to_string()))
    }
}

/// All that stays the same over the steps of a picture.
struct Denoising<'a> {
    transformer: &'a Transformer,
    guidance: &'a Guidance,
    references: &'a Tensor,
    schedule: &'a Schedule,
    positions: TokenPositions,
    negative_positions: Option<TokenPositions>,
    /// Tokens of the picture being made.
    image_tokens: usize,
}

impl<'a> Denoising<'a> {
    fn new(
        components: &'a Components,
        guidance: &'a Guidance,
        references: &'a Tensor,
        grids: &[Grid],
        schedule: &'a Schedule,
    ) -> TensorResult<Self> {
        let transformer = &components.transformer;
        let positions = |prompt: &Conditioning| transformer.positions(grids, prompt.embeds.dim(1)?);
        Ok(Self {
            transformer,
            guidance,
            references,
            schedule,
            positions: positions(&guidance.positive)?,
            negative_positions: guidance.negative.as_ref().map(positions).transpose()?,
            image_tokens: grids[0].len(),
        })
    }

    /// Follows the schedule from `noise` to latents; both (1, tokens, in channels).
    fn run(&self, noise: Tensor, watch: &mut Watch) -> Result<Tensor, ModelError> {
        let mut latents = noise;
        watch.step(0, || Ok(latents.clone()))?;
        for step in 0..self.schedule.steps() {
            let flow = self.predict(&latents, step)?;
            let next = euler_step(&latents, &flow, self.schedule.sigma_change(step))?;
            // From here straight on to σ = 0.
            let straight_on = || euler_step(&latents, &flow, -self.schedule.sigmas[step]);
            watch.step(step + 1, straight_on)?;
            latents = next;
        }
        // The sum is finite only if every number is.
        let sum = latents.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(ModelError::BadOutput(
                "numbers that are not finite; another dtype may help".to_owned(),
            ));
        }
        Ok(latents)
    }

    /// The flow at the tokens of the picture being made, with guidance.
    fn predict(&self, latents: &Tensor, step: usize) -> TensorResult<Tensor> {
        let tokens = Tensor::cat(&[latents, self.references], 1)?;
        let sigma = self.schedule.timesteps[step] / self.schedule.train_timesteps;
        let flow = |prompt: &Conditioning, positions: &TokenPositions| {
            let all = self.transformer.forward(&tokens, &prompt.embeds, sigma, positions)?;
            all.i((.., ..self.image_tokens))
        };
        let conditional = flow(&self.guidance.positive, &self.positions)?;
        match (&self.guidance.negative, &self.negative_positions) {
            (Some(negative), Some(positions)) => {
                let unconditional = flow(negative, positions)?;
                guide(&conditional, &unconditional, self.guidance.scale)
            }
            _ => Ok(conditional),
        }
    }
}

/// Classifier-free guidance: away from the unconditional flow, then back to the
/// length of the conditional one at every token. All (1, tokens, channels).
fn guide(conditional: &Tensor, unconditional: &Tensor, scale: f64) -> TensorResult<Tensor> {
    let combined = (unconditional + ((conditional - unconditional)? * scale)?)?;
    let wanted = token_lengths(conditional)?;
    let actual = token_lengths(&combined)?;
    combined.broadcast_mul(&(wanted / actual)?)
}

/// The Euclidean length of each token, summed in 32 bits: (1, tokens, 1).
fn token_lengths(x: &Tensor) -> TensorResult<Tensor> {
    x.to_dtype(DType::F32)?.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.to_dtype(x.dtype())
}

/// latents + change · flow. In 16-bit formats the product is rounded, the sum is
/// made in 32 bits and rounded again, as in the reference.
fn euler_step(latents: &Tensor, flow: &Tensor, sigma_change: f32) -> TensorResult<Tensor> {
    let dtype = latents.dtype();
    let change = (flow.to_dtype(DType::F32)? * f64::from(sigma_change))?.to_dtype(dtype)?;
    (latents.to_dtype(DType::F32)? + change.to_dtype(DType::F32)?)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests;
