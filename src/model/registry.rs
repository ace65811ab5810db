//! Finds the model that a name means, and the code that loads it.

use super::loading::{CardContext, CheckpointDefaults, LoadContext, ModelEntry, WeightSource};
use super::location::find;
use super::precision::{matrix_format, open_device};
use super::{
    CapabilitySwitches, DeviceChoice, DiffusionModel, DtypeChoice, GuidanceParameter, LoadError,
    MemoryChoice, ModelCard, ModelConfig, ModelPlan,
};
use super::{embedded, qwen_image, stable_diffusion};
use crate::checkpoint::{CheckpointError, MatrixFormat, ReadSpeed, Snapshot};
use crate::domain::{TaskKind, TaskKinds};
use crate::hub::HubConfig;

/// Every pipeline class that is served: one line a model.
const MODELS: &[ModelEntry] = &[
    qwen_image::TEXT_TO_IMAGE,
    qwen_image::EDIT,
    qwen_image::EDIT_PLUS,
    qwen_image::LAYERED,
    stable_diffusion::PLAIN,
    stable_diffusion::XL,
];

/// A model whose files are at hand, and of which no weight has been read.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    snapshot: Snapshot,
    entry: &'static ModelEntry,
    config: ModelConfig,
    card: ModelCard,
}

impl ModelFiles {
    /// Finds, and where need be fetches, the files that `config` names.
    ///
    /// # Errors
    /// [`LoadError`] says what there is instead, or which configuration file is at fault.
    pub fn find(config: &ModelConfig, hub: &HubConfig) -> Result<Self, LoadError> {
        let (snapshot, id) = find(config, hub)?;
        Self::of(snapshot, &id, config)
    }

    /// The same for files that are at hand; `id`: their own name.
    pub(super) fn of(
        snapshot: Snapshot,
        id: &str,
        config: &ModelConfig,
    ) -> Result<Self, LoadError> {
        let entry = entry_of(&snapshot)?;
        if let Some(lora) = config.lora.first().filter(|_| !entry.takes_lora) {
            let class_name = entry.class_name;
            return Err(LoadError::Checkpoint(CheckpointError::Malformed {
                file: lora.file.display().to_string(),
                reason: format!("LoRA files are not merged into models of {class_name}"),
            }));
        }
        let config = with_dtype_of(&snapshot, config)?;
        check_settings(&config, entry)?;
        let id = config.name.as_deref().unwrap_or(id);
        let context = CardContext { snapshot: &snapshot, config: &config, id };
        // What the files say that is odd is told once, when the model is loaded.
        let quiet = tracing::subscriber::NoSubscriber::default();
        let card = tracing::subscriber::with_default(quiet, || (entry.card)(&context))?;
        Ok(Self { snapshot, entry, config, card })
    }

    /// What the model is and can do.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Bytes of its files of weights, as they are stored: about what it will take.
    #[must_use]
    pub fn weight_file_bytes(&self) -> usize {
        self.snapshot.weight_bytes()
    }

    /// Loads the model onto `device`, on the calling thread, which must be the one that
    /// will use it (a CUDA stream belongs to a thread).
    ///
    /// # Errors
    /// [`LoadError`] says which file, key or tensor, and what to do.
    pub fn load_onto(&self, device: DeviceChoice) -> Result<Box<dyn DiffusionModel>, LoadError> {
        let config = &ModelConfig { device, ..self.config.clone() };
        warn_of_slow_files(&self.card.id, &self.snapshot);
        let model = (self.entry.load)(&self.context(config)?)?;
        warn_of_settings_without_effect(config, model.as_ref());
        Ok(model)
    }

    /// What the model would take on the device of its settings, without loading it.
    ///
    /// # Errors
    /// As [`Self::load_onto`].
    pub fn plan(&self) -> Result<ModelPlan, LoadError> {
        (self.entry.plan)(&self.context(&self.config)?)
    }

    /// The same for an NVIDIA card of so many bytes, all of them free, which need not be here.
    ///
    /// # Errors
    /// As [`Self::load_onto`].
    pub fn plan_for_card(&self, bytes: usize) -> Result<ModelPlan, LoadError> {
        let device = DeviceChoice::Cpu;
        let config = &ModelConfig { device, ..self.config.clone() };
        let context = self.context(config)?;
        let is_open = config.dtype == DtypeChoice::Auto;
        let dtype = if is_open { candle_core::DType::BF16 } else { context.dtype };
        (self.entry.plan)(&LoadContext { dtype, card_bytes: Some(bytes), ..context })
    }

    fn context<'a>(&'a self, config: &'a ModelConfig) -> Result<LoadContext<'a>, LoadError> {
        let device = open_device(config)?;
        let dtype = crate::device::dtype(config.dtype, &device);
        let (snapshot, id, weights) = (&self.snapshot, &self.card.id, WeightSource::Stored);
        Ok(LoadContext { snapshot, config, id, device, dtype, weights, card_bytes: None })
    }
}

/// Loads the model that `config` names, on the calling thread, which must be
/// the one that will use it (a CUDA stream belongs to a thread).
///
/// # Errors
/// [`LoadError`] says which file, key or tensor, and what to do.
pub fn load(config: &ModelConfig, hub: &HubConfig) -> Result<Box<dyn DiffusionModel>, LoadError> {
    ModelFiles::find(config, hub)?.load_onto(config.device)
}

