//! Measures what a picture takes, with random weights: no checkpoint is needed.
//!
//! The pipeline that serves requests is what is measured, stage by stage, through
//! the observer that a request's client has, too.

mod batches;
mod ceiling;
mod prompts;
mod published;
mod stopwatch;

use std::time::Instant;

use candle_core::{DType, Device};
use serde::Serialize;

pub use batches::{BatchTime, batches};
pub use ceiling::{Ceiling, ProductSpeed};
pub use published::{LayerCounts, Published};
pub use stopwatch::Work;

pub use super::pipeline::parts::Part;

use prompts::Prompts;
use stopwatch::{Order, Stopwatch};

use super::memory::WeightGroup;
use super::pipeline::{Extent, Pipeline};
use super::variant::{self, Variant};
use super::{loading, outlook};
use crate::checkpoint::Snapshot;
use crate::domain::{
    GuidanceScale, ImageRequest, ImageSize, OutputSize, RgbImage, Steps, Task, ValidationError,
};
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::precision::open_device;
use crate::model::{
    DeviceChoice, DiffusionModel, DtypeChoice, LoadError, ModelConfig, ModelError, StepObserver,
    Unobserved,
};
use crate::nn::trace::{self, OperationTime, Trace};

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchmarkPlan {
    /// Whose configuration.
    pub configuration: Configuration,
    /// How many layers of it.
    pub layers: LayerCounts,
    /// Of the picture made, and of each reference picture.
    pub size: ImageSize,
    /// Reference pictures.
    pub references: usize,
    /// Denoising steps.
    pub steps: Steps,
    /// Above 1 every step takes two passes.
    pub guidance: GuidanceScale,
    /// Tokens of the words of each prompt; without it an instruction of usual length, and
    /// the negative prompt that Qwen recommends.
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

/// Whose configuration to measure.
#[derive(Debug, Clone)]
pub enum Configuration {
    /// One of the published ones.
    Published(Published),
    /// That of a checkpoint; its weights are not read.
    Checkpoint(Snapshot),
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchmarkReport {
    /// Where it ran, such as `cpu` or `cuda:0`.
    pub device: String,
    /// In which dtype.
    pub dtype: String,
    /// Threads that compute on a CPU.
    pub threads: usize,
    /// Bytes of the weights that stay on the device.
    pub weight_bytes: usize,
    /// Bytes that this process had once the weights were there, if that can be told.
    pub loaded_bytes: Option<usize>,
    /// Seconds until all weights were there.
    pub load_s: f64,
    /// Image tokens of a pass of the transformer.
    pub image_tokens: usize,
    /// Text tokens of a pass, those of shown pictures among them.
    pub text_tokens: usize,
    /// Rows and columns of patches of each picture that the text encoder sees.
    pub shown_patches: Vec<(usize, usize)>,
    /// What a large product of matrices reaches on this device, in TFLOP/s, if that
    /// was measured.
    pub ceiling_tflops: Option<f64>,
    /// The most memory that this process has had, in bytes, if that can be told.
    pub peak_bytes: Option<usize>,
    /// Every repetition.
    pub runs: Vec<Run>,
    /// What each operation took in the traced picture; they add up to the whole.
    pub operations: Vec<OperationTime>,
    /// That picture's spans.
    #[serde(skip)]
    pub trace: Option<Trace>,
}

/// One picture.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Seconds from the request to the picture.
    pub total_s: f64,
    /// Processor seconds of all threads: steadier than seconds on a busy machine.
    pub total_cpu_s: f64,
    /// Its stages in order; all steps are one.
    pub stages: Vec<Stage>,
    /// Seconds of each step.
    pub steps_s: Vec<f64>,
}

/// A stage of a picture.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// What is done.
    pub name: &'static str,
    /// Seconds.
    pub seconds: f64,
    /// Processor seconds of all threads.
    pub cpu_s: f64,
    /// Tera floating-point operations of its products, by arithmetic.
    pub tflop: f64,
    /// The most memory that this process had during it, in bytes, if that can be told.
    pub peak_bytes: Option<usize>,
}

