//! The Stable Diffusion family, held against diffusers and transformers: each
//! component, the schedules, whole runs; and what is refused.
//!
//! The numbers come from `tests/data/make_stable_diffusion.py`. Bounds, in
//! float32: 1e-4 for components, one level and 0.01 levels on average for
//! pictures.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use diffuser_api::checkpoint::{Snapshot, Weights};
use diffuser_api::domain::{
    CacheThreshold, GuidanceScale, ImageCount, ImageRequest, ImageSize, OutputSize, Picture,
    Prompt, RgbImage, Seed, Steps, Strength, Task, TaskKind, TaskKinds,
};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::components::autoencoder_kl::{Vae, VaeConfig};
use diffuser_api::model::components::clip::TextEncoderConfig;
use diffuser_api::model::components::clip::text_encoder::{EncodedText, TextEncoder};
use diffuser_api::model::components::clip::tokenizer::ClipTokenizer;
use diffuser_api::model::components::noise::TorchGenerator;
use diffuser_api::model::stable_diffusion::config::UnetConfig;
use diffuser_api::model::stable_diffusion::scheduler::SchedulerConfig;
use diffuser_api::model::stable_diffusion::unet::{Conditioning, Unet};
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, DtypeChoice, EditKind, GuidanceParameter, LoadError, LoraConfig,
    MemoryChoice, ModelConfig, ModelError, StepObserver, StepProgress, Unobserved,
};
use serde_json::{Value, json};
use sha2::Digest;

use crate::support::golden::{assert_close, assert_same_picture};

const TOLERANCE: f32 = 1e-4;
const CHECKPOINTS: [&str; 2] = ["sd", "sdxl"];
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// The repository's numbers, or those that the variable `STABLE_DIFFUSION` names,
/// made by the script with another `--seed`.
#[expect(clippy::disallowed_methods, reason = "a switch for people who run the tests")]
fn data() -> PathBuf {
    std::env::var_os("STABLE_DIFFUSION").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/stable_diffusion"),
        PathBuf::from,
    )
}

