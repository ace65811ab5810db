//! The one attention of all components.
//!
//! Scores are never held for more than a slice of the queries at a time, so
//! memory grows with the number of tokens, not with its square.

use candle_core::{D, DType, Device, Result, Tensor};

use super::fusion::Fusion;
use super::softmax::{softmax, softmax_in_place};
use super::trace::{self, Kind};
use crate::interruption;

/// Scores held at a time on a CPU, in numbers: 4 MiB of f32, which stay in its
/// caches.
const CPU_SCORES_AT_A_TIME: usize = 1024 * 1024;
/// Scores held at a time on a GPU: 256 MiB of f32, enough work for one launch.
const GPU_SCORES_AT_A_TIME: usize = 64 * 1024 * 1024;

/// How heads lie in memory. Either way a tensor of heads is (batch, heads, tokens,
/// size) for whoever looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadLayout {
    /// All tokens of a head together: what matrix products want.
    HeadsFirst,
    /// All heads of a token together: what flash attention reads as it is.
    TokensFirst,
}

/// The layout that [`attention`] takes without copying.
pub(super) fn layout_for(x: &Tensor, size: usize) -> HeadLayout {
    if flashes(x, size) { HeadLayout::TokensFirst } else { HeadLayout::HeadsFirst }
}

/// Whether heads of `size` numbers like those of `x` go the way of flash attention.
fn flashes(x: &Tensor, size: usize) -> bool {
    #[cfg(feature = "flash-attn")]
    let fits = super::flash::fits(x.device(), x.dtype(), size);
    #[cfg(not(feature = "flash-attn"))]
    let fits = size == 0; // never
    fits && Fusion::FlashAttention.applies_to(x)
}

/// Which keys a query may look at.
#[derive(Debug, Clone, Copy)]
pub enum AttentionMask<'a> {
    /// All of them.
    None,
    /// Those that are not after it.
    Causal,
    /// As this f32 tensor says, which is added to the scores and broadcasts to
    /// (batch, heads, 1, keys): 0 for yes, −∞ for no.
    Keys(&'a Tensor),
}

/// softmax(q · kᵀ / √size) · v, with 32-bit scores.
///
/// `q`: (batch, heads, queries, size); `k`, `v`: (batch, heads, keys, size).
/// Returns (batch, heads, queries, size) in the format of `q`.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: AttentionMask) -> Result<Tensor> {
    let dtype = q.dtype();
    // Matrix products of 16-bit numbers are slow on a CPU, and round the scores.
    let (compute, at_a_time) = if q.device().is_cpu() {
        (DType::F32, CPU_SCORES_AT_A_TIME)
    } else {
        (dtype, GPU_SCORES_AT_A_TIME)
    };
    let (batch, heads, queries, size) = q.dims4()?;
    let _span = trace::counted(Kind::Attention, "attention", || {
        4.0 * q.elem_count() as f64 * k.dim(2).unwrap_or(0) as f64
    });
    #[cfg(feature = "flash-attn")]
    if matches!(mask, AttentionMask::None) && flashes(q, size) {
        return super::flash::attention(q, k, v);
    }
    let keys = k.dim(2)?;
    let q = (q.to_dtype(compute)? * (1.0 / (size as f64).sqrt()))?;
    let k_transposed = k.to_dtype(compute)?.transpose(2, 3)?.contiguous()?;
    let v = v.to_dtype(compute)?.contiguous()?;

    let rows = (at_a_time / (batch * heads * keys)).clamp(1, queries);
    let mut slices = Vec::with_capacity(queries.div_ceil(rows));
    for start in (0..queries).step_by(rows) {
        interruption::check()?;
        let count = rows.min(queries - start);
        let q = q.narrow(2, start, count)?.contiguous()?;
        let slice = match mask {
            AttentionMask::None => attend(&q, &k_transposed, &v, None)?,
            AttentionMask::Keys(mask) => attend(&q, &k_transposed, &v, Some(mask))?,
            AttentionMask::Causal => {
                // Keys after the slice's last query are out of sight for all of it.
                let seen = start + count;
                let k = k_transposed.narrow(3, 0, seen)?.contiguous()?;
                let v = v.narrow(2, 0, seen)?.contiguous()?;
                let mask = causal_mask(start, count, q.device())?;
                attend(&q, &k, &v, Some(&mask))?
            }
        };
        slices.push(slice);
    }
    Tensor::cat(&slices, 2)?.to_dtype(dtype)
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

