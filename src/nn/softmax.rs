//! Softmax over the last dimension: in place on a CPU, from 16-bit scores to 16-bit
//! weights with 32 bits in between on an NVIDIA GPU.
//!
//! What is not finite comes out as torch's `scaled_dot_product_attention` has it
//! (2.11, `_safe_softmax`): a NaN or +∞ makes its row NaN, −∞ gets no weight, and a row
//! of −∞ alone is a row of zeros.
//!
//! candle's own allocates a second tensor and calls the C library's `expf` for
//! each number; attention spends most of its time there. Here the exponential is
//! a polynomial that the compiler turns into vector instructions, chosen at run
//! time for the processor at hand.

use candle_core::{CpuStorage, D, InplaceOp1, Layout, Result, Tensor};
use rayon::prelude::*;

use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, WARP, address, expect_contiguous, length, pack_of, run,
    threads_for_row,
};

/// Replaces `scores` by its softmax over the last dimension.
///
/// `scores`: f32, contiguous, not shared with anyone who still needs it.
/// Returns the same tensor where it could be done in place, else a new one.
///
/// # Errors
/// A candle error, such as a tensor of another format.
pub(super) fn softmax_in_place(scores: Tensor) -> Result<Tensor> {
    if !scores.device().is_cpu() {
        return if Fusion::Softmax.applies_to(&scores) {
            softmax(&scores)
        } else {
            // A row of −∞ alone is NaN here; no mask of ours hides every key.
            candle_nn::ops::softmax_last_dim(&scores)
        };
    }
    scores.inplace_op1(&Softmax)?;
    Ok(scores)
}

/// The softmax of `scores` over the last dimension, made in 32 bits whatever their
/// format.
///
/// # Errors
/// A candle error, such as out of memory.
pub(super) fn softmax(scores: &Tensor) -> Result<Tensor> {
    run(&RowSoftmax::new(&scores.contiguous()?)?)
}

struct RowSoftmax<'a> {
    x: &'a Tensor,
    width: usize,
}

impl<'a> RowSoftmax<'a> {
    fn new(x: &'a Tensor) -> Result<Self> {
        expect_contiguous("scores", x)?;
        Ok(Self { x, width: x.dim(D::Minus1)? })
    }
}

/// As `norms.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct RowSoftmaxCall {
    x: u64,
    y: u64,
    width: i32,
}

impl Operation for RowSoftmax<'_> {
    type Call = RowSoftmaxCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "softmax";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let x = Elements::<N>::of(self.x)?;
        let x = &x.all()[..made.len()];
        let rows = made.par_chunks_mut(self.width).zip(x.par_chunks(self.width));
        rows.with_min_len(8).for_each(|(made, x)| {
            let mut row: Vec<f32> = x.iter().map(|x| x.wide()).collect();
            pulp::Arch::new().dispatch(SoftmaxRow(&mut row));
            for (made, weight) in made.iter_mut().zip(row) {
                *made = N::narrow(weight);
            }
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<RowSoftmaxCall>> {
        let x = address(self.x)?;
        let call = RowSoftmaxCall { x, y: made, width: length(self.width)? };
        let pack = pack_of(self.x.dtype(), &[x, made], &[self.width]);
        let threads = threads_for_row(self.width, pack);
        let blocks = self.x.elem_count() / self.width;
        Ok(Launch { kernel: "softmax", blocks, threads, shared: threads / WARP, call, pack })
    }
}

struct Softmax;

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("softmax in place needs contiguous f32 numbers");
        };
        let row = layout.dims().last().copied().unwrap_or(1).max(1);
        let arch = pulp::Arch::new();
        numbers[start..end]
            .par_chunks_mut(row)
            .with_min_len(8)
            .for_each(|row| arch.dispatch(SoftmaxRow(row)));
        Ok(())
    }
}

/// The work on one row. A closure would do, were it certain to be inlined into
/// the function that is compiled for the processor's vectors.
struct SoftmaxRow<'a>(&'a mut [f32]);

impl pulp::NullaryFnOnce for SoftmaxRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        softmax_row(self.0);
    }
}

#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let largest = maximum(row, f32::NEG_INFINITY);
    let sum = weigh(row, largest);
    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    row.iter_mut().for_each(|number| *number *= scale);
}

