//! What a picture of a model's own size takes here: operations counted from its
//! configuration, and a product of its transformer's shapes timed on its device.

use super::cost;
use super::loading::WORKING_BYTES_PER_PIXEL;
use super::pipeline::{Extent, Job, Pipeline, token_side};
use super::positions::Grid;
use super::preprocess::{self, PixelSize};
use crate::checkpoint::MatrixFormat;
use crate::domain::{ImageRequest, LayerCount, OutputSize, Prompt, RgbImage, Task};
use crate::model::components::speed::{TypicalProduct, gpu_advice};
use crate::model::{BytesPerPixel, EditKind, Estimate};
use crate::nn::has_integer_products;

/// Words of a prompt, in tokens.
const USUAL_WORDS: usize = 32;
/// Steps that a model is taught by a LoRA to do with.
const FEW_STEPS: usize = 8;

/// Operations of `plan`, the text encoder, the VAE's encoder, the modulation, all steps and
/// the VAE's decoder; `words`: of each prompt, in tokens.
pub(super) fn operations(
    pipeline: &Pipeline,
    extent: &Extent,
    words: &[usize],
    steps: usize,
) -> [f64; 6] {
    let components = &pipeline.components;
    let transformer = components.transformer.config();
    let encoder = &components.text_encoder_config;
    let shown = extent.shown_tokens();
    let template = pipeline.variant.template.drop_tokens;
    let language =
        |words: &usize| cost::language_model(&encoder.text, template + shown + words).total();
    let vision = |grid: &Grid| cost::vision_tower(&encoder.vision, *grid).total();
    let autoencoder =
        |size: &PixelSize| cost::autoencoder(&components.vae_config, size.width, size.height);
    let pass = |words: &usize| {
        cost::transformer(transformer, (extent.image_tokens, extent.made_tokens), shown + words)
            .total()
    };
    let shared = cost::image_input(transformer, extent.image_tokens).total();
    let step = words.iter().map(pass).sum::<f64>() - (words.len() - 1) as f64 * shared;
    [
        0.0,
        words.iter().map(language).chain(extent.shown.iter().map(vision)).sum(),
        extent.encoded.iter().fold(0.0, |sum, size| sum + autoencoder(size).encode.total()),
        cost::modulation(transformer, steps).total(),
        steps as f64 * step,
        autoencoder(&extent.output).decode.total(),
    ]
}

/// Steps of `job` that take as many operations as decoding its picture does; `words`: as
/// [`operations`] has them.
pub(super) fn decoding_steps(pipeline: &Pipeline, job: &Job, words: &[usize]) -> f64 {
    let [.., step, decoding] = operations(pipeline, &pipeline.extent_of(job), words, 1);
    decoding * job.made_frames().len() as f64 / step
}

/// What a picture takes whose request says nothing but a prompt.
pub(super) fn estimate(pipeline: &Pipeline) -> Option<Estimate> {
    let defaults = &pipeline.card.defaults;
    let extent = pipeline.extent(&own_request(pipeline)?).ok()?;
    let is_guided = defaults.guidance.acts() && defaults.negative_prompt.is_some();
    let words = if is_guided { vec![USUAL_WORDS, 1] } else { vec![USUAL_WORDS] };
    let steps = defaults.num_inference_steps.get();
    let count: f64 = operations(pipeline, &extent, &words, steps).iter().sum();
    let (dtype, device) = pipeline.components.transformer.tensor_kind();
    let product = TypicalProduct {
        width: pipeline.components.transformer.config().inner_dim(),
        rows: extent.image_tokens,
        matrices: pipeline.components.matrices,
        dtype,
        device,
    };
    let seconds = product.seconds_of(count);
    let PixelSize { width, height } = extent.output;
    Some(Estimate {
        plan: pipeline.plan.clone(),
        width,
        height,
        steps,
        seconds,
        faster: if seconds.is_some() { faster(pipeline, steps) } else { Vec::new() },
        bytes_per_pixel: Some(bytes_per_pixel(pipeline)),
    })
}

/// At least, the rows of the widest layer of the transformer's blocks, which all tokens go
/// through together.
fn bytes_per_pixel(pipeline: &Pipeline) -> BytesPerPixel {
    const FEED_FORWARD: usize = 4;
    let token_side = token_side(&pipeline.components.vae_config);
    let row = FEED_FORWARD * pipeline.components.transformer.config().inner_dim();
    let least = row * pipeline.components.dtype.size_in_bytes() / (token_side * token_side);
    BytesPerPixel { most: WORKING_BYTES_PER_PIXEL, least }
}

/// A request that says nothing but a prompt, with a picture of the model's own area.
fn own_request(pipeline: &Pipeline) -> Option<ImageRequest> {
    let size = preprocess::size_of_area(pipeline.card.image_area, 1, 1);
    let image = || RgbImage::filled(size.width, size.height, [128; 3]).into();
    let task = match pipeline.variant.edit_kind {
        EditKind::Instruction => Task::Edit { images: vec![image()] },
        EditKind::ImageToImage => Task::Generate,
        EditKind::Layers => Task::Decompose { image: image(), layers: LayerCount::new(4).ok()? },
    };
    let prompt = Prompt::new("a picture").ok()?;
    Some(ImageRequest { size: OutputSize::Reference, ..ImageRequest::new(task, prompt) })
}

/// What would make a picture sooner.
fn faster(pipeline: &Pipeline, steps: usize) -> Vec<String> {
    let mut ways = Vec::new();
    if steps > FEW_STEPS {
        ways.push(format!("a Lightning LoRA (4 or {FEW_STEPS} steps for {steps})"));
    }
    if pipeline.components.device.is_cpu() {
        let is_rounded = pipeline.components.matrices == MatrixFormat::Q8_0;
        if has_integer_products() && !is_rounded {
            ways.push("dtype q8_0 (this processor multiplies 8-bit integers)".to_owned());
        }
        ways.push(gpu_advice().to_owned());
    } else if pipeline.plan.resident_bytes() < pipeline.plan.weight_bytes() {
        ways.push("dtype fp8 or fp8-weights, so that more of the weights stay".to_owned());
    }
    ways
}
