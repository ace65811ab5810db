//! Latents of whole runs, held against diffusers. The numbers come from
//! `tests/data/make_stable_diffusion.py`.
//!
//! Bound: 1e-3, in float32: rounding grows over the steps, and with guidance.

#![expect(clippy::print_stdout, reason = "a test says what it measured")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::checkpoint::Snapshot;
use crate::domain::{GuidanceScale, ImageCount, Seed, Steps};
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::stable_diffusion::{ONE_TEXT, TWO_TEXTS, Variant, load_pipeline};
use crate::model::{DeviceChoice, DtypeChoice, ModelConfig, Unobserved};

/// In the repository, or where the variable `STABLE_DIFFUSION` says.
#[expect(clippy::disallowed_methods, reason = "a switch for people who run the tests")]
fn folder(checkpoint: &str) -> PathBuf {
    let data = std::env::var_os("STABLE_DIFFUSION").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stable_diffusion"),
        PathBuf::from,
    );
    data.join(checkpoint)
}

/// The tiny checkpoint, with the schedule of the case if it has one.
fn pipeline(checkpoint: &str, variant: &Variant, scheduler: &Value) -> Pipeline {
    let snapshot = Snapshot::Directory(folder(checkpoint));
    let config = ModelConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::Float32,
        ..ModelConfig::of("tiny")
    };
    let context = LoadContext {
        snapshot: &snapshot,
        config: &config,
        id: "tiny".to_owned(),
        device: Device::Cpu,
        dtype: DType::F32,
        weights: WeightSource::Stored,
    };
    let mut pipeline = load_pipeline(&context, variant).unwrap();
    if let Some(class) = scheduler["_class_name"].as_str() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        let file = folder.path().join("scheduler/scheduler_config.json");
        std::fs::write(file, scheduler.to_string()).unwrap();
        let snapshot = Snapshot::Directory(folder.path().to_owned());
        pipeline.components.scheduler = SchedulerConfig::load(&snapshot, class).unwrap();
    }
    pipeline
}

/// A u8 tensor (height, width, 3) as a picture.
fn picture(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().unwrap();
    RgbImage::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

fn request(case: &Value, tensors: &HashMap<String, Tensor>) -> ImageRequest {
    let number = |key: &str| case[key].as_f64().unwrap();
    let whole = |key: &str| case[key].as_i64().unwrap();
    let source = tensors.get(&format!("{}.source", case["name"].as_str().unwrap()));
    let size = case["width"].as_u64().map(|_| {
        let side = |key: &str| usize::try_from(whole(key)).unwrap();
        OutputSize::Exact(ImageSize::new(side("width"), side("height")).unwrap())
    });
    ImageRequest {
        task: source.map_or(Task::Generate, |source| Task::ImageToImage {
            image: picture(source).into(),
            strength: Strength::new(number("strength")).unwrap(),
        }),
        prompt: Prompt::new(case["prompt"].as_str().unwrap()).unwrap(),
        negative_prompt: case["negative"].as_str().map(|text| Prompt::negative(text).unwrap()),
        count: ImageCount::new(1).unwrap(),
        size: size.unwrap_or(OutputSize::Reference),
        steps: Steps::new(whole("steps")).unwrap(),
        guidance: GuidanceScale::new(number("guidance")).unwrap(),
        seed: Seed::new(7),
    }
}

/// What `generate` does up to the last step.
fn latents(pipeline: &Pipeline, request: &ImageRequest) -> Tensor {
    let source = source(&request.task).unwrap();
    let size = pipeline.size(&source, request.size).unwrap();
    let schedule = pipeline.schedule(&source, request.steps.get()).unwrap();
    let guidance = pipeline.encode_prompts(request, size).unwrap();
    let (posterior, _) = pipeline.encode_picture(&source, size).unwrap();
    let mut noise = pipeline.noise(request.seed.get(), size);
    let start = pipeline.start(posterior.as_ref(), &schedule, &mut noise).unwrap();
    let total_steps = schedule.timesteps().len();
    let mut watch = Watch { observer: &mut Unobserved, image: 0, total_steps };
    pipeline.denoise(start, &schedule, &guidance, &mut noise, &mut watch).unwrap()
}

fn compare(checkpoint: &str, variant: &Variant) {
    let golden = folder(checkpoint).join("golden");
    let doc = std::fs::read_to_string(golden.with_extension("json")).unwrap();
    let doc: Value = serde_json::from_str(&doc).unwrap();
    let tensors =
        candle_core::safetensors::load(golden.with_extension("safetensors"), &Device::Cpu).unwrap();
    for case in doc["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let theirs = &tensors[&format!("{name}.latents")];
        let pipeline = pipeline(checkpoint, variant, &case["scheduler"]);

        let ours = latents(&pipeline, &request(case, &tensors));

        assert_eq!(ours.dims(), theirs.dims(), "{name}");
        let largest = |x: &Tensor| {
            x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        let (difference, scale) = (largest(&(&ours - theirs).unwrap()), largest(theirs));
        println!("{checkpoint} {name}: largest difference {difference:e} of {scale}");
        assert!(difference <= 1e-3, "{name}: {difference}");
    }
}

#[test]
fn stable_diffusion_arrives_at_the_latents_of_the_reference() {
    compare("sd", &ONE_TEXT);
}

#[test]
fn stable_diffusion_xl_arrives_at_the_latents_of_the_reference() {
    compare("sdxl", &TWO_TEXTS);
}