/// What a picture takes by arithmetic alone.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Image tokens of a pass of the transformer.
    pub image_tokens: usize,
    /// Text tokens of a pass, those of shown pictures among them.
    pub text_tokens: usize,
    /// Rows and columns of patches of each picture that the text encoder sees.
    pub shown_patches: Vec<(usize, usize)>,
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

/// Builds the model with random weights and makes `plan.repeats` pictures, or those
/// parts of them that are wanted. `told` hears what is begun with.
///
/// # Errors
/// [`BenchmarkError`]: no such device, a faulty configuration, out of memory.
pub fn run(
    plan: &BenchmarkPlan,
    told: &mut dyn FnMut(Work),
) -> Result<BenchmarkReport, BenchmarkError> {
    let started = Instant::now();
    told(Work::Loading);
    let (pipeline, (dtype, device)) = random_pipeline(plan)?;
    let load_s = started.elapsed().as_secs_f64();
    let mut bench = Bench::new(pipeline, plan)?;
    let loaded_bytes = crate::device::held_memory_bytes(&device);

    let mut peak_bytes = crate::device::peak_memory_bytes(&device);
    let mut runs = Vec::with_capacity(plan.repeats);
    for picture in 1..=plan.repeats {
        let order = Order { picture, pictures: plan.repeats, parts: &plan.parts };
        let mut watch = Stopwatch::start((&device, order), told);
        bench.make(&bench.request.clone(), &mut watch)?;
        peak_bytes = peak_bytes.max(watch.stop());
        runs.push(watch.into_run(&bench.costs()));
    }
    if plan.trace {
        told(Work::Trace);
    }
    let trace = plan.trace.then(|| bench.traced(&device)).transpose()?;
    if plan.ceiling {
        told(Work::Ceiling);
    }
    let Bench { pipeline, extent, prompts, .. } = bench;
    Ok(BenchmarkReport {
        device: crate::device::device_name(&device),
        dtype: pipeline.loaded.dtype.clone(),
        threads: rayon::current_num_threads(),
        weight_bytes: pipeline.loaded.weight_bytes,
        loaded_bytes,
        load_s,
        image_tokens: extent.image_tokens,
        text_tokens: prompts.words[0] + extent.shown_tokens(),
        shown_patches: extent.shown.iter().map(|grid| (grid.height, grid.width)).collect(),
        ceiling_tflops: plan.ceiling.then(|| ceiling::tflops(&device, dtype)).transpose()?,
        peak_bytes: peak_bytes.max(crate::device::peak_memory_bytes(&device)),
        runs,
        operations: trace.as_ref().map(Trace::operations).unwrap_or_default(),
        trace,
    })
}

/// The components that `plan` measures, with random weights; what they compute in, and where.
fn random_pipeline(plan: &BenchmarkPlan) -> Result<(Pipeline, (DType, Device)), BenchmarkError> {
    let device = open_device(&plan.model)?;
    let dtype = crate::device::dtype(plan.model.dtype, &device);
    let components: Vec<&str> = plan.parts.iter().map(|part| part.component()).collect();
    let source = (WeightSource::Random(&components), &device, dtype);
    let pipeline = with_context(plan, source, super::load_pipeline)?;
    device.synchronize()?;
    Ok((pipeline, (dtype, device)))
}

/// Steps of the picture that is traced: they are alike, and so is what they take.
const TRACED_STEPS: usize = 2;

/// A model, and what is asked of it.
struct Bench<'a> {
    pipeline: Pipeline,
    plan: &'a BenchmarkPlan,
    request: ImageRequest,
    extent: Extent,
    prompts: Prompts,
}

impl<'a> Bench<'a> {
    fn new(pipeline: Pipeline, plan: &'a BenchmarkPlan) -> Result<Self, BenchmarkError> {
        let usual = request(plan)?;
        let extent = pipeline.extent(&usual)?;
        let prompts = Prompts::of(&pipeline, &extent, plan)?;
        let request = ImageRequest {
            prompt: prompts.positive.clone(),
            negative_prompt: Some(prompts.negative.clone()),
            ..usual
        };
        Ok(Self { pipeline, plan, request, extent, prompts })
    }

