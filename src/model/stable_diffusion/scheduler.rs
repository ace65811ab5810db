//! The noise schedules: DDIM, PNDM (its linear multi-step half, as Stable
//! Diffusion uses it), Euler and ancestral Euler.
//!
//! Plain 64-bit arithmetic; tensors come in only where [`Walk::step`] weighs
//! them. The reference holds its tables in 32 bits, and differs by that rounding.
//!
//! Sources: diffusers 0.42.1, `DDIMScheduler`, `PNDMScheduler`,
//! `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`.

use candle_core::{Result as TensorResult, Tensor};

use crate::checkpoint::{CheckpointError, ConfigFile, Snapshot};
use crate::domain::Steps;

/// Keys that some of the four classes write and the others never read.
const KEYS_OF_OTHERS: &[&str] = &[
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "final_sigmas_type",
    "interpolation_type",
    "sample_max_value",
    "set_alpha_to_one",
    "skip_prk_steps",
    "thresholding",
    "timestep_type",
    "use_karras_sigmas",
];

/// The scheduler classes that are served, in the order of [`Method`].
pub const CLASSES: &[&str] = &[
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
];

/// How one state follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// Denoising diffusion implicit models, without noise in between.
    Ddim {
        /// The predicted clean sample is kept within ± this.
        clip: Option<f64>,
    },
    /// Pseudo linear multi-step: four predictions are blended.
    Pndm,
    /// Euler steps down the noise levels.
    Euler,
    /// Euler steps below the next level, and noise up to it.
    EulerAncestral,
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// √α · noise − √(1 − α) · clean sample.
    Velocity,
    /// The clean sample.
    Sample,
}

/// Which of the training's timesteps are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly from the first to the last.
    Linspace,
    /// Multiples of a whole stride, from zero.
    Leading,
    /// Strides counted down from the last.
    Trailing,
}

/// `scheduler/scheduler_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    method: Method,
    prediction: Prediction,
    spacing: Spacing,
    steps_offset: usize,
    /// α at each training timestep: the share of the clean picture's variance.
    alphas: Vec<f64>,
    /// α before the first timestep.
    final_alpha: f64,
    /// Noise level after the last Euler step.
    final_sigma: f64,
}

impl SchedulerConfig {
    /// Reads the file as the configuration of `class`, one of [`CLASSES`].
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot, class: &str) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("scheduler/scheduler_config.json")?;
        let alphas = read_alphas(&mut file);
        let first_alpha = alphas.first().copied().unwrap_or(1.0);
        let is_euler = class.starts_with("Euler");
        let spacing = if is_euler { "linspace" } else { "leading" };
        let spacing = choose(
            &mut file,
            "timestep_spacing",
            spacing,
            &[
                ("linspace", Spacing::Linspace),
                ("leading", Spacing::Leading),
                ("trailing", Spacing::Trailing),
            ],
        );
        let predictions: &[_] = &[
            ("epsilon", Prediction::Epsilon),
            ("v_prediction", Prediction::Velocity),
            ("sample", Prediction::Sample),
        ];
        let known = match class {
            "DDIMScheduler" | "EulerDiscreteScheduler" => predictions,
            _ => &predictions[..2],
        };
        let prediction = choose(&mut file, "prediction_type", "epsilon", known);
        let mut final_sigma = 0.0;
        let method = match class {
            "DDIMScheduler" => read_ddim(&mut file),
            "PNDMScheduler" => read_pndm(&mut file),
            "EulerAncestralDiscreteScheduler" => Method::EulerAncestral,
            "EulerDiscreteScheduler" => {
                final_sigma = read_euler(&mut file, sigma_of(first_alpha));
                Method::Euler
            }
            other => {
                file.fault(format!("_class_name = \"{other}\" is not supported"));
                Method::Euler
            }
        };
        let alpha_to_one = matches!(method, Method::Ddim { .. });
        let alpha_to_one = file.or("set_alpha_to_one", alpha_to_one);
        let config = Self {
            method,
            prediction,
            spacing,
            steps_offset: file.or("steps_offset", 0),
            final_alpha: if alpha_to_one { 1.0 } else { first_alpha },
            final_sigma,
            alphas,
        };
        file.only("rescale_betas_zero_snr", false);
        file.inert(KEYS_OF_OTHERS);
        file.finish()?;
        Ok(config)
    }

    /// Whether a checkpoint with this schedule was distilled to a few steps: the
    /// Turbo models are those whose Euler steps are counted from the end and
    /// that predict noise.
    #[must_use]
    pub fn is_few_step(&self) -> bool {
        matches!(self.method, Method::Euler | Method::EulerAncestral)
            && self.spacing == Spacing::Trailing
            && self.prediction == Prediction::Epsilon
    }

    /// The schedule of `steps` steps; PNDM visits one timestep more.
    #[must_use]
    pub fn schedule(&self, steps: usize) -> Schedule<'_> {
        let train = self.alphas.len();
        let mut timesteps = spaced(self.spacing, train, steps);
        if self.spacing == Spacing::Leading {
            timesteps.iter_mut().for_each(|timestep| *timestep += self.steps_offset as f64);
        }
        let is_euler = matches!(self.method, Method::Euler | Method::EulerAncestral);
        if self.spacing == Spacing::Linspace && !is_euler {
            timesteps.iter_mut().for_each(|timestep| *timestep = timestep.round_ties_even());
        }
        timesteps.reverse(); // from noise to picture
        if self.method == Method::Pndm && timesteps.len() > 1 {
            // The second timestep is visited twice: that starts the multi-step.
            timesteps.insert(1, timesteps[1]);
        }
        let mut sigmas: Vec<f64> = timesteps.iter().map(|at| self.sigma_at(*at)).collect();
        sigmas.push(self.final_sigma);
        Schedule { config: self, timesteps, sigmas, stride: train / steps, start: 0 }
    }

    /// The noise level at a timestep, between two of the table's on a line.
    fn sigma_at(&self, timestep: f64) -> f64 {
        let below = index(timestep.floor());
        let share = timestep - timestep.floor();
        let level = |at: usize| sigma_of(self.alpha_at(at as i64));
        level(below) * (1.0 - share) + level(below + 1) * share
    }

    /// α at `timestep`; the final one before the first.
    fn alpha_at(&self, timestep: i64) -> f64 {
        match usize::try_from(timestep) {
            Ok(at) => self.alphas[at.min(self.alphas.len() - 1)],
            Err(_) => self.final_alpha,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "timesteps are small")]
