//! Products of f32 matrices that lie in slices, in a CPU's memory.

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
    /// Of (`rows`, `columns`), whose rows begin `row_stride` elements after one another.
    ///
    /// # Errors
    /// If it is not in `elements` as a whole.
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

/// Where a product is put.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    numbers: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// As [`Matrix::new`].
    ///
    /// # Errors
    /// As [`Matrix::new`], or if rows would lie in one another.
    pub(super) fn new(
        numbers: &'a mut [f32],
        (rows, columns): (usize, usize),
        row_stride: usize,
    ) -> Result<Self> {
        Matrix::new(numbers, (rows, columns), row_stride)?;
        if rows > 1 && row_stride < columns {
            candle_core::bail!("rows of {columns} numbers do not lie {row_stride} apart");
        }
        Ok(Self { numbers, rows, columns, row_stride })
    }
}

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The thread that asks: there are others with work of their own.
    This,
    /// All that there are.
    All,
}

/// What becomes of the elements that are in the place of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Previous {
    /// They are not read.
    Replaced,
    /// The product is added to them.
    AddedTo,
}

/// left · right, in `made`.
///
/// # Errors
/// If the shapes do not fit.
pub(super) fn multiply(
    made: MatrixMut,
    previous: Previous,
    (left, right): (Matrix, Matrix),
    threads: Threads,
) -> Result<()> {
    let fits = (left.rows, left.columns, right.columns) == (made.rows, right.rows, made.columns);
    if !fits {
        candle_core::bail!(
            "({}, {}) times ({}, {}) is not ({}, {})",
            left.rows,
            left.columns,
            right.rows,
            right.columns,
            made.rows,
            made.columns
        );
    }
    if made.rows > 0 && made.columns > 0 {
        call(made, previous, (left, right), threads);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the one call of a crate whose interface is of pointers")]
fn call(made: MatrixMut, previous: Previous, (left, right): (Matrix, Matrix), threads: Threads) {
    // Strides are within slices, whose lengths fit.
    let stride = |stride: usize| stride.cast_signed();
    let parallelism = match threads {
        Threads::This => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: `MatrixMut` and `Matrix` have checked that their rows lie in their slices, and
    // the first of them apart; the slice of `made` is nobody else's; the lengths are alike.
    unsafe {
        gemm::gemm(
            made.rows,
            made.columns,
            left.columns,
            made.numbers.as_mut_ptr(),
            1,
            stride(made.row_stride),
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
            parallelism,
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
        let (rows, inner, columns, gap) = (137, 119, 153, 3);
        let (left, right) = (ramp(rows * (inner + gap)), ramp(columns * (inner + gap)));
        let expected = |row: usize, column: usize| {
            let term = |at| left[row * (inner + gap) + at] * right[column * (inner + gap) + at];
            (0..inner).map(term).sum::<f32>()
        };
        let view = |numbers, rows| Matrix::new(numbers, (rows, inner), inner + gap).unwrap();
        for threads in [Threads::This, Threads::All] {
            let mut made = vec![7.0; rows * (columns + gap)];
            for (previous, times) in [(Previous::Replaced, 1.0), (Previous::AddedTo, 2.0)] {
                let into = MatrixMut::new(&mut made, (rows, columns), columns + gap).unwrap();
                let factors = (view(&left, rows), view(&right, columns).transposed());
                multiply(into, previous, factors, threads).unwrap();

                for (at, made) in made.iter().enumerate() {
                    let (row, column) = (at / (columns + gap), at % (columns + gap));
                    // What is between rows stays.
                    let expected =
                        if column < columns { times * expected(row, column) } else { 7.0 };
                    // Sums of some hundred products below one, in whatever order.
                    assert!((made - expected).abs() < 1e-4, "{made} {expected}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_in_a_slice_or_does_not_fit_is_refused() {
        let numbers = ramp(12);
        for (shape, stride) in [((4, 4), 4), ((3, 4), 5), ((2, 1), usize::MAX), ((1, 13), 1)] {
            assert!(Matrix::new(&numbers, shape, stride).is_err(), "{shape:?} {stride}");
        }
        let mut made = vec![0.0; 9];
        assert!(MatrixMut::new(&mut made, (3, 3), 2).is_err());
        assert!(MatrixMut::new(&mut made, (3, 3), 4).is_err());
        let matrix = Matrix::new(&numbers, (3, 4), 4).unwrap();
        let mut of = |shape, left, right| {
            let made = MatrixMut::new(&mut made, shape, 3).unwrap();
            multiply(made, Previous::Replaced, (left, right), Threads::This)
        };
        assert!(of((3, 3), matrix, matrix).is_err());
        assert!(of((2, 3), matrix, matrix.transposed()).is_err());
        of((3, 3), matrix, matrix.transposed()).unwrap();
        let empty = Matrix::new(&[], (0, 4), 4).unwrap();
        of((0, 3), empty, matrix.transposed()).unwrap();
    }
}
