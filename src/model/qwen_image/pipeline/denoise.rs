//! Noise → latents: the steps of one picture.

use candle_core::{Result as TensorResult, Tensor};

use super::conditioning::{Conditioning, Guidance};
use super::observe;
use crate::domain::Picture;
use crate::model::components::finite::StepSums;
use crate::model::components::flow_match::Schedule;
use crate::model::qwen_image::modulation::ModulationTable;
use crate::model::qwen_image::positions::Grid;
use crate::model::qwen_image::transformer::{PromptTokens, TokenPositions, Transformer};
use crate::model::{ModelError, StepObserver, StepProgress};
use crate::nn::trace::{self, Kind};
use crate::nn::{CfgRescale, euler_step, guide, intermediate};

/// Whoever watches the steps of one picture.
pub(super) struct Watch<'a> {
    pub(super) observer: &'a mut dyn StepObserver,
    pub(super) image: usize,
    pub(super) total_steps: usize,
    pub(super) decode: &'a dyn Fn(&Tensor) -> Result<Picture, ModelError>,
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

/// Whereto the steps lead.
#[derive(Clone, Copy)]
pub(super) struct StepInputs<'a> {
    pub(super) guidance: &'a Guidance,
    pub(super) cfg_rescale: CfgRescale,
    pub(super) modulations: &'a ModulationTable,
}

/// All that stays the same over the steps and the pictures of a request.
pub(super) struct Denoising<'a> {
    transformer: &'a Transformer,
    step_inputs: StepInputs<'a>,
    schedule: &'a Schedule,
    positions: TokenPositions,
    negative_positions: Option<TokenPositions>,
}

impl<'a> Denoising<'a> {
    pub(super) fn new(
        transformer: &'a Transformer,
        step_inputs: StepInputs<'a>,
        grids: &[Grid],
        schedule: &'a Schedule,
    ) -> TensorResult<Self> {
        let positions = |prompt: &Conditioning| transformer.positions(grids, prompt.embeds.dim(1)?);
        Ok(Self {
            transformer,
            step_inputs,
            schedule,
            positions: positions(&step_inputs.guidance.positive)?,
            negative_positions: step_inputs
                .guidance
                .negative
                .as_ref()
                .map(positions)
                .transpose()?,
        })
    }

    /// Follows the schedule from `start` to latents, (1, tokens, numbers).
    pub(super) fn run(
        &self,
        start: InitialLatents,
        watch: &mut Watch,
    ) -> Result<Tensor, ModelError> {
        let InitialLatents { mut latents, references, known } = start;
        watch.step(0, || Ok(latents.clone()))?;
        let mut sums = StepSums::default();
        for step in 0..self.schedule.steps() {
            let _span = trace::numbered("step", step);
            let flow = self.predict(&latents, references.as_ref(), step)?;
            let next = self.advance(&latents, &flow, known.as_ref(), step)?;
            let predicted = || {
                // From here straight on to σ = 0.
                let clean = euler_step(&latents, &flow, -self.schedule.sigmas[step])?;
                known.as_ref().map_or(Ok(clean.clone()), |known| known.keep(&clean, 0.0))
            };
            sums.note(&next)?;
            intermediate::note("step", &next)?;
            watch.step(step + 1, predicted)?;
            latents = next;
        }
        sums.expect_finite("transformer", latents.dtype())?;
        Ok(latents)
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

    /// The flow at the tokens of the picture being made, with guidance.
    pub(super) fn predict(
        &self,
        latents: &Tensor,
        references: Option<&Tensor>,
        step: usize,
    ) -> TensorResult<Tensor> {
        let copy = trace::span(Kind::Copy, "latents beside references");
        let tokens = match references {
            Some(references) => Tensor::cat(&[latents, references], 1)?,
            None => latents.clone(),
        };
        drop(copy);
        let tokens = (&tokens, latents.dim(1)?);
        let StepInputs { guidance, cfg_rescale, modulations } = self.step_inputs;
        let modulation = modulations.at(step);
        let positive =
            PromptTokens { embeds: &guidance.positive.embeds, positions: &self.positions };
        match (&guidance.negative, &self.negative_positions) {
            (Some(negative), Some(positions)) => {
                let negative = PromptTokens { embeds: &negative.embeds, positions };
                let prompts = [positive, negative];
                let flows = self.transformer.forward_each(tokens, prompts, modulation)?;
                let [conditional, unconditional] = flows;
                guide(&conditional, &unconditional, guidance.scale, cfg_rescale)
            }
            _ => {
                let [flow] = self.transformer.forward_each(tokens, [positive], modulation)?;
                Ok(flow)
            }
        }
    }
}
