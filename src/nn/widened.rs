//! Products, on a CPU, with a matrix that lies in a format of fewer bits: some of its rows
//! at a time are widened, multiplied, and forgotten. So no wide matrix is ever whole.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::few_rows::{self, MatrixRows};
use super::gemm::{Matrix, MatrixMut, Previous, Threads, multiply};
use super::kernels::{Element, Elements, in_format};
use super::rows::vectorised;
use crate::checkpoint::QuantizedRows;
use crate::interruption;

/// Rows of the matrix at a time: of 3072 elements each they are 3 MiB, about what second
/// caches hold, and enough to multiply as fast as all of them.
const ROWS: usize = 256;

/// A matrix (outputs, inputs) whose rows can be had in 32 bits.
pub(super) struct Narrow<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Writes the elements of one row.
    pub(super) widen_row: &'a (dyn Fn(usize, &mut [f32]) + Sync),
}

/// x · matrixᵀ, summed in 32 bits. `x`: (…, inputs); returns (…, outputs) in its format.
///
/// # Errors
/// A candle error if the shapes do not fit, or [`interruption::Cancelled`].
pub(super) fn product(x: &Tensor, matrix: &Narrow) -> Result<Tensor> {
    in_format!(x.dtype(), "a product", N => product_of::<N>(x, matrix))
}

/// The same with a `matrix` of 16 bits, or 32, that lies in memory.
///
/// # Errors
/// As [`product`].
pub(super) fn product_with_tensor(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    in_format!(matrix.dtype(), "a product", N => product_with::<N>(x, matrix))
}

fn product_with<W: Element>(x: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    let shape = matrix.dims2()?;
    let matrix = matrix.contiguous()?;
    product_with_slice(x, Elements::<W>::of(&matrix)?.all(), shape)
}

/// The same with a matrix (outputs, inputs) somewhere in memory.
///
/// # Errors
/// As [`product`].
pub(super) fn product_with_slice<W: Element>(
    x: &Tensor,
    numbers: &[W],
    (outputs, inputs): (usize, usize),
) -> Result<Tensor> {
    if numbers.len() < outputs * inputs {
        candle_core::bail!("{} elements are no {outputs} rows of {inputs}", numbers.len());
    }
    if few_rows::are_few(x.elem_count() / inputs.max(1)) {
        return in_format!(x.dtype(), "a product", N => few::<N>(x, numbers, outputs, inputs));
    }
    let widen_row = |row: usize, made: &mut [f32]| widen(&numbers[row * inputs..], made);
    product(x, &Narrow { outputs, inputs, widen_row: &widen_row })
}

/// The same with a quantized matrix (outputs, inputs).
///
/// # Errors
/// As [`product`].
pub(super) fn product_with_rows(
    x: &Tensor,
    rows: QuantizedRows,
    (outputs, inputs): (usize, usize),
) -> Result<Tensor> {
    let widen_row = |row: usize, made: &mut [f32]| {
        vectorised(
            #[inline(always)]
            || rows.decode_row(row, made),
        );
    };
    product(x, &Narrow { outputs, inputs, widen_row: &widen_row })
}

/// The same of few rows.
fn few<N: Element>(
    x: &Tensor,
    matrix: impl MatrixRows,
    outputs: usize,
    inputs: usize,
) -> Result<Tensor> {
    let dims = dims_made(x, outputs, inputs)?;
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let (numbers, rows) = (Elements::<f32>::of(&x)?, x.elem_count() / inputs.max(1));
    let mut made = vec![N::narrow(0.0); rows * outputs];
    few_rows::product(&mut made, numbers.all(), matrix, (rows, inputs))?;
    Tensor::from_vec(made, dims, &Device::Cpu)
}

/// (…, outputs), of (…, inputs).
fn dims_made(x: &Tensor, outputs: usize, inputs: usize) -> Result<Vec<usize>> {
    let mut dims = x.dims().to_vec();
    if dims.pop() != Some(inputs) {
        candle_core::bail!("a layer of {inputs} inputs is given {:?}", x.dims());
    }
    dims.push(outputs);
    Ok(dims)
}

