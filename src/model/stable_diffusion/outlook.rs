//! What a picture of a model's own size takes here: operations counted from its
//! configuration, and a product of its U-Net's width timed on its device.

use super::cost;
use super::pipeline::{Pipeline, TextSide};
use crate::checkpoint::MatrixFormat;
use crate::domain::ImageSize;
use crate::model::Estimate;
use crate::model::components::operations::Operations;
use crate::model::components::speed::{TypicalProduct, gpu_advice};

/// One pass of the U-Net for a picture of `size`.
fn pass(pipeline: &Pipeline, size: ImageSize) -> Operations {
    let components = &pipeline.components;
    let tokens = components.texts.first().map_or(0, |text| text.tokenizer.text_length());
    cost::unet(components.unet.config(), places(pipeline, size), tokens)
}

/// Latent pixels of a picture.
fn places(pipeline: &Pipeline, size: ImageSize) -> usize {
    let factor = pipeline.components.vae_config.spatial_factor();
    (size.width() / factor) * (size.height() / factor)
}

/// Steps of `passes` passes each that take as many operations as decoding a picture does.
pub(super) fn decoding_steps(pipeline: &Pipeline, size: ImageSize, passes: usize) -> f64 {
    let decoding = cost::decode(&pipeline.components.vae_config, size.area()).total();
    decoding / (passes as f64 * pass(pipeline, size).total())
}

/// What a picture takes whose request says nothing but a prompt.
pub(super) fn estimate(pipeline: &Pipeline) -> Option<Estimate> {
    let side = pipeline.card.image_area.isqrt() / pipeline.card.size_multiple;
    let side = side * pipeline.card.size_multiple;
    let size = ImageSize::new(side, side).ok()?;
    let defaults = &pipeline.card.defaults;
    let steps = defaults.num_inference_steps.get();
    let passes = if defaults.guidance.acts() { 2 } else { 1 };
    let components = &pipeline.components;
    let text =
        |side: &TextSide| cost::text_encoder(&side.config, side.tokenizer.text_length()).total();
    let operations = passes as f64 * components.texts.iter().map(text).sum::<f64>()
        + (steps * passes) as f64 * pass(pipeline, size).total()
        + cost::decode(&components.vae_config, size.area()).total();
    let product = TypicalProduct {
        width: components.unet.config().blocks.last()?.channels,
        rows: places(pipeline, size),
        matrices: MatrixFormat::AsComputed,
        dtype: components.dtype,
        device: &components.device,
    };
    let seconds = product.seconds_of(operations);
    let is_slow = seconds.is_some() && components.device.is_cpu();
    Some(Estimate {
        plan: pipeline.plan.clone(),
        width: side,
        height: side,
        steps,
        seconds,
        faster: is_slow.then(|| gpu_advice().to_owned()).into_iter().collect(),
        bytes_per_pixel: None,
    })
}
