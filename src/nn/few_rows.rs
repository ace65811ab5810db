//! Products of a few rows with a large matrix, on a CPU.
//!
//! The gemm crate copies the matrix into panels first, which pays where many rows are
//! multiplied with it. Here the rows are copied: they lie side by side, as vectors, and each
//! number of the matrix, read where it lies and once, is multiplied with all of them. Sums
//! stay in registers. Threads share the outputs. Matrices of 16 bits are widened eight
//! outputs and some hundred inputs at a time.

use std::ops::Range;

use candle_core::Result;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::kernels::Element;
use super::widened::{Narrow, widen};
use crate::interruption::{self, Watch};

/// So many rows are few: beyond, copying the matrix costs less than reading the rows
/// again for each eight outputs.
const MOST_ROWS: usize = 512;
/// Outputs that are summed together.
const GROUP: usize = 8;
/// Vectors of rows that are summed together.
const VECTORS: usize = 3;
/// Inputs at a time: of 48 rows they are 48 KiB.
const INPUTS: usize = 256;
/// Outputs at a time: their sums with all rows stay in a core's second cache.
const OUTPUTS: usize = 128;
/// Parts of the work that each thread has, so that all end at about the same time.
const PARTS_PER_THREAD: usize = 4;
/// Multiplications from which on it is asked in between whether they are still wanted:
/// some hundredths of a second.
const WATCHED_FROM: usize = 1 << 30;
/// Inputs whose rows a thread copies at a time.
const PACKED_AT_A_TIME: usize = 64;

/// Whether this is the way for so many rows here. Of several it is the faster one with 32
/// registers. Of a single one it takes as long as reading the matrix in either way, and here
/// the sum is the same whatever format the matrix lies in.
pub(super) fn are_few(rows: usize) -> bool {
    let are_faster =
        || (2..=MOST_ROWS).contains(&rows) && Lanes::of_this_processor().are_many_registers;
    rows == 1 || are_faster()
}

/// A matrix (outputs, inputs), from which some inputs of a row can be had in 32 bits.
pub(super) trait MatrixRows: Sync {
    /// How many outputs of `inputs` inputs it has.
    fn outputs(&self, inputs: usize) -> usize;

    /// Decodes the rows `outputs` into `decoded`, if they must be.
    fn decode(&self, outputs: Range<usize>, inputs: usize, decoded: &mut Vec<f32>);

    /// Writes elements of a row. `decoded`: what [`MatrixRows::decode`] made of its part.
    fn widen(&self, row: RowPart, decoded: &[f32], wide: &mut [f32]);
}

/// Some elements of a row.
pub(super) struct RowPart {
    /// The row.
    output: usize,
    /// The first row of those that were decoded.
    first_decoded: usize,
    /// Elements of a row.
    inputs: usize,
    /// The first element.
    start: usize,
}

/// A matrix that lies in memory.
impl<W: Element> MatrixRows for &[W] {
    fn outputs(&self, inputs: usize) -> usize {
        self.len() / inputs.max(1)
    }

    fn decode(&self, _outputs: Range<usize>, _inputs: usize, _decoded: &mut Vec<f32>) {}

    fn widen(&self, row: RowPart, _decoded: &[f32], wide: &mut [f32]) {
        widen(&self[row.output * row.inputs + row.start..], wide);
    }
}

/// A matrix whose rows are decoded as a whole.
impl MatrixRows for &Narrow<'_> {
    fn outputs(&self, _inputs: usize) -> usize {
        self.outputs
    }

    fn decode(&self, outputs: Range<usize>, inputs: usize, decoded: &mut Vec<f32>) {
        decoded.resize(outputs.len() * inputs, 0.0);
        for (row, made) in outputs.zip(decoded.chunks_exact_mut(inputs.max(1))) {
            (self.widen_row)(row, made);
        }
    }

    fn widen(&self, row: RowPart, decoded: &[f32], wide: &mut [f32]) {
        let start = (row.output - row.first_decoded) * row.inputs + row.start;
        wide.copy_from_slice(&decoded[start..start + wide.len()]);
    }
}

