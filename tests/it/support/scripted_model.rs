//! A model that does as the test says, without a tensor in it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;

use diffuser_api::domain::{
    GuidanceScale, ImageRequest, ImageSize, OutputSize, RgbImage, Steps, Strength, Task, TaskKind,
    TaskKinds,
};
use diffuser_api::model::{
    DiffusionModel, EditKind, GeneratedImage, Generation, GuidanceParameter, Loaded, ModelCard,
    ModelError, RequestDefaults, Stage, StepObserver, StepProgress, TokenUsage,
};
use tokio::sync::mpsc::UnboundedSender;

/// What the model does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Tints the input.
    Tint,
    /// Waits for a release before each step.
    StepOnRelease,
    /// Makes steps until it is cancelled.
    UntilCancelled,
    /// Is within its first step until it is cancelled.
    EndlessStep,
    /// Fails as a device does that is out of memory.
    Fail,
    /// Finds that its GPU has too little memory.
    FindNoMemory,
    /// Finds that its GPU computes nothing more.
    FindGpuLost,
    /// Finds the request unsuitable.
    FindUnsuitable,
    /// Panics.
    Panic,
}

/// What the model tells the test.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has begun with this request.
    Started(Box<ImageRequest>),
    /// The observer stopped it.
    Cancelled,
}

pub(crate) struct ScriptedModel {
    pub(crate) card: ModelCard,
    pub(crate) loaded: Loaded,
    /// One for each request; then it tints.
    pub(crate) script: VecDeque<Behaviour>,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) releases: Receiver<()>,
}

pub(crate) fn card() -> ModelCard {
    ModelCard {
        id: "test/scripted-edit".to_owned(),
        pipeline: "ScriptedPipeline".to_owned(),
        description: "Tints pictures.".to_owned(),
        instructions: Vec::new(),
        tasks: TaskKinds::of(&[TaskKind::Edit]),
        defaults: RequestDefaults {
            num_inference_steps: Steps::new(4).unwrap(),
            guidance: GuidanceScale::new(4.0).unwrap(),
            negative_prompt: Some("default negative".to_owned()),
            strength: Strength::new(0.6).unwrap(),
        },
        max_input_images: 3,
        size_multiple: 16,
        max_output_area: 1024 * 1024,
        image_area: 256 * 256,
        area_range: None,
        fills_beyond_input: true,
        edit_kind: EditKind::Instruction,
        guidance_parameter: GuidanceParameter::TrueCfgScale,
        takes_transparency: false,
        has_condition_picture: false,
        is_tunable: true,
    }
}

/// A scripted model is at once there.
pub(crate) fn loaded() -> Loaded {
    Loaded { device: "cpu".to_owned(), dtype: "float32".to_owned(), weight_bytes: 0 }
}

impl DiffusionModel for ScriptedModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        let behaviour = self.script.pop_front().unwrap_or(Behaviour::Tint);
        let _ = self.events.send(Event::Started(Box::new(request.clone())));
        match behaviour {
            Behaviour::Tint | Behaviour::StepOnRelease | Behaviour::UntilCancelled => {}
            Behaviour::Fail => {
                let reason = "out of memory at /secret/path".to_owned();
                return Err(ModelError::Tensor(candle_core::Error::Msg(reason)));
            }
            Behaviour::FindNoMemory => {
                return Err(driver_error("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"));
            }
            Behaviour::FindGpuLost => {
                return Err(driver_error(
                    "CUDA_ERROR_ECC_UNCORRECTABLE",
                    "uncorrectable ECC error",
                ));
            }
            Behaviour::FindUnsuitable => {
                return Err(ModelError::Unsuitable {
                    field: "prompt",
                    reason: "Invalid 'prompt': too many tokens.".to_owned(),
                });
            }
            Behaviour::EndlessStep => {
                while !observer.is_cancelled() {
                    std::thread::yield_now();
                }
                let _ = self.events.send(Event::Cancelled);
                return Err(ModelError::Cancelled);
            }
            Behaviour::Panic => panic!("scripted panic at /secret/path"),
        }
        let images = (0..request.count.get())
            .map(|index| self.make(request, index, behaviour, observer))
            .collect::<Result<_, _>>()?;
        Ok(Generation {
            images,
            usage: TokenUsage {
                input_text_tokens: 5,
                input_image_tokens: 7,
                output_image_tokens: 11 * request.count.get(),
            },
            warnings: Vec::new(),
            skipped_blocks: request.cache_threshold.map(|_| 0.0),
        })
    }
}

/// As candle hands on what CUDA's driver says.
fn driver_error(name: &str, meaning: &str) -> ModelError {
    let error = std::io::Error::other(format!("DriverError({name}, \"{meaning}\")"));
    ModelError::Tensor(candle_core::Error::Cuda(Box::new(error)))
}

impl ScriptedModel {
    fn make(
        &mut self,
        request: &ImageRequest,
        image: usize,
        behaviour: Behaviour,
        observer: &mut dyn StepObserver,
    ) -> Result<GeneratedImage, ModelError> {
        let total_steps = request.steps.get();
        let mut step = 0;
        observer.on_stage(Stage::Denoising);
        let _ = observer.on_step(StepProgress { image, step, total_steps });
        while step < total_steps {
            if behaviour == Behaviour::StepOnRelease {
                // A test that has ended releases nothing any more.
                let _ = self.releases.recv();
            }
            if behaviour == Behaviour::UntilCancelled {
                std::thread::yield_now();
            } else {
                step += 1;
            }
            let progress = StepProgress { image, step, total_steps };
            if step < total_steps && observer.wants_preview(progress) {
                let grey = u8::try_from(step).unwrap();
                observer.on_preview(progress, RgbImage::filled(64, 48, [grey; 3]).into());
            }
            if let ControlFlow::Break(()) = observer.on_step(progress) {
                let _ = self.events.send(Event::Cancelled);
                return Err(ModelError::Cancelled);
            }
        }
        let seed = request.seed.of_image(image);
        let tint = seed.get().to_le_bytes()[0];
        Ok(GeneratedImage { image: tinted(request, self.card.size_multiple, tint).into(), seed })
    }
}

/// The first input picture (or grey), cut or repeated to size, plus a colour.
fn tinted(request: &ImageRequest, multiple: usize, tint: u8) -> RgbImage {
    let source = match &request.task {
        Task::Generate => RgbImage::filled(64, 64, [128; 3]),
        Task::Edit { images } => images[0].colour().clone(),
        Task::ImageToImage { image, .. }
        | Task::Inpaint { image, .. }
        | Task::Decompose { image, .. } => image.colour().clone(),
    };
    let size = match request.size {
        OutputSize::Exact(size) => size,
        OutputSize::Reference | OutputSize::AsInput => {
            ImageSize::new(source.width(), source.height()).unwrap()
        }
    };
    let floor = |side: usize| (side / multiple).max(1) * multiple;
    let (width, height) = match request.size {
        OutputSize::AsInput => (size.width(), size.height()),
        OutputSize::Reference | OutputSize::Exact(_) => (floor(size.width()), floor(size.height())),
    };
    assert_eq!((width % multiple, height % multiple), (0, 0), "off the grid");
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let at = (y % source.height() * source.width() + x % source.width()) * 3;
            let [red, green, blue] = [0, 1, 2].map(|channel| source.pixels()[at + channel]);
            pixels.extend([red.wrapping_add(tint), green, blue]);
        }
    }
    RgbImage::new(width, height, pixels).unwrap()
}
