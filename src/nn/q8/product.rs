//! Rounded rows times a rounded matrix: sums of a block in integers, which are exact, and
//! of blocks in 32-bit floats. Threads share strips of rows and ranges of outputs.

use candle_core::{DType, Device, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{BLOCK, GROUP, PANEL, PanelBlock, Q8Matrix, Q8Rows};
use crate::interruption::{self, Watch};
use crate::nn::kernels::{Element, in_format};

/// Bytes of a strip of rows: half of a second cache.
const STRIP_BYTES: usize = 1 << 20;
/// Rows of a strip: fewer would read the matrix too often.
const FEWEST_ROWS: usize = 96;
/// Panels that a thread has at a time with all rows of its strip.
const PANELS_AT_A_TIME: usize = 4;
/// Parts of the work that each thread has, so that all end at about the same time.
const PARTS_PER_THREAD: usize = 4;
/// Multiplications from which on it is asked in between whether they are still wanted:
/// some hundredths of a second.
const WATCHED_FROM: usize = 1 << 32;
/// Rows that are summed together, and panels: their sums stay in registers.
pub(super) const TILE_ROWS: usize = 6;
pub(super) const TILE_PANELS: usize = 2;

/// A row's blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) quants: &'a [[u8; BLOCK]],
    pub(super) scales: &'a [f32],
}

/// Sums of some rows with the outputs of some panels.
pub(super) type Sums<const ROWS: usize, const PANELS: usize> = [[[f32; PANEL]; PANELS]; ROWS];

/// Whether the processor has the instructions.
pub(super) fn is_native() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::vnni::is_there();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// x · matrixᵀ. `shape`: of what was rounded to `x`, (…, inputs). Returns (…, outputs) in
/// `dtype`.
///
/// # Errors
/// A candle error if the shapes do not fit, or [`interruption::Cancelled`].
pub(in crate::nn) fn product(
    x: &Q8Rows,
    shape: &Shape,
    matrix: &Q8Matrix,
    dtype: DType,
) -> Result<Tensor> {
    if x.width != matrix.inputs {
        candle_core::bail!("rows of {} for a layer of {} inputs", x.width, matrix.inputs);
    }
    in_format!(dtype, "a product", N => product_in::<N>(x, shape, matrix))
}

fn product_in<N: Element>(x: &Q8Rows, shape: &Shape, matrix: &Q8Matrix) -> Result<Tensor> {
    let rows = x.quants.len() / x.blocks_of_row();
    let mut made = vec![N::narrow(0.0); rows * matrix.outputs];
    let work = Work { x, matrix };
    if made.len().saturating_mul(matrix.inputs) < WATCHED_FROM {
        work.fill(&mut made, Watch::of_nothing())?;
    } else {
        interruption::shared(|watch| work.fill(&mut made, watch))?;
    }
    let mut dims = shape.dims().to_vec();
    dims.pop();
    dims.push(matrix.outputs);
    Tensor::from_vec(made, dims, &Device::Cpu)
}

struct Work<'a> {
    x: &'a Q8Rows,
    matrix: &'a Q8Matrix,
}

/// Some rows' elements for some outputs.
struct Part<'a, N> {
    first_row: usize,
    first_output: usize,
    /// Of each row: (outputs).
    made: Vec<&'a mut [N]>,
}

