//! What a worker says of a model, as text: all that a gateway needs to read requests for it.

use serde::{Deserialize, Serialize};

use super::models::ModelService;
use super::quality::{QualityOverride, QualityOverrides};
use crate::domain::{
    GuidanceScale, RequestLora, RequestLoras, ScheduleShift, Steps, Strength, TaskKind, TaskKinds,
    ValidationError,
};
use crate::model::{AreaRange, EditKind, GuidanceParameter, LoraNames, ModelCard, RequestDefaults};

/// A model as its worker announces it.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// What it is and can do.
    pub card: ModelCard,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// What `quality` stands for, where the worker's settings say so.
    pub quality: QualityOverrides,
    /// The names of the LoRAs that requests may use; `None` if they may use none.
    pub loras: Option<Vec<String>>,
}

/// A text that announces no model, or one that this version does not know.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableAnnouncement {
    /// It is no JSON of ours.
    #[error("it has another layout")]
    Layout(#[from] serde_json::Error),
    /// A value is none that a request could have.
    #[error("a value is out of range")]
    Value(#[from] ValidationError),
}

impl Announcement {
    /// What is said of a model that is here. Looks into its folder of LoRAs: not for the
    /// async runtime.
    #[must_use]
    pub fn of(model: &ModelService) -> Self {
        Self {
            card: model.images.card().clone(),
            aliases: model.aliases.clone(),
            quality: model.quality.clone(),
            loras: model.loras.as_ref().map(LoraNames::all),
        }
    }

    /// As it is sent.
    ///
    /// # Errors
    /// None that is known of.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Wire::of(self))
    }

    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// [`UnreadableAnnouncement`].
    pub fn read(text: &str) -> Result<Self, UnreadableAnnouncement> {
        serde_json::from_str::<Wire>(text)?.announcement()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    card: WireCard,
    aliases: Vec<String>,
    quality: [WireQuality; 3],
    loras: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct WireCard {
    id: String,
    pipeline: String,
    description: String,
    instructions: Vec<String>,
    tasks: Vec<WireTask>,
    num_inference_steps: i64,
    guidance: f64,
    negative_prompt: Option<String>,
    strength: f64,
    max_input_images: usize,
    size_multiple: usize,
    max_output_area: usize,
    image_area: usize,
    area_range: Option<[usize; 2]>,
    fills_beyond_input: bool,
    edit_kind: WireEdit,
    guidance_parameter: WireGuidance,
    takes_transparency: bool,
    has_condition_picture: bool,
    is_tunable: bool,
}

#[derive(Serialize, Deserialize)]
struct WireQuality {
    num_inference_steps: Option<i64>,
    guidance: Option<f64>,
    loras: Vec<(String, f64)>,
    schedule_shift: Option<f64>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireTask {
    TextToImage,
    Edit,
    Variation,
    Inpainting,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireEdit {
    Instruction,
    ImageToImage,
    Layers,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireGuidance {
    TrueCfgScale,
    GuidanceScale,
}

const TASKS: [(TaskKind, WireTask); 4] = [
    (TaskKind::TextToImage, WireTask::TextToImage),
    (TaskKind::Edit, WireTask::Edit),
    (TaskKind::Variation, WireTask::Variation),
    (TaskKind::Inpainting, WireTask::Inpainting),
];

impl Wire {
    fn of(from: &Announcement) -> Self {
        let QualityOverrides { low, medium, high } = &from.quality;
        Self {
            card: WireCard::of(&from.card),
            aliases: from.aliases.clone(),
            quality: [low, medium, high].map(WireQuality::of),
            loras: from.loras.clone(),
        }
    }

    fn announcement(self) -> Result<Announcement, UnreadableAnnouncement> {
        let [low, medium, high] = self.quality;
        let (low, medium, high) = (low.quality()?, medium.quality()?, high.quality()?);
        Ok(Announcement {
            card: self.card.card()?,
            aliases: self.aliases,
            quality: QualityOverrides { low, medium, high },
            loras: self.loras,
        })
    }
}

impl WireQuality {
    fn of(quality: &QualityOverride) -> Self {
        let lora = |lora: &RequestLora| (lora.name().to_owned(), lora.scale());
        Self {
            num_inference_steps: quality.num_inference_steps.map(steps),
            guidance: quality.guidance.map(GuidanceScale::get),
            loras: quality.loras.as_slice().iter().map(lora).collect(),
            schedule_shift: quality.schedule_shift.map(ScheduleShift::get),
        }
    }

    fn quality(self) -> Result<QualityOverride, ValidationError> {
        let loras = self.loras.into_iter().map(|(name, scale)| RequestLora::new(name, scale));
        Ok(QualityOverride {
            num_inference_steps: self.num_inference_steps.map(Steps::new).transpose()?,
            guidance: self.guidance.map(GuidanceScale::new).transpose()?,
            loras: RequestLoras::new(loras.collect::<Result<_, _>>()?)?,
            schedule_shift: self.schedule_shift.map(ScheduleShift::new).transpose()?,
        })
    }
}

impl WireCard {
    fn of(card: &ModelCard) -> Self {
        let tasks = TASKS.iter().filter(|(kind, _)| card.tasks.contains(*kind));
        Self {
            id: card.id.clone(),
            pipeline: card.pipeline.clone(),
            description: card.description.clone(),
            instructions: card.instructions.clone(),
            tasks: tasks.map(|(_, wire)| *wire).collect(),
            num_inference_steps: steps(card.defaults.num_inference_steps),
            guidance: card.defaults.guidance.get(),
            negative_prompt: card.defaults.negative_prompt.clone(),
            strength: card.defaults.strength.get(),
            max_input_images: card.max_input_images,
            size_multiple: card.size_multiple,
            max_output_area: card.max_output_area,
            image_area: card.image_area,
            area_range: card.area_range.map(|range| [range.least, range.most]),
            fills_beyond_input: card.fills_beyond_input,
            edit_kind: match card.edit_kind {
                EditKind::Instruction => WireEdit::Instruction,
                EditKind::ImageToImage => WireEdit::ImageToImage,
                EditKind::Layers => WireEdit::Layers,
            },
            guidance_parameter: match card.guidance_parameter {
                GuidanceParameter::TrueCfgScale => WireGuidance::TrueCfgScale,
                GuidanceParameter::GuidanceScale => WireGuidance::GuidanceScale,
            },
            takes_transparency: card.takes_transparency,
            has_condition_picture: card.has_condition_picture,
            is_tunable: card.is_tunable,
        }
    }

    fn card(self) -> Result<ModelCard, ValidationError> {
        let kind = |task: &WireTask| TASKS[*task as usize].0;
        Ok(ModelCard {
            id: self.id,
            pipeline: self.pipeline,
            description: self.description,
            instructions: self.instructions,
            tasks: self.tasks.iter().map(kind).fold(TaskKinds::default(), TaskKinds::with),
            defaults: RequestDefaults {
                num_inference_steps: Steps::new(self.num_inference_steps)?,
                guidance: GuidanceScale::new(self.guidance)?,
                negative_prompt: self.negative_prompt,
                strength: Strength::new(self.strength)?,
            },
            max_input_images: self.max_input_images,
            size_multiple: self.size_multiple,
            max_output_area: self.max_output_area,
            image_area: self.image_area,
            area_range: self.area_range.map(|[least, most]| AreaRange { least, most }),
            fills_beyond_input: self.fills_beyond_input,
            edit_kind: match self.edit_kind {
                WireEdit::Instruction => EditKind::Instruction,
                WireEdit::ImageToImage => EditKind::ImageToImage,
                WireEdit::Layers => EditKind::Layers,
            },
            guidance_parameter: match self.guidance_parameter {
                WireGuidance::TrueCfgScale => GuidanceParameter::TrueCfgScale,
                WireGuidance::GuidanceScale => GuidanceParameter::GuidanceScale,
            },
            takes_transparency: self.takes_transparency,
            has_condition_picture: self.has_condition_picture,
            is_tunable: self.is_tunable,
        })
    }
}

fn steps(steps: Steps) -> i64 {
    i64::try_from(steps.get()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced() -> Announcement {
        let lora = RequestLora::new("few-steps", 0.5).unwrap();
        let low = QualityOverride {
            num_inference_steps: Some(Steps::new(4).unwrap()),
            guidance: Some(GuidanceScale::new(1.0).unwrap()),
            loras: RequestLoras::new(vec![lora]).unwrap(),
            schedule_shift: Some(ScheduleShift::new(3.0).unwrap()),
        };
        let card = ModelCard {
            id: "a/model".to_owned(),
            pipeline: "QwenImageEditPipeline".to_owned(),
            description: "One.".to_owned(),
            instructions: vec!["make it blue".to_owned()],
            tasks: TaskKinds::of(&[TaskKind::Edit, TaskKind::Inpainting]),
            defaults: RequestDefaults {
                num_inference_steps: Steps::new(20).unwrap(),
                guidance: GuidanceScale::new(4.0).unwrap(),
                negative_prompt: Some(" ".to_owned()),
                strength: Strength::new(0.6).unwrap(),
            },
            max_input_images: 3,
            size_multiple: 16,
            max_output_area: 1 << 22,
            image_area: 1 << 20,
            area_range: Some(AreaRange::around(1 << 20)),
            fills_beyond_input: true,
            edit_kind: EditKind::Layers,
            guidance_parameter: GuidanceParameter::GuidanceScale,
            takes_transparency: true,
            has_condition_picture: true,
            is_tunable: true,
        };
        let quality = QualityOverrides { low, ..QualityOverrides::default() };
        let loras = Some(vec!["few-steps".to_owned()]);
        Announcement { card, aliases: vec!["gpt-image-*".to_owned()], quality, loras }
    }

    #[test]
    fn a_gateway_knows_of_a_model_what_its_worker_knows() {
        let announced = announced();

        let read = Announcement::read(&announced.text().unwrap()).unwrap();

        assert_eq!(read, announced);
    }

    #[test]
    fn each_task_is_sent_under_its_own_name() {
        for kind in TaskKind::ALL {
            let mut announced = announced();
            announced.card.tasks = TaskKinds::of(&[kind]);

            let read = Announcement::read(&announced.text().unwrap()).unwrap();

            assert_eq!(read.card.tasks, TaskKinds::of(&[kind]));
        }
    }

    #[test]
    fn what_another_version_adds_is_passed_over_and_what_is_out_of_range_is_refused() {
        let text = announced().text().unwrap();
        let newer = text.replacen('{', "{\"new\": 1,", 1);
        assert_eq!(Announcement::read(&newer).unwrap(), announced());

        let wrong = text.replace("\"num_inference_steps\":20", "\"num_inference_steps\":0");
        assert!(matches!(Announcement::read(&wrong), Err(UnreadableAnnouncement::Value(_))));
        assert!(matches!(Announcement::read("{}"), Err(UnreadableAnnouncement::Layout(_))));
    }
}
