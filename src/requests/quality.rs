//! `quality`: names for step counts and guidance of the loaded model.

use crate::domain::{GuidanceScale, RequestLoras, ScheduleShift, Steps};
use crate::model::ModelCard;

/// The steps of low and medium quality, of ten of the model's own.
const LOW_TENTHS: usize = 4;
const MEDIUM_TENTHS: usize = 7;

/// A quality that can be asked for; `auto` is [`Quality::High`], the model's own
/// defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quality {
    Low,
    Medium,
    High,
}

impl Quality {
    pub(crate) const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// OpenAI's word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// What the settings say about one quality.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QualityOverride {
    /// Denoising steps; a share of the model's own if absent.
    pub num_inference_steps: Option<Steps>,
    /// Strength of guidance; the model's own if absent.
    pub guidance: Option<GuidanceScale>,
    /// LoRAs of the model's folder, such as one that was distilled to few steps.
    pub loras: RequestLoras,
    /// The schedule that goes with it.
    pub schedule_shift: Option<ScheduleShift>,
}

/// What the settings say about the qualities.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QualityOverrides {
    /// `quality=low`
    pub low: QualityOverride,
    /// `quality=medium`
    pub medium: QualityOverride,
    /// `quality=high`, `auto`, and none
    pub high: QualityOverride,
}

/// What a quality stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preset {
    pub(crate) steps: Steps,
    pub(crate) guidance: GuidanceScale,
    pub(crate) loras: RequestLoras,
    pub(crate) schedule_shift: Option<ScheduleShift>,
}

/// What each quality stands for with the loaded model.
#[derive(Debug, Clone)]
pub(crate) struct QualityTable {
    low: Preset,
    medium: Preset,
    high: Preset,
}

impl QualityTable {
    pub(crate) fn new(model: &ModelCard, overrides: &QualityOverrides) -> Self {
        let own = model.defaults.num_inference_steps;
        let preset = |tenths: usize, settings: &QualityOverride| Preset {
            steps: settings.num_inference_steps.unwrap_or_else(|| share(own, tenths)),
            guidance: settings.guidance.unwrap_or(model.defaults.guidance),
            loras: settings.loras.clone(),
            schedule_shift: settings.schedule_shift,
        };
        Self {
            low: preset(LOW_TENTHS, &overrides.low),
            medium: preset(MEDIUM_TENTHS, &overrides.medium),
            high: preset(10, &overrides.high),
        }
    }

    pub(crate) fn preset(&self, quality: Quality) -> &Preset {
        match quality {
            Quality::Low => &self.low,
            Quality::Medium => &self.medium,
            Quality::High => &self.high,
        }
    }
}

/// So many tenths of `steps`, rounded up.
fn share(steps: Steps, tenths: usize) -> Steps {
    let share = (steps.get() * tenths).div_ceil(10);
    // A share of a valid number of steps, rounded up, is one.
    i64::try_from(share).ok().and_then(|share| Steps::new(share).ok()).unwrap_or(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_and_medium_are_shares_of_the_models_own_steps() {
        let shares = |steps: i64| {
            let steps = Steps::new(steps).unwrap();
            [4, 7, 10].map(|tenths| share(steps, tenths).get())
        };

        assert_eq!(shares(50), [20, 35, 50]);
        assert_eq!(shares(4), [2, 3, 4]);
        assert_eq!(shares(1), [1, 1, 1]);
        assert_eq!(shares(150), [60, 105, 150]);
    }
}