impl Work<'_> {
    fn fill<N: Element>(&self, made: &mut [N], watch: Watch) -> Result<()> {
        self.parts(made).into_par_iter().try_for_each(|mut part| {
            watch.over(interruption::check)?;
            self.fill_part(&mut part);
            Ok(())
        })
    }

    /// Strips of rows, and if those are fewer than threads want, parts of their outputs.
    fn parts<'b, N>(&self, made: &'b mut [N]) -> Vec<Part<'b, N>> {
        let outputs = self.matrix.outputs.max(1);
        let rows = made.len() / outputs;
        let strip = (STRIP_BYTES / (self.x.blocks_of_row() * BLOCK)).max(FEWEST_ROWS);
        let strip = strip.next_multiple_of(TILE_ROWS);
        let strips = rows.div_ceil(strip);
        let wanted = PARTS_PER_THREAD * rayon::current_num_threads();
        let of_each = outputs.div_ceil(wanted.div_ceil(strips.max(1)));
        let of_each = of_each.next_multiple_of(PANEL * TILE_PANELS);
        let groups = outputs.div_ceil(of_each);
        let part = |index: usize| Part {
            first_row: index / groups * strip,
            first_output: index % groups * of_each,
            made: Vec::new(),
        };
        let mut parts: Vec<_> = (0..strips * groups).map(part).collect();
        for (row, made) in made.chunks_mut(outputs).enumerate() {
            let parts = &mut parts[row / strip * groups..];
            for (part, made) in parts.iter_mut().zip(made.chunks_mut(of_each)) {
                part.made.push(made);
            }
        }
        parts
    }

    fn fill_part<N: Element>(&self, part: &mut Part<N>) {
        let of_panel = self.matrix.blocks_of_panel();
        let outputs = part.made.first().map_or(0, |made| made.len());
        let panels = self.matrix.blocks[part.first_output / PANEL * of_panel..]
            .chunks_exact(of_panel)
            .take(outputs.div_ceil(PANEL))
            .collect::<Vec<_>>();
        for (index, panels) in panels.chunks(PANELS_AT_A_TIME).enumerate() {
            let first = index * PANELS_AT_A_TIME * PANEL;
            for (index, made) in part.made.chunks_mut(TILE_ROWS).enumerate() {
                let row = part.first_row + index * TILE_ROWS;
                for (index, panels) in panels.chunks(TILE_PANELS).enumerate() {
                    self.fill_tile(made, row, panels, first + index * TILE_PANELS * PANEL);
                }
            }
        }
    }

    /// `made`: of at most [`TILE_ROWS`] rows from `first_row` on; `panels`: at most
    /// [`TILE_PANELS`], for the outputs from `first` on.
    fn fill_tile<N: Element>(
        &self,
        made: &mut [&mut [N]],
        first_row: usize,
        panels: &[&[PanelBlock]],
        first: usize,
    ) {
        let row = |index: usize| self.row(first_row + index);
        match (panels, made.len()) {
            (&[one, two], TILE_ROWS) => {
                store(made, first, sums::<TILE_ROWS, 2>(std::array::from_fn(row), [one, two]));
            }
            (&[one, two], _) => {
                for (index, made) in made.chunks_mut(1).enumerate() {
                    store(made, first, sums::<1, 2>([row(index)], [one, two]));
                }
            }
            (panels, _) => {
                for (index, made) in made.chunks_mut(1).enumerate() {
                    for panel in panels {
                        store(made, first, sums::<1, 1>([row(index)], [panel]));
                    }
                }
            }
        }
    }

    fn row(&self, index: usize) -> Row<'_> {
        let blocks = self.x.blocks_of_row();
        let range = index * blocks..(index + 1) * blocks;
        Row { quants: &self.x.quants[range.clone()], scales: &self.x.scales[range] }
    }
}

fn sums<const ROWS: usize, const PANELS: usize>(
    rows: [Row; ROWS],
    panels: [&[PanelBlock]; PANELS],
) -> Sums<ROWS, PANELS> {
    #[cfg(target_arch = "x86_64")]
    if let Some(sums) = super::vnni::sums(rows, panels) {
        return sums;
    }
    plain_sums(rows, panels)
}

/// What the instructions compute, without them.
pub(super) fn plain_sums<const ROWS: usize, const PANELS: usize>(
    rows: [Row; ROWS],
    panels: [&[PanelBlock]; PANELS],
) -> Sums<ROWS, PANELS> {
    rows.map(|row| panels.map(|panel| std::array::from_fn(|output| sum(row, panel, output))))
}

fn sum(row: Row, panel: &[PanelBlock], output: usize) -> f32 {
    let blocks = row.quants.iter().zip(row.scales).zip(panel);
    let of_block = |((quants, scale), block): ((&[u8; BLOCK], &f32), &PanelBlock)| {
        let products = quants.chunks(GROUP).zip(&block.groups).flat_map(|(quants, group)| {
            let factors = quants.iter().zip(&group[output * GROUP..]);
            factors.map(|(x, weight)| i32::from(*x) * i32::from(*weight))
        });
        let sum = products.sum::<i32>() - 128 * i32::from(block.sums[output]);
        sum as f32 * (scale * f32::from(block.scales[output]))
    };
    blocks.map(of_block).sum()
}

