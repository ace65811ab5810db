//! What a family gets in order to load a checkpoint, and helpers for it.

use candle_core::{DType, Device};

use super::{
    AreaRange, DiffusionModel, DtypeChoice, LoadError, ModelCard, ModelConfig, ModelPlan,
    RequestDefaults,
};
use crate::checkpoint::{CheckpointError, ConfigFile, Snapshot};
use crate::domain::{GuidanceScale, Steps, Strength, ValidationError};

/// How far edits by noise go in the reference pipelines.
const DEFAULT_STRENGTH: f64 = 0.6;

/// A pipeline class of `model_index.json`, and what loads it.
#[derive(Debug)]
pub(super) struct ModelEntry {
    pub(super) class_name: &'static str,
    /// Whether it merges the LoRA files of the settings; else they are refused.
    pub(super) takes_lora: bool,
    /// Whether it can leave weights in their files until they are needed; else a
    /// choice of that is refused.
    pub(super) offloads: bool,
    /// Whether it can keep matrices in 8 bits; else a choice of that is refused.
    pub(super) quantizes_matrices: bool,
    /// What its configuration files say of it, without a weight.
    pub(super) card: fn(&CardContext) -> Result<ModelCard, LoadError>,
    pub(super) load: fn(&LoadContext) -> Result<Box<dyn DiffusionModel>, LoadError>,
    /// What it would take, without a tensor being read.
    pub(super) plan: fn(&LoadContext) -> Result<ModelPlan, LoadError>,
}

/// Where a model's numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightSource<'a> {
    /// The checkpoint's files.
    Stored,
    /// A generator of random numbers, for the components of these names: to measure speed
    /// without files. The others are placeholders.
    Random(&'a [&'static str]),
    /// Nowhere: to count what a model needs without making it.
    Placeholders,
}

/// What there is of a model before it is loaded.
#[derive(Clone, Copy)]
pub(super) struct CardContext<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) config: &'a ModelConfig,
    /// The name that clients see.
    pub(super) id: &'a str,
}

/// What a model needs in order to load.
pub(super) struct LoadContext<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) config: &'a ModelConfig,
    /// The name that clients see.
    pub(super) id: &'a str,
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) weights: WeightSource<'a>,
    /// Bytes of a card that is not here, if what is asked for is a plan for one.
    pub(super) card_bytes: Option<usize>,
}

/// `diffuser.json`: what a checkpoint says of itself, if it does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CheckpointDefaults {
    pub(super) description: Option<String>,
    pub(super) image_area: Option<usize>,
    /// The least and the most pixels at which it works.
    image_area_range: Option<[usize; 2]>,
    /// Whether edits go on past the edges of their input.
    fills_beyond_input: Option<bool>,
    /// Of what its pictures' sides are multiples, if of more than its layers demand.
    size_multiple: Option<usize>,
    pub(super) num_inference_steps: Option<i64>,
    pub(super) true_cfg_scale: Option<f64>,
    pub(super) guidance_scale: Option<f64>,
    pub(super) negative_prompt: Option<String>,
    /// What it computes in where the settings leave it open.
    pub(super) dtype: Option<DtypeChoice>,
    /// Prompts that it follows, if it knows only some.
    pub(super) instructions: Option<Vec<String>>,
}

impl CheckpointDefaults {
    pub(super) const FILE: &str = "diffuser.json";
    /// The largest picture that a checkpoint may ask for where a request names no size.
    pub(super) const LARGEST_AREA: usize = 1 << 24;
    /// The largest area at which one may say that it works well.
    const LARGEST_RANGE: usize = 1 << 32;
    const LARGEST_MULTIPLE: usize = 1024;

    pub(super) fn load(snapshot: &Snapshot) -> Result<Self, CheckpointError> {
        if !snapshot.has(Self::FILE) {
            return Ok(Self::default());
        }
        let mut file = snapshot.config(Self::FILE)?;
        let dtype: Option<String> = file.optional("dtype");
        let dtype = dtype.and_then(|text| {
            let parsed = text.parse();
            parsed.map_err(|error| file.fault(format!("dtype = '{text}': {error}"))).ok()
        });
        let defaults = Self {
            dtype,
            description: file.optional("description"),
            image_area: file.optional("image_area"),
            image_area_range: file.optional("image_area_range"),
            fills_beyond_input: file.optional("fills_beyond_input"),
            size_multiple: file.optional("size_multiple"),
            num_inference_steps: file.optional("num_inference_steps"),
            true_cfg_scale: file.optional("true_cfg_scale"),
            guidance_scale: file.optional("guidance_scale"),
            negative_prompt: file.optional("negative_prompt"),
            instructions: file.optional("instructions"),
        };
        if let (Some([least, most]), area) = (defaults.image_area_range, defaults.image_area)
            && !area.is_some_and(|area| (least..=most).contains(&area))
        {
            file.fault(format!("image_area_range = [{least}, {most}] does not hold image_area"));
        }
        defaults.check(&mut file);
        file.finish_known()?;
        Ok(defaults)
    }