    /// Makes the picture of `request`, or the parts of it that are wanted.
    fn make(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<(), ModelError> {
        let parts = &self.plan.parts;
        if Part::ALL.iter().all(|part| parts.contains(part)) {
            return self.pipeline.generate(request, observer).map(drop);
        }
        let shown = self.extent.shown_tokens();
        let tokens: Vec<usize> = self.prompts.words.iter().map(|words| shown + words).collect();
        self.pipeline.make_parts(request, parts, &tokens, observer)
    }

    /// Where the time of one more picture goes.
    fn traced(&mut self, device: &Device) -> Result<Trace, BenchmarkError> {
        let mut request = self.request.clone();
        if request.steps.get() > TRACED_STEPS {
            request.steps = Steps::new(TRACED_STEPS as i64)?;
        }
        let (made, trace) = trace::record(device, || self.make(&request, &mut Unobserved))?;
        made?;
        Ok(trace)
    }

    /// Operations of each of [`STAGES`].
    fn costs(&self) -> [f64; 6] {
        let steps = self.plan.steps.get();
        outlook::operations(&self.pipeline, &self.extent, &self.prompts.words, steps)
    }
}

/// What `device` reaches at most in `dtype`.
///
/// # Errors
/// [`BenchmarkError`]: no such device, out of memory.
pub fn ceiling(device: DeviceChoice, dtype: DtypeChoice) -> Result<Ceiling, BenchmarkError> {
    let device = crate::device::open(device).map_err(LoadError::from)?;
    let dtype = crate::device::dtype(dtype, &device);
    Ok(Ceiling::of(&device, dtype)?)
}

/// Counts what `plan` takes, without making any weight.
///
/// # Errors
/// [`BenchmarkError`]: a faulty configuration, or a request that it cannot serve.
pub fn estimate(plan: &BenchmarkPlan) -> Result<Estimate, BenchmarkError> {
    let dtype = match plan.model.dtype {
        // Asked for a GPU, where the rest is in 16 bits.
        DtypeChoice::Fp8 | DtypeChoice::Fp8Weights => DType::BF16,
        choice @ (DtypeChoice::Auto
        | DtypeChoice::Float32
        | DtypeChoice::Bfloat16
        | DtypeChoice::Float16
        | DtypeChoice::Q8_0) => crate::device::dtype(choice, &Device::Cpu),
    };
    let source = (WeightSource::Placeholders, &Device::Cpu, dtype);
    let (pipeline, bytes) = with_context(plan, source, |context, variant| {
        Ok((super::load_pipeline(context, variant)?, loading::weight_bytes(context, variant)?))
    })?;
    let bench = Bench::new(pipeline, plan)?;
    let extent = &bench.extent;
    let passes = bench.prompts.words.len();
    let text_encoder = [WeightGroup::TextEncoder, WeightGroup::VisionTower, WeightGroup::Embedding];
    let text_encoder: usize = text_encoder.iter().map(|group| bytes.of(*group)).sum();
    let (modulation, vae) = (bytes.of(WeightGroup::Modulation), bytes.of(WeightGroup::Vae));
    let blocks = bytes.total() - text_encoder - modulation - vae;
    let reads = [
        0,
        passes * text_encoder,
        extent.encoded.len() * vae / 2,
        modulation,
        plan.steps.get() * passes * blocks,
        vae / 2,
    ];
    let stages = STAGES.iter().zip(bench.costs()).zip(reads).skip(1);
    Ok(Estimate {
        image_tokens: extent.image_tokens,
        text_tokens: bench.prompts.words[0] + extent.shown_tokens(),
        shown_patches: extent.shown.iter().map(|grid| (grid.height, grid.width)).collect(),
        weight_bytes: bytes.total(),
        stages: stages
            .map(|((name, cost), read)| EstimatedStage {
                name,
                tflop: cost / 1e12,
                bytes_read: read as f64,
            })
            .collect(),
    })
}

/// What `action` makes of the configuration of `plan`.
fn with_context<T>(
    plan: &BenchmarkPlan,
    (weights, device, dtype): (WeightSource, &Device, DType),
    action: impl FnOnce(&LoadContext, &Variant) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let snapshot = match &plan.configuration {
        Configuration::Published(published) => published.snapshot()?,
        Configuration::Checkpoint(snapshot) => snapshot.clone(),
    };
    let snapshot = published::with_layers(&snapshot, plan.layers)?;
    let area = plan.size.area();
    let config = ModelConfig { image_area: Some(area), ..plan.model.clone() };
    let context = LoadContext {
        snapshot: &snapshot,
        config: &config,
        id: "benchmark",
        device: device.clone(),
        dtype,
        weights,
    };
    action(&context, variant_of(&snapshot)?)
}

fn variant_of(snapshot: &Snapshot) -> Result<&'static Variant, LoadError> {
    let class_name: String = snapshot.config("model_index.json")?.required("_class_name");
    let known = [&variant::TEXT_TO_IMAGE, &variant::EDIT, &variant::EDIT_PLUS, &variant::LAYERED];
    known.into_iter().find(|variant| variant.class_name == class_name).ok_or_else(|| {
        LoadError::UnknownModel {
            id: snapshot.name(),
            reason: format!("{class_name} is no pipeline of the Qwen-Image family"),
        }
    })
}