/// Writes as many sums as there is room for.
fn store<N: Element, const ROWS: usize, const PANELS: usize>(
    made: &mut [&mut [N]],
    first: usize,
    sums: Sums<ROWS, PANELS>,
) {
    for (made, sums) in made.iter_mut().zip(&sums) {
        let sums = sums.as_flattened();
        made[first..].iter_mut().zip(sums).for_each(|(made, sum)| *made = N::narrow(*sum));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernels::emulation::{assert_close, numbers};
    use super::*;

    #[test]
    fn the_instructions_sum_as_integers_and_floats_do() {
        // The largest factors of both signs, and any others; two blocks and a part of one.
        let largest = |sign: f32| (0..70).map(move |index| sign * [1.0, -1.0][index % 2]);
        let mixed = (0..70).map(|index| (index as f32 * 0.7).sin());
        let list: Vec<f32> = largest(1.0).chain(largest(-1.0)).chain(mixed).collect();
        let x = Tensor::from_vec(list.repeat(3), (9, 70), &Device::Cpu).unwrap();
        let matrix = numbers(&[37, 70], 2, DType::F32);
        let matrix = Tensor::cat(&[x.clone(), matrix], 0).unwrap();
        let (rows, matrix) = (Q8Rows::quantize(&x).unwrap(), Q8Matrix::quantize(&matrix).unwrap());

        let made = product(&rows, x.shape(), &matrix, DType::F32).unwrap();

        let work = Work { x: &rows, matrix: &matrix };
        let panels: Vec<_> = matrix.blocks.chunks_exact(matrix.blocks_of_panel()).collect();
        let expected = (0..9 * matrix.outputs).map(|index| {
            let (row, output) = (index / matrix.outputs, index % matrix.outputs);
            let [[sums]] = plain_sums([work.row(row)], [panels[output / PANEL]]);
            sums[output % PANEL]
        });
        let expected =
            Tensor::from_vec(expected.collect(), (9, matrix.outputs), &Device::Cpu).unwrap();
        // Integers are exact; three of their sums, below 100, are added in floats.
        assert_close(&made, &expected, 1e-4);
    }

    #[test]
    fn products_are_near_those_of_what_was_rounded_whatever_the_shape() {
        // Rows and outputs that fill no tile, some, and strips of several threads.
        for (rows, inputs, outputs) in [(1, 5, 1), (7, 64, 33), (301, 40, 100), (13, 32, 16)] {
            let (x, weight) = (
                numbers(&[rows, inputs], 1, DType::F32),
                numbers(&[outputs, inputs], 2, DType::F32),
            );
            let expected = x.matmul(&weight.t().unwrap()).unwrap();
            let matrix = Q8Matrix::quantize(&weight).unwrap();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let made = pool.install(|| {
                    let rows = Q8Rows::quantize(&x).unwrap();
                    product(&rows, x.shape(), &matrix, DType::F32).unwrap()
                });
                // Each factor, below three, is off by half a step of 3/127 at most; errors of
                // 64 products add up like a walk, and four of its steps are never seen.
                assert_close(&made, &expected, 4.0 * 8.0 * 3.0 * 3.0 / 127.0 * 0.5);
                let widened = pool.install(|| matrix.widened_product(&x)).unwrap();
                assert_close(&widened, &expected, 4.0 * 8.0 * 3.0 * 1.5 / 127.0 * 0.5);
            }
        }
    }

    #[test]
    fn what_is_not_finite_reaches_the_sums_and_what_does_not_fit_is_refused() {
        let (mut x, mut weight) = (vec![1.0_f32; 3 * 40], vec![1.0_f32; 20 * 40]);
        (x[45], weight[3 * 40 + 39]) = (f32::NAN, f32::INFINITY);
        let x = Tensor::from_vec(x, (3, 40), &Device::Cpu).unwrap();
        let weight = Tensor::from_vec(weight, (20, 40), &Device::Cpu).unwrap();
        let (rows, matrix) = (Q8Rows::quantize(&x).unwrap(), Q8Matrix::quantize(&weight).unwrap());

        for made in [
            product(&rows, x.shape(), &matrix, DType::F32).unwrap(),
            matrix.widened_product(&x).unwrap(),
        ] {
            let made: Vec<Vec<f32>> = made.to_vec2().unwrap();
            for (row, output) in (0..3).flat_map(|row| (0..20).map(move |output| (row, output))) {
                let is_hit = row == 1 || output == 3;
                assert_eq!(made[row][output].is_finite(), !is_hit, "{row} {output}");
            }
        }
        let other = Q8Matrix::quantize(&numbers(&[4, 41], 1, DType::F32)).unwrap();
        assert!(product(&rows, x.shape(), &other, DType::F32).is_err());
    }
}