/// x · matrixᵀ, summed in 32 bits, in `made` (rows, outputs). `x`: (rows, inputs);
/// `matrix`: (outputs, inputs).
///
/// # Errors
/// [`interruption::Cancelled`]; an error if the lengths do not fit.
pub(super) fn product<N: Element>(
    made: &mut [N],
    x: &[f32],
    matrix: impl MatrixRows,
    (rows, inputs): (usize, usize),
) -> Result<()> {
    let outputs = made.len() / rows.max(1);
    let fits = made.len() == rows * outputs && x.len() >= rows * inputs;
    if !fits || matrix.outputs(inputs) < outputs {
        candle_core::bail!("no product of {rows} rows of {inputs} for {} numbers", made.len());
    }
    let work = Work { rows: PackedRows::of(x, rows, inputs), matrix };
    if made.len().saturating_mul(inputs) < WATCHED_FROM {
        return work.fill(made, outputs, Watch::of_nothing());
    }
    interruption::shared(|watch| work.fill(made, outputs, watch))
}

/// What the processor's vectors are like.
#[derive(Debug, Clone, Copy)]
struct Lanes {
    count: usize,
    are_many_registers: bool,
}

impl Lanes {
    fn of_this_processor() -> Self {
        struct Ask;

        impl WithSimd for Ask {
            type Output = Lanes;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Lanes {
                Lanes { count: S::F32_LANES, are_many_registers: S::REGISTER_COUNT >= 32 }
            }
        }

        pulp::Arch::new().dispatch(Ask)
    }
}

/// Rows side by side.
struct PackedRows {
    /// Of each panel: (inputs, its vectors); the last filled up with zeros.
    panels: Vec<Vec<f32>>,
    count: usize,
    inputs: usize,
    lanes: usize,
}

impl PackedRows {
    fn of(x: &[f32], rows: usize, inputs: usize) -> Self {
        let lanes = Lanes::of_this_processor().count;
        let panel_of = |first: usize| {
            let count = (rows - first).min(VECTORS * lanes);
            let width = count.next_multiple_of(lanes);
            let mut panel = vec![0.0; inputs * width];
            let parts = panel.par_chunks_mut(PACKED_AT_A_TIME * width).enumerate();
            parts.for_each(|(part, panel)| {
                for row in 0..count {
                    let x = &x[(first + row) * inputs + part * PACKED_AT_A_TIME..];
                    for (packed, x) in panel[row..].iter_mut().step_by(width).zip(x) {
                        *packed = *x;
                    }
                }
            });
            panel
        };
        let panels = (0..rows).step_by(VECTORS * lanes).map(panel_of).collect();
        Self { panels, count: rows, inputs, lanes }
    }

    /// Rows that a panel has room for.
    fn width(&self, panel: usize) -> usize {
        let first = panel * VECTORS * self.lanes;
        (self.count - first).min(VECTORS * self.lanes).next_multiple_of(self.lanes)
    }
}

struct Work<M> {
    rows: PackedRows,
    matrix: M,
}

/// Some outputs.
struct Part<'a, N> {
    first_output: usize,
    /// Of each row: (outputs).
    made: Vec<&'a mut [N]>,
}

/// Room for what one thread works on.
#[derive(Default)]
struct Room {
    /// Of each panel: (outputs, its vectors).
    sums: Vec<Vec<f32>>,
    /// (outputs of a group, inputs)
    wide: Vec<f32>,
    /// (outputs, all inputs), of a matrix that must be decoded.
    decoded: Vec<f32>,
}

impl<M: MatrixRows> Work<M> {
    fn fill<N: Element>(&self, made: &mut [N], outputs: usize, watch: Watch) -> Result<()> {
        let parts = self.parts(made, outputs);
        parts.into_par_iter().try_for_each_init(Room::default, |room, mut part| {
            watch.over(interruption::check)?;
            self.fill_part(room, &mut part);
            Ok(())
        })
    }

