//! The one contract between the server and a model.
//!
//! Pictures cross it, tensors never: the service cannot get a layout or a range
//! wrong, and a test's model needs no tensor library.

use std::ops::ControlFlow;

use crate::checkpoint::CheckpointError;
use crate::device::{DeviceError, DeviceFailure, failure_of};
use crate::domain::{
    GuidanceScale, ImageRequest, ImageSize, Picture, Seed, Steps, Strength, TaskKinds,
};
use crate::hub::HubError;

use super::Estimate;

/// A loaded image model, owned by one thread: hence `&mut self`, no lock and no
/// `Sync`.
pub trait DiffusionModel: Send {
    /// What this model is and what it can do.
    fn card(&self) -> &ModelCard;

    /// Where it is, and as what.
    fn loaded(&self) -> &Loaded;

    /// Makes the pictures that `request` asks for.
    ///
    /// Blocks for seconds or minutes. Tells `observer` after every step, asks it
    /// between layers and stops soon after it breaks. `request` has been held against
    /// [`ModelCard::tasks`] by the caller.
    ///
    /// # Errors
    /// [`ModelError`]: the request cannot be served, was cancelled, or the
    /// device failed. The model stays usable after each of them.
    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError>;

    /// Gives back what it keeps to be faster next time: the device has too little memory.
    fn release_caches(&mut self) {}

    /// What a picture takes here, if it can tell. Takes a fraction of a second.
    fn estimate(&mut self) -> Option<Estimate> {
        None
    }
}

/// Is told of each finished step, can stop the work, and can ask to see it.
pub trait StepObserver {
    /// After `progress.step` of `progress.total_steps`; `Break` cancels.
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()>;

    /// The work on `stage` begins. Where pictures are made one after another, stages
    /// come again.
    fn on_stage(&mut self, _stage: Stage) {}

    /// Decoding a picture takes about as long as `steps` of its steps. Told before the first
    /// step, by models that can count it.
    fn on_decoding_cost(&mut self, _steps: f64) {}

    /// How far the networks of this stage, or of the step, are. Told of some, often: it
    /// must be cheap.
    fn on_layer(&mut self, _layer: LayerProgress) {}

    /// Whether nobody waits for the work any more. Asked many times during a step,
    /// between layers and while weights are read: it must be cheap.
    fn is_cancelled(&mut self) -> bool {
        false
    }

    /// Whether [`Self::on_preview`] is wanted for the state after
    /// `progress.step` steps. Asked before [`Self::on_step`] of that step, and
    /// never for the last one.
    fn wants_preview(&mut self, _progress: StepProgress) -> bool {
        false
    }

    /// What the finished picture is going to be as far as can be told now: the
    /// clean latents predicted at this step, decoded.
    fn on_preview(&mut self, _progress: StepProgress, _preview: Picture) {}
}

/// What is being done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Prompts, and the pictures that the encoder is shown with them, to what steers the
    /// steps.
    EncodingPrompts,
    /// Pictures to latents.
    EncodingLatents,
    /// Noise to latents, step by step.
    Denoising,
    /// Latents to pictures.
    Decoding,
}

impl Stage {
    /// Its name, as `/health` and the log have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EncodingPrompts => "encoding_prompts",
            Self::EncodingLatents => "encoding_latents",
            Self::Denoising => "denoising",
            Self::Decoding => "decoding",
        }
    }
}

/// How far a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerProgress {
    /// Layers that are computed.
    pub done: usize,
    /// Layers that there are.
    pub total_layers: usize,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepProgress {
    /// The picture being made, 0-based. Where pictures are made together, all of them are
    /// told of a step before the next one begins; the steps of each come in order.
    pub image: usize,
    /// Steps finished for this picture; 0 right before the first one.
    pub step: usize,
    /// Steps that each picture takes.
    pub total_steps: usize,
}

/// An observer that never stops the work.
#[derive(Debug, Default, Clone, Copy)]
pub struct Unobserved;

