//! Noise → latents: the steps of one picture, or of some together.

use candle_core::{Result as TensorResult, Tensor};

use super::batching::Joining;
use super::conditioning::Guidance;
use super::observe;
use crate::domain::{CacheThreshold, Picture};
use crate::model::components::finite::StepSums;
use crate::model::components::flow_match::Schedule;
use crate::model::qwen_image::modulation::ModulationTable;
use crate::model::qwen_image::passes::{PassInputs, PromptTokens};
use crate::model::qwen_image::positions::Grid;
use crate::model::qwen_image::step_cache::{BlockCount, StepCache};
use crate::model::qwen_image::transformer::{TokenPositions, Transformer};
use crate::model::{ModelError, StepObserver, StepProgress};
use crate::nn::trace::{self, Kind};
use crate::nn::{CfgRescale, euler_step, guide, intermediate};

/// Whoever watches the steps of pictures that are made together.
pub(super) struct Watch<'a> {
    pub(super) observer: &'a mut dyn StepObserver,
    /// Which picture of the request is the first of them.
    pub(super) first_image: usize,
    pub(super) total_steps: usize,
    pub(super) decode: &'a dyn Fn(&Tensor) -> Result<Picture, ModelError>,
}

impl Watch<'_> {
    /// After `step` steps of picture `index` of them. `predicted` makes the clean latents as
    /// far as they can be told now; it is asked only if somebody wants to see them.
    fn step(
        &mut self,
        index: usize,
        step: usize,
        predicted: impl FnOnce() -> TensorResult<Tensor>,
    ) -> Result<(), ModelError> {
        let image = self.first_image + index;
        let progress = StepProgress { image, step, total_steps: self.total_steps };
        let unfinished = (1..self.total_steps).contains(&step);
        if unfinished && self.observer.wants_preview(progress) {
            match (self.decode)(&predicted()?) {
                Ok(preview) => self.observer.on_preview(progress, preview),
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

/// What one picture starts from. All (1, tokens, numbers).
pub(super) struct InitialLatents {
    /// Of the picture, or the layers, being made.
    pub(super) latents: Tensor,
    /// Of the reference pictures.
    pub(super) references: Option<Tensor>,
    /// What is known of the picture.
    pub(super) known: Option<Known>,
}

/// A picture of which a part is kept. All (1, tokens, numbers).
pub(super) struct Known {
    /// The picture.
    pub(super) clean: Tensor,
    /// What it is covered with.
    pub(super) noise: Tensor,
    /// 1 where it is made anew, 0 where it is kept.
    pub(super) mask: Tensor,
}

impl Known {
    /// `latents` where the picture is made anew, elsewhere the picture as it is at
    /// noise level `sigma`.
    fn keep(&self, latents: &Tensor, sigma: f32) -> TensorResult<Tensor> {
        let kept = noised(&self.clean, &self.noise, sigma)?;
        (self.mask.affine(-1.0, 1.0)? * kept)? + (&self.mask * latents)?
    }
}

/// `clean` at noise level `sigma`: σ · noise + (1 − σ) · clean.
///
/// Source: diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler.scale_noise`.
pub(super) fn noised(clean: &Tensor, noise: &Tensor, sigma: f32) -> TensorResult<Tensor> {
    let sigma = f64::from(sigma);
    (noise * sigma)? + (clean * (1.0 - sigma))?
}

/// Whereto the steps lead, and on which way.
#[derive(Clone, Copy)]
pub(super) struct StepInputs<'a> {
    pub(super) guidance: &'a Guidance,
    pub(super) cfg_rescale: CfgRescale,
    pub(super) modulations: &'a ModulationTable,
    /// From which likeness on a step reuses what an earlier one computed.
    pub(super) cache_threshold: Option<CacheThreshold>,
    /// With a threshold, pictures decide for themselves, and so are never joined.
    pub(super) joining: Joining,
}

/// All that stays the same over the steps and the pictures of a request.
pub(super) struct Denoising<'a> {
    transformer: &'a Transformer,
    step_inputs: StepInputs<'a>,
    schedule: &'a Schedule,
    /// Each takes a pass: the prompt and the negative one, or both at once.
    prompts: Vec<PassPrompt>,
}

/// The text of a pass.
struct PassPrompt {
    /// (prompts, tokens, text width)
    embeds: Tensor,
    positions: TokenPositions,
}

/// A picture between two steps.
pub(super) struct Unfinished {
    pub(super) latents: Tensor,
    references: Option<Tensor>,
    pub(super) known: Option<Known>,
    /// One for each prompt, or none.
    caches: Vec<StepCache>,
    sums: StepSums,
}

impl Unfinished {
    /// What the transformer looks at: (1, tokens, numbers).
    fn tokens(&self) -> TensorResult<Tensor> {
        let _span = trace::span(Kind::Copy, "latents beside references");
        match &self.references {
            Some(references) => Tensor::cat(&[&self.latents, references], 1),
            None => Ok(self.latents.clone()),
        }
    }
}

/// Pictures after their last step.
pub(super) struct Denoised {
    /// Of each: (1, tokens, numbers).
    pub(super) latents: Vec<Tensor>,
    /// What the step cache saved.
    pub(super) blocks: BlockCount,
}

impl<'a> Denoising<'a> {
    pub(super) fn new(
        transformer: &'a Transformer,
        mut step_inputs: StepInputs<'a>,
        grids: &[Grid],
        schedule: &'a Schedule,
    ) -> TensorResult<Self> {
        if step_inputs.cache_threshold.is_some() {
            step_inputs.joining = Joining::Separate;
        }
        let Guidance { positive, negative, .. } = step_inputs.guidance;
        let mut embeds: Vec<Tensor> =
            std::iter::once(positive).chain(negative).map(|prompt| prompt.embeds.clone()).collect();
        let are_alike = embeds.iter().all(|other| other.dims() == embeds[0].dims());
        if step_inputs.joining == Joining::Joined && are_alike {
            embeds = vec![Tensor::cat(&embeds, 0)?];
        }
        let prompt = |embeds: Tensor| {
            let positions = transformer.positions(grids, embeds.dim(1)?)?;
            Ok(PassPrompt { embeds, positions })
        };
        let prompts = embeds.into_iter().map(prompt).collect::<TensorResult<_>>()?;
        Ok(Self { transformer, step_inputs, schedule, prompts })
    }

    /// A picture before its first step.
    pub(super) fn begin(&self, start: InitialLatents) -> Unfinished {
        let InitialLatents { latents, references, known } = start;
        let cache = |threshold| self.prompts.iter().map(move |_| StepCache::new(threshold));
        let caches = self.step_inputs.cache_threshold.into_iter().flat_map(cache).collect();
        Unfinished { latents, references, known, caches, sums: StepSums::default() }
    }

    /// Follows the schedule from each of `starts` to latents.
    pub(super) fn run(
        &self,
        starts: Vec<InitialLatents>,
        watch: &mut Watch,
    ) -> Result<Denoised, ModelError> {
        let begin = |start| self.begin(start);
        let mut pictures: Vec<Unfinished> = starts.into_iter().map(begin).collect();
        for (index, picture) in pictures.iter().enumerate() {
            watch.step(index, 0, || Ok(picture.latents.clone()))?;
        }
        for step in 0..self.schedule.steps() {
            let _span = trace::numbered("step", step);
            let flows = self.predict(&mut pictures, step)?;
            for (index, (picture, flow)) in pictures.iter_mut().zip(flows).enumerate() {
                let Unfinished { latents, known, sums, .. } = picture;
                let next = self.advance(latents, &flow, known.as_ref(), step)?;
                let predicted = || {
                    // From here straight on to σ = 0.
                    let clean = euler_step(latents, &flow, -self.schedule.sigmas[step])?;
                    known.as_ref().map_or(Ok(clean.clone()), |known| known.keep(&clean, 0.0))
                };
                sums.note(&next)?;
                intermediate::note("step", &next)?;
                watch.step(index, step + 1, predicted)?;
                *latents = next;
            }
        }
        let mut blocks = BlockCount::default();
        for cache in pictures.iter().flat_map(|picture| &picture.caches) {
            blocks += cache.blocks(self.transformer.config().num_layers);
        }
        let finished = |Unfinished { latents, sums, .. }: Unfinished| {
            sums.expect_finite("transformer", latents.dtype()).map(|()| latents)
        };
        let latents = pictures.into_iter().map(finished).collect::<Result<_, _>>()?;
        Ok(Denoised { latents, blocks })
    }

    /// The latents after step `step`.
    pub(super) fn advance(
        &self,
        latents: &Tensor,
        flow: &Tensor,
        known: Option<&Known>,
        step: usize,
    ) -> TensorResult<Tensor> {
        let next = euler_step(latents, flow, self.schedule.sigma_change(step))?;
        known.map_or(Ok(next.clone()), |known| known.keep(&next, self.schedule.sigmas[step + 1]))
    }

    /// The flow at the tokens of each picture being made, with guidance.
    pub(super) fn predict(
        &self,
        pictures: &mut [Unfinished],
        step: usize,
    ) -> TensorResult<Vec<Tensor>> {
        let tokens = pictures.iter().map(Unfinished::tokens).collect::<TensorResult<Vec<_>>>()?;
        match self.step_inputs.joining {
            Joining::Separate => self.predict_separately(pictures, &tokens, step),
            Joining::Joined => self.predict_joined(pictures, &tokens, step),
        }
    }

    /// Each picture, and each prompt, in a pass of its own.
    fn predict_separately(
        &self,
        pictures: &mut [Unfinished],
        tokens: &[Tensor],
        step: usize,
    ) -> TensorResult<Vec<Tensor>> {
        let mut inputs = Vec::with_capacity(pictures.len());
        for (picture, latents) in pictures.iter_mut().zip(tokens) {
            let (read, caches) = (picture.latents.dim(1)?, picture.caches.as_mut_slice());
            inputs.push(PassInputs { latents, read, prompts: self.prompts(), caches });
        }
        let modulation = self.step_inputs.modulations.at(step);
        let flows = self.transformer.forward_each(inputs, modulation)?;
        flows.chunks(self.prompts.len()).map(|flows| self.guided(flows)).collect()
    }

    /// All pictures in one pass, with both prompts if they are equally long.
    fn predict_joined(
        &self,
        pictures: &[Unfinished],
        tokens: &[Tensor],
        step: usize,
    ) -> TensorResult<Vec<Tensor>> {
        let [first, ..] = pictures else { return Ok(Vec::new()) };
        let (latents, read) = (Tensor::cat(tokens, 0)?, first.latents.dim(1)?);
        let prompts = self.prompts();
        let inputs = vec![PassInputs { latents: &latents, read, prompts, caches: &mut [] }];
        let modulation = self.step_inputs.modulations.at(step);
        let flows = Tensor::cat(&self.transformer.forward_each(inputs, modulation)?, 0)?;
        // All pictures with the one prompt, then with the other.
        let guided = |index| {
            let of_picture = (index..flows.dim(0)?).step_by(pictures.len());
            let of_picture = of_picture.map(|entry| flows.narrow(0, entry, 1));
            self.guided(&of_picture.collect::<TensorResult<Vec<_>>>()?)
        };
        (0..pictures.len()).map(guided).collect()
    }

    fn prompts(&self) -> Vec<PromptTokens<'_>> {
        let prompts = self.prompts.iter();
        prompts.map(|PassPrompt { embeds, positions }| PromptTokens { embeds, positions }).collect()
    }

    /// One flow of a picture's two, of the prompt and of the negative one; or the only one.
    fn guided(&self, flows: &[Tensor]) -> TensorResult<Tensor> {
        let StepInputs { guidance, cfg_rescale, .. } = self.step_inputs;
        match flows {
            [conditional, unconditional] => {
                guide(conditional, unconditional, guidance.scale, cfg_rescale)
            }
            [flow] => Ok(flow.clone()),
            _ => candle_core::bail!("{} flows for a picture", flows.len()),
        }
    }
}
