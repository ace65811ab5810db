//! Measures what a picture takes, with random weights: no checkpoint is needed.
//!
//! The pipeline that serves requests is what is measured, stage by stage, through
//! the observer that a request's client has, too.

mod ceiling;
mod published;

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Device};
use serde::Serialize;

pub use ceiling::{Ceiling, ProductSpeed};
pub use published::{LayerCounts, Published};

use super::pipeline::{Extent, Pipeline};
use super::positions::Grid;
use super::preprocess::PixelSize;
use super::variant::{self, Variant};
use super::{cost, loading};
use crate::checkpoint::Snapshot;
use crate::domain::{
    GuidanceScale, ImageCount, ImageRequest, ImageSize, OutputSize, Prompt, RgbImage, Seed, Steps,
    Task, ValidationError,
};
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::precision::open_device;
use crate::model::{
    DeviceChoice, DiffusionModel, DtypeChoice, LoadError, ModelConfig, ModelError, StepObserver,
    StepProgress, Unobserved,
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
    /// How often; the first time pays for what is set up once.
    pub repeats: usize,
    /// Whether to measure what the device reaches at most, too.
    pub ceiling: bool,
    /// Whether to make one more picture, of two steps at most, and to note what each
    /// operation of it takes.
    pub trace: bool,
    /// Device, number format, memory and cache.
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
    /// In which number format.
    pub dtype: String,
    /// Threads that compute on a CPU.
    pub threads: usize,
    /// Bytes of the weights that stay on the device.
    pub weight_bytes: usize,
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
}

/// What a picture takes by arithmetic alone.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Image tokens of a pass of the transformer.
    pub image_tokens: usize,
    /// Text tokens of a pass, those of shown pictures among them.
    pub text_tokens: usize,
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
    /// A picture was not made.
    #[error("no picture was made")]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// Builds the model with random weights and makes `plan.repeats` pictures.
///
/// # Errors
/// [`BenchmarkError`]: no such device, a faulty configuration, out of memory.
pub fn run(plan: &BenchmarkPlan) -> Result<BenchmarkReport, BenchmarkError> {
    let device = open_device(&plan.model)?;
    let dtype = crate::device::dtype(plan.model.dtype, &device);
    let started = Instant::now();
    let source = (WeightSource::Random, &device, dtype);
    let mut pipeline = with_context(plan, source, super::load_pipeline)?;
    device.synchronize()?;
    let load_s = started.elapsed().as_secs_f64();

    let request = request(plan)?;
    let extent = pipeline.extent(&request)?;
    let mut runs = Vec::with_capacity(plan.repeats);
    let mut text_tokens = 0;
    for _ in 0..plan.repeats {
        let mut watch = Stopwatch::start(&device);
        let generation = pipeline.generate(&request, &mut watch)?;
        watch.mark();
        let words = generation.usage.input_text_tokens;
        text_tokens = words + extent.shown_tokens();
        runs.push(watch.into_run(&costs(&pipeline, &extent, plan, words)));
    }
    let trace = plan.trace.then(|| traced(&mut pipeline, &device, request)).transpose()?;
    Ok(BenchmarkReport {
        device: crate::device::device_name(&device),
        dtype: pipeline.info.dtype.clone(),
        threads: rayon::current_num_threads(),
        weight_bytes: pipeline.info.weight_bytes,
        load_s,
        image_tokens: extent.image_tokens,
        text_tokens,
        shown_patches: extent.shown.iter().map(|grid| (grid.height, grid.width)).collect(),
        ceiling_tflops: plan.ceiling.then(|| ceiling::tflops(&device, dtype)).transpose()?,
        peak_bytes: crate::device::peak_memory_bytes(&device),
        runs,
        operations: trace.as_ref().map(Trace::operations).unwrap_or_default(),
        trace,
    })
}

/// Steps of the picture that is traced: they are alike, and so is what they take.
const TRACED_STEPS: usize = 2;

