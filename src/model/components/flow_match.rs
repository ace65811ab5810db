//! The noise schedule: flow matching, Euler steps, with the shifts of
//! `scheduler/scheduler_config.json`.
//!
//! Plain 32-bit arithmetic in the reference's order (it computes with numpy
//! float32 arrays); no tensors.
//!
//! Source: diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler.set_timesteps`
//! and `calculate_shift`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the reference rounds each of these doubles to a float"
)]

use crate::checkpoint::{CheckpointError, Snapshot};

/// The most tokens that a shift may be given for.
const LONGEST_SEQUENCE: usize = 1_000_000_000;

/// `scheduler/scheduler_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Timesteps that noise level 1 stands for.
    pub num_train_timesteps: usize,
    /// How the levels are moved towards noise.
    pub shift: Shift,
    /// Noise level that the last step starts from.
    pub shift_terminal: Option<f64>,
}

/// How noise levels are moved.
#[derive(Debug, Clone, PartialEq)]
pub enum Shift {
    /// By a fixed factor.
    Static {
        /// The factor.
        shift: f64,
    },
    /// More for larger pictures: `mu` is linear in the number of tokens.
    Dynamic {
        /// What is done with `mu`.
        kind: TimeShift,
        /// `mu` at `base_image_seq_len` tokens.
        base_shift: f64,
        /// `mu` at `max_image_seq_len` tokens.
        max_shift: f64,
        /// See `base_shift`.
        base_image_seq_len: usize,
        /// See `max_shift`.
        max_image_seq_len: usize,
    },
}

/// What is done with `mu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeShift {
    /// σ ← eᵘ / (eᵘ + 1/σ − 1)
    Exponential,
    /// σ ← u / (u + 1/σ − 1)
    Linear,
}

impl SchedulerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming every value that is missing or not honoured.
    pub fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        let mut file = snapshot.config("scheduler/scheduler_config.json")?;
        for switch in [
            "invert_sigmas",
            "stochastic_sampling",
            "use_beta_sigmas",
            "use_exponential_sigmas",
            "use_karras_sigmas",
        ] {
            file.only(switch, false);
        }
        let static_shift = file.number_or("shift", 1.0, 1e-3..=1e3);
        let dynamic: bool = file.or("use_dynamic_shifting", false);
        let kind: String = file.or("time_shift_type", "exponential".to_owned());
        let kind = match kind.as_str() {
            "linear" => TimeShift::Linear,
            other => {
                if other != "exponential" {
                    file.fault(format!("time_shift_type = \"{other}\" is not supported"));
                }
                TimeShift::Exponential
            }
        };
        // Defaults: those of `calculate_shift` and of the class.
        let base_image_seq_len = file.count_or("base_image_seq_len", 256, 1..=LONGEST_SEQUENCE);
        let max_image_seq_len = file.count_or("max_image_seq_len", 4096, 1..=LONGEST_SEQUENCE);
        if dynamic && base_image_seq_len == max_image_seq_len {
            file.fault("base_image_seq_len and max_image_seq_len are equal");
        }
        let dynamic_shift = Shift::Dynamic {
            kind,
            base_shift: file.number_or("base_shift", 0.5, -50.0..=50.0),
            max_shift: file.number_or("max_shift", 1.15, -50.0..=50.0),
            base_image_seq_len,
            max_image_seq_len,
        };
        // Published as a number, null or false.
        let terminal: Option<serde_json::Value> = file.optional("shift_terminal");
        if let Some(other) =
            terminal.as_ref().filter(|value| !value.is_number() && **value != false)
        {
            file.fault(format!("shift_terminal = {other} is neither a number nor false"));
        }
        let terminal = terminal.and_then(|value| value.as_f64());
        if let Some(level) = terminal.filter(|level| !(0.0..1.0).contains(level)) {
            file.fault(format!("shift_terminal = {level} is not from 0 to below 1"));
        }
        let config = Self {
            num_train_timesteps: file.count_or("num_train_timesteps", 1000, 1..=1_000_000),
            shift: if dynamic { dynamic_shift } else { Shift::Static { shift: static_shift } },
            shift_terminal: terminal.filter(|terminal| *terminal != 0.0),
        };
        file.finish()?;
        Ok(config)
    }

    /// The same, whose levels are moved by the factor `shift` for pictures of every size,
    /// and not stretched at the end: what networks that were distilled to few steps are
    /// published with (as `base_shift` and `max_shift` of its logarithm).
    #[must_use]
    pub fn shifted_by(&self, shift: f64) -> Self {
        let kind = TimeShift::Exponential;
        let (base_shift, max_shift) = (shift.ln(), shift.ln());
        let (base_image_seq_len, max_image_seq_len) = (256, 8192);
        let shift =
            Shift::Dynamic { kind, base_shift, max_shift, base_image_seq_len, max_image_seq_len };
        Self { shift, shift_terminal: None, ..self.clone() }
    }

    /// The schedule of `steps` steps for a picture of `image_tokens` tokens
    /// (those of the picture being made; reference pictures do not count).
    #[must_use]
    pub fn schedule(&self, steps: usize, image_tokens: usize) -> Schedule {
        self.schedule_of_mu(steps, self.mu(image_tokens))
    }

    /// The schedule of `steps` steps where `mu` is known; without dynamic
    /// shifting it has no effect.
    #[must_use]
    pub fn schedule_of_mu(&self, steps: usize, mu: f64) -> Schedule {
        let mut sigmas = evenly_spaced(steps);
        match self.shift {
            Shift::Static { shift } => {
                let shift = shift as f32;
                for sigma in &mut sigmas {
                    *sigma = shift * *sigma / (1.0 + (shift - 1.0) * *sigma);
                }
            }
            Shift::Dynamic { kind, .. } => {
                let pull = match kind {
                    TimeShift::Exponential => mu.exp() as f32,
                    TimeShift::Linear => mu as f32,
                };
                for sigma in &mut sigmas {
                    *sigma = pull / (pull + (1.0 / *sigma - 1.0));
                }
            }
        }
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal as f32);
            // One step starts and ends at level 1: the reference divides zero by
            // zero here; there is nothing to stretch.
            if scale > 0.0 {
                sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
            }
        }
        let train_timesteps = self.num_train_timesteps as f32;
        let timesteps = sigmas.iter().map(|sigma| sigma * train_timesteps).collect();
        sigmas.push(0.0);
        Schedule { sigmas, timesteps, train_timesteps }
    }

    /// `mu` for `image_tokens`; 0 without dynamic shifting.
    fn mu(&self, image_tokens: usize) -> f64 {
        let Shift::Dynamic { base_shift, max_shift, base_image_seq_len, max_image_seq_len, .. } =
            self.shift
        else {
            return 0.0;
        };
        let (base, max) = (base_image_seq_len as f64, max_image_seq_len as f64);
        let slope = (max_shift - base_shift) / (max - base);
        let intercept = base_shift - slope * base;
        image_tokens as f64 * slope + intercept
    }
}

