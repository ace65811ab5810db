//! The settings of models: `[model]` for all, `[models.NAME]` for one, `--model`.

use std::path::PathBuf;
use std::time::Duration;

use super::keys::{self, Key};
use super::layers::Layers;
use super::{Fault, values};
use crate::domain::{Prompt, RequestLoras, ScheduleShift};
use crate::model::{
    CapabilitySwitches, DefaultOverrides, DeviceChoice, DtypeChoice, FILE_SOURCES, FileChoices,
    LoraConfig, MemoryChoice, MemoryLimit, ModelConfig,
};
use crate::requests::{QualityOverride, QualityOverrides};

/// A model that is to be served.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// Which one it is, and what to change about it; its device is the first of `devices`.
    pub config: ModelConfig,
    /// Where it is to run: a replica on each.
    pub devices: Vec<DeviceChoice>,
    /// Names of its own, besides those that stand for any model.
    pub aliases: Vec<String>,
    /// What `quality` stands for.
    pub quality: QualityOverrides,
    /// SHA-256 of the pixels that its test picture should have.
    pub health_digest: Option<String>,
    /// Whether it is loaded from the start.
    pub preload: bool,
    /// How long it stays while nobody asks for it; for ever if absent.
    pub keep_alive: Option<Duration>,
}

impl Layers {
    /// The models that are to be served, the default one first: those of `flags`, else those
    /// that have a section, else the one of `[model]`.
    pub(super) fn models(&mut self, flags: &[String]) -> Vec<ModelSettings> {
        let sections = self.sections();
        if sections.is_empty() && flags.len() < 2 {
            self.add_flag(keys::MODEL_ID, flags.first().map(String::as_str));
            let only = self.model_settings();
            let named = [(only.config.id.clone(), only)];
            self.default_model(&named);
            return named.map(|(_, only)| only).into();
        }
        let asked = if flags.is_empty() { &sections } else { flags };
        let mut models: Vec<(String, ModelSettings)> = Vec::new();
        for name in asked {
            models.push((name.clone(), self.named_model(name, sections.contains(name))));
        }
        // What is wrong with [model] is told even where every section mends it.
        self.model_settings();
        let default = self.default_model(&models);
        models[..=default].rotate_right(1);
        models.into_iter().map(|(_, settings)| settings).collect()
    }

    /// The model that is called `name` in the settings, or is itself meant by it.
    fn named_model(&mut self, name: &str, has_section: bool) -> ModelSettings {
        let mut own = self.of_model(name);
        if !has_section || !self.says_itself(name, keys::MODEL_ID) {
            own.add(keys::MODEL_ID.path, name.into(), format!("the name {name}"));
        }
        let mut settings = own.model_settings();
        if has_section {
            if !self.says_itself(name, keys::MODEL_NAME) {
                settings.config.name = Some(name.to_owned());
            }
            if self.says_itself(name, keys::MODEL_ALIASES) {
                settings.aliases = own.names(keys::MODEL_ALIASES);
            }
        } else {
            settings.config.name = None;
        }
        for mut fault in own.faults {
            if fault.origin.contains("section models.") {
                let key = fault.key.strip_prefix("model.").unwrap_or(&fault.key);
                fault.key = format!("models.{name}.{key}");
            }
            self.note(fault);
        }
        settings
    }

    /// Where the model of requests that name none is among `models`.
    fn default_model(&mut self, models: &[(String, ModelSettings)]) -> usize {
        let Some(found) = self.find(keys::DEFAULT_MODEL) else { return 0 };
        let wanted = found.value.as_str().unwrap_or_default();
        let is_wanted = |(name, settings): &(String, ModelSettings)| {
            let own = settings.config.name.as_deref();
            name == wanted || settings.config.id == wanted || own == Some(wanted)
        };
        models.iter().position(is_wanted).unwrap_or_else(|| {
            let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
            self.note(Fault {
                key: keys::DEFAULT_MODEL.path.to_owned(),
                value: Some(super::printed(&found.value)),
                expected: format!("expected one of '{}'", names.join("', '")),
                origin: found.origin,
            });
            0
        })
    }