/// Turns `scores`, of which none is above `largest`, into e to the power of what they
/// differ by from it. Returns the sum.
#[inline(always)]
pub(super) fn weigh(scores: &mut [f32], largest: f32) -> f32 {
    let largest = subtrahend(largest);
    // Several sums side by side, so that the additions can be vectorised.
    let mut sums = [0.0_f32; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for lanes in whole {
        for (number, sum) in lanes.iter_mut().zip(&mut sums) {
            *number = exp_of_negative(*number - largest);
            *sum += *number;
        }
    }
    for (number, sum) in rest.iter_mut().zip(&mut sums) {
        *number = exp_of_negative(*number - largest);
        *sum += *number;
    }
    sums.iter().sum()
}

const LANES: usize = 16;

/// What is subtracted from scores of which `largest` is the largest: nothing from a row of
/// −∞, whose weights are all 0 then.
#[inline(always)]
pub(super) fn subtrahend(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// The largest of `row` and `least`. A NaN is passed over: its exponential is one by itself.
#[inline(always)]
pub(super) fn maximum(row: &[f32], least: f32) -> f32 {
    let larger = |one: f32, other: f32| if one > other { one } else { other };
    let mut largest = [least; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for lanes in whole {
        for (number, largest) in lanes.iter().zip(&mut largest) {
            *largest = larger(*number, *largest);
        }
    }
    largest.iter().chain(rest).fold(least, |largest, number| larger(*number, largest))
}

/// eˣ for x ≤ 0, to about one unit in the last place; 0 below −87; NaN for NaN.
///
/// eˣ = 2ⁿ · eʳ with n the whole number nearest to x / ln 2, and eʳ, |r| ≤ ½ ln 2,
/// by its Taylor polynomial of degree six (error below 2⁻²⁶).
#[inline(always)]
pub(super) fn exp_of_negative(x: f32) -> f32 {
    /// ln 2 in two parts: the first has so few bits that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding it leaves a float no bits behind the point: rounds to whole numbers.
    const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³
    let hidden = x <= -87.0;
    let x = if hidden { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r * r + r + 1.0;
    // The last bits of `rounded` are n; so they come into the exponent of 1. What they are
    // of a NaN does not matter: the series is one. Conversions to whole numbers, which
    // saturate, would take half of the time.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if hidden { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_bits() {
        for step in 0..200_000_u32 {
            let x = -(f64::from(step)) * 87.0 / 200_000.0;
            #[expect(clippy::cast_possible_truncation, reason = "the argument is a float")]
            let x = x as f32;
            let exact = f64::from(x).exp();

            let error = (f64::from(exp_of_negative(x)) - exact).abs() / exact;

            // Two units in the last place of a float.
            assert!(error < 2.4e-7, "exp({x}): {error:e}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_negative(f32::NAN).is_nan());
    }

    #[test]
    fn what_is_not_finite_goes_through_a_softmax_as_through_torchs() {
        let (rows, width) = (3, 37);
        // softmax(x) as its definition says, but that a row of −∞ alone is zeros.
        let reference = |inputs: &[Vec<f64>]| {
            let row = |row: &[f64]| {
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shift = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
                let sum: f64 = row.iter().map(|x| (x - shift).exp()).sum();
                let weight = |x: &f64| if sum == 0.0 { 0.0 } else { (x - shift).exp() / sum };
                row.iter().map(weight).collect::<Vec<_>>()
            };
            inputs[0].chunks(width).flat_map(row).collect()
        };
        for dtype in NUMBER_FORMATS {
            let scores = (numbers(&[rows, width], 1, dtype) * 3.0).unwrap();
            let forms = |inputs: &[Tensor]| {
                let operation = RowSoftmax::new(&inputs[0]).unwrap();
                let mut forms = both_forms(&operation);
                let wide = inputs[0].to_dtype(DType::F32).unwrap();
                forms.push((
                    "in place",
                    softmax_in_place(wide.force_contiguous().unwrap()).unwrap(),
                ));
                forms
            };
            assert_passed_on(&[scores], forms, reference);
        }
    }

    #[test]
    fn hidden_keys_weigh_nothing_and_a_query_that_sees_none_gets_zeros() {
        let hidden = f32::NEG_INFINITY;
        for dtype in NUMBER_FORMATS {
            // One row hides all, one hides some, one holds a NaN among hidden ones.
            let scores: [[f32; 3]; 3] =
                [[hidden; 3], [0.5, hidden, 0.5], [hidden, f32::NAN, hidden]];
            let scores = Tensor::new(&scores, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let wide = scores.to_dtype(DType::F32).unwrap();
            let mut forms = both_forms(&RowSoftmax::new(&scores).unwrap());
            forms.push(("in place", softmax_in_place(wide.force_contiguous().unwrap()).unwrap()));
            for (form, made) in forms {
                let made: Vec<Vec<f32>> = made.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
                assert_eq!(made[0], [0.0; 3], "{form} {dtype:?}");
                assert_eq!(made[1], [0.5, 0.0, 0.5], "{form} {dtype:?}");
                assert!(made[2].iter().all(|x| x.is_nan()), "{form} {dtype:?}: {made:?}");
            }
        }
    }

    #[test]
    fn softmaxes_agree_as_candles_loop_and_kernel() {
        for (dtype, tolerance) in formats(1.0) {
            for (rows, width) in [(1, 1), (5, 36), (3, 333), (2, 4200)] {
                let scores = (numbers(&[rows, width], 1, dtype) * 3.0).unwrap();
                let wide = scores.to_dtype(DType::F32).unwrap();
                let theirs = candle_nn::ops::softmax_last_dim(&wide).unwrap();
                let operation = RowSoftmax::new(&scores).unwrap();

                let looped = run(&operation).unwrap();

                assert_close(&looped, &theirs.to_dtype(dtype).unwrap(), tolerance);
                assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
            }
        }
    }

    #[test]
    fn rows_add_up_to_one_whatever_their_length_and_what_is_masked_stays_nothing() {
        for length in [1_usize, 7, 16, 33, 1000] {
            let numbers: Vec<f32> = (0..2 * length)
                .map(|i| if i % 5 == 4 { f32::NEG_INFINITY } else { (i as f32 * 0.7).sin() * 30.0 })
                .collect();
            let tensor = Tensor::from_vec(numbers.clone(), (2, length), &Device::Cpu).unwrap();
            let theirs = candle_nn::ops::softmax_last_dim(&tensor).unwrap();

            let ours = softmax_in_place(tensor.copy().unwrap()).unwrap();

            let (ours, theirs): (Vec<f32>, Vec<f32>) = (
                ours.flatten_all().unwrap().to_vec1().unwrap(),
                theirs.flatten_all().unwrap().to_vec1().unwrap(),
            );
            for ((ours, theirs), number) in ours.iter().zip(&theirs).zip(&numbers) {
                assert!((ours - theirs).abs() < 1e-6, "{ours} for {theirs} of {length}");
                assert!(number.is_finite() || *ours == 0.0);
            }
        }
    }
}
