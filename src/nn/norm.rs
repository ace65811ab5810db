//! Normalisations; statistics always in 32 bits.

use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::clip::keep_nan;
use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, WARP, address, expect_bias, expect_contiguous, length,
    pack_of, run, threads_for_row,
};
use super::rows::{sum_of, vectorised};
use super::trace::{self, Kind};
use super::{activation::silu_of, silu};
use crate::checkpoint::Weights;

/// Root-mean-square normalisation over the last dimension, with a weight.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight` (size).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self::new(weights.get("weight", size)?, eps))
    }

    /// With a `weight` (size) at hand.
    #[must_use]
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(super) fn eps(&self) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "arithmetic is in 32 bits")]
        {
            self.eps as f32
        }
    }

    /// `x`: (…, size). In 16-bit formats the normalised value is rounded before
    /// the weight multiplies it, as the reference does.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace::span(Kind::Norm, "RMS norm");
        if !Fusion::RmsNorm.applies_to(x) {
            return self.forward_composed(x);
        }
        run(&RowNorm::new(&x.contiguous()?, self)?)
    }

    fn forward_composed(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normalised = wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        normalised.to_dtype(x.dtype())?.broadcast_mul(&self.weight)
    }
}

struct RowNorm<'a> {
    x: &'a Tensor,
    norm: &'a RmsNorm,
    width: usize,
}

impl<'a> RowNorm<'a> {
    fn new(x: &'a Tensor, norm: &'a RmsNorm) -> Result<Self> {
        let width = x.dim(D::Minus1)?;
        expect_contiguous("what is normalised", x)?;
        expect_bias(x, Some(&norm.weight), width)?;
        Ok(Self { x, norm, width })
    }
}

/// As `norms.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct RowNormCall {
    x: u64,
    weight: u64,
    y: u64,
    width: i32,
    eps: f32,
}

impl Operation for RowNorm<'_> {
    type Call = RowNormCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "RMS norm";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let (width, eps) = (self.width, self.norm.eps());
        let (x, weight) = (Elements::<N>::of(self.x)?, Elements::<N>::of(&self.norm.weight)?);
        let (x, weight) = (&x.all()[..made.len()], &weight.all()[..width]);
        let rows = made.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(8);
        rows.for_each(|(made, x)| vectorised(|| rms_row(x, weight, made, eps)));
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<RowNormCall>> {
        let width = self.width;
        let (x, weight) = (address(self.x)?, address(&self.norm.weight)?);
        let call = RowNormCall { x, weight, y: made, width: length(width)?, eps: self.norm.eps() };
        let pack = pack_of(self.x.dtype(), &[x, weight, made], &[width]);
        let threads = threads_for_row(width, pack);
        let blocks = self.x.elem_count() / width;
        Ok(Launch { kernel: "rms_norm", blocks, threads, shared: threads / WARP, call, pack })
    }
}

#[inline(always)]
fn rms_row<N: Element>(x: &[N], weight: &[N], made: &mut [N], eps: f32) {
    let length = (sum_of(x, |x| x * x) / x.len() as f32 + eps).sqrt();
    for ((made, x), weight) in made.iter_mut().zip(x).zip(weight) {
        *made = N::narrow(N::rounded(x.wide() / length) * weight.wide());
    }
}

/// Layer normalisation over the last dimension, without parameters of its own.
pub struct LayerNorm {
    ones: Tensor,
    zeros: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// For vectors of `size` elements of `dtype` on `device`.
    ///
    /// # Errors
    /// A candle error if the device refuses memory.
    pub fn new(size: usize, eps: f32, dtype: DType, device: &Device) -> Result<Self> {
        let ones = Tensor::ones(size, dtype, device)?;
        let zeros = Tensor::zeros(size, dtype, device)?;
        Ok(Self { ones, zeros, eps })
    }

    pub(super) fn eps(&self) -> f32 {
        self.eps
    }

    /// `x`: (…, size).
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace::span(Kind::Norm, "layer norm");
        candle_nn::ops::layer_norm(&x.contiguous()?, &self.ones, &self.zeros, self.eps)
    }
}

/// What follows a normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// x · sigmoid(x).
    Silu,
}

/// The smallest length that a channel vector is divided by.
const MIN_LENGTH: f32 = 1e-12;

/// Divides each pixel's channel vector by its length, times `scale`.
///
/// `x`: (batch, channels, height, width); `scale`: (1, channels, 1, 1). Returns the
/// shape of `x`. In 16-bit formats every operation is rounded; lengths are summed
/// in 32 bits.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn channel_norm(x: &Tensor, scale: &Tensor, after: After) -> Result<Tensor> {
    let _span = trace::span(Kind::Norm, "channel norm");
    if !Fusion::ChannelNorm.applies_to(x) {
        return channel_norm_composed(x, scale, after);
    }
    run(&ChannelNorm::new(&x.contiguous()?, &scale.flatten_all()?, after)?)
}