    fn check(&self, file: &mut ConfigFile) {
        let mut check = |key: &str, number: Option<usize>, most: usize| {
            if let Some(number) = number.filter(|number| !(1..=most).contains(number)) {
                file.fault(format!("{key} = {number} is not between 1 and {most}"));
            }
        };
        check("image_area", self.image_area, Self::LARGEST_AREA);
        check("size_multiple", self.size_multiple, Self::LARGEST_MULTIPLE);
        for area in self.image_area_range.into_iter().flatten() {
            check("image_area_range", Some(area), Self::LARGEST_RANGE);
        }
    }

    /// At which areas it works, where the file says so or its family knows: `is_published`
    /// are checkpoints that were trained as the published ones were. The settings may
    /// move them.
    pub(super) fn area_range(
        &self,
        configured: Option<usize>,
        image_area: usize,
        is_published: bool,
    ) -> Option<AreaRange> {
        let own = self.image_area_range.map(|[least, most]| AreaRange { least, most });
        let around = AreaRange::around(image_area);
        let is_known = is_published || own.is_some();
        own.filter(|_| configured.is_none()).or(is_known.then_some(around))
    }

    /// Whether edits go on past the edges of their input: the published models' do.
    pub(super) fn fills_beyond_input(&self) -> bool {
        self.fills_beyond_input.unwrap_or(true)
    }

    /// Of how many pixels its pictures' sides are multiples; its layers demand `layers` pixels.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Config`] if the file names no multiple of these.
    pub(super) fn size_multiple(&self, layers: usize) -> Result<usize, CheckpointError> {
        match self.size_multiple {
            Some(asked) if asked == 0 || asked % layers != 0 => {
                let fault = format!("size_multiple = {asked}: must be a multiple of {layers}");
                Err(CheckpointError::Config { file: Self::FILE.to_owned(), faults: vec![fault] })
            }
            asked => Ok(asked.unwrap_or(layers)),
        }
    }
}

impl<'a> LoadContext<'a> {
    /// What of it was there before.
    pub(super) fn files(&self) -> CardContext<'a> {
        CardContext { snapshot: self.snapshot, config: self.config, id: self.id }
    }
}

impl CardContext<'_> {
    /// The settings' defaults, else the checkpoint's, else those of the original system.
    pub(super) fn request_defaults(
        &self,
        checkpoint: &CheckpointDefaults,
    ) -> Result<RequestDefaults, CheckpointError> {
        let fault = |error: ValidationError| CheckpointError::Malformed {
            file: CheckpointDefaults::FILE.to_owned(),
            reason: error.to_string(),
        };
        let settings = &self.config.defaults;
        let steps = Steps::new(checkpoint.num_inference_steps.unwrap_or(50)).map_err(fault)?;
        let scale = GuidanceScale::new(checkpoint.true_cfg_scale.unwrap_or(4.0)).map_err(fault)?;
        let negative = settings.negative_prompt.clone().or(checkpoint.negative_prompt.clone());
        Ok(RequestDefaults {
            num_inference_steps: settings.num_inference_steps.unwrap_or(steps),
            guidance: settings.true_cfg_scale.unwrap_or(scale),
            negative_prompt: Some(negative.unwrap_or_else(|| " ".to_owned())),
            strength: Strength::new(DEFAULT_STRENGTH).map_err(fault)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn defaults(text: &str) -> Result<CheckpointDefaults, CheckpointError> {
        let file = (CheckpointDefaults::FILE.to_owned(), text.to_owned());
        CheckpointDefaults::load(&Snapshot::Texts(BTreeMap::from([file])))
    }

    #[test]
    fn the_areas_at_which_a_model_works_are_its_own_else_its_familys_else_unknown() {
        let own = defaults(r#"{"image_area": 100, "image_area_range": [90, 120]}"#).unwrap();
        let silent = CheckpointDefaults::default();
        let range = |least, most| Some(AreaRange { least, most });

        assert_eq!(own.area_range(None, 100, false), range(90, 120));
        assert_eq!(own.area_range(None, 100, true), range(90, 120));
        assert_eq!(silent.area_range(None, 1 << 20, true), range(1 << 19, 7 << 18));
        assert_eq!(silent.area_range(None, 1 << 20, false), None);
        // An area of the settings takes the range along.
        assert_eq!(own.area_range(Some(400), 400, false), range(200, 700));
        assert_eq!(silent.area_range(Some(400), 400, false), None);
    }

    #[test]
    fn a_range_that_does_not_hold_the_models_own_area_is_refused_by_name() {
        for text in [
            r#"{"image_area": 100, "image_area_range": [200, 300]}"#,
            r#"{"image_area": 100, "image_area_range": [100, 50]}"#,
            r#"{"image_area_range": [200, 300]}"#,
            r#"{"image_area": 100, "image_area_range": [100]}"#,
        ] {
            let fault = defaults(text).unwrap_err().to_string();
            assert!(fault.contains("image_area_range"), "{fault}");
        }
    }
}
