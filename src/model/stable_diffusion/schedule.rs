//! The way from noise to picture: timesteps, noise levels, and the steps.
//!
//! A step is a few weights in 64-bit arithmetic; tensors come in only where
//! [`Walk::step`] weighs them.
//!
//! Sources: diffusers 0.42.1, `step` of `DDIMScheduler`, `PNDMScheduler`,
//! `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`.

use candle_core::{Result as TensorResult, Tensor};

use super::scheduler::{Method, Prediction, SchedulerConfig, Spacing, whole};
use crate::nn::clip;

/// The timesteps of one picture, from noise to picture.
#[derive(Debug, Clone)]
pub struct Schedule<'a> {
    pub(super) config: &'a SchedulerConfig,
    pub(super) timesteps: Vec<f64>,
    /// Noise level before each step, and after the last.
    pub(super) sigmas: Vec<f64>,
    /// Training timesteps between two of DDIM's or PNDM's.
    pub(super) stride: usize,
    /// The first timestep that is visited.
    pub(super) start: usize,
}

impl Schedule<'_> {
    /// The same schedule without its first `count` timesteps: that of a picture
    /// which is not made from noise alone.
    #[must_use]
    pub fn without_first(self, count: usize) -> Self {
        Self { start: count.min(self.timesteps.len()), ..self }
    }

    /// The timesteps to visit.
    #[must_use]
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps[self.start..]
    }

    /// What the first noise is multiplied by.
    #[must_use]
    pub fn initial_scale(&self) -> f64 {
        if !self.has_levels() {
            return 1.0;
        }
        let largest = self.sigmas.iter().copied().fold(0.0, f64::max);
        match self.config.spacing {
            Spacing::Linspace | Spacing::Trailing => largest,
            Spacing::Leading => largest.hypot(1.0),
        }
    }

    /// What the state before step `step` is multiplied by for the network.
    #[must_use]
    pub fn input_scale(&self, step: usize) -> f64 {
        if self.has_levels() { 1.0 / self.sigmas[self.start + step].hypot(1.0) } else { 1.0 }
    }

    /// What clean latents and noise are multiplied by, to start from their sum.
    #[must_use]
    pub fn start_weights(&self) -> (f64, f64) {
        if self.has_levels() {
            return (1.0, self.sigmas[self.start]);
        }
        let first = self.timesteps().first().copied().unwrap_or(0.0);
        let alpha = self.config.alpha_at(whole(first));
        (alpha.sqrt(), (1.0 - alpha).sqrt())
    }

    /// A walk along these timesteps.
    #[must_use]
    pub fn walk(&self) -> Walk<'_> {
        Walk { schedule: self, predictions: Vec::new(), first_state: None }
    }

    /// Euler's schedules are noise levels; the others mix by α.
    fn has_levels(&self) -> bool {
        matches!(self.config.method, Method::Euler | Method::EulerAncestral)
    }

    fn weights(&self, step: usize) -> StepWeights {
        let at = self.start + step;
        match self.config.method {
            Method::Ddim { clip } => {
                let timestep = whole(self.timesteps[at]);
                self.ddim_weights(timestep, timestep - self.stride as i64, clip)
            }
            Method::Pndm => {
                let (stride, timestep) = (self.stride as i64, whole(self.timesteps[at]));
                // The second step repeats the first with a better prediction.
                let from = if step == 1 { timestep + stride } else { timestep };
                self.pndm_weights(from, from - stride)
            }
            Method::Euler => self.euler_weights(at, self.sigmas[at + 1]),
            Method::EulerAncestral => {
                let (from, to) = (self.sigmas[at], self.sigmas[at + 1]);
                let up_squared = to * to * (from * from - to * to) / (from * from);
                let down = (to * to - up_squared).sqrt();
                StepWeights { noise: Some(up_squared.sqrt()), ..self.euler_weights(at, down) }
            }
        }
    }

    /// What makes the clean sample, and the noise, of state and prediction.
    fn clean_and_noise(&self, alpha: f64) -> (Mix, Mix) {
        let (root, other) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let mix = |state, prediction| Mix { state, prediction };
        match self.config.prediction {
            Prediction::Epsilon => (mix(1.0 / root, -other / root), mix(0.0, 1.0)),
            Prediction::Velocity => (mix(root, -other), mix(other, root)),
            Prediction::Sample => (mix(0.0, 1.0), mix(1.0 / other, -root / other)),
        }
    }

    /// Formula 12 of the DDIM paper (arXiv 2010.02502) with η = 0.
    fn ddim_weights(&self, from: i64, to: i64, clip: Option<f64>) -> StepWeights {
        let (clean, noise) = self.clean_and_noise(self.config.alpha_at(from));
        let alpha = self.config.alpha_at(to);
        let other = (1.0 - alpha).sqrt();
        let next = Mix { state: other * noise.state, prediction: other * noise.prediction };
        StepWeights { clean, clip, next, next_clean: alpha.sqrt(), noise: None }
    }

    /// Formula 9 of the PNDM paper (arXiv 2202.09778).
    fn pndm_weights(&self, from: i64, to: i64) -> StepWeights {
        let (alpha, next_alpha) = (self.config.alpha_at(from), self.config.alpha_at(to));
        let (clean, noise) = self.clean_and_noise(alpha);
        let denominator =
            alpha * (1.0 - next_alpha).sqrt() + (alpha * (1.0 - alpha) * next_alpha).sqrt();
        let of_noise = -(next_alpha - alpha) / denominator;
        let next = Mix {
            state: (next_alpha / alpha).sqrt() + of_noise * noise.state,
            prediction: of_noise * noise.prediction,
        };
        StepWeights { clean, clip: None, next, next_clean: 0.0, noise: None }
    }

    /// Straight from the level before step `at` to the level `to`.
    fn euler_weights(&self, at: usize, to: f64) -> StepWeights {
        let sigma = self.sigmas[at];
        let clean = match self.config.prediction {
            Prediction::Epsilon => Mix { state: 1.0, prediction: -sigma },
            Prediction::Velocity => {
                let square = sigma * sigma + 1.0;
                Mix { state: 1.0 / square, prediction: -sigma / square.sqrt() }
            }
            Prediction::Sample => Mix { state: 0.0, prediction: 1.0 },
        };
        let change = (to - sigma) / sigma;
        let next = Mix { state: 1.0 + change, prediction: 0.0 };
        StepWeights { clean, clip: None, next, next_clean: -change, noise: None }
    }
}