/// Writes `elements` in 32 bits, as many as `made` has room for.
pub(super) fn widen<W: Element>(numbers: &[W], made: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || made.iter_mut().zip(numbers).for_each(|(made, number)| *made = number.wide()),
    );
}

fn product_of<N: Element>(x: &Tensor, matrix: &Narrow) -> Result<Tensor> {
    let Narrow { outputs, inputs, .. } = *matrix;
    if few_rows::are_few(x.elem_count() / inputs.max(1)) {
        return few::<N>(x, matrix, outputs, inputs);
    }
    let dims = dims_made(x, outputs, inputs)?;
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let (numbers, count) = (Elements::<f32>::of(&x)?, x.elem_count() / inputs.max(1));
    let x = Matrix::new(numbers.all(), (count, inputs), inputs)?;
    let mut made = vec![N::narrow(0.0); count * outputs];
    let (mut wide, mut sums) = (Vec::new(), Vec::new());
    for first in (0..outputs).step_by(ROWS) {
        interruption::check()?;
        let rows = ROWS.min(outputs - first);
        wide.resize(rows * inputs, 0.0);
        let rows_of = wide.par_chunks_exact_mut(inputs.max(1)).enumerate();
        rows_of.for_each(|(row, made)| (matrix.widen_row)(first + row, made));
        let wide = Matrix::new(&wide, (rows, inputs), inputs)?.transposed();
        sums.resize(count * rows, 0.0);
        let into = MatrixMut::new(&mut sums, (count, rows), rows)?;
        multiply(into, Previous::Replaced, (x, wide), Threads::All)?;
        let tokens = made.par_chunks_exact_mut(outputs).zip(sums.par_chunks_exact(rows));
        tokens.with_min_len(16).for_each(|(made, sums)| narrow(sums, &mut made[first..]));
    }
    Tensor::from_vec(made, dims, &Device::Cpu)
}

fn narrow<N: Element>(sums: &[f32], made: &mut [N]) {
    vectorised(
        #[inline(always)]
        || made.iter_mut().zip(sums).for_each(|(made, sum)| *made = N::narrow(*sum)),
    );
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::{assert_close, numbers};
    use super::*;

    #[test]
    fn the_product_is_that_of_the_wide_matrix_whole() {
        // More rows than are widened at a time; outputs and inputs that fill nothing.
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 0.063), (DType::F16, 0.008)] {
            let matrix = numbers(&[2 * ROWS + 5, 19], 2, dtype);
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            // Few rows, which may go another way, and many.
            for rows in [3, 600] {
                let x = numbers(&[2, rows, 19], 1, dtype);
                let expected = wide(&x).broadcast_matmul(&wide(&matrix).t().unwrap()).unwrap();

                let made = product_with_tensor(&x, &matrix).unwrap();

                assert_eq!((made.dims(), made.dtype()), (&[2, rows, 2 * ROWS + 5][..], dtype));
                // Half of the last digit of 8 and of 11 bits, of sums below 32.
                assert_close(&made, &expected, tolerance);
            }
        }
    }

    #[test]
    fn it_can_be_broken_off_between_rows_and_what_does_not_fit_is_refused() {
        // More rows than go another way.
        let (x, matrix) =
            (numbers(&[600, 4], 1, DType::BF16), numbers(&[2 * ROWS, 4], 2, DType::BF16));
        let asked = std::cell::Cell::new(0);
        let second = || {
            asked.set(asked.get() + 1);
            asked.get() == 2
        };
        assert!(interruption::watched(&second, || product_with_tensor(&x, &matrix)).is_err());
        assert_eq!(asked.get(), 2);
        let other = numbers(&[1, 5], 1, DType::BF16);
        let error = product_with_tensor(&other, &matrix).unwrap_err().to_string();
        assert!(error.contains("4 inputs"), "{error}");
    }
}