/// What `plan` asks for, with its usual prompts.
fn request(plan: &BenchmarkPlan) -> Result<ImageRequest, ValidationError> {
    let (width, height) = (plan.size.width(), plan.size.height());
    let picture = |index: usize| {
        // Differs from picture to picture, so that none is known from before.
        let shade = u8::try_from(40 * index % 256).unwrap_or_default();
        RgbImage::filled(width, height, [shade, 120, 150]).into()
    };
    let images: Vec<_> = (0..plan.references).map(picture).collect();
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

/// The stages of a picture, in the order of `Pipeline::generate`.
const STAGES: [&str; 6] =
    ["plan", "text encoder", "vae encoder", "modulation", "steps", "vae decoder"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Snapshot;
    use crate::model::{DeviceChoice, embedded};

    fn plan() -> BenchmarkPlan {
        let tiny = embedded::find("tiny-random").unwrap();
        BenchmarkPlan {
            configuration: Configuration::Checkpoint(Snapshot::Embedded(tiny)),
            layers: LayerCounts { transformer: Some(2), text: None, vision: None },
            size: ImageSize::new(64, 64).unwrap(),
            references: 1,
            steps: Steps::new(3).unwrap(),
            guidance: GuidanceScale::new(4.0).unwrap(),
            words: None,
            parts: Part::ALL.to_vec(),
            repeats: 2,
            ceiling: false,
            trace: false,
            model: ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::of("benchmark") },
        }
    }

    #[test]
    fn stages_and_steps_add_up_to_the_whole() {
        let report = run(&plan(), &mut |_| ()).unwrap();

        assert_eq!(report.runs.len(), 2);
        for run in &report.runs {
            assert_eq!(run.steps_s.len(), 3);
            let sum: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
            assert!((sum - run.total_s).abs() < 1e-3 * run.total_s.max(1e-3), "{run:?}");
            let steps = run.stages.iter().find(|stage| stage.name == "steps").unwrap();
            let sum: f64 = run.steps_s.iter().sum();
            assert!((sum - steps.seconds).abs() < 1e-3 * steps.seconds, "{run:?}");
            assert!(run.stages[1..].iter().all(|stage| stage.tflop > 0.0), "{run:?}");
        }
        assert_eq!(report.image_tokens, 2 * 16);
        assert!(report.weight_bytes > 0);
    }

    /// Names of the stages that a run of `parts` has, and of what was told.
    fn stages_of(parts: &[Part]) -> (Vec<&'static str>, Vec<&'static str>) {
        let mut told = Vec::new();
        let plan = BenchmarkPlan { parts: parts.to_vec(), repeats: 1, ..plan() };
        let report = run(&plan, &mut |work| match work {
            Work::Stage { name, picture: 1, pictures: 1, .. } => told.push(name),
            Work::Loading => {}
            other @ (Work::Stage { .. } | Work::Trace | Work::Ceiling) => panic!("{other:?}"),
        });
        let run = report.unwrap().runs.remove(0);
        let sum: f64 = run.stages.iter().map(|stage| stage.seconds).sum();
        // As clocks count them: a sum of fractions is rounded otherwise than the whole.
        let nanoseconds = |seconds: f64| (seconds * 1e9).round();
        assert!(nanoseconds(sum) <= nanoseconds(run.total_s), "{run:?}");
        assert_eq!(run.steps_s.len(), 3 * usize::from(parts.contains(&Part::Transformer)));
        (run.stages.iter().map(|stage| stage.name).collect(), told)
    }

    #[test]
    fn parts_are_made_alone_and_every_stage_and_step_is_told_when_it_begins() {
        let (made, told) = stages_of(&[Part::Transformer]);
        assert_eq!(made, ["plan", "modulation", "steps"]);
        assert_eq!(told, ["plan", "modulation", "steps", "steps", "steps"]);

        let (made, told) = stages_of(&[Part::VaeEncoder, Part::VaeDecoder]);
        assert_eq!(made, ["plan", "vae encoder", "vae decoder"]);
        assert_eq!(told, made);

        let (made, _) = stages_of(&[Part::TextEncoder]);
        assert_eq!(made, ["plan", "text encoder"]);

        let (made, told) = stages_of(&Part::ALL);
        assert_eq!(made, STAGES);
        let (steps, others): (Vec<_>, Vec<_>) = told.into_iter().partition(|name| *name == "steps");
        assert_eq!((steps.len(), others.len()), (3, STAGES.len() - 1));
    }

    #[test]
    fn the_transformer_alone_has_the_tokens_and_the_operations_that_it_has_in_a_picture() {
        let traced = |parts: &[Part]| {
            let parts = parts.to_vec();
            let plan = BenchmarkPlan { parts, repeats: 1, trace: true, ..plan() };
            let report = run(&plan, &mut |_| ()).unwrap();
            let of_steps = report.operations.iter().filter(|of| of.stage == "steps");
            let tflop: f64 = of_steps.map(|of| of.tflop).sum();
            (report.image_tokens, report.text_tokens, tflop, report.weight_bytes)
        };

        let (whole, alone) = (traced(&Part::ALL), traced(&[Part::Transformer]));

        assert_eq!((alone.0, alone.1), (whole.0, whole.1));
        assert!((alone.2 / whole.2 - 1.0).abs() < 1e-9, "{alone:?} {whole:?}");
        assert!(alone.3 < whole.3);
    }

    #[test]
    fn prompts_have_the_words_that_are_asked_for_and_fewer_than_a_template_are_refused() {
        let asked = |words| BenchmarkPlan { words, repeats: 1, ..plan() };
        let of = |words| estimate(&asked(words)).map(|estimate| estimate.text_tokens);
        let usual = of(None).unwrap();

        let report = run(&asked(Some(50)), &mut |_| ()).unwrap();

        assert_eq!(of(Some(50)).unwrap(), report.text_tokens);
        assert_eq!(of(Some(51)).unwrap(), of(Some(50)).unwrap() + 1);
        assert_ne!(report.text_tokens, usual);
        let refused = of(Some(1)).unwrap_err().to_string();
        assert!(refused.starts_with("1 tokens of words cannot be"), "{refused}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_told_for_each_stage_and_the_most_of_all_is_the_most() {
        let report = run(&plan(), &mut |_| ()).unwrap();

        let stages = report.runs.iter().flat_map(|run| &run.stages);
        let peaks: Vec<usize> = stages.filter_map(|stage| stage.peak_bytes).collect();
        assert_eq!(peaks.len(), 2 * STAGES.len());
        assert!(peaks.iter().max() <= report.peak_bytes.as_ref());
        assert!(report.loaded_bytes.is_some_and(|loaded| loaded > report.weight_bytes));
    }

    #[test]
    fn a_traced_picture_shows_what_its_steps_are_made_of() {
        let report =
            run(&BenchmarkPlan { repeats: 1, trace: true, ..plan() }, &mut |_| ()).unwrap();

        let trace = report.trace.unwrap();
        let text = trace.to_chrome().to_string();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["traceEvents"].as_array().unwrap().len(), trace.spans.len());
        for span in &trace.spans[1..] {
            let parent = &trace.spans[span.parent.unwrap()];
            let end = |span: &trace::TracedSpan| span.start_us + span.duration_us;
            let inside = span.start_us >= parent.start_us && end(span) <= end(parent) + 1e-6;
            assert!(inside, "{span:?} in {parent:?}");
        }
        let count = |name| trace.spans.iter().filter(|span| span.name == name).count();
        // Two of three steps, two passes each, two blocks.
        assert_eq!((count("step"), count("block")), (2, 2 * 2 * 2));
        let stages: Vec<_> = trace
            .spans
            .iter()
            .filter(|span| span.parent == Some(0))
            .map(|span| span.name)
            .collect();
        assert_eq!(stages, STAGES);

        // Each pass of a block has one attention; after the last, no text is read.
        let of_steps = |name| {
            let of = |time: &&OperationTime| time.stage == "steps" && time.name == name;
            report.operations.iter().find(of).unwrap()
        };
        assert_eq!(of_steps("attention").calls, count("block"));
        assert_eq!(of_steps("joint heads").calls, 3 * count("block"));
        assert_eq!(of_steps("modulated norm").calls, 4 * count("block") - 2 * 2 + 2 * 2);
        // Two of three steps, by arithmetic of its own.
        let counted: f64 =
            report.operations.iter().filter(|of| of.stage == "steps").map(|of| of.tflop).sum();
        let steps = report.runs[0].stages.iter().find(|stage| stage.name == "steps").unwrap();
        assert!((counted / (steps.tflop * 2.0 / 3.0) - 1.0).abs() < 1e-6, "{counted} {steps:?}");
        let sum: f64 = report.operations.iter().map(|time| time.seconds).sum();
        assert!((sum * 1e6 - trace.spans[0].duration_us).abs() < 1e-3 * sum * 1e6);
    }

    #[test]
    fn a_published_model_is_counted_without_being_made() {
        let plan = BenchmarkPlan {
            configuration: Configuration::Published(Published::Edit2511),
            layers: LayerCounts::default(),
            size: ImageSize::new(1024, 1024).unwrap(),
            steps: Steps::new(50).unwrap(),
            model: ModelConfig { dtype: DtypeChoice::Bfloat16, ..plan().model },
            ..plan()
        };

        let estimate = estimate(&plan).unwrap();

        // 28.8 billion parameters, less half a billion of the unused output layer.
        assert_eq!(estimate.weight_bytes / 100_000_000, 566);
        assert_eq!(estimate.image_tokens, 2 * 4096);
        let steps = estimate.stages.iter().find(|stage| stage.name == "steps").unwrap();
        // About 168 TFLOP a pass, two passes a step.
        assert!((steps.tflop / 100.0 - 168.0).abs() < 3.0, "{}", steps.tflop);
    }

    #[test]
    fn published_configurations_are_those_of_their_lists() {
        for (published, list) in [
            (Published::TextToImage, "Qwen-Image"),
            (Published::Edit, "Qwen-Image-Edit"),
            (Published::Edit2511, "Qwen-Image-Edit-2511"),
        ] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
            let list = folder.join(format!("tests/data/manifest-full/{list}.json"));
            let list: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(list).unwrap()).unwrap();
            let snapshot = published.snapshot().unwrap();
            let ours: serde_json::Value =
                serde_json::from_str(&snapshot.text("transformer/config.json").unwrap()).unwrap();

            for (key, value) in list["transformer"]["config"].as_object().unwrap() {
                assert_eq!(&ours[key], value, "{}: {key}", published.name());
            }
            assert_eq!(variant_of(&snapshot).unwrap().class_name, list["pipeline"]);
        }
    }
}
