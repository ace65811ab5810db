//! The steps that are checked, each by the function that the models call.

use candle_core::{Result, Tensor};

use super::super::fp8::{self, Fp8Rows};
use super::super::{
    After, AttentionMask, CfgRescale, Conv2d, Linear, Padding, attention, channel_norm, clip,
    euler_step, gated_add, gated_silu, gelu_tanh, guide, merge_heads, modulated_norm, silu,
};
use super::Family;
use super::inputs::Inputs;

/// A step that is checked.
pub(super) struct Step {
    pub(super) family: Family,
    pub(super) name: &'static str,
    /// Of the elements that it makes: what they may differ by grows with it.
    pub(super) size: f64,
    pub(super) make: fn(&Inputs) -> Result<Tensor>,
}

const fn step(
    family: Family,
    name: &'static str,
    size: f64,
    make: fn(&Inputs) -> Result<Tensor>,
) -> Step {
    Step { family, name, size, make }
}

pub(super) const STEPS: [Step; 24] = [
    step(Family::Product, "layer", 4.0, |of| layer(of, 1)?.forward(&of.image()?)),
    step(Family::Product, "layer, GELU", 4.0, |of| layer(of, 4)?.gelu_tanh(&of.image()?)),
    // First of one that begins at a multiple of 256 bytes, then of one that does not.
    step(Family::Product, "layer, GELU of a view", 4.0, |of| {
        let layer = Linear::from_weight(of.matrix(80, 40)?).with_bias(of.bias(80)?);
        let view = of.numbers(&[3, 8, 40], 20)?.narrow(0, 1, 2)?;
        layer.gelu_tanh(&view.contiguous()?)?;
        layer.gelu_tanh(&view)
    }),
    step(Family::Modulation, "modulated norm", 4.0, |of| {
        let (x, norm) = (of.image()?, of.norm()?);
        of.with_factors(|[scale, shift]| modulated_norm(&x, &norm, scale, shift))
    }),
    step(Family::Modulation, "gated sum", 4.0, |of| {
        let (x, bias) = (of.image()?, of.bias(of.extent.width())?);
        of.with_factors(|[gate, _]| gated_add(&x, &x, Some(&bias), gate))
    }),
    step(Family::Modulation, "gated sum without bias", 4.0, |of| {
        let x = of.text()?;
        of.with_factors(|[gate, _]| gated_add(&x, &x, None, gate))
    }),
    step(Family::Heads, "joint heads", 4.0, |of| of.heads(true, 11)),
    step(Family::Heads, "joint heads without norm", 4.0, |of| of.heads(false, 12)),
    step(Family::Heads, "merged heads", 4.0, |of| merge_heads(&of.heads(false, 12)?)),
    step(Family::Activation, "bias, GELU", 2.0, |of| {
        let width = 4 * of.extent.width();
        let x = of.numbers(&[of.extent.batch, of.extent.text_tokens, width], 13)?;
        gelu_tanh(&x, Some(&of.bias(width)?))
    }),
    step(Family::Activation, "SiLU of odd rows", 1.0, |of| silu(&of.odd()?)),
    step(Family::Activation, "gated SiLU", 1.0, |of| {
        let x = of.image()?;
        gated_silu(&x, &x)
    }),
    step(Family::Activation, "clip", 0.0, |of| clip(&of.image()?, -0.5, 0.5)),
    step(Family::Norm, "channel norm, SiLU", 4.0, |of| {
        let scale = of.numbers(&[1, of.extent.picture.0, 1, 1], 14)?;
        channel_norm(&of.picture()?, &scale, After::Silu)
    }),
    step(Family::Norm, "RMS norm of odd rows", 4.0, |of| {
        of.row_norm(of.extent.odd)?.forward(&of.odd()?)
    }),
    step(Family::Norm, "layer norm", 4.0, |of| of.norm()?.forward(&of.image()?)),
    step(Family::Guidance, "guidance", 16.0, |of| {
        guide(&of.flow(15)?, &of.flow(16)?, 4.0, CfgRescale::OfConditional)
    }),
    step(Family::Guidance, "Euler step", 2.0, |of| euler_step(&of.flow(15)?, &of.flow(16)?, -0.3)),
    step(Family::Attention, "attention", 2.0, |of| attended(of, AttentionMask::None)),
    step(Family::Attention, "causal attention", 2.0, |of| attended(of, AttentionMask::Causal)),
    step(Family::Convolution, "convolution", 4.0, |of| convolved(of, Padding::Around(1), 1)),
    step(Family::Convolution, "halving convolution", 4.0, |of| {
        convolved(of, Padding::RightBottom, 2)
    }),
    step(Family::Fp8, "8-bit rows", 0.0, |of| {
        let x = of.image()?;
        Fp8Rows::quantize(&x)?.widen(x.dtype())
    }),
    step(Family::Fp8, "8-bit product", 4.0, |of| {
        let (x, matrix) = (of.image()?, of.matrix(2 * of.extent.width(), of.extent.width())?);
        fp8::product(&Fp8Rows::quantize(&x)?, &Fp8Rows::quantize(&matrix)?, x.dtype())
    }),
];

/// A layer that makes `times` as many elements.
fn layer(of: &Inputs, times: usize) -> Result<Linear> {
    let (outputs, inputs) = (times * of.extent.width(), of.extent.width());
    Ok(Linear::from_weight(of.matrix(outputs, inputs)?).with_bias(of.bias(outputs)?))
}

fn attended(of: &Inputs, mask: AttentionMask) -> Result<Tensor> {
    let (q, k, v) = (of.heads(true, 17)?, of.heads(true, 18)?, of.heads(false, 19)?);
    attention(&q, &k, &v, mask)
}

fn convolved(of: &Inputs, padding: Padding, stride: usize) -> Result<Tensor> {
    let (channels, ..) = of.extent.picture;
    let weight = of.matrix(channels, 9 * channels)?.reshape((channels, channels, 3, 3))?;
    Conv2d::new(&weight, &of.bias(channels)?, padding, stride)?.forward(&of.picture()?)
}
