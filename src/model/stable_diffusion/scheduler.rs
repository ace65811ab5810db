//! The noise schedules: DDIM, PNDM (its linear multi-step half, as Stable
//! Diffusion uses it), Euler and ancestral Euler.
//!
//! Here is what `scheduler_config.json` may say, and the tables that follow from
//! it; `schedule` walks them. Plain 64-bit arithmetic: the reference
//! holds its tables in 32 bits, and differs by that rounding.
//!
//! Sources: diffusers 0.42.1, `DDIMScheduler`, `PNDMScheduler`,
//! `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`.

use super::schedule::Schedule;
use crate::checkpoint::{CheckpointError, ConfigFile, Snapshot};
use crate::domain::Steps;

/// Keys that some of the four classes write and the others never read: a scheduler
/// that was made from another's configuration keeps them.
const KEYS_OF_OTHERS: &[&str] = &[
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "final_sigmas_type",
    "interpolation_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "sigma_max", // act with the switches alone that are refused
    "sigma_min",
    "skip_prk_steps",
    "thresholding",
    "timestep_type",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
];

/// The scheduler classes that are served, in the order of `Method`.
pub const CLASSES: &[&str] = &[
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
];

/// How one state follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Method {
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
    pub(super) method: Method,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
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
            steps_offset: file.count_or("steps_offset", 0, 0..=alphas.len()),
            final_alpha: if alpha_to_one { 1.0 } else { first_alpha },
            final_sigma,
            alphas,
        };
        if class != "PNDMScheduler" {
            file.only("rescale_betas_zero_snr", false);
        }
        file.inert(KEYS_OF_OTHERS);
        file.finish()?;
        Ok(config)
    }

    /// The same as `StableDiffusionPipeline` corrects it, which takes the values of
    /// old files for mistakes.
    ///
    /// Source: diffusers 0.42.1, `StableDiffusionPipeline.__init__`.
    #[must_use]
    pub fn as_the_plain_pipeline_has_it(mut self) -> Self {
        if let Method::Ddim { clip } = &mut self.method {
            *clip = None;
        }
        self.steps_offset = 1;
        self
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
    pub(super) fn alpha_at(&self, timestep: i64) -> f64 {
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
pub(super) fn whole(timestep: f64) -> i64 {
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
    let start = file.number_or("beta_start", 0.0001, 0.0..=0.999);
    let end = file.number_or("beta_end", 0.02, 0.0..=0.999);
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
    let range = file.number_or("clip_sample_range", 1.0, 1e-6..=1e6);
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