fn channel_norm_composed(x: &Tensor, scale: &Tensor, after: After) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let length = wide.sqr()?.sum_keepdim(1)?.sqrt()?;
    let length = keep_nan(&length, &length.maximum(f64::from(MIN_LENGTH))?)?;
    let scaled = wide.broadcast_div(&length)?.to_dtype(x.dtype())?.broadcast_mul(scale)?;
    match after {
        After::Nothing => Ok(scaled),
        After::Silu => silu(&scaled),
    }
}

struct ChannelNorm<'a> {
    x: &'a Tensor,
    /// (channels)
    scale: &'a Tensor,
    after: After,
    batch: usize,
    channels: usize,
    pixels: usize,
}

/// Warps of a block: each takes every eighth channel of a tile of pixels.
const CHANNEL_WARPS: usize = 8;
/// Pixels that a thread of a CPU takes at a time: a tile of them stays in its cache.
const TILE: usize = 256;

impl<'a> ChannelNorm<'a> {
    fn new(x: &'a Tensor, scale: &'a Tensor, after: After) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        expect_contiguous("a picture", x)?;
        expect_bias(x, Some(scale), channels)?;
        Ok(Self { x, scale, after, batch, channels, pixels: height * width })
    }
}

/// As `norms.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ChannelNormCall {
    x: u64,
    scale: u64,
    y: u64,
    pixels: i64,
    tiles: i64,
    channels: i32,
    activated: i32,
    smallest: f32,
}

