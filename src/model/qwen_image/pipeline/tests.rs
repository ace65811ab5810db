//! Whole edits, stage by stage, held against `QwenImageEditPipeline`.
//!
//! The numbers come from `tests/data/make_fixtures.py`. Bounds, in float32: 1e-4
//! for what is computed once, 1e-3 for latents (errors grow about sixfold over
//! the steps; the reference differs from itself by 5e-6 with other kernels), one
//! level for a finished picture and 0.01 levels on average.

#![expect(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test says what it measured; its numbers are small"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::checkpoint::Snapshot;
use crate::domain::{GuidanceScale, ImageCount, ImageSize, Seed, Steps};
use crate::model::loading::LoadContext;
use crate::model::{CapabilitySwitches, DefaultOverrides, DeviceChoice, DtypeChoice, ModelConfig};

const TOLERANCE: f32 = 1e-4;
const LATENT_TOLERANCE: f32 = 1e-3;

/// One recorded call of the reference pipeline.
struct Case {
    name: &'static str,
    doc: Value,
    tensors: HashMap<String, Tensor>,
    folder: PathBuf,
}

/// The fixtures of the repository, or those that `FIXTURES` names.
#[expect(clippy::disallowed_methods, reason = "a switch for people who run the tests")]
fn fixtures() -> PathBuf {
    std::env::var_os("FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures"),
        PathBuf::from,
    )
}

impl Case {
    fn read(name: &'static str) -> Self {
        let folder = fixtures();
        let file = folder.join(format!("golden/{name}"));
        let doc = std::fs::read_to_string(file.with_extension("json")).unwrap();
        let tensors = file.with_extension("safetensors");
        Self {
            name,
            doc: serde_json::from_str(&doc).unwrap(),
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
            folder,
        }
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.doc["call"][key].as_i64()
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.doc["call"][key].as_str()
    }

    fn pipeline(&self, dtype: DtypeChoice) -> EditPipeline {
        let area = self.doc["areas"]["1048576"].as_u64().unwrap();
        let folder = self.folder.join(self.doc["checkpoint"].as_str().unwrap());
        let config = ModelConfig {
            id: folder.display().to_string(),
            name: None,
            revision: None,
            device: DeviceChoice::Cpu,
            dtype,
            image_area: Some(usize::try_from(area).unwrap()),
            condition_area: None,
            defaults: DefaultOverrides::default(),
            capabilities: CapabilitySwitches::default(),
        };
        let device = Device::Cpu;
        let dtype = crate::device::dtype(dtype, &device);
        let snapshot = Snapshot::Directory(folder);
        let id = "golden".to_owned();
        let context = LoadContext { snapshot: &snapshot, config: &config, id, device, dtype };
        super::super::load_pipeline(&context).unwrap()
    }

    fn image(&self) -> RgbImage {
        let path =
            self.folder.join("golden").join(self.doc["inputs"]["image"][0].as_str().unwrap());
        let image = image::open(path).unwrap().to_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        RgbImage::new(width, height, image.into_raw()).unwrap()
    }

    fn request(&self) -> ImageRequest {
        let side = |key| self.number(key).map(|side| usize::try_from(side).unwrap());
        let size = match (side("width"), side("height")) {
            (Some(width), Some(height)) => {
                OutputSize::Exact(ImageSize::new(width, height).unwrap())
            }
            _ => OutputSize::Reference,
        };
        let scale = self.doc["call"]["true_cfg_scale"].as_f64().unwrap();
        ImageRequest {
            task: Task::Edit { images: vec![self.image().into()] },
            prompt: Prompt::new(self.text("prompt").unwrap()).unwrap(),
            negative_prompt: self.text("negative_prompt").map(|t| Prompt::negative(t).unwrap()),
            count: ImageCount::new(1).unwrap(),
            size,
            steps: Steps::new(self.number("num_inference_steps").unwrap()).unwrap(),
            guidance: GuidanceScale::new(scale).unwrap(),
            seed: Seed::new(self.doc["generator_seed"].as_u64().unwrap()),
        }
    }