fn snapshot(checkpoint: &str) -> Snapshot {
    Snapshot::Directory(data().join(checkpoint))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The golden tensors and cases of a checkpoint.
struct Golden {
    tensors: std::collections::HashMap<String, Tensor>,
    doc: Value,
}

impl Golden {
    fn read(checkpoint: &str) -> Self {
        let path = data().join(checkpoint).join("golden");
        let tensors = path.with_extension("safetensors");
        Self {
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
            doc: read_json(&path.with_extension("json")),
        }
    }

    fn assert_close(&self, name: &str, ours: &Tensor) {
        assert_close(name, ours, &self.tensors[name], TOLERANCE);
    }
}

fn open(checkpoint: &str, component: &str) -> Weights {
    let text = component.starts_with("text_encoder");
    let stem = if text { "model" } else { DIFFUSERS_STEM };
    let canonical = if text { TextEncoder::canonical_name } else { str::to_owned };
    let kind = (DType::F32, &Device::Cpu);
    Weights::open(&snapshot(checkpoint), component, stem, kind, canonical).unwrap()
}

// ---- the full-size checkpoints, by their tensors --------------------------------

#[test]
fn the_loader_asks_for_exactly_the_tensors_of_the_published_configurations() {
    let records = read_json(&data().join("published.json"));
    let records = records.as_array().unwrap();
    for record in records {
        let component = record["component"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(component)).unwrap();
        let file = folder.path().join(component).join("config.json");
        std::fs::write(file, record["config"].to_string()).unwrap();
        let snapshot = Snapshot::Directory(folder.path().to_owned());
        let weights = Weights::recording(component, DType::F32);

        match component {
            "unet" => drop(Unet::load(&weights, &UnetConfig::load(&snapshot).unwrap()).unwrap()),
            "vae" => drop(Vae::load(&weights, &VaeConfig::load(&snapshot).unwrap()).unwrap()),
            encoder => {
                let pooled = encoder.ends_with("_2");
                let class = if pooled { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
                let config = TextEncoderConfig::load(&snapshot, encoder, class).unwrap();
                drop(TextEncoder::load(&weights, &config).unwrap());
            }
        }

        let requested = weights.requested();
        let lines: String =
            requested.iter().map(|(name, shape)| format!("{name} {shape:?}\n")).collect();
        let digest = sha2::Sha256::digest(lines.as_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let what = format!("{} {component}", record["model"]);
        assert_eq!(requested.len() as u64, record["tensors"].as_u64().unwrap(), "{what}");
        assert_eq!(digest, record["digest"].as_str().unwrap(), "{what}");
    }
    assert!(records.len() >= 8, "only {} components", records.len());
}

// ---- components ---------------------------------------------------------------

#[test]
fn texts_become_the_ids_of_the_reference() {
    let mut compared = 0;
    for checkpoint in CHECKPOINTS {
        let golden = Golden::read(checkpoint);
        for (component, cases) in golden.doc["tokens"].as_object().unwrap() {
            let tokenizer = ClipTokenizer::load(&snapshot(checkpoint), component, 24).unwrap();
            for case in cases.as_array().unwrap() {
                let text = case[0].as_str().unwrap();
                let theirs: Vec<u32> = serde_json::from_value(case[1].clone()).unwrap();

                assert_eq!(tokenizer.tokenise(text).unwrap().ids, theirs, "{component}: {text:?}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 18, "only {compared} texts");
}

fn encode(checkpoint: &str, suffix: &str, class: &str) -> EncodedText {
    let (component, tokenizer) = (format!("text_encoder{suffix}"), format!("tokenizer{suffix}"));
    let config = TextEncoderConfig::load(&snapshot(checkpoint), &component, class).unwrap();
    let weights = open(checkpoint, &component);
    let encoder = TextEncoder::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    let positions = config.max_position_embeddings;
    let tokenizer = ClipTokenizer::load(&snapshot(checkpoint), &tokenizer, positions).unwrap();
    encoder.forward(&tokenizer.tokenise("a red cat").unwrap().ids).unwrap()
}

/// SDXL's text: both penultimate states, and the pooled text.
fn encode_xl() -> (Tensor, Tensor) {
    let first = encode("sdxl", "", "CLIPTextModel");
    let second = encode("sdxl", "_2", "CLIPTextModelWithProjection");
    let embeds = Tensor::cat(&[first.penultimate, second.penultimate], 2).unwrap();
    (embeds, second.pooled.unwrap())
}

#[test]
fn texts_are_encoded_as_by_the_reference() {
    let last = encode("sd", "", "CLIPTextModel").last;
    Golden::read("sd").assert_close("text", &last);

    let (embeds, pooled) = encode_xl();
    let golden = Golden::read("sdxl");
    golden.assert_close("text", &embeds);
    golden.assert_close("pooled", &pooled);
}

#[test]
fn noise_is_predicted_as_by_the_reference() {
    for checkpoint in CHECKPOINTS {
        let golden = Golden::read(checkpoint);
        let config = UnetConfig::load(&snapshot(checkpoint)).unwrap();
        let weights = open(checkpoint, "unet");
        let unet = Unet::load(&weights, &config).unwrap();
        weights.finish().unwrap();
        let added = golden
            .tensors
            .get("pooled")
            .map(|pooled| unet.embed_added(pooled, &[40, 64, 0, 0, 40, 64]).unwrap().unwrap());
        let conditioning = Conditioning { embeds: golden.tensors["text"].clone(), added };

        let ours = unet.forward(&golden.tensors["unet.sample"], 741.0, &conditioning).unwrap();

        golden.assert_close("unet.prediction", &ours);
    }
}

#[test]
fn pictures_become_latents_and_back_as_by_the_reference() {
    for checkpoint in CHECKPOINTS {
        let golden = Golden::read(checkpoint);
        let weights = open(checkpoint, "vae");
        let vae = Vae::load(&weights, &VaeConfig::load(&snapshot(checkpoint)).unwrap()).unwrap();
        weights.finish().unwrap();

        let posterior = vae.encode(&golden.tensors["vae.image"]).unwrap();
        let decoded = vae.decode(&golden.tensors["vae.latents"]).unwrap();

        golden.assert_close("vae.mean", &posterior.mean);
        golden.assert_close("vae.std", &posterior.deviation);
        golden.assert_close("vae.decoded", &decoded);
    }
}

// ---- schedules ----------------------------------------------------------------

fn scheduler(config: &Value) -> SchedulerConfig {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("scheduler")).unwrap();
    let file = folder.path().join("scheduler/scheduler_config.json");
    std::fs::write(file, config.to_string()).unwrap();
    let class = config["_class_name"].as_str().unwrap();
    SchedulerConfig::load(&Snapshot::Directory(folder.path().to_owned()), class).unwrap()
}

#[test]
fn the_timesteps_are_those_of_the_reference() {
    let tables = read_json(&data().join("schedules.json"));
    let tables = tables.as_array().unwrap();
    for table in tables {
        let config = scheduler(&table["config"]);

        let schedule = config.schedule(table["steps"].as_u64().unwrap() as usize);

        let what = format!("{} {}", table["name"], table["steps"]);
        let theirs: Vec<f64> = serde_json::from_value(table["timesteps"].clone()).unwrap();
        assert_eq!(schedule.timesteps().len(), theirs.len(), "{what}");
        for (ours, theirs) in schedule.timesteps().iter().zip(&theirs) {
            // Fractions are rounded to 32 bits there.
            assert!((ours - theirs).abs() < 1e-4, "{what}: {ours} {theirs}");
        }
        let theirs = table["initial_scale"].as_f64().unwrap();
        let difference = (schedule.initial_scale() - theirs).abs();
        assert!(difference < 1e-5 * theirs.max(1.0), "{what}: {difference}");
    }
    assert!(tables.len() >= 70, "only {} schedules", tables.len());
}

/// Bound: 1e-5 of the largest number, as the reference's tables are rounded to
/// 32 bits.
#[test]
fn the_steps_of_every_method_are_those_of_the_reference() {
    let walks =
        candle_core::safetensors::load(data().join("schedules.safetensors"), &Device::Cpu).unwrap();
    let mut tables = read_json(&data().join("schedules.json")).as_array().unwrap().clone();
    tables.retain(|table| table["steps"] == 7);
    assert!(tables.len() >= 10, "only {} methods", tables.len());
    for table in &tables {
        let name = table["name"].as_str().unwrap();
        let config = scheduler(&table["config"]);
        let walk = |part: &str| walks[&format!("{name}.{part}")].clone();
        let close = |what: &str, ours: &Tensor, theirs: &Tensor| {
            let largest = theirs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert_close(&format!("{name} {what}"), ours, theirs, 1e-5 * largest.max(1.0));
        };
        let start = walk("start");
        // The noise that the reference draws follows what the script drew.
        let mut generator = TorchGenerator::new(5);
        generator.normal(16);

        let from_picture = config.schedule(6).without_first(2);
        let (clean, noisy) = from_picture.start_weights();
        let numbers: Vec<f32> = start.to_vec1().unwrap();
        let reversed = numbers.into_iter().rev().collect();
        let reversed = Tensor::from_vec(reversed, 16, &Device::Cpu).unwrap();
        let mixed = ((&start * clean).unwrap() + (reversed * noisy).unwrap()).unwrap();
        close("noisy", &mixed, &walk("noisy"));

        let schedule = config.schedule(6);
        let mut steps = schedule.walk();
        let mut state = start;
        for step in 0..schedule.timesteps().len() {
            let scaled = (&state * schedule.input_scale(step)).unwrap();
            close(&format!("input {step}"), &scaled, &walk("inputs").get(step).unwrap());
            let prediction = walk("predictions").get(step).unwrap();
            generator.normal(16);
            let mut noise = || Tensor::from_vec(generator.normal(16), 16, &Device::Cpu);
            state = steps.step(step, &state, &prediction, &mut noise).unwrap().next;
            let theirs = walk("states").get(step).unwrap();
            close(&format!("state {step}"), &state, &theirs);
        }
    }
}

// ---- whole runs ---------------------------------------------------------------

fn load(folder: &Path) -> Result<Box<dyn DiffusionModel>, LoadError> {
    load_with(folder, DtypeChoice::Auto)
}

fn load_with(folder: &Path, dtype: DtypeChoice) -> Result<Box<dyn DiffusionModel>, LoadError> {
    load_configured(&ModelConfig { dtype, ..config(folder) })
}

fn config(folder: &Path) -> ModelConfig {
    ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::of(folder.display().to_string()) }
}

fn load_configured(config: &ModelConfig) -> Result<Box<dyn DiffusionModel>, LoadError> {
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        cache: std::env::temp_dir().join("no-such-cache"),
        token: None,
        offline: true,
    };
    diffuser_api::model::load(config, &hub)
}

/// A checkpoint that a test may change.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(checkpoint: &str) -> Self {
        fn copy(from: &Path, to: &Path) {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let from = entry.unwrap().path();
                let to = to.join(from.file_name().unwrap());
                if from.is_dir() {
                    copy(&from, &to);
                } else {
                    std::fs::copy(&from, &to).unwrap();
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        copy(&data().join(checkpoint), folder.path());
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn set(&self, file: &str, pointer: &str, value: Value) {
        let path = self.path().join(file);
        let mut document = read_json(&path);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let place = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        place.insert(key.to_owned(), value);
        std::fs::write(path, document.to_string()).unwrap();
    }

    /// Another schedule in the place of the checkpoint's own.
    fn schedule(&self, config: &Value) {
        let Some(class) = config["_class_name"].as_str() else { return };
        let file = self.path().join("scheduler/scheduler_config.json");
        std::fs::write(file, config.to_string()).unwrap();
        self.set("model_index.json", "/scheduler", json!(["diffusers", class]));
    }

    fn rewrite(
        &self,
        file: &str,
        change: impl FnOnce(&mut std::collections::HashMap<String, Tensor>),
    ) {
        let path = self.path().join(file);
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    fn fault(&self) -> String {
        load(self.path()).err().expect("the checkpoint loads").to_string()
    }
}

/// A u8 tensor (height, width, 3) as a picture.
fn picture(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().unwrap();
    RgbImage::new(width, height, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

fn request(steps: i64, guidance: f64) -> ImageRequest {
    ImageRequest {
        steps: Steps::new(steps).unwrap(),
        guidance: GuidanceScale::new(guidance).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(Task::Generate, Prompt::new("a red cat and the house").unwrap())
    }
}

fn image_to_image(image: RgbImage, strength: f64) -> Task {
    Task::ImageToImage { image: image.into(), strength: Strength::new(strength).unwrap() }
}

/// The request of a recorded case.
fn request_of(case: &Value, golden: &Golden) -> ImageRequest {
    let mut request = request(case["steps"].as_i64().unwrap(), case["guidance"].as_f64().unwrap());
    request.prompt = Prompt::new(case["prompt"].as_str().unwrap()).unwrap();
    if let Some(negative) = case["negative"].as_str() {
        request.negative_prompt = Some(Prompt::negative(negative).unwrap());
    }
    request.seed = Seed::new(case["seed"].as_u64().unwrap());
    if let (Some(width), Some(height)) = (case["width"].as_u64(), case["height"].as_u64()) {
        let size = ImageSize::new(width as usize, height as usize).unwrap();
        request.size = OutputSize::Exact(size);
    }
    if let Some(strength) = case["strength"].as_f64() {
        let source = &golden.tensors[&format!("{}.source", case["name"].as_str().unwrap())];
        request.task = image_to_image(picture(source), strength);
    }
    request
}

fn compare_pictures(checkpoint: &str) {
    let golden = Golden::read(checkpoint);
    let cases = golden.doc["cases"].as_array().unwrap();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let copy = Copy::of(checkpoint);
        copy.schedule(&case["scheduler"]);
        let mut model = load(copy.path()).unwrap();

        let made = model.generate(&request_of(case, &golden), &mut Unobserved).unwrap();

        let theirs = &golden.tensors[&format!("{name}.picture")];
        let ours = made.images[0].image.colour();
        assert_eq!([ours.height(), ours.width(), 3], theirs.dims(), "{name}");
        assert_same_picture(&format!("{checkpoint} {name}"), ours.pixels(), theirs);
    }
    assert!(cases.len() >= 4);
}

#[test]
fn stable_diffusion_makes_the_pictures_of_the_reference() {
    compare_pictures("sd");
}

#[test]
fn stable_diffusion_xl_makes_the_pictures_of_the_reference() {
    compare_pictures("sdxl");
}

#[test]
fn what_is_cut_of_either_prompt_is_said() {
    for checkpoint in CHECKPOINTS {
        let mut model = load(&data().join(checkpoint)).unwrap();
        // A "cat" is one token, and the tiny encoder reads 24 with those around them.
        let long = |count: usize| "cat ".repeat(count);
        let mut warnings = |prompt: usize, negative: Option<usize>, guidance: f64| {
            let request = ImageRequest {
                prompt: Prompt::new(long(prompt)).unwrap(),
                negative_prompt: negative.map(|count| Prompt::negative(long(count)).unwrap()),
                ..request(1, guidance)
            };
            model.generate(&request, &mut Unobserved).unwrap().warnings
        };
        let sentence = |field: &str, cut: usize, of: usize| {
            format!(
                "'{field}' is longer than this model reads: the last {cut} of its {of} tokens \
                 were cut."
            )
        };

        assert!(warnings(22, None, 5.0).is_empty(), "{checkpoint}");
        assert_eq!(warnings(40, None, 5.0), [sentence("prompt", 18, 40)], "{checkpoint}");
        let both = [sentence("prompt", 1, 23), sentence("negative_prompt", 8, 30)];
        assert_eq!(warnings(23, Some(30), 5.0), both, "{checkpoint}");
        // Without guidance nobody reads the negative prompt.
        assert!(warnings(3, Some(30), 1.0).is_empty(), "{checkpoint}");
    }
}

#[test]
fn without_a_negative_prompt_the_reference_decides_and_the_empty_one_is_a_prompt() {
    let mut model = load(&data().join("sdxl")).unwrap();
    assert_eq!(model.card().defaults.negative_prompt, None);
    let mut made = |negative: Option<&str>| {
        let negative_prompt = negative.map(|text| Prompt::negative(text).unwrap());
        let request = ImageRequest { negative_prompt, ..request(3, 5.0) };
        model.generate(&request, &mut Unobserved).unwrap().images[0].image.clone()
    };
    assert!(made(None) != made(Some("")));

    // A checkpoint that says so encodes the empty text in either case.
    let copy = Copy::of("sdxl");
    copy.set("model_index.json", "/force_zeros_for_empty_prompt", json!(false));
    let mut model = load(copy.path()).unwrap();
    let encoded = model.generate(&request(3, 5.0), &mut Unobserved).unwrap();
    let empty = made(Some(""));
    assert!(encoded.images[0].image == empty);

    // Settings may have one, the empty one too.
    let mut config = config(&data().join("sdxl"));
    config.defaults.negative_prompt = Some(String::new());
    let model = load_configured(&config).unwrap();
    assert_eq!(model.card().defaults.negative_prompt.as_deref(), Some(""));
}

#[test]
fn numbers_that_are_not_finite_make_no_picture_and_name_their_stage() {
    let spoilt = |file: &str, tensor: &str| {
        let copy = Copy::of("sdxl");
        copy.rewrite(file, |tensors| {
            let spoilt = tensors.get_mut(tensor).unwrap();
            *spoilt = (&*spoilt * f64::NAN).unwrap();
        });
        let mut model = load(copy.path()).unwrap();
        let image = image_to_image(RgbImage::filled(64, 64, [9, 99, 199]), 0.9);
        let request = ImageRequest { task: image, ..request(3, 5.0) };
        match model.generate(&request, &mut Unobserved) {
            Err(error @ ModelError::NotFinite { .. }) => error.to_string(),
            other => panic!("expected no picture, got {other:?}"),
        }
    };
    let vae = "vae/diffusion_pytorch_model.safetensors";
    for (file, tensor, stage) in [
        ("text_encoder_2/model.safetensors", "text_projection.weight", "text encoder"),
        (vae, "encoder.conv_in.bias", "VAE encoder"),
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.bias", "U-Net at step 1"),
        (vae, "decoder.conv_out.bias", "VAE decoder"),
    ] {
        let fault = spoilt(file, tensor);

        assert!(fault.contains(stage) && fault.contains("float32"), "{tensor}: {fault}");
    }
}

#[test]
fn picture_i_is_that_of_seed_plus_i() {
    let mut model = load(&data().join("sd")).unwrap();
    let mut two = request(2, 1.0);
    two.count = ImageCount::new(2).unwrap();
    let mut second = request(2, 1.0);
    second.seed = Seed::new(8);

    let both = model.generate(&two, &mut Unobserved).unwrap();
    let alone = model.generate(&second, &mut Unobserved).unwrap();

    assert_eq!(both.images[1].seed, Seed::new(8));
    assert!(both.images[1].image == alone.images[0].image);
    assert!(both.images[0].image != both.images[1].image);
}

/// Wants a preview of every step, and breaks off at one.
#[derive(Default)]
struct Curious {
    steps: Vec<(usize, usize)>,
    previews: Vec<(usize, usize, usize)>,
    stop_at: Option<usize>,
}

impl StepObserver for Curious {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.steps.push((progress.step, progress.total_steps));
        match self.stop_at {
            Some(step) if step == progress.step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn wants_preview(&mut self, _progress: StepProgress) -> bool {
        true
    }

    fn on_preview(&mut self, progress: StepProgress, preview: Picture) {
        self.previews.push((progress.step, preview.width(), preview.height()));
    }
}

#[test]
fn every_step_is_told_shown_and_can_be_the_last() {
    let mut model = load(&data().join("sdxl")).unwrap();
    let mut observer = Curious::default();
    model.generate(&request(3, 2.0), &mut observer).unwrap();
    let mut stopping = Curious { stop_at: Some(1), ..Curious::default() };

    let stopped = model.generate(&request(3, 2.0), &mut stopping);

    assert_eq!(observer.steps, [(0, 3), (0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!(observer.previews, [(1, 64, 64), (2, 64, 64)]);
    assert!(matches!(stopped, Err(ModelError::Cancelled)));
    assert_eq!(stopping.steps.last(), Some(&(1, 3)));
}

#[test]
fn the_model_says_what_it_is_and_can_do() {
    let sd = load(&data().join("sd")).unwrap();
    let sdxl = load(&data().join("sdxl")).unwrap();
    let turbo = Copy::of("sd");
    let golden = Golden::read("sd");
    let cases = golden.doc["cases"].as_array().unwrap();
    turbo.schedule(&cases.iter().find(|case| case["name"] == "text_turbo").unwrap()["scheduler"]);
    let turbo = load(turbo.path()).unwrap();

    for (model, class, defaults) in [
        (&sd, "StableDiffusionPipeline", (50, 7.5, 0.8)),
        (&sdxl, "StableDiffusionXLPipeline", (50, 5.0, 0.3)),
        (&turbo, "StableDiffusionPipeline", (4, 0.0, 0.5)),
    ] {
        let info = model.card();
        assert_eq!(info.pipeline, class);
        assert_eq!(info.tasks, TaskKinds::of(&TaskKind::ALL).without(TaskKind::Inpainting));
        assert_eq!(info.edit_kind, EditKind::ImageToImage);
        assert_eq!(info.guidance_parameter, GuidanceParameter::GuidanceScale);
        assert_eq!((info.size_multiple, info.image_area, info.max_input_images), (8, 64 * 64, 1));
        let ours = &info.defaults;
        let ours = (ours.num_inference_steps.get(), ours.guidance.get(), ours.strength.get());
        assert_eq!(ours, defaults, "{class}");
    }
}

// ---- refusals -----------------------------------------------------------------

#[test]
fn what_a_request_cannot_have_is_said_by_field() {
    let mut model = load(&data().join("sd")).unwrap();
    let mut fault = |request: ImageRequest| match model.generate(&request, &mut Unobserved) {
        Err(ModelError::Unsuitable { field, reason }) => (field, reason),
        other => panic!("expected a refusal, got {other:?}"),
    };
    let image = || RgbImage::filled(64, 64, [9, 99, 199]);
    let weak = ImageRequest { task: image_to_image(image(), 0.1), ..request(5, 1.0) };
    let tiny = RgbImage::filled(7, 64, [1, 2, 3]);
    let tiny = ImageRequest { task: image_to_image(tiny, 0.9), ..request(5, 1.0) };
    let edit = Task::Edit { images: vec![image().into()] };
    let large = OutputSize::Exact(ImageSize::new(4096, 4096).unwrap());

    assert_eq!(fault(weak).0, "strength");
    assert_eq!(fault(tiny).0, "image");
    assert_eq!(fault(ImageRequest { task: edit, ..request(5, 1.0) }).0, "image");
    assert_eq!(fault(ImageRequest { size: large, ..request(5, 1.0) }).0, "size");
    let cache_threshold = Some(CacheThreshold::USUAL);
    assert_eq!(fault(ImageRequest { cache_threshold, ..request(5, 1.0) }).0, "cache_threshold");
}

#[test]
fn values_that_are_not_implemented_are_refused_by_file_and_key() {
    let scheduler = "scheduler/scheduler_config.json";
    for (checkpoint, file, key, value) in [
        ("sd", "unet/config.json", "act_fn", json!("mish")),
        ("sd", "unet/config.json", "attention_head_dim", json!(3)),
        ("sd", "unet/config.json", "class_embed_type", json!("timestep")),
        ("sd", "unet/config.json", "down_block_types", json!(["DownBlock2D", "SkipDownBlock2D"])),
        ("sd", "unet/config.json", "in_channels", json!(9)),
        ("sd", "unet/config.json", "cross_attention_dim", json!(48)),
        ("sd", "unet/config.json", "addition_embed_type", json!("image")),
        ("sd", "unet/config.json", "time_cond_proj_dim", json!(256)),
        ("sdxl", "unet/config.json", "transformer_layers_per_block", json!([1, 2, 10])),
        ("sdxl", "unet/config.json", "projection_class_embeddings_input_dim", json!(45)),
        ("sd", "vae/config.json", "latents_mean", json!([0.0, 0.0, 0.0, 0.0])),
        ("sd", "vae/config.json", "mid_block_add_attention", json!(false)),
        ("sd", "vae/config.json", "norm_num_groups", json!(3)),
        ("sd", "text_encoder/config.json", "hidden_act", json!("relu")),
        ("sd", "text_encoder/config.json", "use_attention_mask", json!(true)),
        ("sd", scheduler, "skip_prk_steps", json!(false)),
        ("sd", scheduler, "prediction_type", json!("sample")),
        ("sd", scheduler, "beta_schedule", json!("sigmoid")),
        ("sd", scheduler, "trained_betas", json!([0.1])),
        ("sdxl", scheduler, "use_karras_sigmas", json!(true)),
        ("sdxl", scheduler, "rescale_betas_zero_snr", json!(true)),
        ("sdxl", scheduler, "timestep_spacing", json!("logarithmic")),
        ("sd", "model_index.json", "unet", json!(["diffusers", "UNet3DConditionModel"])),
        ("sd", "model_index.json", "scheduler", json!(["diffusers", "UniPCMultistepScheduler"])),
        ("sd", "model_index.json", "image_encoder", json!(["transformers", "CLIPVisionModel"])),
        ("sdxl", "model_index.json", "requires_aesthetics_score", json!(true)),
    ] {
        let copy = Copy::of(checkpoint);
        copy.set(file, &format!("/{key}"), value.clone());

        let fault = copy.fault();

        assert!(fault.contains(file), "{file} {key} = {value}: {fault}");
        let named = fault.contains(key) || (key == "attention_head_dim" && fault.contains("heads"));
        assert!(named, "{file} {key} = {value}: {fault}");
    }
}

#[test]
fn missing_misshapen_and_unexpected_tensors_are_named_together() {
    let copy = Copy::of("sdxl");
    copy.rewrite("unet/diffusion_pytorch_model.safetensors", |tensors| {
        tensors.remove("mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight").unwrap();
        tensors.remove("up_blocks.0.resnets.0.norm1.bias").unwrap();
        let short = Tensor::new(&[1_f32, 2.0], &Device::Cpu).unwrap();
        tensors.insert("conv_in.bias".to_owned(), short.clone());
        tensors.insert("stranger.weight".to_owned(), short);
    });
    let vae = Copy::of("sd");
    vae.rewrite("vae/diffusion_pytorch_model.safetensors", |tensors| {
        tensors.remove("decoder.mid_block.attentions.0.to_v.bias").unwrap();
    });

    let fault = copy.fault();

    for expected in [
        "unet:",
        "mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight is missing",
        "up_blocks.0.resnets.0.norm1.bias is missing",
        "conv_in.bias has shape [2], expected [8]",
        "stranger.weight is unexpected",
    ] {
        assert!(fault.contains(expected), "{expected}: {fault}");
    }
    let fault = vae.fault();
    assert!(fault.contains("decoder.mid_block.attentions.0.to_v.bias is missing"), "{fault}");
}

#[test]
fn a_tokenizer_that_does_not_fit_and_a_format_that_a_cpu_lacks_are_refused() {
    let copy = Copy::of("sd");
    copy.set("tokenizer/tokenizer_config.json", "/model_max_length", json!(77));
    assert!(copy.fault().contains("model_max_length"), "{}", copy.fault());

    let copy = Copy::of("sd");
    std::fs::remove_file(copy.path().join("tokenizer/vocab.json")).unwrap();
    assert!(copy.fault().contains("tokenizer/vocab.json"), "{}", copy.fault());

    let fault = load_with(&data().join("sd"), DtypeChoice::Bfloat16).err().unwrap().to_string();
    assert!(fault.contains("bfloat16") && fault.contains("float32"), "{fault}");
}

#[test]
fn a_lora_file_is_refused_by_name() {
    let lora = LoraConfig { file: "styles/ink.safetensors".into(), scale: 1.0 };
    let config = ModelConfig { lora: vec![lora], ..config(&data().join("sd")) };

    let fault = load_configured(&config).err().unwrap().to_string();

    assert!(fault.contains("styles/ink.safetensors") && fault.contains("LoRA"), "{fault}");
}

#[test]
fn weights_that_come_and_go_are_refused_by_name() {
    let config = ModelConfig { memory: MemoryChoice::Stream, ..config(&data().join("sd")) };

    let fault = load_configured(&config).err().unwrap().to_string();

    assert!(fault.contains("model.memory") && fault.contains("resident"), "{fault}");
}

#[test]
fn layers_of_8_bits_are_refused_by_name() {
    let config = ModelConfig { dtype: DtypeChoice::Fp8Weights, ..config(&data().join("sd")) };

    let fault = load_configured(&config).err().unwrap().to_string();

    assert!(fault.contains("model.dtype") && fault.contains("8-bit"), "{fault}");
}