    fn parts<'b, N>(&self, made: &'b mut [N], outputs: usize) -> Vec<Part<'b, N>> {
        let wanted = PARTS_PER_THREAD * rayon::current_num_threads();
        let of_each = outputs.div_ceil(wanted).next_multiple_of(GROUP).max(GROUP);
        let part = |first_output| Part { first_output, made: Vec::new() };
        let mut parts: Vec<_> = (0..outputs).step_by(of_each).map(part).collect();
        for made in made.chunks_mut(outputs.max(1)) {
            for (part, made) in parts.iter_mut().zip(made.chunks_mut(of_each)) {
                part.made.push(made);
            }
        }
        parts
    }

    fn fill_part<N: Element>(&self, room: &mut Room, part: &mut Part<N>) {
        let outputs = part.made.first().map_or(0, |made| made.len());
        for first in (0..outputs).step_by(OUTPUTS) {
            let count = OUTPUTS.min(outputs - first);
            room.sums.resize(self.rows.panels.len(), Vec::new());
            for (panel, sums) in room.sums.iter_mut().enumerate() {
                sums.clear();
                sums.resize(count * self.rows.width(panel), 0.0);
            }
            self.sum(room, part.first_output + first, count);
            self.write(room, part, first);
        }
    }

    /// Sums of `count` outputs from `first` on, in `room`.
    fn sum(&self, room: &mut Room, first: usize, count: usize) {
        let inputs = self.rows.inputs;
        self.matrix.decode(first..first + count, inputs, &mut room.decoded);
        for start in (0..inputs).step_by(INPUTS) {
            let at_a_time = INPUTS.min(inputs - start);
            for group in (0..count).step_by(GROUP) {
                let group_count = GROUP.min(count - group);
                room.wide.resize(GROUP * at_a_time, 0.0);
                for (output, wide) in room.wide.chunks_exact_mut(at_a_time).enumerate() {
                    // Those that fill up a group are not written.
                    let output = first + group + output.min(group_count - 1);
                    let row = RowPart { output, first_decoded: first, inputs, start };
                    self.matrix.widen(row, &room.decoded, wide);
                }
                for (panel, sums) in room.sums.iter_mut().enumerate() {
                    let width = self.rows.width(panel);
                    let rows = &self.rows.panels[panel][start * width..][..at_a_time * width];
                    let sums = &mut sums[group * width..][..group_count * width];
                    pulp::Arch::new().dispatch(Tile { rows, wide: &room.wide, sums });
                }
            }
        }
    }

    fn write<N: Element>(&self, room: &Room, part: &mut Part<N>, first: usize) {
        for (row, made) in part.made.iter_mut().enumerate() {
            let of_panel = VECTORS * self.rows.lanes;
            let (panel, lane) = (row / of_panel, row % of_panel);
            let sums = room.sums[panel][lane..].iter().step_by(self.rows.width(panel));
            made[first..].iter_mut().zip(sums).for_each(|(made, sum)| *made = N::narrow(*sum));
        }
    }
}

/// [`GROUP`] outputs with one panel of rows.
struct Tile<'a> {
    /// (inputs, vectors)
    rows: &'a [f32],
    /// ([`GROUP`], inputs)
    wide: &'a [f32],
    /// (outputs that are written, vectors): what is added to.
    sums: &'a mut [f32],
}

impl WithSimd for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inputs = self.wide.len() / GROUP;
        match self.rows.len() / (inputs * S::F32_LANES) {
            1 => self.sum::<S, 1>(simd),
            2 => self.sum::<S, 2>(simd),
            _ => self.sum::<S, VECTORS>(simd),
        }
    }
}

