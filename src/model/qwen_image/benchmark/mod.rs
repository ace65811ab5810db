//! The family's pipelines as benchmarks: with random weights of the parts that are measured.

mod batches;
mod prompts;
mod published;

use candle_core::{DType, Device};

pub use batches::{BatchTime, batches};
pub(super) use published::Published;

use prompts::Prompts;

use super::memory::{WeightBytes, WeightGroup};
use super::pipeline::{Extent, Pipeline};
use super::variant::{self, Variant};
use super::{load_pipeline, loading, outlook};
use crate::checkpoint::Snapshot;
use crate::domain::{ImageRequest, OutputSize, RgbImage, Steps, Task, ValidationError};
use crate::model::benchmark::{
    Benchmark, BenchmarkError, BenchmarkFamily, BenchmarkPlan, BenchmarkStage, Estimate,
    EstimatedStage, LayerCounts, Part, PassTokens,
};
use crate::model::loading::LoadContext;
use crate::model::{DiffusionModel, EditKind, LoadError, Loaded, ModelError, StepObserver};

/// The family, to be measured.
pub(in crate::model) struct QwenImage;

impl BenchmarkFamily for QwenImage {
    fn class_names(&self) -> Vec<&'static str> {
        variants().map(|variant| variant.class_name).into()
    }

    fn published_names(&self) -> Vec<&'static str> {
        Published::ALL.map(Published::name).into()
    }

    fn published(&self, name: &str) -> Option<Result<Snapshot, LoadError>> {
        let published = Published::ALL.into_iter().find(|published| published.name() == name);
        published.map(Published::snapshot)
    }

    fn with_layers(&self, snapshot: &Snapshot, layers: LayerCounts) -> Result<Snapshot, LoadError> {
        published::with_layers(snapshot, layers)
    }

    fn component(&self, part: Part) -> &'static str {
        match part {
            Part::TextEncoder => "text_encoder",
            Part::VaeEncoder | Part::VaeDecoder => "vae",
            Part::Transformer => "transformer",
        }
    }

    fn load(
        &self,
        context: &LoadContext,
        plan: &BenchmarkPlan,
    ) -> Result<Box<dyn Benchmark>, BenchmarkError> {
        Ok(Box::new(PipelineBenchmark::new(context, plan)?))
    }

    fn estimate(
        &self,
        context: &LoadContext,
        plan: &BenchmarkPlan,
    ) -> Result<Estimate, BenchmarkError> {
        let bytes = loading::weight_bytes(context, variant_of(context.snapshot)?)?;
        Ok(PipelineBenchmark::new(context, plan)?.estimate(&bytes))
    }
}

fn variants() -> [&'static Variant; 4] {
    [&variant::TEXT_TO_IMAGE, &variant::EDIT, &variant::EDIT_PLUS, &variant::LAYERED]
}

fn variant_of(snapshot: &Snapshot) -> Result<&'static Variant, LoadError> {
    let class_name: String = snapshot.config("model_index.json")?.required("_class_name");
    let found = variants().into_iter().find(|variant| variant.class_name == class_name);
    found.ok_or_else(|| LoadError::UnknownModel {
        id: snapshot.name(),
        reason: format!("{class_name} is no pipeline of the Qwen-Image family"),
    })
}

/// The stages of a picture, in the order of `Pipeline::generate`.
const STAGES: [BenchmarkStage; 6] = [
    BenchmarkStage { name: "plan", part: None },
    BenchmarkStage { name: "text encoder", part: Some(Part::TextEncoder) },
    BenchmarkStage { name: "vae encoder", part: Some(Part::VaeEncoder) },
    BenchmarkStage { name: "modulation", part: Some(Part::Transformer) },
    BenchmarkStage { name: "steps", part: Some(Part::Transformer) },
    BenchmarkStage { name: "vae decoder", part: Some(Part::VaeDecoder) },
];

/// A model, and what is asked of it.
struct PipelineBenchmark {
    pipeline: Pipeline,
    parts: Vec<Part>,
    request: ImageRequest,
    extent: Extent,
    prompts: Prompts,
}

