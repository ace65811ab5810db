//! What flash attention asks of the tensors that it reads. Known without a GPU, so
//! that it is tested without one.

use candle_core::{Layout, Result, Tensor};

use super::kernels::address;

/// The one head size that is compiled.
pub(super) const SIZE: usize = 128;
/// The GPU copies tiles of so many bytes: addresses and strides are multiples.
const ALIGNMENT_BYTES: usize = 16;
/// Rows of the sums that are written beside the result come in tiles of so many.
const QUERY_TILE: usize = 128;

/// (batch, heads, tokens, 128) → (batch, tokens, heads, 128), where the kernels can
/// read it: as it lies, or else copied.
///
/// # Errors
/// A candle error, such as out of memory.
pub(super) fn tokens_first(x: &Tensor) -> Result<Tensor> {
    let turned = x.transpose(1, 2)?;
    if is_readable(&turned)? { Ok(turned) } else { turned.force_contiguous() }
}

/// Whether the kernels can read (batch, tokens, heads, 128) as it lies.
pub(super) fn is_readable(x: &Tensor) -> Result<bool> {
    let stride_bytes = strides(x.layout())?.map(|stride| stride * x.dtype().size_in_bytes());
    let aligned = |bytes: &usize| bytes.is_multiple_of(ALIGNMENT_BYTES);
    let last_has_no_gaps = x.stride().last() == Some(&1);
    let begins_aligned = address(x)?.is_multiple_of(ALIGNMENT_BYTES as u64);
    Ok(last_has_no_gaps && begins_aligned && stride_bytes.iter().all(aligned))
}

/// Elements between neighbours along batch, tokens and heads. Where there is but one,
/// whatever the layout says, it is what a tensor without gaps would have.
pub(super) fn strides(layout: &Layout) -> Result<[usize; 3]> {
    let (batch, tokens, heads, size) = layout.shape().dims4()?;
    let along = |dim: usize, length: usize, without_gaps: usize| {
        if length > 1 { layout.stride()[dim] } else { without_gaps }
    };
    Ok([
        along(0, batch, tokens * heads * size),
        along(1, tokens, heads * size),
        along(2, heads, size),
    ])
}

/// Elements of the sums of weights that the kernels write beside the result.
pub(super) fn sums(batch: usize, heads: usize, queries: usize) -> usize {
    batch * heads * queries.next_multiple_of(QUERY_TILE)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::heads::{HeadStream, joint_heads};
    use super::super::kernels::emulation::numbers;
    use super::*;

    /// (batch, heads, tokens, size), tokens first in memory.
    fn heads(batch: usize, heads: usize, tokens: usize, size: usize) -> Tensor {
        let x = numbers(&[batch, tokens, heads, size], 1, DType::BF16).force_contiguous().unwrap();
        x.transpose(1, 2).unwrap()
    }

    fn list(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Read as it lies, or copied to where it can be read; the same elements either way.
    #[track_caller]
    fn assert_read(x: &Tensor, as_it_lies: bool) {
        let made = tokens_first(x).unwrap();

        assert!(is_readable(&made).unwrap(), "{:?}", made.layout());
        assert_eq!(address(&made).unwrap() == address(x).unwrap(), as_it_lies, "{:?}", x.layout());
        assert_eq!(list(&made.transpose(1, 2).unwrap()), list(x));
    }

    #[test]
    fn heads_are_read_as_they_lie() {
        let x = heads(2, 3, 5, SIZE);
        assert_read(&x, true);
        // Some tokens, some heads, and heads first in memory.
        assert_read(&x.narrow(2, 1, 3).unwrap(), true);
        assert_read(&x.narrow(1, 1, 2).unwrap(), true);
        assert_read(&x.force_contiguous().unwrap(), true);
    }

    #[test]
    fn a_view_that_tiles_cannot_be_copied_from_is_copied() {
        // Columns of wider heads: strides of 132 elements, and a beginning off by four.
        let wide = heads(1, 3, 5, SIZE + 4);
        assert_read(&wide.narrow(3, 0, SIZE).unwrap(), false);
        assert_read(&wide.narrow(3, 4, SIZE).unwrap(), false);
        // Strides that fit, and a beginning off by one number: contiguous all the same.
        let flat = numbers(&[5 * 3 * SIZE + 8], 1, DType::BF16).force_contiguous().unwrap();
        let off = flat.narrow(0, 1, 5 * 3 * SIZE).unwrap().reshape((1, 5, 3, SIZE)).unwrap();
        assert!(off.is_contiguous());
        assert_read(&off.transpose(1, 2).unwrap(), false);
        // The last dimension has gaps.
        let turned = numbers(&[1, 3, SIZE, 8], 1, DType::BF16).transpose(2, 3).unwrap();
        assert_read(&turned, false);
    }

    #[test]
    fn the_stride_of_a_dimension_of_one_does_not_count() {
        // The first 128 of a row of 132 elements: one batch, one head, one token.
        let rows = numbers(&[4, SIZE + 4], 1, DType::BF16).force_contiguous().unwrap();
        let row = rows.narrow(1, 0, SIZE).unwrap().narrow(0, 0, 1).unwrap();
        let x = row.unsqueeze(0).unwrap().unsqueeze(0).unwrap();
        assert_eq!(x.stride()[2], SIZE + 4);

        assert_eq!(strides(x.layout()).unwrap(), [SIZE; 3]);
        assert_read(&x, true);
    }

    #[test]
    fn what_joint_heads_make_is_read_as_it_lies() {
        let [text, image] = [5, 7].map(|tokens| numbers(&[1, tokens, 3 * SIZE], 1, DType::BF16));
        let stream = |x| HeadStream { x, bias: None, norm: None, rotation: None };
        let made = joint_heads(stream(&text), stream(&image), 3).unwrap();

        assert_read(&made, true);
    }

    #[test]
    fn sums_come_in_whole_tiles() {
        assert_eq!([1, 128, 129].map(|queries| sums(2, 3, queries)), [768, 768, 1536]);
    }
}
