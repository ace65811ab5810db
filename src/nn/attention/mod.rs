//! The one attention of all components.
//!
//! Scores are never held for more than some of the queries at a time, so memory grows
//! with the number of tokens, not with its square: block by block on a CPU
//! ([`blocks`]), by flash attention or slice by slice ([`slices`]) on a GPU.

mod blocks;
mod slices;

use candle_core::{D, Result, Tensor};

use super::fusion::Fusion;
use super::trace::{self, Kind};

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

/// Whether heads of `size` elements like those of `x` go the way of flash attention.
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
/// `q`: (batch, heads, queries, size); `k`, `v`: (batch, kv heads, keys, size), where each
/// of the kv heads is looked at by as many heads, one after another.
/// Returns (batch, heads, queries, size) in the format of `q`.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: AttentionMask) -> Result<Tensor> {
    let _span = trace::counted(Kind::Attention, "attention", || {
        4.0 * q.elem_count() as f64 * k.dim(2).unwrap_or(0) as f64
    });
    if q.device().is_cpu() {
        return blocks::attention(q, k, v, mask);
    }
    let shared_by = q.dim(1)? / k.dim(1)?.max(1);
    let [k, v] = [repeat_heads(k, shared_by)?, repeat_heads(v, shared_by)?];
    #[cfg(feature = "flash-attn")]
    if matches!(mask, AttentionMask::None) && flashes(q, q.dim(3)?) {
        return super::flash::attention(q, &k, &v);
    }
    slices::attention(q, &k, &v, mask)
}

/// Repeats each of the key (or value) heads for the query heads that share it.
///
/// `x`: (batch, heads, tokens, size). Returns (batch, heads · times, tokens, size).
///
/// # Errors
/// A candle error, such as out of memory.
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
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
    use candle_core::{DType, Device};

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
                let [q, k, v] = inputs else { panic!("three") };
                let attended = |mask| attention(q, k, v, mask).unwrap();
                let nothing_hidden = Tensor::zeros((1, tokens), DType::F32, &Device::Cpu).unwrap();
                vec![
                    ("without mask", attended(AttentionMask::None)),
                    ("with mask", attended(AttentionMask::Keys(&nothing_hidden))),
                    ("in slices", slices::attention(q, k, v, AttentionMask::None).unwrap()),
                ]
            };
            assert_passed_on(&inputs, forms, |inputs| exact(inputs, size));
        }
    }

    #[test]
    fn blocks_of_queries_and_keys_give_what_whole_matrices_give() {
        // Several blocks of either, the last ones ragged; and less than one.
        for (batch, [heads, kv_heads], [queries, keys], size) in [
            (1, [2, 2], [1100, 1100], 24),
            (2, [4, 2], [70, 1030], 8),
            (1, [3, 1], [5, 3], 40),
            (3, [1, 1], [1, 513], 4),
        ] {
            let q = ramp((batch, heads, queries, size), 0.7);
            let k = ramp((batch, kv_heads, keys, size), 1.3);
            let v = ramp((batch, kv_heads, keys, size), 0.3);
            let hidden: Vec<f32> =
                (0..keys).map(|key| if key % 3 == 1 { f32::NEG_INFINITY } else { 0.0 }).collect();
            let hidden = Tensor::from_vec(hidden, (1, keys), &Device::Cpu).unwrap();
            let mut masks = vec![AttentionMask::None, AttentionMask::Keys(&hidden)];
            if queries == keys {
                masks.push(AttentionMask::Causal);
            }
            for mask in masks {
                let repeated = [&k, &v].map(|x| repeat_heads(x, heads / kv_heads).unwrap());
                let expected = slices::attention(&q, &repeated[0], &repeated[1], mask).unwrap();

                let made = attention(&q, &k, &v, mask).unwrap();

                assert_eq!(made.dims(), expected.dims());
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                // Means of elements below one, summed in another order.
                let difference = largest_difference(&made, &expected);
                assert!(difference < 1e-5, "{difference} {:?} {mask:?}", q.dims());
            }
        }
    }

    #[test]
    fn scores_that_grow_from_block_to_block_outweigh_those_before() {
        // Of each block the last key matters most; of all keys, the last one alone.
        let (tokens, size) = (1500, 4);
        let q = Tensor::ones((1, 1, 1, size), DType::F32, &Device::Cpu).unwrap();
        let rising = Tensor::arange(0_i64, tokens as i64, &Device::Cpu).unwrap();
        let rising = rising.to_dtype(DType::F32).unwrap().reshape((1, 1, tokens, 1)).unwrap();
        let k = rising.broadcast_as((1, 1, tokens, size)).unwrap();

        let made = attention(&q, &k, &k, AttentionMask::None).unwrap();

        // Two per key between scores: 1 + e⁻² + … of the weights, whose mean is the last key
        // less e⁻² / (1 − e⁻²).
        let expected = tokens as f64 - 1.0 - 1.0 / (2.0_f64.exp() - 1.0);
        let made: Vec<f32> = made.flatten_all().unwrap().to_vec1().unwrap();
        assert!(made.iter().all(|made| (f64::from(*made) - expected).abs() < 1e-3), "{made:?}");
    }

    #[test]
    fn heads_are_read_wherever_they_lie() {
        let (heads, tokens, size) = (3, 130, 8);
        for dtype in NUMBER_FORMATS {
            let x = ramp((2, tokens, heads, size), 0.9).to_dtype(dtype).unwrap();
            let by_token = x.transpose(1, 2).unwrap().narrow(2, 7, 120).unwrap();
            let by_number = ramp((2, heads, size, 120), 0.4).to_dtype(dtype).unwrap();
            let by_number = by_number.transpose(2, 3).unwrap();
            let [one, other] = [&by_token, &by_number].map(|x| x.contiguous().unwrap());

            let viewed = attention(&by_token, &by_number, &by_token, AttentionMask::None).unwrap();
            let copied = attention(&one, &other, &one, AttentionMask::None).unwrap();

            let list = |x: &Tensor| {
                let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                x.to_vec1::<f32>().unwrap()
            };
            assert_eq!(list(&viewed), list(&copied), "{dtype:?}");
        }
    }
}