impl PipelineBenchmark {
    fn new(context: &LoadContext, plan: &BenchmarkPlan) -> Result<Self, BenchmarkError> {
        let variant = variant_of(context.snapshot)?;
        let pipeline = load_pipeline(context, variant)?;
        let usual = request(plan, variant)?;
        let extent = pipeline.extent(&usual)?;
        let prompts = Prompts::of(&pipeline, &extent, plan)?;
        let request = ImageRequest {
            prompt: prompts.positive.clone(),
            negative_prompt: Some(prompts.negative.clone()),
            ..usual
        };
        Ok(Self { pipeline, parts: plan.parts.clone(), request, extent, prompts })
    }

    /// Makes the picture of `request`, or the parts of it that are wanted.
    fn make_of(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<(), ModelError> {
        let parts = &self.parts;
        if Part::ALL.iter().all(|part| parts.contains(part)) {
            return self.pipeline.generate(request, observer).map(drop);
        }
        let shown = self.extent.shown_tokens();
        let tokens: Vec<usize> = self.prompts.words.iter().map(|words| shown + words).collect();
        self.pipeline.make_parts(request, parts, &tokens, observer)
    }

    /// What the picture takes, with weights of so many `bytes`.
    fn estimate(&self, bytes: &WeightBytes) -> Estimate {
        let stages = STAGES.iter().zip(self.operations()).zip(self.bytes_read(bytes)).skip(1);
        Estimate {
            tokens: self.tokens(),
            weight_bytes: bytes.total(),
            stages: stages
                .map(|((stage, operations), read)| EstimatedStage {
                    name: stage.name,
                    tflop: operations / 1e12,
                    bytes_read: read as f64,
                })
                .collect(),
        }
    }

    /// Bytes of weights that each stage reads, as often as it does.
    fn bytes_read(&self, bytes: &WeightBytes) -> [usize; 6] {
        let passes = self.prompts.words.len();
        let text_encoder =
            [WeightGroup::TextEncoder, WeightGroup::VisionTower, WeightGroup::Embedding];
        let text_encoder: usize = text_encoder.iter().map(|group| bytes.of(*group)).sum();
        let (modulation, vae) = (bytes.of(WeightGroup::Modulation), bytes.of(WeightGroup::Vae));
        let blocks = bytes.total() - text_encoder - modulation - vae;
        [
            0,
            passes * text_encoder,
            self.extent.encoded.len() * vae / 2,
            modulation,
            self.request.steps.get() * passes * blocks,
            vae / 2,
        ]
    }
}

impl Benchmark for PipelineBenchmark {
    fn loaded(&self) -> &Loaded {
        &self.pipeline.loaded
    }

    fn tensor_kind(&self) -> (DType, &Device) {
        self.pipeline.tensor_kind()
    }

    fn stages(&self) -> &'static [BenchmarkStage] {
        &STAGES
    }

    fn operations(&self) -> Vec<f64> {
        let steps = self.request.steps.get();
        outlook::operations(&self.pipeline, &self.extent, &self.prompts.words, steps).into()
    }

    fn tokens(&self) -> PassTokens {
        let extent = &self.extent;
        PassTokens {
            image_tokens: extent.image_tokens,
            text_tokens: self.prompts.words[0] + extent.shown_tokens(),
            shown_patches: extent.shown.iter().map(|grid| (grid.height, grid.width)).collect(),
        }
    }

    fn make(&mut self, steps: Steps, observer: &mut dyn StepObserver) -> Result<(), ModelError> {
        let request = ImageRequest { steps, ..self.request.clone() };
        self.make_of(&request, observer)
    }
}

/// What `plan` asks for, with its usual prompts.
fn request(plan: &BenchmarkPlan, variant: &Variant) -> Result<ImageRequest, ValidationError> {
    let (width, height) = (plan.size.width(), plan.size.height());
    let picture = |index: usize| {
        // Differs from picture to picture, so that none is known from before.
        let shade = u8::try_from(40 * index % 256).unwrap_or_default();
        RgbImage::filled(width, height, [shade, 120, 150]).into()
    };
    let edits = variant.edit_kind != EditKind::ImageToImage;
    let references = plan.references.unwrap_or(usize::from(edits));
    let images: Vec<_> = (0..references).map(picture).collect();
    Ok(ImageRequest {
        size: OutputSize::Exact(plan.size),
        steps: plan.steps,
        guidance: plan.guidance,
        ..ImageRequest::new(
            if images.is_empty() { Task::Generate } else { Task::Edit { images } },
            prompts::usual()?,
        )
    })
}
