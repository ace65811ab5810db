//! What saves steps their work: the step cache, and pictures made together.
//!
//! ```text
//! cargo bench --bench steps -- cache demo          # 4, 20 and 50 steps; tiny-random, or a folder, likewise
//! cargo bench --bench steps -- batches 256x256     # two random blocks of the published width
//! cargo bench --bench steps -- batches 128x128 demo
//! cargo bench --bench steps -- batches 256x256 qwen-image-edit-2511 bfloat16
//! ```
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, which stops where something is wrong"
)]

use std::ops::ControlFlow;

use diffuser_api::allocator::{MiMalloc, keep_freed_memory};
use diffuser_api::config::{Environment, load_hub};
use diffuser_api::device;
use diffuser_api::domain::{
    CacheThreshold, GuidanceScale, ImageRequest, ImageSize, Prompt, RgbImage, Seed, Steps, Task,
};
use diffuser_api::model::benchmark::{BenchmarkPlan, LayerCounts, Part};
use diffuser_api::model::qwen_image::benchmark::batches;
use diffuser_api::model::{DiffusionModel, ModelConfig, StepObserver, StepProgress};
use diffuser_api::threads;

/// Steps of a picture, the demo's own and as many as larger models take, and the strength of
/// guidance: above 1 there is a second branch.
const PICTURES: [(i64, f64); 4] = [(4, 1.0), (20, 1.0), (50, 1.0), (20, 4.0)];
/// 0 keeps what is needed and never skips; 1 skips whenever it may.
const THRESHOLDS: [f64; 5] = [0.0, 0.06, 0.12, 0.24, 1.0];
const INSTRUCTIONS: [&str; 3] = ["make it sepia", "make the circle bigger", "add a blue triangle"];
/// Pictures made together.
const COUNTS: [usize; 3] = [1, 2, 4];
const ROUNDS: usize = 2;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    keep_freed_memory();
    println!("{} threads", threads::start(None).unwrap());
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["cache", model] => cache(model),
        ["batches", size, rest @ ..] => together(ImageSize::parse(size).unwrap(), rest),
        _ => println!("expected 'cache MODEL' or 'batches SIZE [MODEL [DTYPE]]'"),
    }
}

/// A finished picture, and what it took.
struct Made {
    picture: RgbImage,
    /// Processor seconds of all threads: steadier than seconds on a busy machine.
    steps_cpu_s: f64,
    skipped: f64,
}

fn cache(id: &str) {
    let hub = load_hub(&Environment::of_process()).unwrap();
    let mut model = diffuser_api::model::load(&ModelConfig::of(id), &hub).unwrap();
    println!("{id}, {}", model.loaded().dtype);
    println!(
        "| steps | guidance | threshold | blocks skipped | time of the steps | PSNR, dB: least, mean |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (steps, guidance) in PICTURES {
        compare(model.as_mut(), steps, guidance);
    }
}

/// One line for each threshold: means over all instructions.
fn compare(model: &mut dyn DiffusionModel, steps: i64, guidance: f64) {
    let mut lines: Vec<Vec<(f64, f64, f64)>> = vec![Vec::new(); THRESHOLDS.len()];
    for instruction in INSTRUCTIONS {
        let request = ImageRequest {
            negative_prompt: Some(Prompt::negative(" ").unwrap()),
            steps: Steps::new(steps).unwrap(),
            guidance: GuidanceScale::new(guidance).unwrap(),
            seed: Seed::new(42),
            ..ImageRequest::new(
                Task::Edit { images: vec![red_circle().into()] },
                Prompt::new(instruction).unwrap(),
            )
        };
        let off = made(model, &request);
        for (line, threshold) in lines.iter_mut().zip(THRESHOLDS) {
            let cache_threshold = Some(CacheThreshold::new(threshold).unwrap());
            let on = made(model, &ImageRequest { cache_threshold, ..request.clone() });
            let decibels = decibels(&on.picture, &off.picture);
            line.push((on.skipped, on.steps_cpu_s / off.steps_cpu_s, decibels));
        }
    }
    for (line, threshold) in lines.iter().zip(THRESHOLDS) {
        let mean =
            |of: fn(&(f64, f64, f64)) -> f64| line.iter().map(of).sum::<f64>() / line.len() as f64;
        let least = line.iter().map(|measured| measured.2).fold(f64::INFINITY, f64::min);
        println!(
            "| {steps} | {guidance} | {threshold} | {:.0} % | {:.2} | {least:.1}, {:.1} |",
            100.0 * mean(|measured| measured.0),
            mean(|measured| measured.1),
            mean(|measured| measured.2),
        );
    }
}