impl Operation for ChannelNorm<'_> {
    type Call = ChannelNormCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "channel norm";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let (x, scale) = (Elements::<N>::of(self.x)?, Elements::<N>::of(self.scale)?);
        let (x, scale) = (x.all(), &scale.all()[..self.channels]);
        // The lengths first, then channel by channel: threads then write apart.
        let mut lengths = vec![0.0_f32; self.batch * self.pixels];
        let (pixels, picture) = (self.pixels, self.channels * self.pixels);
        for (entry, lengths) in lengths.chunks_mut(pixels).enumerate() {
            let x = &x[entry * picture..][..picture];
            lengths.par_chunks_mut(TILE).enumerate().for_each(|(tile, lengths)| {
                vectorised(|| lengths_of_tile(x, pixels, tile * TILE, lengths));
            });
        }
        made.par_chunks_mut(pixels).enumerate().for_each(|(plane, made)| {
            let x = &x[plane * pixels..][..pixels];
            let lengths = &lengths[plane / self.channels * pixels..][..pixels];
            let scale = scale[plane % self.channels].wide();
            vectorised(|| match self.after {
                After::Nothing => scale_plane(x, lengths, scale, made, |x| x),
                After::Silu => scale_plane(x, lengths, scale, made, silu_of),
            });
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<ChannelNormCall>> {
        let (x, scale) = (address(self.x)?, address(self.scale)?);
        let pack = pack_of(self.x.dtype(), &[x, made], &[self.pixels]);
        let tiles = self.pixels.div_ceil(WARP * pack);
        let call = ChannelNormCall {
            x,
            scale,
            y: made,
            pixels: self.pixels as i64,
            tiles: tiles as i64,
            channels: length(self.channels)?,
            activated: i32::from(self.after == After::Silu),
            smallest: MIN_LENGTH,
        };
        let threads = CHANNEL_WARPS * WARP;
        let blocks = self.batch * tiles;
        let kernel = "rms_over_channels";
        Ok(Launch { kernel, blocks, threads, shared: threads * pack, call, pack })
    }
}

/// The lengths of the pixels from `first` on.
#[inline(always)]
fn lengths_of_tile<N: Element>(x: &[N], pixels: usize, first: usize, lengths: &mut [f32]) {
    for plane in x.chunks_exact(pixels) {
        for (sum, x) in lengths.iter_mut().zip(&plane[first..]) {
            *sum += x.wide() * x.wide();
        }
    }
    for length in lengths {
        let root = length.sqrt();
        // Not `f32::max`, which passes over NaN.
        *length = if root < MIN_LENGTH { MIN_LENGTH } else { root };
    }
}

#[inline(always)]
fn scale_plane<N: Element>(
    x: &[N],
    lengths: &[f32],
    scale: f32,
    made: &mut [N],
    after: impl Fn(f32) -> f32,
) {
    for ((made, x), length) in made.iter_mut().zip(x).zip(lengths) {
        let scaled = N::rounded(N::rounded(x.wide() / length) * scale);
        *made = N::narrow(after(scaled));
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    #[test]
    fn row_norms_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(8.0) {
            for (rows, width) in [(1, 4), (5, 36), (3, 333), (2, 4200)] {
                let x = numbers(&[rows, width], 1, dtype);
                let norm = RmsNorm::new(numbers(&[width], 2, dtype), 1e-6);
                let composed = norm.forward_composed(&x).unwrap();
                let operation = RowNorm::new(&x, &norm).unwrap();

                let looped = run(&operation).unwrap();

                assert_close(&looped, &composed, tolerance);
                assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
            }
        }
    }

    #[test]
    fn what_is_not_finite_goes_through_a_row_norm_as_through_torchs() {
        let (rows, width) = (3, 37);
        for dtype in NUMBER_FORMATS {
            let inputs = [numbers(&[rows, width], 1, dtype), numbers(&[width], 2, dtype)];
            let forms = |inputs: &[Tensor]| {
                let norm = RmsNorm::new(inputs[1].clone(), 1e-6);
                let mut forms = both_forms(&RowNorm::new(&inputs[0], &norm).unwrap());
                forms.push(("composition", norm.forward_composed(&inputs[0]).unwrap()));
                forms
            };
            let reference = |inputs: &[Vec<f64>]| {
                let row = |row: &[f64]| {
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    let scaled = row.iter().zip(&inputs[1]);
                    scaled.map(|(x, weight)| x / (mean + 1e-6).sqrt() * weight).collect::<Vec<_>>()
                };
                inputs[0].chunks(width).flat_map(row).collect()
            };
            assert_passed_on(&inputs, forms, reference);
        }
    }

    #[test]
    fn what_is_not_finite_goes_through_a_layer_norm_as_through_torchs() {
        let (rows, width) = (3, 37);
        for dtype in NUMBER_FORMATS {
            let norm = LayerNorm::new(width, 1e-6, dtype, &Device::Cpu).unwrap();
            let forms = |inputs: &[Tensor]| vec![("candle's", norm.forward(&inputs[0]).unwrap())];
            let reference = |inputs: &[Vec<f64>]| {
                let row = |row: &[f64]| {
                    let mean = row.iter().sum::<f64>() / width as f64;
                    let squares = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                    let deviation = (squares / width as f64 + 1e-6).sqrt();
                    row.iter().map(|x| (x - mean) / deviation).collect::<Vec<_>>()
                };
                inputs[0].chunks(width).flat_map(row).collect()
            };
            assert_passed_on(&[numbers(&[rows, width], 1, dtype)], forms, reference);
        }
    }

    /// One picture of `channels` planes.
    fn exact_channel_norm(x: &[f64], scale: &[f64], after: After) -> Vec<f64> {
        let pixels = x.len() / scale.len();
        let length = |pixel: usize| {
            let sum: f64 = x.iter().skip(pixel).step_by(pixels).map(|x| x * x).sum();
            // As torch's clamp: NaN stays.
            if sum.sqrt() < 1e-12 { 1e-12 } else { sum.sqrt() }
        };
        let lengths: Vec<f64> = (0..pixels).map(length).collect();
        let made = x.iter().enumerate().map(|(at, x)| {
            let scaled = x / lengths[at % pixels] * scale[at / pixels];
            match after {
                After::Nothing => scaled,
                After::Silu => scaled / (1.0 + (-scaled).exp()),
            }
        });
        made.collect()
    }

    #[test]
    fn what_is_not_finite_goes_through_a_channel_norm_as_through_torchs() {
        for dtype in NUMBER_FORMATS {
            for (channels, height, width) in [(9, 5, 7), (4, 2, 20)] {
                let x = numbers(&[1, channels, height, width], 1, dtype);
                let inputs = [x, numbers(&[channels], 2, dtype)];
                for after in [After::Nothing, After::Silu] {
                    let forms = |inputs: &[Tensor]| {
                        let (x, scale) = (&inputs[0], &inputs[1]);
                        let wide = scale.reshape((1, channels, 1, 1)).unwrap();
                        let mut forms = both_forms(&ChannelNorm::new(x, scale, after).unwrap());
                        let composed = channel_norm_composed(x, &wide, after).unwrap();
                        forms.push(("composition", composed));
                        forms
                    };
                    let reference =
                        |inputs: &[Vec<f64>]| exact_channel_norm(&inputs[0], &inputs[1], after);
                    assert_passed_on(&inputs, forms, reference);
                }
            }
        }
    }

    #[test]
    fn channel_norms_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(4.0) {
            for shape in [[1, 3, 1, 1], [2, 9, 5, 7], [1, 20, 16, 20], [2, 4, 1, 600]] {
                // A pixel of zeros: nothing must be divided by its length.
                let x = numbers(&shape, 1, dtype);
                let mask: Vec<f32> =
                    (0..shape[2] * shape[3]).map(|i| (i % 5).min(1) as f32).collect();
                let mask =
                    Tensor::from_vec(mask, (1, 1, shape[2], shape[3]), &Device::Cpu).unwrap();
                let x = x.broadcast_mul(&mask.to_dtype(dtype).unwrap()).unwrap();
                let scale = numbers(&[shape[1]], 2, dtype);
                for after in [After::Nothing, After::Silu] {
                    let wide = scale.reshape((1, shape[1], 1, 1)).unwrap();
                    let composed = channel_norm_composed(&x, &wide, after).unwrap();
                    let operation = ChannelNorm::new(&x, &scale, after).unwrap();

                    let looped = run(&operation).unwrap();

                    assert_close(&looped, &composed, tolerance);
                    assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
                }
            }
        }
    }
}