    /// Adds a fault, once.
    fn note(&mut self, fault: Fault) {
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    fn model_settings(&mut self) -> ModelSettings {
        let devices = self.devices();
        ModelSettings {
            config: self.model(devices.first().copied().unwrap_or(DeviceChoice::Auto)),
            devices,
            aliases: Vec::new(),
            quality: QualityOverrides {
                low: QualityOverride {
                    loras: self.request_loras(keys::LOW_LORAS),
                    schedule_shift: self.schedule_shift(keys::LOW_SHIFT),
                    ..self.quality(keys::LOW_STEPS, keys::LOW_GUIDANCE)
                },
                medium: self.quality(keys::MEDIUM_STEPS, keys::MEDIUM_GUIDANCE),
                high: self.quality(keys::HIGH_STEPS, keys::HIGH_GUIDANCE),
            },
            health_digest: self.sha256(keys::HEALTH_DIGEST),
            preload: self.boolean(keys::PRELOAD).unwrap_or(true),
            keep_alive: self.keep_alive(),
        }
    }

    fn sha256(&mut self, key: Key) -> Option<String> {
        self.read(key, "64 hexadecimal digits", |value| {
            let text = value.as_str()?;
            let is_one = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_one.then(|| text.to_ascii_lowercase())
        })
    }

    /// Where replicas are to be: devices between commas.
    fn devices(&mut self) -> Vec<DeviceChoice> {
        let expected = format!("{}, or several between commas", DeviceChoice::CHOICES);
        let devices = self.read(keys::DEVICE, &expected, |value| {
            let parts = value.as_str()?.split(',');
            parts.map(|part| part.trim().parse().ok()).collect::<Option<Vec<_>>>()
        });
        devices.unwrap_or_else(|| vec![DeviceChoice::Auto])
    }

    fn keep_alive(&mut self) -> Option<Duration> {
        let seconds: i64 = self.integer(keys::KEEP_ALIVE, -1, 1 << 31)?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    fn model(&mut self, device: DeviceChoice) -> ModelConfig {
        ModelConfig {
            id: self.name(keys::MODEL_ID).unwrap_or_default(),
            name: self.name(keys::MODEL_NAME),
            files: self.files(),
            variant: self.name(keys::VARIANT),
            revision: self.name(keys::MODEL_REVISION),
            device,
            dtype: self
                .read(keys::DTYPE, DtypeChoice::CHOICES, |value| value.as_str()?.parse().ok())
                .unwrap_or(DtypeChoice::Auto),
            // Sides of scaled pictures are multiples of 32.
            image_area: self.integer(keys::IMAGE_AREA, 32 * 32, 1 << 26),
            condition_area: self.integer(keys::CONDITION_AREA, 32 * 32, 1 << 26),
            defaults: self.defaults_of_requests(),
            capabilities: self.capabilities(),
            lora: self.lora(),
            lora_dir: self.name(keys::LORA_DIR).map(PathBuf::from),
            memory: self
                .read(keys::MEMORY, MemoryChoice::CHOICES, |value| value.as_str()?.parse().ok())
                .unwrap_or(MemoryChoice::Auto),
            memory_limit: self
                .read(keys::MEMORY_LIMIT, MemoryLimit::CHOICES, |value| match value.as_str() {
                    Some(text) => text.parse().ok(),
                    None => super::whole_number(value)?.to_string().parse().ok(),
                })
                .unwrap_or_default(),
            cache_bytes: self.integer(keys::CACHE_BYTES, 0, 1 << 40).unwrap_or_default(),
            exact_timesteps: self.boolean(keys::EXACT_TIMESTEPS).unwrap_or(true),
            fp8_all_layers: self.boolean(keys::FP8_ALL_LAYERS).unwrap_or(true),
        }
    }

    fn files(&mut self) -> FileChoices {
        let mut file = |key| {
            self.read(key, FILE_SOURCES, |value| {
                let text = value.as_str().filter(|text| !text.trim().is_empty())?;
                text.parse().ok()
            })
        };
        FileChoices {
            transformer: file(keys::FILE_TRANSFORMER),
            text_encoder: file(keys::FILE_TEXT_ENCODER),
            mmproj: file(keys::FILE_MMPROJ),
            vae: file(keys::FILE_VAE),
            base: self.name(keys::FILE_BASE),
        }
    }

    fn lora(&mut self) -> Vec<LoraConfig> {
        let mut loras = Vec::new();
        for text in self.names(keys::LORA) {
            match values::parse_lora(&text) {
                Some(lora) => loras.push(lora),
                None => self.refuse_entry(keys::LORA, &text, values::LORAS),
            }
        }
        loras
    }

    /// LoRAs by the names that requests use.
    fn request_loras(&mut self, key: Key) -> RequestLoras {
        let mut loras = Vec::new();
        for text in self.names(key) {
            match values::parse_request_lora(&text) {
                Some(lora) => loras.push(lora),
                None => self.refuse_entry(key, &text, values::REQUEST_LORAS),
            }
        }
        RequestLoras::new(loras).unwrap_or_else(|_too_many| {
            self.refuse_entry(key, "", "at most eight of them");
            RequestLoras::default()
        })
    }

    fn schedule_shift(&mut self, key: Key) -> Option<ScheduleShift> {
        let (least, most) = (ScheduleShift::MIN, ScheduleShift::MAX);
        self.read(key, &format!("a number from {least} to {most}"), |value| {
            ScheduleShift::new(super::number(value)?).ok()
        })
    }

    fn quality(&mut self, steps: Key, guidance: Key) -> QualityOverride {
        QualityOverride {
            num_inference_steps: self.steps(steps),
            guidance: self.guidance(guidance),
            ..QualityOverride::default()
        }
    }

    fn defaults_of_requests(&mut self) -> DefaultOverrides {
        DefaultOverrides {
            num_inference_steps: self.steps(keys::STEPS),
            true_cfg_scale: self.guidance(keys::TRUE_CFG_SCALE),
            guidance_scale: self.guidance(keys::GUIDANCE_SCALE),
            negative_prompt: self.read(
                keys::NEGATIVE_PROMPT,
                "a text of at most 32000 characters",
                |value| {
                    let text = value.as_str()?;
                    Prompt::negative(text).ok()?;
                    Some(text.to_owned())
                },
            ),
        }
    }

    fn capabilities(&mut self) -> CapabilitySwitches {
        CapabilitySwitches {
            text_to_image: self.boolean(keys::TEXT_TO_IMAGE),
            image_edit: self.boolean(keys::IMAGE_EDIT),
            image_variation: self.boolean(keys::IMAGE_VARIATION),
            inpainting: self.boolean(keys::INPAINTING),
            mask: self.boolean(keys::MASK),
        }
    }
}
