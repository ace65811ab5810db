//! Matrices of 8-bit integers for a CPU: a quarter of the bytes of 32-bit floats, and
//! multiplied four at a time where the processor has AVX-512 VNNI.
//!
//! The format is GGML's Q8_0 (`block_q8_0` in ggml-common.h of ggml 0.9): 32 elements after one
//! another share a scale of 16 bits, the largest of them being 127 of it. What is
//! multiplied with such a matrix is rounded likewise, with scales of 32 bits. A processor
//! without these instructions widens the matrix some rows at a time, and rounds nothing else.

mod product;
#[cfg(target_arch = "x86_64")]
mod vnni;

use candle_core::{D, Result, Tensor};
use half::f16;
use rayon::prelude::*;

pub(super) use product::product;

use super::kernels::{Element, Elements, in_format};
use super::rows::vectorised;
use super::widened::{self, Narrow};

/// Whether the processor multiplies 8-bit integers faster than floats.
#[must_use]
pub fn has_integer_products() -> bool {
    product::is_native()
}

/// Elements that share a scale.
const BLOCK: usize = 32;
/// Outputs whose elements lie side by side.
const PANEL: usize = 16;
/// Elements of a row that are multiplied at once.
const GROUP: usize = 4;
/// The largest number.
const LARGEST: f32 = 127.0;

/// [`GROUP`] elements for each output of a panel.
type Group = [i8; PANEL * GROUP];

/// [`BLOCK`] elements for each output of a panel.
#[derive(Debug, Clone)]
struct PanelBlock {
    groups: [Group; BLOCK / GROUP],
    scales: [f16; PANEL],
    /// Of the elements.
    sums: [i16; PANEL],
}

impl PanelBlock {
    const EMPTY: Self = Self {
        groups: [[0; PANEL * GROUP]; BLOCK / GROUP],
        scales: [f16::ZERO; PANEL],
        sums: [0; PANEL],
    };

    /// The place of an output's number.
    fn quant(&mut self, output: usize, number: usize) -> &mut i8 {
        &mut self.groups[number / GROUP][output * GROUP + number % GROUP]
    }
}

/// A matrix (outputs, inputs).
pub(super) struct Q8Matrix {
    /// By panel, then block; filled up with zeros.
    blocks: Vec<PanelBlock>,
    pub(super) outputs: usize,
    inputs: usize,
}

impl Q8Matrix {
    /// Rounds `weight`: (outputs, inputs), on a CPU.
    ///
    /// # Errors
    /// A candle error if it is elsewhere.
    pub(super) fn quantize(weight: &Tensor) -> Result<Self> {
        in_format!(weight.dtype(), "rounding", N => Self::round_numbers::<N>(weight))
    }

    fn round_numbers<N: Element>(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let weight = weight.contiguous()?;
        let numbers = Elements::<N>::of(&weight)?;
        let numbers = &numbers.all()[..outputs * inputs];
        let of_panel = inputs.div_ceil(BLOCK).max(1);
        let mut blocks = vec![PanelBlock::EMPTY; outputs.div_ceil(PANEL) * of_panel];
        let panels = numbers.par_chunks((PANEL * inputs).max(1));
        blocks.par_chunks_mut(of_panel).zip(panels).for_each(|(blocks, rows)| {
            for (output, row) in rows.chunks_exact(inputs).enumerate() {
                for (block, numbers) in blocks.iter_mut().zip(row.chunks(BLOCK)) {
                    round_block(block, output, numbers);
                }
            }
        });
        Ok(Self { blocks, outputs, inputs })
    }

    /// A matrix that takes no memory, for what is only counted.
    pub(super) fn placeholder(outputs: usize, inputs: usize) -> Self {
        Self { blocks: Vec::new(), outputs, inputs }
    }

    /// Bytes of a matrix with its scales and sums.
    pub(super) fn byte_count(outputs: usize, inputs: usize) -> usize {
        outputs.div_ceil(PANEL) * inputs.div_ceil(BLOCK) * size_of::<PanelBlock>()
    }

    /// Blocks of a panel.
    fn blocks_of_panel(&self) -> usize {
        self.inputs.div_ceil(BLOCK).max(1)
    }