    /// Holds `ours` against tensor `name`; `name.everyN` holds every N-th row of
    /// the last dimension but one.
    fn compare(&self, name: &str, ours: &Tensor, tolerance: f32) {
        let (stored, every) = match self.tensors.get(name) {
            Some(_) => (name.to_owned(), 1),
            None => [8, 16, 4]
                .into_iter()
                .map(|every| (format!("{name}.every{every}"), every))
                .find(|(stored, _)| self.tensors.contains_key(stored))
                .unwrap_or_else(|| panic!("{} has no {name}", self.name)),
        };
        let rows = ours.rank() - 2;
        let kept: Vec<u32> = (0..ours.dim(rows).unwrap() as u32).step_by(every).collect();
        let kept = Tensor::new(kept, &Device::Cpu).unwrap();
        let ours = flat(&ours.contiguous().unwrap().index_select(&kept, rows).unwrap());
        let theirs = flat(&self.tensors[&stored]);
        assert_eq!(ours.len(), theirs.len(), "{} {stored}: count", self.name);
        let largest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(ours.iter().all(|number| number.is_finite()), "{} {stored}", self.name);
        println!("{} {stored}: largest difference {largest:e}", self.name);
        assert!(largest <= tolerance, "{} {stored}: {largest} > {tolerance}", self.name);
    }

    fn compare_if_recorded(&self, name: &str, ours: &Tensor, tolerance: f32) {
        if self.tensors.contains_key(name) {
            self.compare(name, ours, tolerance);
        }
    }