fn made(model: &mut dyn DiffusionModel, request: &ImageRequest) -> Made {
    let mut steps = StepsWatch::default();
    let generation = model.generate(request, &mut steps).unwrap();
    Made {
        picture: generation.images[0].image.colour().clone(),
        steps_cpu_s: steps.ended_cpu_s - steps.began_cpu_s,
        skipped: generation.skipped_blocks.unwrap_or(0.0),
    }
}

/// Processor seconds when the first step began and the last one ended.
#[derive(Default)]
struct StepsWatch {
    began_cpu_s: f64,
    ended_cpu_s: f64,
}

impl StepObserver for StepsWatch {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.ended_cpu_s = device::process_cpu_s().unwrap();
        if progress.step == 0 {
            self.began_cpu_s = self.ended_cpu_s;
        }
        ControlFlow::Continue(())
    }
}

/// What the demo was trained on: a shape on a plain ground.
fn red_circle() -> RgbImage {
    const SIDE: usize = 128;
    let is_inside = |x: usize, y: usize| x.abs_diff(64).pow(2) + y.abs_diff(64).pow(2) < 30 * 30;
    let pixel = |at: usize| {
        let inside = is_inside(at % SIDE, at / SIDE);
        if inside { [200u8, 40, 40] } else { [230, 225, 210] }
    };
    RgbImage::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect()).unwrap()
}

/// Peak signal to noise ratio; infinite for the same picture.
fn decibels(ours: &RgbImage, theirs: &RgbImage) -> f64 {
    let squares = ours.pixels().iter().zip(theirs.pixels());
    let squares = squares.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let error = squares.sum::<f64>() / theirs.pixels().len() as f64;
    10.0 * (255.0_f64.powi(2) / error).log10()
}

fn together(size: ImageSize, rest: &[&str]) {
    let model = rest.first().copied().unwrap_or("qwen-image-edit-2511");
    let own_layers = diffuser_api::model::find_embedded(model).is_some();
    let config = ModelConfig::of("benchmark");
    let plan = BenchmarkPlan {
        snapshot: diffuser_api::bench::configuration(model).unwrap(),
        layers: LayerCounts {
            transformer: (!own_layers).then_some(2),
            text: (!own_layers).then_some(1),
            vision: (!own_layers).then_some(1),
        },
        size,
        references: Some(1),
        steps: Steps::new(2).unwrap(),
        guidance: GuidanceScale::new(4.0).unwrap(),
        words: Some(41),
        parts: vec![Part::Transformer],
        repeats: ROUNDS,
        ceiling: false,
        trace: false,
        model: ModelConfig {
            dtype: rest.get(1).map_or(config.dtype, |dtype| dtype.parse().unwrap()),
            ..config
        },
    };
    let times = batches(&plan, &COUNTS).unwrap();
    println!("{model}, {size}, {rest:?}");
    println!("| pictures | as one batch | step of a picture, s | CPU s | of one by itself | CPU |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for time in &times {
        println!(
            "| {} | {} | {:.3} | {:.3} | {:.2} | {:.2} |",
            time.pictures,
            if time.is_joined { "yes" } else { "no" },
            time.step_s,
            time.step_cpu_s,
            time.step_s / times[0].step_s,
            time.step_cpu_s / times[0].step_cpu_s,
        );
    }
}