/// Where the time of one more picture goes.
fn traced(
    pipeline: &mut Pipeline,
    device: &Device,
    mut request: ImageRequest,
) -> Result<Trace, BenchmarkError> {
    if request.steps.get() > TRACED_STEPS {
        request.steps = Steps::new(TRACED_STEPS as i64)?;
    }
    let (made, trace) = trace::record(device, || pipeline.generate(&request, &mut Unobserved))?;
    made?;
    Ok(trace)
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
        // Asked for a card, where the rest is in 16 bits.
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
    let extent = pipeline.extent(&request(plan)?)?;
    let words = words_of(&pipeline, PROMPT);
    let passes = if plan.guidance.get() > 1.0 { 2 } else { 1 };
    let blocks = bytes.transformer - bytes.modulation;
    let reads = [
        0,
        passes * bytes.text_encoder,
        extent.encoded.len() * bytes.vae / 2,
        bytes.modulation,
        plan.steps.get() * passes * blocks,
        bytes.vae / 2,
    ];
    let costs = costs(&pipeline, &extent, plan, words);
    let stages = STAGES.iter().zip(costs).zip(reads).skip(1);
    Ok(Estimate {
        image_tokens: extent.image_tokens,
        text_tokens: words + extent.shown_tokens(),
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
        id: "benchmark".to_owned(),
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

/// As long as people's instructions are.
const PROMPT: &str = "Replace the background with a quiet beach at sunset, and keep the person.";
/// The one that Qwen recommends.
const NEGATIVE_PROMPT: &str = " ";

fn request(plan: &BenchmarkPlan) -> Result<ImageRequest, ValidationError> {
    let (width, height) = (plan.size.width(), plan.size.height());
    let picture = |index: usize| {
        // Differs from picture to picture, so that none is known from before.
        let shade = u8::try_from(40 * index % 256).unwrap_or_default();
        RgbImage::filled(width, height, [shade, 120, 150]).into()
    };
    let images: Vec<_> = (0..plan.references).map(picture).collect();
    Ok(ImageRequest {
        task: if images.is_empty() { Task::Generate } else { Task::Edit { images } },
        prompt: Prompt::new(PROMPT)?,
        negative_prompt: Some(Prompt::negative(NEGATIVE_PROMPT)?),
        count: ImageCount::new(1)?,
        size: OutputSize::Exact(plan.size),
        steps: plan.steps,
        guidance: plan.guidance,
        seed: Seed::new(0),
    })
}

/// The stages of a picture, in the order of `Pipeline::generate`.
const STAGES: [&str; 6] =
    ["plan", "text encoder", "vae encoder", "modulation", "steps", "vae decoder"];
/// Marks before the first step: at the start, and after each stage before the steps.
const MARKS_BEFORE_STEPS: usize = 5;

/// Operations of each of [`STAGES`]; `words`: tokens of the prompt.
fn costs(pipeline: &Pipeline, extent: &Extent, plan: &BenchmarkPlan, words: usize) -> [f64; 6] {
    let components = &pipeline.components;
    let transformer = components.transformer.config();
    let encoder = &components.text_encoder_config;
    let shown = extent.shown_tokens();
    let mut prompts = vec![words];
    if plan.guidance.get() > 1.0 {
        prompts.push(words_of(pipeline, NEGATIVE_PROMPT));
    }
    let template = pipeline.variant.template.drop_tokens;
    let language =
        |words: &usize| cost::language_model(&encoder.text, template + shown + words).total();
    let vision = |grid: &Grid| cost::vision_tower(&encoder.vision, *grid).total();
    let autoencoder =
        |size: &PixelSize| cost::autoencoder(&components.vae_config, size.width, size.height);
    let image_tokens = (extent.image_tokens, extent.made_tokens);
    let pass = |words: &usize| cost::transformer(transformer, image_tokens, shown + words).total();
    let steps = plan.steps.get();
    [
        0.0,
        prompts.iter().map(language).chain(extent.shown.iter().map(vision)).sum(),
        extent.encoded.iter().fold(0.0, |sum, size| sum + autoencoder(size).encode.total()),
        cost::modulation(transformer, steps).total(),
        steps as f64 * prompts.iter().map(pass).sum::<f64>(),
        autoencoder(&extent.output).decode.total(),
    ]
}

/// Tokens of `prompt`; none if it makes none.
fn words_of(pipeline: &Pipeline, prompt: &str) -> usize {
    let template = &pipeline.variant.template;
    let tokens = pipeline.components.tokenizer.tokenise(template, prompt, &[]);
    tokens
        .ok()
        .and_then(Result::ok)
        .map_or(0, |tokens| tokens.token_ids.len() - template.drop_tokens)
}

/// Notes when each stage and each step ended, once the device is done with it.
struct Stopwatch<'a> {
    device: &'a Device,
    marks: Vec<Mark>,
}

#[derive(Clone, Copy)]
struct Mark {
    instant: Instant,
    cpu_s: f64,
}

impl<'a> Stopwatch<'a> {
    fn start(device: &'a Device) -> Self {
        let mut watch = Self { device, marks: Vec::new() };
        watch.mark();
        watch
    }

    fn mark(&mut self) {
        // What fails on the device fails again in the pipeline, which tells it.
        _ = self.device.synchronize();
        let cpu_s = crate::device::process_cpu_s().unwrap_or(f64::NAN);
        self.marks.push(Mark { instant: Instant::now(), cpu_s });
    }

    fn into_run(self, costs: &[f64; 6]) -> Run {
        let between = |from: usize, to: usize| {
            let (from, to) = (self.marks[from], self.marks[to]);
            (to.instant.duration_since(from.instant).as_secs_f64(), to.cpu_s - from.cpu_s)
        };
        let last = self.marks.len() - 1;
        // The start, four stages, all steps, the end.
        let ends = [0, 1, 2, 3, 4, last - 1, last];
        let stages = STAGES.iter().zip(costs).zip(ends.windows(2)).map(|((name, cost), ends)| {
            let (seconds, cpu_s) = between(ends[0], ends[1]);
            Stage { name, seconds, cpu_s, tflop: cost / 1e12 }
        });
        let (total_s, total_cpu_s) = between(0, last);
        let steps = MARKS_BEFORE_STEPS - 1..last - 1;
        Run {
            total_s,
            total_cpu_s,
            stages: stages.collect(),
            steps_s: steps.map(|step| between(step, step + 1).0).collect(),
        }
    }
}

impl StepObserver for Stopwatch<'_> {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        self.mark();
        ControlFlow::Continue(())
    }
}

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
            repeats: 2,
            ceiling: false,
            trace: false,
            model: ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::of("benchmark") },
        }
    }

    #[test]
    fn stages_and_steps_add_up_to_the_whole() {
        let report = run(&plan()).unwrap();

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

    #[test]
    fn a_traced_picture_shows_what_its_steps_are_made_of() {
        let report = run(&BenchmarkPlan { repeats: 1, trace: true, ..plan() }).unwrap();

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
        // Two of three steps, by arithmetic of its own, which counts the layers at the ends
        // of a pass for each prompt.
        let counted: f64 =
            report.operations.iter().filter(|of| of.stage == "steps").map(|of| of.tflop).sum();
        let steps = report.runs[0].stages.iter().find(|stage| stage.name == "steps").unwrap();
        assert!((counted / (steps.tflop * 2.0 / 3.0) - 1.0).abs() < 0.01, "{counted} {steps:?}");
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
