//! What a family gives so that its pictures can be measured, with random weights and so
//! without a checkpoint. `bench` measures.

mod families;
mod family;
mod part;

use candle_core::{DType, Device};
use serde::Serialize;

pub use families::{estimate, load, published, published_names};
pub(super) use family::{BenchmarkFamily, with_random_weights};
pub use part::{Part, UnknownPart};

use super::{LoadError, Loaded, ModelConfig, ModelError, StepObserver};
use crate::checkpoint::Snapshot;
use crate::domain::{GuidanceScale, ImageSize, Steps, ValidationError};

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchmarkPlan {
    /// Whose configuration; weights are not read.
    pub snapshot: Snapshot,
    /// How many layers of it.
    pub layers: LayerCounts,
    /// Of the picture made, and of each reference picture.
    pub size: ImageSize,
    /// Reference pictures; without it one for models that edit, else none.
    pub references: Option<usize>,
    /// Denoising steps.
    pub steps: Steps,
    /// Above 1 every step takes two passes.
    pub guidance: GuidanceScale,
    /// Tokens of the words of each prompt; without it an instruction of usual length, and
    /// the negative prompt that the family recommends.
    pub words: Option<usize>,
    /// What of the picture's way to go; weights of the rest are not made.
    pub parts: Vec<Part>,
    /// How often; the first time pays for what is set up once.
    pub repeats: usize,
    /// Whether to measure what the device reaches at most, too.
    pub ceiling: bool,
    /// Whether to make one more picture, of two steps at most, and to note what each
    /// operation of it takes.
    pub trace: bool,
    /// Device, dtype, memory and cache.
    pub model: ModelConfig,
}

/// How many layers to build; `None`: as many as the configuration says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerCounts {
    /// Blocks of the transformer.
    pub transformer: Option<usize>,
    /// Layers of the language model.
    pub text: Option<usize>,
    /// Blocks of the vision tower.
    pub vision: Option<usize>,
}

/// A pipeline, and the request that it is measured with.
pub trait Benchmark {
    /// How it is loaded.
    fn loaded(&self) -> &Loaded;

    /// Where it computes, and in what.
    fn tensor_kind(&self) -> (DType, &Device);

    /// The stages of a picture, in order. The last but one is all steps; the observer hears
    /// of the end of each one before it, and of every step.
    fn stages(&self) -> &'static [BenchmarkStage];

    /// Operations of each stage, by arithmetic.
    fn operations(&self) -> Vec<f64>;

    /// Tokens of a pass.
    fn tokens(&self) -> PassTokens;

    /// Makes the picture in `steps`, or the parts of it that are wanted.
    ///
    /// # Errors
    /// [`ModelError`], as for any request.
    fn make(&mut self, steps: Steps, observer: &mut dyn StepObserver) -> Result<(), ModelError>;
}

/// A stage of a picture.
#[derive(Debug, Clone, Copy)]
pub struct BenchmarkStage {
    /// What is done.
    pub name: &'static str,
    /// The part that it belongs to; without one it is always made.
    pub part: Option<Part>,
}

/// How large a pass of the transformer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassTokens {
    /// Image tokens of a pass of the transformer.
    pub image_tokens: usize,
    /// Text tokens of a pass, those of shown pictures among them.
    pub text_tokens: usize,
    /// Rows and columns of patches of each picture that the text encoder sees.
    pub shown_patches: Vec<(usize, usize)>,
}

/// What a picture takes by arithmetic alone.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// How large a pass is.
    #[serde(flatten)]
    pub tokens: PassTokens,
    /// Bytes of all weights.
    pub weight_bytes: usize,
    /// Each stage; all steps are one.
    pub stages: Vec<EstimatedStage>,
}

/// A stage of a picture, by arithmetic.
#[derive(Debug, Clone, Serialize)]
pub struct EstimatedStage {
    /// What is done.
    pub name: &'static str,
    /// Tera floating-point operations of its products.
    pub tflop: f64,
    /// Bytes of weights that are read for it, as often as they are.
    pub bytes_read: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchmarkError {
    /// No configuration of that name.
    #[error(
        "no configuration '{name}': expected {}, an embedded model, or a folder with a \
         model_index.json",
        published_names().join(", ")
    )]
    UnknownConfiguration {
        /// What was asked for.
        name: String,
    },
    /// The model cannot be built.
    #[error("the model cannot be built")]
    Load(#[from] LoadError),
    /// What was asked for cannot be.
    #[error(transparent)]
    Request(#[from] ValidationError),
    /// No prompt has so many tokens.
    #[error("{asked} tokens of words cannot be: the template alone has {least}")]
    Words {
        /// How many were asked for.
        asked: usize,
        /// What there is without a word.
        least: usize,
    },
    /// A picture was not made.
    #[error("no picture was made")]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