impl StepObserver for Unobserved {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What came out of one request.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The pictures, in order.
    pub images: Vec<GeneratedImage>,
    /// What it took, in tokens.
    pub usage: TokenUsage,
    /// What the client should know of how they were made: sentences.
    pub warnings: Vec<String>,
    /// Which share of the transformer's blocks reused what an earlier step had computed, of
    /// all that the steps go through: 0 to 1. `None` if the request set no
    /// [`ImageRequest::cache_threshold`].
    pub skipped_blocks: Option<f64>,
}

/// One finished picture.
#[derive(Debug, Clone)]
pub struct GeneratedImage {
    /// The picture.
    pub image: Picture,
    /// The seed that makes it again.
    pub seed: Seed,
}

/// Real token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Text tokens of the prompt that condition the picture.
    pub input_text_tokens: usize,
    /// Tokens that the input pictures became (encoder and transformer).
    pub input_image_tokens: usize,
    /// Tokens of the finished pictures.
    pub output_image_tokens: usize,
}

/// What a request gets when it does not say otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestDefaults {
    /// Denoising steps.
    pub num_inference_steps: Steps,
    /// Strength of classifier-free guidance.
    pub guidance: GuidanceScale,
    /// What to steer away from. `None` is what the original system makes of that:
    /// Qwen-Image is not guided then, Stable Diffusion steers away from no words.
    pub negative_prompt: Option<String>,
    /// How far an edit by noise, or an inpainting, goes from its input.
    pub strength: Strength,
}

/// The areas at which a model works well, in pixels (width times height).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaRange {
    /// The least.
    pub least: usize,
    /// The most.
    pub most: usize,
}

impl AreaRange {
    /// From half of `image_area` to 1.75 times as much. (Qwen-Image was trained at about a
    /// megapixel, up to 1328x1328: 1.7 times that.)
    #[must_use]
    pub fn around(image_area: usize) -> Self {
        Self { least: image_area / 2, most: image_area / 4 * 7 }
    }

    /// Whether `area` is one of them.
    #[must_use]
    pub fn contains(self, area: usize) -> bool {
        (self.least..=self.most).contains(&area)
    }
}

/// What an edit is to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditKind {
    /// It was made to follow instructions: [`Task::Edit`](crate::domain::Task).
    Instruction,
    /// It makes the picture anew from a noisy one: `Task::ImageToImage`.
    ImageToImage,
    /// It takes the picture apart: `Task::Decompose`.
    Layers,
}

/// The parameter that a model's users know the strength of guidance by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuidanceParameter {
    /// `true_cfg_scale`: Qwen-Image.
    TrueCfgScale,
    /// `guidance_scale`: Stable Diffusion.
    GuidanceScale,
}

impl GuidanceParameter {
    /// The parameter's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TrueCfgScale => "true_cfg_scale",
            Self::GuidanceScale => "guidance_scale",
        }
    }
}

/// What a model is and can do: all that the server enforces. Its configuration files say so,
/// so that it is known of models that are not loaded, too.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The name in `/v1/models`, such as `Qwen/Qwen-Image-Edit` or `demo`.
    pub id: String,
    /// The pipeline class of `model_index.json`.
    pub pipeline: String,
    /// One sentence for people.
    pub description: String,
    /// Prompts that it follows, one of each kind, if it knows only some; empty if
    /// it takes any.
    pub instructions: Vec<String>,
    /// What it offers.
    pub tasks: TaskKinds,
    /// What a request gets when it does not say otherwise.
    pub defaults: RequestDefaults,
    /// How many input pictures one edit may have.
    pub max_input_images: usize,
    /// Output sides are multiples of this many pixels.
    pub size_multiple: usize,
    /// The largest output, in pixels.
    pub max_output_area: usize,
    /// Pixels (width times height) that it works on when a request does not say
    /// otherwise.
    pub image_area: usize,
    /// At which areas it works well, if that is known.
    pub area_range: Option<AreaRange>,
    /// Whether an edit by instruction in other proportions than its input's goes on past
    /// the input's edges. If not, the input is cut to these proportions.
    pub fills_beyond_input: bool,
    /// What `/v1/images/edits` without a mask is to it.
    pub edit_kind: EditKind,
    /// The name that its strength of guidance has.
    pub guidance_parameter: GuidanceParameter,
    /// Whether it takes transparency. The others are shown pictures that are opaque:
    /// whoever asks lays those that are not on a ground first.
    pub takes_transparency: bool,
    /// Whether the encoder sees a copy of the picture of its own size, so that
    /// `condition_area` acts.
    pub has_condition_picture: bool,
    /// Whether requests may change how it works: by LoRAs, a step cache, a schedule.
    pub is_tunable: bool,
}

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Device that it runs on, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Dtype of the weights, such as `float32`.
    pub dtype: String,
    /// Bytes that the weights take on the device.
    pub weight_bytes: usize,
}