impl Tile<'_> {
    /// Sums, and what is multiplied, stay in registers: 24 and 4 of 32.
    #[inline(always)]
    fn sum<S: Simd, const VECTORS: usize>(self, simd: S) {
        let inputs = self.wide.len() / GROUP;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; GROUP];
        let weights: [&[f32]; GROUP] =
            std::array::from_fn(|output| &self.wide[output * inputs..][..inputs]);
        let (rows, _) = S::as_simd_f32s(self.rows).0.as_chunks::<VECTORS>();
        for (input, rows) in rows.iter().enumerate().take(inputs) {
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = simd.splat_f32s(weights[input]);
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = simd.mul_add_e_f32s(weight, *row, *sum);
                }
            }
        }
        let (made, _) = S::as_mut_simd_f32s(self.sums).0.as_chunks_mut::<VECTORS>();
        for (made, sums) in made.iter_mut().zip(sums) {
            for (made, sum) in made.iter_mut().zip(sums) {
                *made = simd.add_f32s(*made, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::super::kernels::emulation::{assert_close, numbers};
    use super::super::kernels::{Elements, in_format};
    use super::*;

    fn made_by(x: &Tensor, matrix: &Tensor) -> Tensor {
        let ((rows, inputs), outputs) = (x.dims2().unwrap(), matrix.dim(0).unwrap());
        let x = Elements::<f32>::of(x).unwrap();
        let mut made = vec![0.0f32; rows * outputs];
        let mut product = || {
            in_format!(matrix.dtype(), "a product", W => {
                let matrix = Elements::<W>::of(matrix)?;
                product(&mut made, x.all(), matrix.all(), (rows, inputs))
            })
        };
        product().unwrap();
        Tensor::from_vec(made, (rows, outputs), &candle_core::Device::Cpu).unwrap()
    }

    #[test]
    fn few_rows_times_whatever_matrix_are_what_the_definition_says() {
        // Rows that fill no vector, one, some, and more than a panel; inputs and outputs that
        // fill nothing, or more than is summed at a time.
        for ((rows, inputs, outputs), threads) in [
            ((1, 3, 1), 1),
            ((16, 7, 9), 3),
            ((33, INPUTS + 5, 12), 1),
            ((49, 2 * INPUTS, OUTPUTS + 3), 2),
            ((122, 70, 4 * OUTPUTS), 64),
        ] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let x = numbers(&[rows, inputs], 1, DType::F32);
                let matrix = numbers(&[outputs, inputs], 2, dtype);
                let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
                let expected = wide(&x).matmul(&wide(&matrix).t().unwrap()).unwrap();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();

                let made = pool.install(|| made_by(&x, &matrix));

                // Sums of some hundred products below ten, in 32 bits.
                assert_close(&made, &expected, 1e-3);
            }
        }
    }

    #[test]
    fn a_matrix_that_is_decoded_row_by_row_makes_the_same_to_the_bit() {
        let (rows, inputs, outputs) = (49, INPUTS + 5, OUTPUTS + 3);
        let x = numbers(&[rows, inputs], 1, DType::F32);
        let matrix = numbers(&[outputs, inputs], 2, DType::F32).force_contiguous().unwrap();
        let elements = Elements::<f32>::of(&matrix).unwrap();
        let widen_row = |row: usize, made: &mut [f32]| {
            made.copy_from_slice(&elements.all()[row * inputs..][..inputs]);
        };
        let narrow = Narrow { outputs, inputs, widen_row: &widen_row };
        let mut made = vec![0.0f32; rows * outputs];

        let x_elements = Elements::<f32>::of(&x).unwrap();
        product(&mut made, x_elements.all(), &narrow, (rows, inputs)).unwrap();

        let expected = made_by(&x, &matrix).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(made == expected);
    }

    #[test]
    fn it_can_be_broken_off_and_what_does_not_fit_is_refused() {
        let (rows, inputs, outputs) = (256, 2048, 2048);
        let (x, matrix) = (vec![0.0; rows * inputs], vec![0.0f32; outputs * inputs]);
        let mut made = vec![0.0f32; rows * outputs];
        let mut product = |shape| product(&mut made, &x, matrix.as_slice(), shape);

        let error = interruption::watched(&|| true, || product((rows, inputs))).unwrap_err();

        assert!(error.to_string().contains("cancelled"), "{error}");
        assert!(product((rows, inputs + 1)).is_err());
    }
}