    fn compare_picture(&self, ours: &RgbImage) {
        let theirs: Vec<u8> = self.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(ours.pixels().len(), theirs.len(), "{}: size", self.name);
        let differences = ours.pixels().iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
        let largest = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / theirs.len() as f64;
        println!("{}: picture: largest difference {largest}, mean {mean:.5}", self.name);
        assert!(largest <= 1 && mean <= 0.01, "{}: off by {largest}, mean {mean}", self.name);
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Runs every stage of `name` on its own and compares what comes out of it.
fn assert_stages(name: &'static str) {
    let case = Case::read(name);
    let pipeline = case.pipeline(DtypeChoice::Float32);
    let request = case.request();
    let image = case.image();

    let sizes = pipeline.sizes(&image, request.size).unwrap();
    let resized =
        resize(&image, sizes.reference.width, sizes.reference.height, Resampler::PillowLanczos);
    if let Some(theirs) = case.tensors.get("pre.resized0") {
        let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        assert!(resized.pixels() == theirs, "{name}: resized picture");
    }

    let guidance = pipeline.encode_prompts(&resized, &request, sizes.output).unwrap();
    case.compare("prompt_embeds", &guidance.positive.embeds, TOLERANCE);
    assert_eq!(guidance.negative.is_some(), case.doc["do_true_cfg"].as_bool().unwrap());
    if let Some(negative) = &guidance.negative {
        case.compare("neg_prompt_embeds", &negative.embeds, TOLERANCE);
    }

    let references = pipeline.encode_reference(&resized).unwrap();
    if case.tensors.contains_key("image_latents.packed") {
        case.compare("image_latents.packed", &references, TOLERANCE);
    }
    let noise = pipeline.noise(request.seed.get(), sizes.output).unwrap();
    // torch's vectorised logarithm and cosine differ from ours in the last bits.
    case.compare("latents.start", &noise, 1e-6);

    let grids = [pipeline.grid(sizes.output), pipeline.grid(sizes.reference)];
    let schedule = pipeline.components.scheduler.schedule(request.steps.get(), grids[0].len());
    assert_schedule(&case, &schedule);

    let denoising =
        Denoising::new(&pipeline.components, &guidance, &references, &grids, &schedule).unwrap();
    let latents = assert_steps(&case, &denoising, noise);

    let unpacked = unpack_latents(&latents, grids[0].height, grids[0].width).unwrap();
    let decoded = pipeline.components.vae.decode_latents(&unpacked).unwrap();
    case.compare_if_recorded("vae.dec.out", &decoded, LATENT_TOLERANCE);
    case.compare_picture(&pipeline.decode(&latents, sizes.output).unwrap());
}

fn assert_schedule(case: &Case, schedule: &Schedule) {
    let list = |name: &str| case.tensors[name].to_vec1::<f32>().unwrap();
    for (name, ours, bound) in
        [("sched.sigmas", &schedule.sigmas, 1e-6), ("sched.timesteps", &schedule.timesteps, 1e-3)]
    {
        for (ours, theirs) in ours.iter().zip(list(name)) {
            assert!((ours - theirs).abs() < bound, "{} {name}", case.name);
        }
    }
}

/// Follows the schedule, comparing every prediction and every step's latents.
fn assert_steps(case: &Case, denoising: &Denoising, noise: Tensor) -> Tensor {
    let mut latents = noise;
    for step in 0..denoising.schedule.steps() {
        let flow = denoising.predict(&latents, step).unwrap();
        case.compare(&format!("step{step}.noise_pred"), &flow, LATENT_TOLERANCE);
        latents = euler_step(&latents, &flow, denoising.schedule.sigma_change(step)).unwrap();
        case.compare(&format!("step{step}.latents"), &latents, LATENT_TOLERANCE);
    }
    latents
}

#[test]
fn every_stage_of_a_guided_edit_is_that_of_the_reference() {
    assert_stages("edit_cfg");
}

#[test]
fn every_stage_of_an_edit_of_odd_size_is_that_of_the_reference() {
    assert_stages("edit_nocfg_odd");
}

#[test]
fn every_stage_of_an_edit_at_the_published_area_is_that_of_the_reference() {
    assert_stages("edit_fullarea");
}

#[test]
fn the_same_picture_comes_out_of_the_trait() {
    let case = Case::read("edit_cfg");
    let mut model: Box<dyn DiffusionModel> = Box::new(case.pipeline(DtypeChoice::Float32));

    let generation = model.generate(&case.request(), &mut crate::model::Unobserved).unwrap();

    case.compare_picture(generation.images[0].image.colour());
    let tokens = |key: &str| case.doc["tokens"][key].as_u64().unwrap() as usize;
    assert_eq!(generation.usage.output_image_tokens, tokens("latents"));
    let image_and_text = generation.usage.input_image_tokens + generation.usage.input_text_tokens;
    assert_eq!(image_and_text, tokens("text") + tokens("image_total") - tokens("latents"));
}

#[test]
fn a_request_in_16_bits_gives_a_picture_near_the_one_in_32() {
    let case = Case::read("edit_cfg");
    let theirs: Vec<u8> = case.tensors["out.image"].flatten_all().unwrap().to_vec1().unwrap();
    // The reference itself reaches 25 dB in bfloat16, most of it lost by rounding
    // the timesteps, which we keep exact: 39 dB without that.
    for (dtype, least_decibels) in [(DtypeChoice::Bfloat16, 30.0), (DtypeChoice::Float16, 40.0)] {
        let mut pipeline = case.pipeline(dtype);

        let generation = pipeline.generate(&case.request(), &mut crate::model::Unobserved).unwrap();

        let ours = generation.images[0].image.colour().pixels();
        let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
        let error = ours.iter().zip(&theirs).map(square).sum::<f64>() / theirs.len() as f64;
        let decibels = 10.0 * (255.0_f64.powi(2) / error).log10();
        println!("{dtype:?}: {decibels:.1} dB");
        assert!(decibels > least_decibels, "{dtype:?}: {decibels} dB");
    }
}

#[test]
fn an_observer_that_breaks_stops_the_work() {
    struct StopAfter(usize);
    impl StepObserver for StopAfter {
        fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
            if progress.step >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let case = Case::read("edit_nocfg_odd");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);

    let stopped = pipeline.generate(&case.request(), &mut StopAfter(2));

    assert!(matches!(stopped, Err(ModelError::Cancelled)));
    assert!(pipeline.generate(&case.request(), &mut crate::model::Unobserved).is_ok());
}

#[test]
fn what_this_model_cannot_take_is_refused_by_name() {
    let case = Case::read("edit_nocfg_odd");
    let mut pipeline = case.pipeline(DtypeChoice::Float32);
    let mut field_at_fault =
        |request: ImageRequest| match pipeline.generate(&request, &mut crate::model::Unobserved) {
            Err(ModelError::Unsuitable { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        };
    let request = case.request();

    let reserved = Prompt::new("replace <|image_pad|> by a cat").unwrap();
    assert_eq!(field_at_fault(ImageRequest { prompt: reserved, ..request.clone() }), "prompt");
    let endless = Prompt::new("word ".repeat(6000)).unwrap();
    assert_eq!(field_at_fault(ImageRequest { prompt: endless, ..request.clone() }), "prompt");
    let narrow = Task::Edit { images: vec![RgbImage::filled(4000, 3, [9, 9, 9]).into()] };
    assert_eq!(field_at_fault(ImageRequest { task: narrow, ..request.clone() }), "image");
    let image: crate::domain::Picture = RgbImage::filled(8, 8, [9, 9, 9]).into();
    let two = Task::Edit { images: vec![image.clone(), image] };
    assert_eq!(field_at_fault(ImageRequest { task: two, ..request.clone() }), "image");
    assert_eq!(field_at_fault(ImageRequest { task: Task::Generate, ..request }), "image");
}