impl ModelCard {
    /// Whether `size`, floored to the model's grid, is one it can make.
    #[must_use]
    pub fn accepts(&self, size: ImageSize) -> bool {
        size.width() >= self.size_multiple
            && size.height() >= self.size_multiple
            && size.area() <= self.max_output_area
    }
}

/// Why pictures were not made.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The request is fine in itself, but not for this model and input.
    #[error("{reason}")]
    Unsuitable {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it: a whole sentence for the client.
        reason: String,
    },
    /// The observer broke off.
    #[error("cancelled")]
    Cancelled,
    /// A tensor operation failed: out of memory, or a bug of ours.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The model produced something that cannot be a picture.
    #[error("model produced {0}")]
    BadOutput(String),
    /// Elements overflowed, or are none.
    #[error("numbers are not finite after the {stage}, in {dtype}{}", advice(dtype))]
    NotFinite {
        /// Where this was seen, such as `VAE decoder` or `transformer at step 3`.
        stage: String,
        /// The dtype that they were computed in.
        dtype: &'static str,
    },
}

impl ModelError {
    /// How the device has failed, if it is that.
    #[must_use]
    pub fn device_failure(&self) -> Option<DeviceFailure> {
        match self {
            Self::Tensor(error) => failure_of(error),
            Self::Unsuitable { .. }
            | Self::Cancelled
            | Self::BadOutput(_)
            | Self::NotFinite { .. } => None,
        }
    }
}

/// What may help against numbers that overflow in `dtype`.
fn advice(dtype: &str) -> &'static str {
    match dtype {
        "float32" => "",
        "float16" => "; 'dtype' bfloat16 or float32 may help",
        _ => "; 'dtype' float32 may help",
    }
}

/// Why a model was not loaded. Each says which file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such embedded model, folder or repository.
    #[error("no model '{id}': {reason}")]
    UnknownModel {
        /// What was asked for.
        id: String,
        /// Why it is none, and what would be one.
        reason: String,
    },
    /// Neither a folder here nor a repository that could be fetched.
    #[error("there is no folder '{id}' here, and as a repository on the hub it could not be had")]
    NeitherFolderNorRepository {
        /// What was asked for.
        id: String,
        /// Why the hub gave nothing.
        source: Box<HubError>,
    },
    /// A file that a setting names is on the hub, and could not be had.
    #[error("{setting}: the file could not be had from the hub")]
    HubFile {
        /// The setting.
        setting: &'static str,
        /// Why the hub gave nothing.
        source: Box<HubError>,
    },
    /// A setting asks for what this model cannot do.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// The checkpoint's files are not what they should be.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer's files do not make a tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// No such device in this build or on this machine.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The system gives no thread for the model.
    #[error("no thread for the model")]
    Thread(#[source] std::io::Error),
    /// A tensor operation failed while loading, such as out of memory.
    #[error("tensor operation failed while loading")]
    Tensor(#[from] candle_core::Error),
    /// Files could not be fetched from the hub.
    #[error("download failed")]
    Hub(#[from] HubError),
}

impl LoadError {
    /// Its kind, in words for clients: what they may know of the server.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } | Self::NeitherFolderNorRepository { .. } => {
                "its files are not there"
            }
            Self::Setting { .. } => "a setting does not go with it",
            Self::Checkpoint(_) | Self::Tokenizer(_) => "its files are faulty",
            Self::Device(_) => "its device is not there",
            Self::Thread(_) => "the system gives no thread for it",
            Self::Tensor(_) => "the device failed, or has too little memory",
            Self::Hub(_) | Self::HubFile { .. } => "its files could not be fetched",
        }
    }
}
