//! The library without HTTP: load a model, edit a picture, save the result.
//!
//! ```text
//! cargo run --example edit_image -- photo.png "make the sky pink" pink.png
//! cargo run --example edit_image -- photo.png "make the sky pink" pink.png Qwen/Qwen-Image-Edit
//! ```
//!
//! Without a model's name it is the embedded one, which knows a few instructions (it prints
//! them). A downloaded model is looked for in the cache
//! that `diffuser-api pull` fills, and fetched if it is not there.
#![expect(clippy::print_stdout, reason = "an example tells the person who runs it what it does")]

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use diffuser_api::config::{Environment, load_hub};
use diffuser_api::domain::{ImageRequest, Prompt, RgbImage, Seed, Task};
use diffuser_api::model::{ModelConfig, StepObserver, StepProgress};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name| arguments.next().with_context(|| format!("{name} is missing"));
    let (input, prompt, output) = (next("INPUT")?, next("PROMPT")?, next("OUTPUT")?);
    let id = arguments.next().unwrap_or_else(|| "demo".to_owned());

    let hub = load_hub(&Environment::of_process())?;
    let mut model = diffuser_api::model::load(&ModelConfig::of(id), &hub)?;
    let (info, loaded) = (model.card().clone(), model.loaded());
    println!("loaded {} on {} in {}", info.id, loaded.device, loaded.dtype);
    for instruction in &info.instructions {
        println!("it knows, for example: {instruction}");
    }

    let negative_prompt = info.defaults.negative_prompt.map(Prompt::negative);
    let request = ImageRequest {
        negative_prompt: negative_prompt.transpose()?,
        steps: info.defaults.num_inference_steps,
        guidance: info.defaults.guidance,
        seed: Seed::new(42),
        ..ImageRequest::new(Task::Edit { images: vec![read(&input)?.into()] }, Prompt::new(prompt)?)
    };
    let generation = model.generate(&request, &mut PrintedSteps)?;

    for generated in &generation.images {
        save(generated.image.colour(), &output)?;
        println!("saved {output}, made from seed {}", generated.seed.get());
    }
    Ok(())
}

/// Tells of each step; would break to stop the work.
struct PrintedSteps;

impl StepObserver for PrintedSteps {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        println!("step {} of {}", progress.step, progress.total_steps);
        ControlFlow::Continue(())
    }
}

fn read(path: &str) -> Result<RgbImage> {
    let picture = image::open(path).with_context(|| format!("cannot read {path}"))?;
    let picture = picture.into_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(RgbImage::new(width, height, picture.into_raw())?)
}

fn save(picture: &RgbImage, path: &str) -> Result<()> {
    let (width, height) = (picture.width().try_into()?, picture.height().try_into()?);
    let colours = image::ExtendedColorType::Rgb8;
    image::save_buffer(path, picture.pixels(), width, height, colours)
        .with_context(|| format!("cannot write {path}"))
}
