//! Attention by matrix products, a slice of the queries at a time: on a GPU, where flash
//! attention does not apply.

use candle_core::{DType, Device, Result, Tensor};

use super::AttentionMask;
use crate::interruption;
use crate::nn::fusion::Fusion;
use crate::nn::softmax::{softmax, softmax_in_place};

/// Bytes of scores held at a time, and as many of their softmax: so an attention over two
/// pictures of 1024x1024 pixels in bfloat16 is three slices.
const SCORE_BYTES_AT_A_TIME: usize = 3 << 29;
/// Masked scores held at a time, in elements, of which there are several copies in 32 bits:
/// 256 MiB each.
const MASKED_SCORES_AT_A_TIME: usize = 64 * 1024 * 1024;

/// [`super::attention()`] by matrix products, of as many heads of keys as of queries.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: AttentionMask) -> Result<Tensor> {
    let at_a_time = match mask {
        AttentionMask::None => SCORE_BYTES_AT_A_TIME / q.dtype().size_in_bytes(),
        AttentionMask::Causal | AttentionMask::Keys(_) => MASKED_SCORES_AT_A_TIME,
    };
    let q = (q * (1.0 / (q.dim(3)? as f64).sqrt()))?;
    sliced(&q, k, v, mask, at_a_time)
}

/// softmax(q · kᵀ) · v in slices of `at_a_time` scores.
fn sliced(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: AttentionMask,
    at_a_time: usize,
) -> Result<Tensor> {
    let (batch, heads, queries, _) = q.dims4()?;
    let k_transposed = k.contiguous()?.transpose(2, 3)?;
    let v = v.contiguous()?;
    let most_rows = (at_a_time / (batch * heads * k.dim(2)?)).clamp(1, queries);
    // Slices of one size, not a short one at the end.
    let rows = queries.div_ceil(queries.div_ceil(most_rows));
    let mut slices = Vec::with_capacity(queries.div_ceil(rows));
    for start in (0..queries).step_by(rows) {
        interruption::check()?;
        let count = rows.min(queries - start);
        let q = operand(q.narrow(2, start, count)?)?;
        let slice = match mask {
            AttentionMask::None => attend(&q, &k_transposed, &v, None)?,
            AttentionMask::Keys(mask) => attend(&q, &k_transposed, &v, Some(mask))?,
            AttentionMask::Causal => {
                // Keys after the slice's last query are out of sight for all of it.
                let seen = start + count;
                let k = operand(k_transposed.narrow(3, 0, seen)?)?;
                let v = operand(v.narrow(2, 0, seen)?)?;
                let mask = causal_mask(start, count, q.device())?;
                attend(&q, &k, &v, Some(&mask))?
            }
        };
        slices.push(slice);
    }
    joined(&slices)
}

/// What a matrix product takes: a view of one batch entry, but not of several.
fn operand(x: Tensor) -> Result<Tensor> {
    if x.dim(0)? == 1 { Ok(x) } else { x.contiguous() }
}

/// The slices of the queries, one after the other. The heads of a token come to lie
/// together, where [`super::merge_heads`] wants them: that takes the same copies.
fn joined(slices: &[Tensor]) -> Result<Tensor> {
    if let [all] = slices {
        return Ok(all.clone());
    }
    let turned = slices.iter().map(|slice| slice.transpose(1, 2));
    Tensor::cat(&turned.collect::<Result<Vec<_>>>()?, 1)?.transpose(1, 2)
}

fn attend(q: &Tensor, k_transposed: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let scores = q.matmul(k_transposed)?;
    if mask.is_none() && !q.device().is_cpu() && Fusion::Softmax.applies_to(&scores) {
        return softmax(&scores)?.matmul(v);
    }
    let mut scores = scores.to_dtype(DType::F32)?;
    if let Some(mask) = mask {
        scores = scores.broadcast_add(mask)?;
    }
    softmax_in_place(scores)?.to_dtype(v.dtype())?.matmul(v)
}

/// (count, start + count): query `start + row` sees the keys up to itself. Made where it is
/// used: megabytes for each layer are not uploaded.
#[expect(clippy::cast_possible_truncation, reason = "fewer than 2^32 tokens")]
fn causal_mask(start: usize, count: usize, device: &Device) -> Result<Tensor> {
    let keys = start + count;
    let shape = (count, keys);
    let query = Tensor::arange(start as u32, keys as u32, device)?.reshape((count, 1))?;
    let key = Tensor::arange(0, keys as u32, device)?.reshape((1, keys))?;
    let everywhere = |number: f32| Tensor::new(number, device)?.broadcast_as(shape);
    let hidden = key.broadcast_gt(&query)?;
    hidden.where_cond(&everywhere(f32::NEG_INFINITY)?, &everywhere(0.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::emulation::numbers;

    #[test]
    fn a_query_sees_no_key_after_itself() {
        for (start, count) in [(0, 7), (5, 3), (9, 1)] {
            let mask = causal_mask(start, count, &Device::Cpu).unwrap();

            let rows = mask.to_vec2::<f32>().unwrap();
            assert_eq!(mask.dims(), [count, start + count]);
            for (row, numbers) in rows.iter().enumerate() {
                let seen = |key| if key <= start + row { 0.0 } else { f32::NEG_INFINITY };
                assert_eq!(*numbers, (0..start + count).map(seen).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn several_slices_give_what_one_gives() {
        // One batch entry, which is viewed, and several, which are not.
        for (batch, heads, tokens, size) in [(1, 3, 70, 8), (2, 3, 33, 4)] {
            let shape = [batch, heads, tokens, size];
            let [q, k, v] = [1, 2, 3].map(|seed| numbers(&shape, seed, DType::F32));
            let hidden: Vec<f32> =
                (0..tokens).map(|key| if key % 3 == 1 { f32::NEG_INFINITY } else { 0.0 }).collect();
            let hidden = Tensor::from_vec(hidden, (1, 1, 1, tokens), &Device::Cpu).unwrap();
            for mask in [AttentionMask::None, AttentionMask::Causal, AttentionMask::Keys(&hidden)] {
                let slices_of = |queries| {
                    let at_a_time = batch * heads * tokens * queries;
                    let made = sliced(&q, &k, &v, mask, at_a_time).unwrap();
                    assert_eq!(made.dims(), shape);
                    made.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                let pairs = slices_of(tokens).into_iter().zip(slices_of(16));
                // Means of elements below ten, whose products are cut up otherwise.
                let differs = |(one, several): (f32, f32)| (one - several).abs() > 1e-5;
                assert!(!pairs.into_iter().any(differs), "{mask:?}");
            }
        }
    }
}
