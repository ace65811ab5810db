//! Latents of whole runs, held against diffusers. The numbers come from
//! `tests/data/make_stable_diffusion.py`.
//!
//! Bound: 1e-3, in float32: rounding grows over the steps, and with guidance.

#![expect(clippy::print_stdout, reason = "a test says what it measured")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::checkpoint::{Snapshot, Weights};
use crate::domain::{GuidanceScale, Seed, Steps};
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::stable_diffusion::{ONE_TEXT, TWO_TEXTS, Variant, in_float32, load_pipeline};
use crate::model::{DeviceChoice, DtypeChoice, ModelConfig, Residency, Unobserved};

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
        id: "tiny",
        device: Device::Cpu,
        dtype: DType::F32,
        weights: WeightSource::Stored,
        card_bytes: None,
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
        negative_prompt: case["negative"].as_str().map(|text| Prompt::negative(text).unwrap()),
        size: size.unwrap_or(OutputSize::Reference),
        steps: Steps::new(whole("steps")).unwrap(),
        guidance: GuidanceScale::new(number("guidance")).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(
            source.map_or(Task::Generate, |source| Task::ImageToImage {
                image: picture(source).into(),
                strength: Strength::new(number("strength")).unwrap(),
            }),
            Prompt::new(case["prompt"].as_str().unwrap()).unwrap(),
        )
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

/// The VAE of the folder `of`, where it lies as in a checkpoint.
fn open_vae(of: &Path) -> Weights {
    let (snapshot, kind) = (Snapshot::Directory(of.to_owned()), (DType::F32, &Device::Cpu));
    Weights::open(&snapshot, "vae", "diffusion_pytorch_model", kind, str::to_owned).unwrap()
}

#[test]
fn a_vae_that_overflows_decodes_in_float32_and_says_so_or_makes_no_picture() {
    const FILE: &str = "vae/diffusion_pytorch_model.safetensors";
    let golden = std::fs::read_to_string(folder("sd").join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let case = &golden["cases"][0];
    let request = request(case, &HashMap::new());
    let mut pipeline = pipeline("sd", &ONE_TEXT, &case["scheduler"]);
    let expected = pipeline.generate(&request, &mut Unobserved).unwrap();
    assert!(expected.warnings.is_empty());
    let config = pipeline.components.vae_config.clone();
    let load = move |weights: &Weights| Vae::load(weights, &config);
    // A CPU has no 16-bit VAE of this family; what overflows in any format stands for it.
    let spoilt = tempfile::tempdir().unwrap();
    std::fs::create_dir(spoilt.path().join("vae")).unwrap();
    let mut tensors =
        candle_core::safetensors::load(folder("sd").join(FILE), &Device::Cpu).unwrap();
    let bias = tensors.get_mut("decoder.conv_in.bias").unwrap();
    *bias = (&*bias / 0.0).unwrap();
    candle_core::safetensors::save(&tensors, spoilt.path().join(FILE)).unwrap();
    let overflowing = open_vae(spoilt.path());
    let vae = Offloadable::new(Residency::Resident, &overflowing, load.clone()).unwrap();
    pipeline.components.vae = vae;
    pipeline.components.vae_dtype = DType::F16;

    let fault = pipeline.generate(&request, &mut Unobserved).unwrap_err().to_string();
    assert!(fault.contains("VAE decoder") && fault.contains("float16"), "{fault}");

    pipeline.components.vae_in_float32 = Some(in_float32(&open_vae(&folder("sd")), load).unwrap());
    let generation = pipeline.generate(&request, &mut Unobserved).unwrap();
    assert!(generation.images[0].image == expected.images[0].image);
    assert_eq!(
        generation.warnings,
        ["'dtype' float16 overflowed in the VAE's decoder; the picture was decoded in float32."]
    );
}

/// The first case of a checkpoint, with guidance, and its pipeline that keeps `bytes`.
fn guided(checkpoint: &str, variant: &Variant, bytes: usize) -> (Pipeline, ImageRequest) {
    let golden = std::fs::read_to_string(folder(checkpoint).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let case = &golden["cases"][0];
    let mut request = request(case, &HashMap::new());
    request.negative_prompt = Some(Prompt::negative("dull").unwrap());
    request.guidance = GuidanceScale::new(3.0).unwrap();
    let pipeline = pipeline(checkpoint, variant, &case["scheduler"]);
    let encoded = RefCell::new(ContentCache::new(bytes));
    (Pipeline { encoded, ..pipeline }, request)
}

#[test]
fn prompts_that_were_there_before_are_not_encoded_again() {
    for (checkpoint, variant) in [("sd", &ONE_TEXT), ("sdxl", &TWO_TEXTS)] {
        let (mut pipeline, mut request) = guided(checkpoint, variant, 1 << 20);
        let first = pipeline.generate(&request, &mut Unobserved).unwrap();
        pipeline.components.texts.clear();

        let again = pipeline.generate(&request, &mut Unobserved).unwrap();

        assert!(again.images[0].image == first.images[0].image, "{checkpoint}");
        request.guidance = GuidanceScale::new(1.0).unwrap();
        request.negative_prompt = Some(Prompt::negative("nobody reads this").unwrap());
        assert!(pipeline.generate(&request, &mut Unobserved).is_ok(), "{checkpoint}");
        request.prompt = Prompt::new("another prompt").unwrap();
        assert!(pipeline.generate(&request, &mut Unobserved).is_err(), "{checkpoint}");

        let (mut pipeline, request) = guided(checkpoint, variant, 0);
        pipeline.generate(&request, &mut Unobserved).unwrap();
        pipeline.components.texts.clear();
        assert!(pipeline.generate(&request, &mut Unobserved).is_err(), "nothing is kept");
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
