//! Products of f32 matrices that lie in slices, on the thread that asks for them.

use candle_core::Result;

/// A matrix somewhere in a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Of (`rows`, `columns`), whose rows begin `row_stride` numbers after one another.
    ///
    /// # Errors
    /// If it is not in `numbers` as a whole.
    pub(super) fn new(
        numbers: &'a [f32],
        (rows, columns): (usize, usize),
        row_stride: usize,
    ) -> Result<Self> {
        if !fits(numbers.len(), (rows, columns), row_stride) {
            candle_core::bail!(
                "{} numbers hold no {rows} rows of {columns}, {row_stride} apart",
                numbers.len()
            );
        }
        Ok(Self { numbers, rows, columns, row_stride, column_stride: 1 })
    }

    /// Its columns as rows.
    pub(super) fn transposed(self) -> Self {
        Self {
            numbers: self.numbers,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

fn fits(count: usize, (rows, columns): (usize, usize), row_stride: usize) -> bool {
    let last_row = rows.saturating_sub(1).checked_mul(row_stride);
    let end = last_row.and_then(|last_row| last_row.checked_add(columns));
    rows == 0 || columns == 0 || end.is_some_and(|end| end <= count)
}

/// What becomes of the numbers that are in the place of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Previous {
    /// They are not read.
    Replaced,
    /// The product is added to them.
    AddedTo,
}

/// left · right, in `made`: rows without gaps.
///
/// # Errors
/// If the shapes do not fit.
pub(super) fn multiply(
    made: &mut [f32],
    previous: Previous,
    left: Matrix,
    right: Matrix,
) -> Result<()> {
    if left.columns != right.rows || made.len() != left.rows * right.columns {
        candle_core::bail!(
            "({}, {}) times ({}, {}) does not make {} numbers",
            left.rows,
            left.columns,
            right.rows,
            right.columns,
            made.len()
        );
    }
    if made.is_empty() {
        return Ok(());
    }
    call(made, previous, left, right);
    Ok(())
}

#[expect(unsafe_code, reason = "the one call of a crate whose interface is of pointers")]
fn call(made: &mut [f32], previous: Previous, left: Matrix, right: Matrix) {
    // Strides are within slices, whose lengths fit.
    let stride = |stride: usize| stride.cast_signed();
    // SAFETY: `made` has left.rows · right.columns numbers and is nobody else's; `Matrix`
    // has checked that its rows lie in its slice; the inner lengths are alike.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            made.as_mut_ptr(),
            1,
            stride(right.columns),
            previous == Previous::AddedTo,
            left.numbers.as_ptr(),
            stride(left.column_stride),
            stride(left.row_stride),
            right.numbers.as_ptr(),
            stride(right.column_stride),
            stride(right.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * 0.37).sin()).collect()
    }

    #[test]
    fn products_of_views_are_what_sums_of_products_are() {
        // Larger than the crate's kernels and not a multiple of them; rows with gaps.
        let (rows, inner, columns, gap) = (37, 19, 53, 3);
        let (left, right) = (ramp(rows * (inner + gap)), ramp(columns * (inner + gap)));
        let expected = |row: usize, column: usize| {
            let term = |at| left[row * (inner + gap) + at] * right[column * (inner + gap) + at];
            (0..inner).map(term).sum::<f32>()
        };
        let view = |numbers, rows| Matrix::new(numbers, (rows, inner), inner + gap).unwrap();
        let mut made = vec![f32::NAN; rows * columns];
        for (previous, times) in [(Previous::Replaced, 1.0), (Previous::AddedTo, 2.0)] {
            let right = view(&right, columns).transposed();
            multiply(&mut made, previous, view(&left, rows), right).unwrap();

            for (at, made) in made.iter().enumerate() {
                // Sums of 19 products below one, in whatever order.
                assert!((made - times * expected(at / columns, at % columns)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn what_is_not_in_a_slice_or_does_not_fit_is_refused() {
        let numbers = ramp(12);
        for (shape, stride) in [((4, 4), 4), ((3, 4), 5), ((2, 1), usize::MAX), ((1, 13), 1)] {
            assert!(Matrix::new(&numbers, shape, stride).is_err(), "{shape:?} {stride}");
        }
        let matrix = Matrix::new(&numbers, (3, 4), 4).unwrap();
        let mut made = vec![0.0; 9];
        assert!(multiply(&mut made, Previous::Replaced, matrix, matrix).is_err());
        assert!(multiply(&mut made[..8], Previous::Replaced, matrix, matrix.transposed()).is_err());
        multiply(&mut made, Previous::Replaced, matrix, matrix.transposed()).unwrap();
        let empty = Matrix::new(&[], (0, 4), 4).unwrap();
        multiply(&mut [], Previous::Replaced, empty, matrix.transposed()).unwrap();
    }
}