/// (count, start + count): query `start + row` sees the keys up to itself.
fn causal_mask(start: usize, count: usize, device: &Device) -> Result<Tensor> {
    let keys = start + count;
    let mask: Vec<f32> = (0..count)
        .flat_map(|row| {
            (0..keys).map(move |key| if key <= start + row { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Tensor::from_vec(mask, (count, keys), device)
}

/// Repeats each of the key (or value) heads for the query heads that share it.
///
/// `x`: (batch, heads, tokens, size). Returns (batch, heads · times, tokens, size).
///
/// # Errors
/// A candle error, such as out of memory.
pub fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (batch, heads, tokens, size) = x.dims4()?;
    let _span = trace::span(Kind::Copy, "repeated heads");
    x.unsqueeze(2)?.expand((batch, heads, times, tokens, size))?.reshape((
        batch,
        heads * times,
        tokens,
        size,
    ))
}

/// (batch, tokens, heads · size) → (batch, heads, tokens, size), contiguous.
///
/// # Errors
/// A candle error if the last dimension does not divide by `heads`.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let _span = trace::span(Kind::Copy, "split heads");
    x.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// (batch, heads, tokens, size) → (batch, tokens, heads · size), contiguous.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let _span = trace::span(Kind::Copy, "merged heads");
    x.transpose(1, 2)?.contiguous()?.flatten_from(D::Minus2)
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::numbers;
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on};
    use super::*;

    fn ramp(shape: (usize, usize, usize, usize), step: f64) -> Tensor {
        let count = (shape.0 * shape.1 * shape.2 * shape.3) as i64;
        let numbers = Tensor::arange(0, count, &Device::Cpu).unwrap();
        (numbers.to_dtype(DType::F32).unwrap() * step)
            .unwrap()
            .sin()
            .unwrap()
            .reshape(shape)
            .unwrap()
    }

    /// softmax(q · kᵀ / √size + mask) · v, spelled out, one query at a time.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Vec<f32> {
        let list = |t: &Tensor| t.i_heads();
        let (q, k, v) = (list(q), list(k), list(v));
        let mut out = Vec::new();
        for head in 0..q.len() {
            for (row, query) in q[head].iter().enumerate() {
                let seen = if causal { row + 1 } else { k[head].len() };
                let scale = (query.len() as f32).sqrt();
                let dot =
                    |key: &Vec<f32>| key.iter().zip(query).map(|(a, b)| a * b).sum::<f32>() / scale;
                let weights: Vec<f32> = k[head][..seen].iter().map(|key| dot(key).exp()).collect();
                let sum: f32 = weights.iter().sum();
                out.extend((0..query.len()).map(|channel| {
                    (0..seen).map(|key| weights[key] * v[head][key][channel]).sum::<f32>() / sum
                }));
            }
        }
        out
    }

    trait Heads {
        fn i_heads(&self) -> Vec<Vec<Vec<f32>>>;
    }

    impl Heads for Tensor {
        fn i_heads(&self) -> Vec<Vec<Vec<f32>>> {
            self.squeeze(0).unwrap().to_vec3().unwrap()
        }
    }

    fn largest_difference(ours: &Tensor, theirs: &[f32]) -> f32 {
        let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
        ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn every_query_weighs_the_keys_it_may_see() {
        let (q, k, v) = (ramp((1, 2, 5, 4), 0.7), ramp((1, 2, 5, 4), 1.3), ramp((1, 2, 5, 4), 0.3));

        let all = attention(&q, &k, &v, AttentionMask::None).unwrap();
        let causal = attention(&q, &k, &v, AttentionMask::Causal).unwrap();

        // 1e-5: rounding of 20 sums of at most five products below one.
        assert!(largest_difference(&all, &plain(&q, &k, &v, false)) < 1e-5);
        assert!(largest_difference(&causal, &plain(&q, &k, &v, true)) < 1e-5);
    }

    /// softmax(q · kᵀ / √size) · v of one head in 64 bits, where a row of −∞ alone
    /// weighs nothing.
    fn exact(inputs: &[Vec<f64>], size: usize) -> Vec<f64> {
        let [q, k, v] = inputs else { panic!("three") };
        let root = (size as f64).sqrt();
        let query = |query: &[f64]| {
            let dot = |key: &[f64]| key.iter().zip(query).map(|(k, q)| k * q).sum::<f64>() / root;
            let scores: Vec<f64> = k.chunks(size).map(dot).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let shift = if largest == f64::NEG_INFINITY { 0.0 } else { largest };
            let weights: Vec<f64> = scores.iter().map(|score| (score - shift).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let weights = weights.iter().map(|weight| if sum == 0.0 { 0.0 } else { weight / sum });
            let weights: Vec<f64> = weights.collect();
            let channel = |at: usize| {
                let values = v.chunks(size).zip(&weights);
                values.map(|(value, weight)| value[at] * weight).sum::<f64>()
            };
            (0..size).map(channel).collect::<Vec<_>>()
        };
        q.chunks(size).flat_map(query).collect()
    }

    #[test]
    fn what_is_not_finite_goes_through_attention_as_through_torchs() {
        let (tokens, size) = (5, 8);
        for dtype in NUMBER_FORMATS {
            let inputs = [1, 2, 3].map(|seed| numbers(&[1, 1, tokens, size], seed, dtype));
            let forms = |inputs: &[Tensor]| {
                let attended = |mask| attention(&inputs[0], &inputs[1], &inputs[2], mask).unwrap();
                let nothing_hidden = Tensor::zeros((1, tokens), DType::F32, &Device::Cpu).unwrap();
                vec![
                    ("without mask", attended(AttentionMask::None)),
                    ("with mask", attended(AttentionMask::Keys(&nothing_hidden))),
                ]
            };
            assert_passed_on(&inputs, forms, |inputs| exact(inputs, size));
        }
    }

    #[test]
    fn slices_of_queries_give_what_a_single_query_gives() {
        // 5000 queries of 5000 keys are 25 million scores: many slices. The last
        // query lies in the last one, and sees every key under both masks.
        let shape = (1, 1, 5000, 4);
        let (q, k, v) = (ramp(shape, 0.01), ramp(shape, 0.02), ramp(shape, 0.03));
        let last = |t: &Tensor| t.narrow(2, 4999, 1).unwrap().contiguous().unwrap();
        let alone = attention(&last(&q), &k, &v, AttentionMask::None).unwrap();
        let expected: Vec<f32> = alone.flatten_all().unwrap().to_vec1().unwrap();

        for mask in [AttentionMask::None, AttentionMask::Causal] {
            let sliced = attention(&q, &k, &v, mask).unwrap();

            assert_eq!(sliced.dims(), &[1, 1, 5000, 4]);
            assert!(largest_difference(&last(&sliced), &expected) < 1e-5);
        }
    }
}