/// `config` with the dtype that the checkpoint asks for, if it does and the
/// settings leave it open.
fn with_dtype_of(snapshot: &Snapshot, config: &ModelConfig) -> Result<ModelConfig, LoadError> {
    let mut config = config.clone();
    if config.dtype == DtypeChoice::Auto {
        config.dtype = CheckpointDefaults::load(snapshot)?.dtype.unwrap_or(DtypeChoice::Auto);
    }
    Ok(config)
}

/// Refuses settings that models of `entry` cannot follow.
fn check_settings(config: &ModelConfig, entry: &ModelEntry) -> Result<(), LoadError> {
    let class_name = entry.class_name;
    if matches!(config.memory, MemoryChoice::Offload | MemoryChoice::Stream) && !entry.offloads {
        return Err(LoadError::Setting {
            setting: "model.memory",
            reason: format!("models of {class_name} always stay in memory: use auto or resident"),
        });
    }
    let own = [MatrixFormat::AsStored, MatrixFormat::AsComputed];
    let quantizes = !own.contains(&matrix_format(config.dtype));
    if quantizes && !entry.quantizes_matrices {
        return Err(LoadError::Setting {
            setting: "model.dtype",
            reason: format!("models of {class_name} have no 8-bit layers: use auto or float32"),
        });
    }
    Ok(())
}

/// The embedded checkpoint called `name`.
#[must_use]
pub fn find_embedded(name: &str) -> Option<Snapshot> {
    embedded::find(name).map(Snapshot::Embedded)
}

/// The registry's entry for the checkpoint's pipeline class.
fn entry_of(snapshot: &Snapshot) -> Result<&'static ModelEntry, LoadError> {
    let mut index = snapshot.config("model_index.json")?;
    let class_name: String = index.required("_class_name");
    MODELS.iter().find(|entry| entry.class_name == class_name).ok_or_else(|| {
        let known: Vec<&str> = MODELS.iter().map(|entry| entry.class_name).collect();
        LoadError::UnknownModel {
            id: snapshot.name(),
            reason: format!(
                "its model_index.json says '{class_name}'; this program has {}",
                known.join(", ")
            ),
        }
    })
}

/// Tells of a disk that makes everything wait.
fn warn_of_slow_files(model: &str, snapshot: &Snapshot) {
    let speed = ReadSpeed::of(&snapshot.weight_files());
    if let Some((speed, minutes)) = speed.and_then(|speed| Some((speed, speed.slow_minutes()?))) {
        let megabytes_per_second = format!("{:.0}", speed.bytes_per_second / 1e6);
        let minutes = format!("{minutes:.0}");
        tracing::warn!(
            model,
            megabytes_per_second,
            minutes,
            "the weights lie on a slow disk: until the system has them in memory, reading all of \
             them takes so long"
        );
    }
}

fn warn_of_settings_without_effect(config: &ModelConfig, model: &dyn DiffusionModel) {
    let (info, loaded) = (model.card(), model.loaded());
    for (capability, wanted, kind) in config.capabilities.all() {
        if wanted == Some(true) && !info.tasks.contains(kind) {
            tracing::warn!(capability, model = info.id, "switched on, but this model cannot do it");
        }
    }
    if config.condition_area.is_some() && !info.has_condition_picture {
        tracing::warn!(
            model = info.id,
            "a condition_area is set, but this model shows its encoder the picture of image_area"
        );
    }
    let acts = info.guidance_parameter;
    let float32 = loaded.dtype.starts_with(crate::device::dtype_name(candle_core::DType::F32));
    if !config.exact_timesteps && (float32 || acts == GuidanceParameter::GuidanceScale) {
        tracing::warn!(
            model = info.id,
            "exact_timesteps is off, which only acts on Qwen-Image in 16 bits"
        );
    }
    let idle = match acts {
        GuidanceParameter::TrueCfgScale => config.defaults.guidance_scale.is_some(),
        GuidanceParameter::GuidanceScale => config.defaults.true_cfg_scale.is_some(),
    };
    if idle {
        tracing::warn!(
            model = info.id,
            "the default guidance that is set has no effect on this model: {} is the one that acts",
            acts.name()
        );
    }
}

impl CapabilitySwitches {
    /// Each switch: its name, what it is set to, and what it switches.
    fn all(&self) -> [(&'static str, Option<bool>, TaskKind); 5] {
        [
            ("text_to_image", self.text_to_image, TaskKind::TextToImage),
            ("image_edit", self.image_edit, TaskKind::Edit),
            ("image_variation", self.image_variation, TaskKind::Variation),
            ("inpainting", self.inpainting, TaskKind::Inpainting),
            ("mask", self.mask, TaskKind::Inpainting),
        ]
    }

    /// What they leave of `tasks`.
    pub(super) fn left_of(&self, tasks: TaskKinds) -> TaskKinds {
        let off = self.all().into_iter().filter(|(_, wanted, _)| *wanted == Some(false));
        off.fold(tasks, |tasks, (_, _, kind)| tasks.without(kind))
    }
}
