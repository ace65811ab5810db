//! A job can be stopped within each of its stages, between any two layers, in both
//! families; the model is as good as before afterwards.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use diffuser_api::domain::{
    CacheThreshold, GuidanceScale, ImageRequest, Picture, Prompt, RgbImage, Seed, Steps, Strength,
    Task,
};
use diffuser_api::hub::HubConfig;
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, MemoryChoice, ModelConfig, ModelError, StepObserver,
    StepProgress, Unobserved,
};

const STEPS: usize = 2;

/// Counts how often it is asked in each stage, and says yes from a certain time on.
#[derive(Default)]
struct Asked {
    /// One entry for the time before each report of a step, and one for what follows.
    in_stages: Vec<usize>,
    /// Asked so often, it says yes.
    stops_at: Option<usize>,
}

impl Asked {
    fn until(stops_at: usize) -> Self {
        Self { stops_at: Some(stops_at), ..Self::default() }
    }

    fn times(&self) -> usize {
        self.in_stages.iter().sum()
    }
}

impl StepObserver for Asked {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        self.in_stages.push(0);
        ControlFlow::Continue(())
    }

    fn is_cancelled(&mut self) -> bool {
        *self.in_stages.last_mut().unwrap() += 1;
        self.stops_at.is_some_and(|stops_at| self.times() >= stops_at)
    }
}

fn load(folder: &str, memory: MemoryChoice) -> Box<dyn DiffusionModel> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let config = ModelConfig {
        device: DeviceChoice::Cpu,
        memory,
        image_area: Some(64 * 64),
        // What is computed once is computed every time.
        cache_bytes: 0,
        ..ModelConfig::of(folder.display().to_string())
    };
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        cache: std::env::temp_dir().join("no-such-cache"),
        token: None,
        offline: true,
    };
    diffuser_api::model::load(&config, &hub).unwrap()
}

fn request(task: fn(Picture) -> Task) -> ImageRequest {
    ImageRequest {
        negative_prompt: Some(Prompt::negative("a dog").unwrap()),
        steps: Steps::new(STEPS as i64).unwrap(),
        guidance: GuidanceScale::new(3.0).unwrap(),
        seed: Seed::new(7),
        ..ImageRequest::new(
            task(RgbImage::filled(64, 64, [200, 90, 30]).into()),
            Prompt::new("a cat").unwrap(),
        )
    }
}

fn edit(picture: Picture) -> Task {
    Task::Edit { images: vec![picture] }
}

fn image_to_image(image: Picture) -> Task {
    Task::ImageToImage { image, strength: Strength::new(1.0).unwrap() }
}

/// Counts what is asked in each stage of a whole job, then stops jobs at many of these
/// times: the last of each stage among them.
fn asked_in_stages(model: &mut dyn DiffusionModel, request: &ImageRequest) -> Vec<usize> {
    let mut whole = Asked::default();
    let expected = model.generate(request, &mut whole).unwrap();
    let ends = whole.in_stages.iter().scan(0, |sum, asked| {
        *sum += asked;
        Some(*sum)
    });
    let spread = (1..=whole.times()).step_by(1 + whole.times() / 12);
    for stops_at in spread.chain(ends).filter(|stops_at| *stops_at > 0) {
        let mut observer = Asked::until(stops_at);

        let stopped = model.generate(request, &mut observer);

        assert!(matches!(stopped, Err(ModelError::Cancelled)), "{stops_at}: {stopped:?}");
        // Nothing goes on after a yes.
        assert_eq!(observer.times(), stops_at);
    }
    let again = model.generate(request, &mut Unobserved).unwrap();
    assert!(again.images[0].image == expected.images[0].image);
    whole.in_stages
}

fn assert_at_least(asked: &[usize], layers: &[usize]) {
    assert_eq!(asked.len(), layers.len(), "{asked:?}");
    for (asked_in_stage, layers) in asked.iter().zip(layers) {
        assert!(asked_in_stage >= layers, "{asked:?}, layers {layers:?}");
    }
}

#[test]
fn qwen_image_edit_can_be_stopped_between_any_two_layers() {
    let mut model = load("fixtures/ckpt/qwen-image-edit", MemoryChoice::Resident);

    let asked = asked_in_stages(model.as_mut(), &request(edit));

    // Four blocks of the vision tower and two layers of language for each prompt; the
    // VAE's encoder of ten; modulations of two blocks; nothing before the first step; two
    // blocks for each prompt in each step; the decoder of fourteen.
    assert_at_least(&asked, &[4 + 2 * 2, 10, 2, 2 * 2, 2 * 2, 14]);
}

#[test]
fn qwen_image_edit_can_be_stopped_while_weights_are_read() {
    let mut resident = load("fixtures/ckpt/qwen-image-edit", MemoryChoice::Resident);
    let mut streamed = load("fixtures/ckpt/qwen-image-edit", MemoryChoice::Stream);

    let resident = asked_in_stages(resident.as_mut(), &request(edit));
    let streamed = asked_in_stages(streamed.as_mut(), &request(edit));

    // More than the layers' own: at least a tensor for each layer, but that those that are
    // read by other threads are asked for in groups.
    let read = |stage: usize| streamed[stage] - resident[stage];
    let stages = 0..streamed.len();
    assert!(stages.clone().all(|stage| read(stage) >= 2), "{resident:?} {streamed:?}");
}

#[test]
fn a_job_can_be_stopped_in_steps_that_skip_blocks_too() {
    let mut model = load("fixtures/ckpt/qwen-image-edit", MemoryChoice::Resident);
    let request = ImageRequest {
        steps: Steps::new(7).unwrap(),
        cache_threshold: Some(CacheThreshold::new(1.0).unwrap()),
        ..request(edit)
    };

    // What was kept by a job that was stopped is not there for the next one.
    let asked = asked_in_stages(model.as_mut(), &request);

    // Two blocks for each prompt, in the fifth and the sixth step one.
    let (full, skipping) = (asked[3 + 3], asked[3 + 4]);
    assert_at_least(&asked[3..10], &[4, 4, 4, 4, 2, 2, 4]);
    assert!(skipping < full && asked[3 + 5] == skipping && asked[3 + 6] == full, "{asked:?}");
}

#[test]
fn stable_diffusion_can_be_stopped_between_any_two_layers() {
    for checkpoint in ["stable_diffusion/sd", "stable_diffusion/sdxl"] {
        let mut model = load(checkpoint, MemoryChoice::Auto);

        let asked = asked_in_stages(model.as_mut(), &request(image_to_image));

        // Two layers for each text; the VAE's four levels and its middle; eleven residual
        // layers of the U-Net, twice, in each step (some schedules have one more); the
        // VAE once more.
        let mut layers = vec![11 * 2; asked.len()];
        layers[0] = 2 * 2;
        layers[1] = 5;
        layers[asked.len() - 1] = 5;
        assert!(asked.len() >= 3 + STEPS);
        assert_at_least(&asked, &layers);
    }
}