fn index(timestep: f64) -> usize {
    timestep as usize
}

#[expect(clippy::cast_possible_truncation, reason = "timesteps are small")]
fn whole(timestep: f64) -> i64 {
    timestep as i64
}

fn sigma_of(alpha: f64) -> f64 {
    ((1.0 - alpha) / alpha).sqrt()
}

/// Takes `key`, which must be one of the `known` words.
fn choose<T: Copy>(file: &mut ConfigFile, key: &str, default: &str, known: &[(&str, T)]) -> T {
    let word: String = file.or(key, default.to_owned());
    match known.iter().find(|(name, _)| *name == word) {
        Some((_, value)) => *value,
        None => {
            let words: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            let words = words.join(", ");
            file.fault(format!("{key} = \"{word}\" is not supported, only {words}"));
            known[0].1
        }
    }
}

/// How the noise that training adds grows from timestep to timestep.
#[derive(Debug, Clone, Copy)]
enum Betas {
    /// Evenly.
    Linear,
    /// Its root grows evenly.
    Scaled,
    /// By a squared cosine.
    Cosine,
}

/// Reads how noise was added in training.
fn read_alphas(file: &mut ConfigFile) -> Vec<f64> {
    let count: usize = file.or("num_train_timesteps", 1000);
    if !(Steps::MAX..=1_000_000).contains(&count) {
        file.fault(format!("num_train_timesteps = {count} is not between {} and 10⁶", Steps::MAX));
        return vec![1.0; Steps::MAX];
    }
    if file.has("trained_betas") {
        file.fault("trained_betas is not supported");
        file.inert(&["trained_betas"]);
    }
    let start: f64 = file.or("beta_start", 0.0001);
    let end: f64 = file.or("beta_end", 0.02);
    let formulas = [
        ("linear", Betas::Linear),
        ("scaled_linear", Betas::Scaled),
        ("squaredcos_cap_v2", Betas::Cosine),
    ];
    let betas = match choose(file, "beta_schedule", "linear", &formulas) {
        Betas::Linear => linspace(start, end, count),
        Betas::Scaled => {
            let roots = linspace(start.sqrt(), end.sqrt(), count);
            roots.iter().map(|root| root * root).collect()
        }
        Betas::Cosine => squared_cosine(count),
    };
    let mut product = 1.0;
    let alphas = betas.iter().map(|beta| {
        product *= 1.0 - beta;
        product
    });
    alphas.collect()
}

/// `count` numbers evenly from `start` to `end`.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = if count > 1 { (end - start) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(|at| start + step * at as f64).collect()
}

/// Source: `betas_for_alpha_bar`.
fn squared_cosine(count: usize) -> Vec<f64> {
    let alpha = |share: f64| ((share + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let share = |at: usize| at as f64 / count as f64;
    (0..count).map(|at| (1.0 - alpha(share(at + 1)) / alpha(share(at))).min(0.999)).collect()
}

fn read_ddim(file: &mut ConfigFile) -> Method {
    file.only("thresholding", false);
    let range = file.or("clip_sample_range", 1.0);
    Method::Ddim { clip: file.or("clip_sample", true).then_some(range) }
}

fn read_pndm(file: &mut ConfigFile) -> Method {
    if !file.or("skip_prk_steps", false) {
        file.fault("skip_prk_steps = false is not supported, only true is");
    }
    Method::Pndm
}

/// Returns the noise level after the last step.
fn read_euler(file: &mut ConfigFile, smallest: f64) -> f64 {
    for switch in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] {
        file.only(switch, false);
    }
    file.only("interpolation_type", "linear");
    file.only("timestep_type", "discrete");
    choose(file, "final_sigmas_type", "zero", &[("zero", 0.0), ("sigma_min", smallest)])
}

/// The timesteps in rising order, as numpy spaces them.
fn spaced(spacing: Spacing, train: usize, steps: usize) -> Vec<f64> {
    match spacing {
        Spacing::Linspace => linspace(0.0, (train - 1) as f64, steps),
        Spacing::Leading => (0..steps).map(|at| (at * (train / steps)) as f64).collect(),
        Spacing::Trailing => {
            let stride = train as f64 / steps as f64;
            // numpy's arange: rounding may make it one longer than `steps`.
            let count = index((train as f64 / stride).ceil());
            let downwards = (0..count).rev().map(|at| train as f64 - at as f64 * stride);
            downwards.map(|timestep| timestep.round_ties_even() - 1.0).collect()
        }
    }
}

/// The timesteps of one picture, from noise to picture.
#[derive(Debug, Clone)]
pub struct Schedule<'a> {
    config: &'a SchedulerConfig,
    timesteps: Vec<f64>,
    /// Noise level before each step, and after the last.
    sigmas: Vec<f64>,
    /// Training timesteps between two of DDIM's or PNDM's.
    stride: usize,
    /// The first timestep that is visited.
    start: usize,
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
            clean = clean.clamp(-range, range)?;
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
