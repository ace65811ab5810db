//! What tells the pipelines of the family apart, as data.
//!
//! Sources: diffusers 0.42.1, the pipelines' constants and default arguments;
//! the model cards of Qwen/Qwen-Image, -Edit, -Edit-2509, -Edit-2511, -Layered.

use super::prompt::PromptTemplate;
use crate::domain::{TaskKind, TaskKinds};
use crate::model::EditKind;
use crate::nn::CfgRescale;

/// One pipeline of the family.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// `_class_name` in `model_index.json`.
    pub class_name: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// What it offers.
    pub tasks: TaskKinds,
    /// What an edit is to it.
    pub edit_kind: EditKind,
    /// The most input pictures of an edit.
    pub max_input_images: usize,
    /// What the encoder is told around a prompt.
    pub template: PromptTemplate,
    /// What the encoder sees of the input pictures.
    pub shown: Shown,
    /// Pixels that a picture is scaled to.
    pub image_area: usize,
    /// Channels of a picture: 3, or 4 with transparency.
    pub image_channels: usize,
    /// How the schedule follows from the pictures' sizes.
    pub schedule_basis: ScheduleBasis,
    /// How long a guided prediction is.
    pub cfg_rescale: CfgRescale,
    /// Denoising steps of the model card.
    pub steps: i64,
}

impl Variant {
    /// The pipeline of the class `class_name`.
    #[must_use]
    pub(crate) fn of_class(class_name: &str) -> Option<&'static Self> {
        const ALL: [&Variant; 4] = [&TEXT_TO_IMAGE, &EDIT, &EDIT_PLUS, &LAYERED];
        ALL.into_iter().find(|variant| variant.class_name == class_name)
    }
}

/// What the encoder sees of the input pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing: it reads the prompt alone.
    Nothing,
    /// What the autoencoder sees.
    Reference,
    /// A copy of this many pixels.
    Copy {
        /// Width times height.
        area: usize,
    },
}

/// What the shift of the noise schedule follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScheduleBasis {
    /// The tokens of the picture being made.
    Made,
    /// The tokens of the reference picture: the square root of their number, 1 at 256.
    RootOfReference,
}

const MEGAPIXEL: usize = 1024 * 1024;

/// Qwen/Qwen-Image and Qwen/Qwen-Image-2512.
pub(crate) const TEXT_TO_IMAGE: Variant = Variant {
    class_name: "QwenImagePipeline",
    description: "Makes a picture from words, or anew from a picture (Qwen-Image).",
    tasks: TaskKinds::of(&TaskKind::ALL),
    edit_kind: EditKind::ImageToImage,
    max_input_images: 1,
    template: PromptTemplate::TEXT,
    shown: Shown::Nothing,
    image_area: MEGAPIXEL,
    image_channels: 3,
    schedule_basis: ScheduleBasis::Made,
    cfg_rescale: CfgRescale::OfConditional,
    steps: 50,
};

/// Qwen/Qwen-Image-Edit. The reference pipeline takes one picture, and so was it
/// trained; several are shown to it in order, as later checkpoints have it.
pub(crate) const EDIT: Variant = Variant {
    class_name: "QwenImageEditPipeline",
    description: "Edits a picture as the prompt says (Qwen-Image-Edit).",
    tasks: TaskKinds::of(&[TaskKind::Edit, TaskKind::Inpainting]),
    edit_kind: EditKind::Instruction,
    max_input_images: 3,
    template: PromptTemplate::EDIT,
    shown: Shown::Reference,
    ..TEXT_TO_IMAGE
};

/// Qwen/Qwen-Image-Edit-2509 and -2511. The cards recommend one to three pictures;
/// the pipeline takes any number, we as many as OpenAI's models do.
pub(crate) const EDIT_PLUS: Variant = Variant {
    class_name: "QwenImageEditPlusPipeline",
    description: "Edits one picture or several together as the prompt says \
                  (Qwen-Image-Edit-2509 and later).",
    tasks: TaskKinds::of(&[TaskKind::Edit]),
    max_input_images: 16,
    template: PromptTemplate::EDIT_PLUS,
    shown: Shown::Copy { area: 384 * 384 },
    steps: 40,
    ..EDIT
};

/// Qwen/Qwen-Image-Layered.
pub(crate) const LAYERED: Variant = Variant {
    class_name: "QwenImageLayeredPipeline",
    description: "Takes a picture apart into transparent layers (Qwen-Image-Layered).",
    tasks: TaskKinds::of(&[TaskKind::Edit]),
    edit_kind: EditKind::Layers,
    image_area: 640 * 640,
    image_channels: 4,
    schedule_basis: ScheduleBasis::RootOfReference,
    cfg_rescale: CfgRescale::Free,
    ..TEXT_TO_IMAGE
};