    /// Writes the elements of a row.
    fn widen_row(&self, row: usize, made: &mut [f32]) {
        let (count, output) = (self.blocks_of_panel(), row % PANEL);
        let blocks = &self.blocks[row / PANEL * count..][..count];
        for (made, block) in made.chunks_mut(BLOCK).zip(blocks) {
            let scale = f32::from(block.scales[output]);
            for (made, group) in made.chunks_mut(GROUP).zip(&block.groups) {
                let quants = &group[output * GROUP..];
                made.iter_mut().zip(quants).for_each(|(made, q)| *made = f32::from(*q) * scale);
            }
        }
    }

    /// x · matrixᵀ with `x` as it is: (…, inputs). Returns (…, outputs) in its format.
    ///
    /// # Errors
    /// As [`widened::product`].
    pub(super) fn widened_product(&self, x: &Tensor) -> Result<Tensor> {
        let widen_row = |row: usize, made: &mut [f32]| self.widen_row(row, made);
        let (outputs, inputs) = (self.outputs, self.inputs);
        widened::product(x, &Narrow { outputs, inputs, widen_row: &widen_row })
    }
}

/// Rounds an output's `elements`, at most [`BLOCK`].
fn round_block<N: Element>(block: &mut PanelBlock, output: usize, numbers: &[N]) {
    let scale = f16::from_f32(largest(numbers) / LARGEST);
    let inverse = inverse(scale.into());
    let mut sum = 0;
    for (index, number) in numbers.iter().enumerate() {
        let quant = rounded(number.wide(), inverse);
        *block.quant(output, index) = quant;
        sum += i16::from(quant);
    }
    (block.scales[output], block.sums[output]) = (scale, sum);
}

/// The largest magnitude; NaN if a number is not finite.
#[inline(always)]
fn largest<N: Element>(numbers: &[N]) -> f32 {
    numbers.iter().fold(0.0, |largest, number| {
        let number = number.wide();
        // Zero, or NaN, which stays.
        f32::max(largest, number.abs()) + number * 0.0 + largest * 0.0
    })
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "clamped to the range")]
fn rounded(number: f32, inverse: f32) -> i8 {
    (number * inverse).round_ties_even().clamp(-LARGEST, LARGEST) as i8
}

/// What is multiplied with matrices.
pub struct Q8Rows {
    /// (rows, elements of whole blocks), each plus 128: the instructions want one factor
    /// without a sign.
    quants: Vec<[u8; BLOCK]>,
    /// (rows, blocks)
    scales: Vec<f32>,
    width: usize,
}

impl Q8Rows {
    /// Whether products are faster with rounded rows than with rows as they are.
    pub(super) fn are_wanted() -> bool {
        product::is_native()
    }

    /// Rounds the rows of `x`: (…, width), on a CPU.
    ///
    /// # Errors
    /// A candle error if it is elsewhere.
    pub(super) fn quantize(x: &Tensor) -> Result<Self> {
        in_format!(x.dtype(), "rounding", N => Self::round_numbers::<N>(x))
    }

    fn round_numbers<N: Element>(x: &Tensor) -> Result<Self> {
        let (width, x) = (x.dim(D::Minus1)?, x.contiguous()?);
        let numbers = Elements::<N>::of(&x)?;
        let numbers = &numbers.all()[..x.elem_count()];
        let blocks = width.div_ceil(BLOCK).max(1);
        let count = numbers.len() / width.max(1) * blocks;
        let (mut quants, mut scales) = (vec![[128; BLOCK]; count], vec![0.0; count]);
        let made = quants.par_chunks_exact_mut(blocks).zip(scales.par_chunks_exact_mut(blocks));
        made.zip(numbers.par_chunks_exact(width.max(1))).for_each(|((quants, scales), row)| {
            vectorised(
                #[inline(always)]
                || round_row(quants, scales, row),
            );
        });
        Ok(Self { quants, scales, width })
    }

    fn blocks_of_row(&self) -> usize {
        self.width.div_ceil(BLOCK).max(1)
    }
}

#[inline(always)]
fn round_row<N: Element>(quants: &mut [[u8; BLOCK]], scales: &mut [f32], row: &[N]) {
    for ((quants, scale), numbers) in quants.iter_mut().zip(scales).zip(row.chunks(BLOCK)) {
        *scale = largest(numbers) / LARGEST;
        let inverse = inverse(*scale);
        for (quant, number) in quants.iter_mut().zip(numbers) {
            *quant = rounded(number.wide(), inverse).cast_unsigned() ^ 0x80;
        }
    }
}