/// linspace(1, 1/steps, steps), in f64 and then rounded.
fn evenly_spaced(steps: usize) -> Vec<f32> {
    let last = 1.0 / steps as f64;
    let step = if steps > 1 { (last - 1.0) / (steps - 1) as f64 } else { 0.0 };
    (0..steps)
        .map(|index| {
            let exact =
                if index > 0 && index == steps - 1 { last } else { 1.0 + index as f64 * step };
            exact as f32
        })
        .collect()
}

/// How many of `steps` steps are left out where a picture is changed by
/// `strength` only.
///
/// Source: diffusers 0.42.1, `QwenImageImg2ImgPipeline.get_timesteps`.
#[must_use]
pub fn skipped_steps(steps: usize, strength: f64) -> usize {
    let wanted = (steps as f64 * strength).min(steps as f64);
    (steps as f64 - wanted).max(0.0) as usize
}

/// Noise levels from 1 down to 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Noise level before each step, and a final 0.
    pub sigmas: Vec<f32>,
    /// The level before each step, times `train_timesteps`.
    pub timesteps: Vec<f32>,
    /// The timestep of level 1.
    pub train_timesteps: f32,
}

impl Schedule {
    /// How many steps there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The same without its first `steps` steps.
    #[must_use]
    pub fn without_first(mut self, steps: usize) -> Self {
        self.timesteps.drain(..steps.min(self.timesteps.len()));
        self.sigmas.drain(..steps.min(self.sigmas.len() - 1));
        self
    }

    /// The noise level before each step as the transformer is told it.
    #[must_use]
    pub fn noise_levels(&self) -> Vec<f32> {
        self.timesteps.iter().map(|timestep| timestep / self.train_timesteps).collect()
    }

    /// The same, rounded as the reference pipelines do in 16 bits: first the
    /// timestep, then the level.
    ///
    /// Source: diffusers 0.42.1, `QwenImagePipeline.__call__`.
    #[must_use]
    pub fn rounded_noise_levels(&self, round: fn(f32) -> f32) -> Vec<f32> {
        let level = |timestep: &f32| round(round(*timestep) / self.train_timesteps);
        self.timesteps.iter().map(level).collect()
    }

    /// What the noise level changes by in step `index`: a negative number.
    #[must_use]
    pub fn sigma_change(&self, index: usize) -> f32 {
        self.sigmas[index + 1] - self.sigmas[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_of_a_request_moves_levels_of_all_sizes_alike_and_replaces_the_checkpoints() {
        let published = SchedulerConfig {
            num_train_timesteps: 1000,
            shift: Shift::Dynamic {
                kind: TimeShift::Exponential,
                base_shift: 0.5,
                max_shift: 0.9,
                base_image_seq_len: 256,
                max_image_seq_len: 8192,
            },
            shift_terminal: Some(0.02),
        };
        let fixed = SchedulerConfig { shift: Shift::Static { shift: 7.0 }, ..published.clone() };
        for config in [published, fixed] {
            for (steps, shift) in [(4, 3.0), (8, 3.0), (1, 3.0), (5, 1.0), (6, 0.4)] {
                let shifted = config.shifted_by(shift);
                for tokens in [16, 4096, 16_384] {
                    let schedule = shifted.schedule(steps, tokens);

                    // shift · sigma / (1 + (shift - 1) · sigma), from sigma 1 to 1 / steps.
                    assert_eq!(schedule.sigmas.len(), steps + 1);
                    for (index, made) in schedule.sigmas.iter().enumerate() {
                        let sigma = 1.0 - index as f64 / steps as f64;
                        let expected = shift * sigma / (1.0 + (shift - 1.0) * sigma);
                        let distance = (f64::from(*made) - expected).abs();
                        assert!(distance < 1e-6, "{steps} steps, {shift}: {made}, {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_shift_of_three_gives_the_levels_of_the_published_schedule_of_few_steps() {
        let any = SchedulerConfig {
            num_train_timesteps: 1000,
            shift: Shift::Static { shift: 1.0 },
            shift_terminal: None,
        };

        let schedule = any.shifted_by(3.0).schedule(4, 4096);

        // As diffusers makes them with base_shift = max_shift = log(3), no terminal level.
        let expected = [1.0, 0.9, 0.75, 0.5, 0.0];
        assert_eq!(schedule.sigmas.len(), expected.len());
        let mut pairs = schedule.sigmas.iter().zip(expected);
        assert!(pairs.all(|(made, expected)| (made - expected).abs() < 1e-6));
    }
}