/// state · weight + prediction · weight.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mix {
    state: f64,
    prediction: f64,
}

impl Mix {
    fn of(self, state: &Tensor, prediction: &Tensor) -> TensorResult<Tensor> {
        (state * self.state)? + (prediction * self.prediction)?
    }
}

/// One step in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct StepWeights {
    /// Makes the predicted clean sample.
    clean: Mix,
    /// Which is kept within ± this.
    clip: Option<f64>,
    /// Makes the next state, together with …
    next: Mix,
    /// … this share of the clean sample, and …
    next_clean: f64,
    /// … this much noise, which is drawn even where it is nought.
    noise: Option<f64>,
}

/// What a step arrives at.
pub struct Step {
    /// The next state.
    pub next: Tensor,
    /// The clean sample, as far as it can be told now.
    pub clean: Tensor,
}

/// The state of a method along a schedule.
pub struct Walk<'a> {
    schedule: &'a Schedule<'a>,
    /// PNDM's memory: up to four predictions, the newest last.
    predictions: Vec<Tensor>,
    /// Where PNDM's first step started from.
    first_state: Option<Tensor>,
}

impl Walk<'_> {
    /// Takes step `step`; steps must be taken in order, from 0.
    ///
    /// `state` and `prediction` are of one shape, float32; `noise` draws more of
    /// that shape.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn step(
        &mut self,
        step: usize,
        state: &Tensor,
        prediction: &Tensor,
        noise: &mut dyn FnMut() -> TensorResult<Tensor>,
    ) -> TensorResult<Step> {
        let weights = self.schedule.weights(step);
        let (state, prediction) = match self.schedule.config.method {
            Method::Pndm => self.blend(step, state, prediction)?,
            Method::Ddim { .. } | Method::Euler | Method::EulerAncestral => {
                (state.clone(), prediction.clone())
            }
        };
        let mut clean = weights.clean.of(&state, &prediction)?;
        if let Some(range) = weights.clip {
            clean = clip(&clean, -range, range)?;
        }
        let mut next = weights.next.of(&state, &prediction)?;
        if weights.next_clean != 0.0 {
            next = (next + (&clean * weights.next_clean)?)?;
        }
        if let Some(amount) = weights.noise {
            next = (next + (noise()? * amount)?)?;
        }
        Ok(Step { next, clean })
    }

    /// The state to step from, and the prediction that the memory makes better.
    ///
    /// Source: `PNDMScheduler.step_plms`.
    fn blend(
        &mut self,
        step: usize,
        state: &Tensor,
        prediction: &Tensor,
    ) -> TensorResult<(Tensor, Tensor)> {
        if step == 1 {
            let first = self.predictions.last().unwrap_or(prediction);
            let mean = ((prediction + first)? / 2.0)?;
            return Ok((self.first_state.take().unwrap_or_else(|| state.clone()), mean));
        }
        if step == 0 {
            self.first_state = Some(state.clone());
        }
        self.predictions.push(prediction.clone());
        if self.predictions.len() > 4 {
            self.predictions.remove(0);
        }
        // Adams-Bashforth, newest first.
        let weights: &[f64] = match self.predictions.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut blended = prediction.zeros_like()?;
        for (weight, prediction) in weights.iter().zip(self.predictions.iter().rev()) {
            blended = (blended + (prediction * *weight)?)?;
        }
        Ok((state.clone(), blended))
    }
}
