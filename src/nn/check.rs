//! Holds what a device makes of each fused step against what a CPU makes of it.

use candle_core::{DType, Device, Result, Tensor};

use super::fp8::{self, Fp8Rows};
use super::{
    After, AttentionMask, Conv2d, Factors, FlowLength, HeadStream, LayerNorm, Linear, Padding,
    RmsNorm, attention, channel_norm, euler_step, gated_add, gated_silu, gelu_tanh, guide,
    joint_heads, modulated_norm, silu,
};

/// How one step came out.
#[derive(Debug, Clone)]
pub struct StepCheck {
    /// The step.
    pub step: &'static str,
    /// The number format, as candle calls it.
    pub dtype: &'static str,
    /// Between a number that the device made and the one that the CPU made.
    pub largest_difference: f64,
    /// The largest that two orders of summing, and a card's own functions, may make.
    pub tolerance: f64,
}

impl StepCheck {
    /// Whether the device is right. It is not if it made no number at all.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.largest_difference <= self.tolerance
    }
}

/// Formats, and the difference that numbers of about 1 may have in each: a few units
/// in the last place.
const FORMATS: [(DType, f64); 3] =
    [(DType::F32, 2e-5), (DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)];
/// Heads, and their size: the one that flash attention knows.
const HEADS: usize = 3;
const SIZE: usize = 128;
const WIDTH: usize = HEADS * SIZE;
const IMAGE_TOKENS: usize = 333;
const TEXT_TOKENS: usize = 5;

/// A step's name, the size of the numbers that it makes, and the step.
type Step = (&'static str, f64, fn(&Inputs) -> Result<Tensor>);

/// All fused steps, in all number formats.
///
/// # Errors
/// A candle error if the device refuses a step altogether.
pub fn check(device: &Device) -> Result<Vec<StepCheck>> {
    let mut checks = Vec::with_capacity(FORMATS.len() * STEPS.len());
    for (dtype, tolerance) in FORMATS {
        let here = Inputs::new(dtype, &Device::Cpu)?;
        let there = Inputs::new(dtype, device)?;
        for (step, size, make) in STEPS {
            checks.push(StepCheck {
                step,
                dtype: dtype.as_str(),
                largest_difference: largest_difference(&make(&here)?, &make(&there)?)?,
                tolerance: size * tolerance,
            });
        }
    }
    Ok(checks)
}

/// NaN if there is one among the numbers.
fn largest_difference(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let list = |x: &Tensor| -> Result<Vec<f32>> {
        x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    let differences =
        list(ours)?.into_iter().zip(list(theirs)?).map(|(a, b)| f64::from((a - b).abs()));
    // Not `f64::max`, which passes over NaN.
    let larger =
        |largest: f64, next: f64| if largest.is_nan() || next <= largest { largest } else { next };
    Ok(differences.fold(0.0, larger))
}

/// The same numbers on every device.
struct Inputs {
    image: Tensor,
    text: Tensor,
    factors: [Tensor; 3],
    bias: Tensor,
    norm: LayerNorm,
    head_norm: RmsNorm,
    image_angles: [Tensor; 2],
    text_angles: [Tensor; 2],
    /// Rows that no pack divides.
    odd: Tensor,
    odd_norm: RmsNorm,
    picture: Tensor,
    channel_scale: Tensor,
    /// (2 · width, width), so small that products are of about 1.
    matrix: Tensor,
    wide_bias: Tensor,
    /// A part of a tensor that begins at no multiple of 256 bytes.
    view: Tensor,
    view_matrix: Tensor,
    /// (20, 20, 3, 3), so small that sums are of about 1.
    kernel: Tensor,
    kernel_bias: Tensor,
}

impl Inputs {
    fn new(dtype: DType, device: &Device) -> Result<Self> {
        let wide = |shape: &[usize], step: f64| -> Result<Tensor> {
            let count = shape.iter().product::<usize>() as i64;
            let ramp = Tensor::arange(0, count, &Device::Cpu)?.to_dtype(DType::F64)?;
            (ramp * step)?.sin()?.reshape(shape)?.to_dtype(DType::F32)
        };
        let numbers = |shape: &[usize], step| wide(shape, step)?.to_dtype(dtype)?.to_device(device);
        let angles = |tokens| -> Result<[Tensor; 2]> {
            let angle = wide(&[tokens, SIZE / 2], 0.37)?;
            Ok([angle.cos()?.to_device(device)?, angle.sin()?.to_device(device)?])
        };
        Ok(Self {
            image: numbers(&[2, IMAGE_TOKENS, WIDTH], 0.7)?,
            text: numbers(&[2, TEXT_TOKENS, WIDTH], 1.1)?,
            factors: [
                numbers(&[2, 1, WIDTH], 1.3)?,
                numbers(&[2, 1, WIDTH], 1.7)?,
                numbers(&[2, 1, WIDTH], 1.9)?,
            ],
            bias: numbers(&[WIDTH], 2.3)?,
            norm: LayerNorm::new(WIDTH, 1e-6, dtype, device)?,
            head_norm: RmsNorm::new(numbers(&[SIZE], 2.9)?, 1e-6),
            image_angles: angles(IMAGE_TOKENS)?,
            text_angles: angles(TEXT_TOKENS)?,
            odd: numbers(&[3, 7, 333], 3.1)?,
            odd_norm: RmsNorm::new(numbers(&[333], 3.7)?, 1e-6),
            picture: numbers(&[2, 20, 16, 21], 4.1)?,
            channel_scale: numbers(&[1, 20, 1, 1], 4.3)?,
            matrix: (numbers(&[2 * WIDTH, WIDTH], 4.7)? * (WIDTH as f64).powf(-0.5))?,
            wide_bias: numbers(&[2 * WIDTH], 5.3)?,
            view: numbers(&[3, 8, 40], 5.9)?.narrow(0, 1, 2)?,
            view_matrix: (numbers(&[2 * WIDTH, 40], 6.1)? * 0.2)?,
            kernel: (numbers(&[20, 20, 3, 3], 6.7)? * 0.1)?,
            kernel_bias: numbers(&[20], 7.1)?,
        })
    }

    /// Other factors from the eleventh token on.
    fn factors(&self, index: usize) -> Factors<'_> {
        Factors { early: &self.factors[index], late: Some((10, &self.factors[2])) }
    }

    fn heads(&self, norm: Option<&RmsNorm>) -> Result<Tensor> {
        fn stream<'a>(
            x: &'a Tensor,
            bias: &'a Tensor,
            norm: Option<&'a RmsNorm>,
            [cos, sin]: &'a [Tensor; 2],
        ) -> HeadStream<'a> {
            HeadStream { x, bias: Some(bias), norm, rotation: Some((cos, sin)) }
        }
        joint_heads(
            stream(&self.text, &self.bias, norm, &self.text_angles),
            stream(&self.image, &self.bias, norm, &self.image_angles),
            HEADS,
        )
    }
}

const STEPS: [Step; 19] = [
    ("modulated norm", 4.0, |of| modulated_norm(&of.image, &of.norm, of.factors(0), of.factors(1))),
    ("gated add", 4.0, |of| gated_add(&of.image, &of.image, Some(&of.bias), of.factors(0))),
    ("joint heads", 4.0, |of| of.heads(Some(&of.head_norm))),
    ("joint heads without norm", 4.0, |of| of.heads(None)),
    ("bias, GELU", 2.0, |of| gelu_tanh(&of.image, Some(&of.bias))),
    ("layer, GELU", 4.0, |of| {
        Linear::from_weight(of.matrix.clone()).with_bias(of.wide_bias.clone()).gelu_tanh(&of.image)
    }),
    ("layer, GELU of a view", 4.0, |of| {
        let layer = Linear::from_weight(of.view_matrix.clone()).with_bias(of.wide_bias.clone());
        layer.gelu_tanh(&of.view.contiguous()?)?;
        layer.gelu_tanh(&of.view)
    }),
    ("convolution", 4.0, |of| {
        let conv = Conv2d::new(&of.kernel, &of.kernel_bias, Padding::Around(1), 1)?;
        conv.forward(&of.picture)
    }),
    ("halving convolution", 4.0, |of| {
        let conv = Conv2d::new(&of.kernel, &of.kernel_bias, Padding::RightBottom, 2)?;
        conv.forward(&of.picture)
    }),
    ("8-bit rows", 0.0, |of| Fp8Rows::round(&of.image)?.widen(of.image.dtype())),
    ("8-bit product", 4.0, |of| {
        let (x, matrix) = (Fp8Rows::round(&of.image)?, Fp8Rows::round(&of.matrix)?);
        fp8::product(&x, &matrix, of.image.dtype())
    }),
    ("SiLU of odd rows", 1.0, |of| silu(&of.odd)),
    ("gated SiLU", 1.0, |of| gated_silu(&of.image, &of.image)),
    ("guidance", 16.0, |of| guide(&of.image, &(&of.image * 0.3)?, 4.0, FlowLength::OfConditional)),
    ("Euler step", 2.0, |of| euler_step(&of.image, &of.image, -0.3)),
    ("channel norm, SiLU", 4.0, |of| channel_norm(&of.picture, &of.channel_scale, After::Silu)),
    ("RMS norm of odd rows", 4.0, |of| of.odd_norm.forward(&of.odd)),
    ("attention", 2.0, |of| {
        let (q, v) = (of.heads(Some(&of.head_norm))?, of.heads(None)?);
        attention(&q, &q, &v, AttentionMask::None)
    }),
    ("causal attention", 2.0, |of| {
        let (q, v) = (of.heads(Some(&of.head_norm))?, of.heads(None)?);
        attention(&q, &q, &v, AttentionMask::Causal)
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_agrees_with_itself_and_a_number_that_is_none_does_not_pass() {
        for check in check(&Device::Cpu).unwrap() {
            assert!(check.passed() && check.largest_difference == 0.0, "{check:?}");
        }
        let numbers = |list: [f32; 3]| Tensor::new(&list, &Device::Cpu).unwrap();
        let largest = |a, b| largest_difference(&numbers(a), &numbers(b)).unwrap();
        assert!((largest([1.0, 2.0, 3.0], [1.0, 4.0, 3.5]) - 2.0).abs() < 1e-6);
        assert!(largest([1.0, f32::NAN, 3.0], [1.0, 2.0, 3.0]).is_nan());
    }
}
