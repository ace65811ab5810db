//! The one attention of all components.
//!
//! Scores are never held for more than a slice of the queries at a time, so
//! memory grows with the number of tokens, not with its square.

use candle_core::{D, DType, Device, Result, Tensor};

use super::fusion::Fusion;
use super::softmax::{softmax, softmax_in_place};
use crate::interruption;

/// Scores held at a time on a CPU, in numbers: 4 MiB of f32, which stay in its
/// caches.
const CPU_SCORES_AT_A_TIME: usize = 1024 * 1024;
/// Bytes of scores held at a time on a GPU, and as many of their softmax: so an
/// attention over two pictures of 1024x1024 pixels in bfloat16 is three slices.
const GPU_SCORE_BYTES_AT_A_TIME: usize = 3 << 29;
/// Masked scores held at a time on a GPU, in numbers, of which there are several copies in
/// 32 bits: 256 MiB each.
const GPU_MASKED_SCORES_AT_A_TIME: usize = 64 * 1024 * 1024;

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
    let (_, _, _, size) = q.dims4()?;
    #[cfg(feature = "flash-attn")]
    if matches!(mask, AttentionMask::None) && flashes(q, size) {
        return super::flash::attention(q, k, v);
    }
    // Matrix products of 16-bit numbers are slow on a CPU, and round the scores.
    let (compute, slicing) = if q.device().is_cpu() {
        (DType::F32, Slicing { at_a_time: CPU_SCORES_AT_A_TIME, operands: Operands::Copied })
    } else {
        let at_a_time = match mask {
            AttentionMask::None => GPU_SCORE_BYTES_AT_A_TIME / dtype.size_in_bytes(),
            AttentionMask::Causal | AttentionMask::Keys(_) => GPU_MASKED_SCORES_AT_A_TIME,
        };
        (dtype, Slicing { at_a_time, operands: Operands::Viewed })
    };
    let q = (q.to_dtype(compute)? * (1.0 / (size as f64).sqrt()))?;
    let (k, v) = (k.to_dtype(compute)?, v.to_dtype(compute)?.contiguous()?);
    sliced(&q, &k, &v, mask, slicing)?.to_dtype(dtype)
}

/// How queries are cut into slices.
#[derive(Debug, Clone, Copy)]
struct Slicing {
    /// Scores held at a time, in numbers.
    at_a_time: usize,
    operands: Operands,
}

/// How parts of queries, keys and values are given to a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operands {
    /// In a row, which a CPU's products are fastest with.
    Copied,
    /// As they lie, which costs a card nothing.
    Viewed,
}

impl Operands {
    /// The product takes a view of one batch entry, but not of several.
    fn of(self, x: Tensor) -> Result<Tensor> {
        if self == Self::Viewed && x.dim(0)? == 1 { Ok(x) } else { x.contiguous() }
    }
}

/// softmax(q · kᵀ) · v, slice by slice. Shapes as [`attention`].
fn sliced(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: AttentionMask,
    Slicing { at_a_time, operands }: Slicing,
) -> Result<Tensor> {
    let (batch, heads, queries, _) = q.dims4()?;
    let k_transposed = match operands {
        Operands::Copied => k.transpose(2, 3)?.contiguous()?,
        Operands::Viewed => k.contiguous()?.transpose(2, 3)?,
    };
    let most_rows = (at_a_time / (batch * heads * k.dim(2)?)).clamp(1, queries);
    // Slices of one size, not a short one at the end.
    let rows = queries.div_ceil(queries.div_ceil(most_rows));
    let mut slices = Vec::with_capacity(queries.div_ceil(rows));
    for start in (0..queries).step_by(rows) {
        interruption::check()?;
        let count = rows.min(queries - start);
        let q = operands.of(q.narrow(2, start, count)?)?;
        let slice = match mask {
            AttentionMask::None => attend(&q, &k_transposed, v, None)?,
            AttentionMask::Keys(mask) => attend(&q, &k_transposed, v, Some(mask))?,
            AttentionMask::Causal => {
                // Keys after the slice's last query are out of sight for all of it.
                let seen = start + count;
                let k = operands.of(k_transposed.narrow(3, 0, seen)?)?;
                let v = operands.of(v.narrow(2, 0, seen)?)?;
                let mask = causal_mask(start, count, q.device())?;
                attend(&q, &k, &v, Some(&mask))?
            }
        };
        slices.push(slice);
    }
    joined(&slices, operands)
}

/// The slices of the queries, one after the other. On a card the heads of a token come
/// to lie together, where [`merge_heads`] wants them: that takes the same copies.
fn joined(slices: &[Tensor], operands: Operands) -> Result<Tensor> {
    match slices {
        [all] => Ok(all.clone()),
        _ if operands == Operands::Copied => Tensor::cat(slices, 2),
        _ => {
            let turned = slices.iter().map(|slice| slice.transpose(1, 2));
            Tensor::cat(&turned.collect::<Result<Vec<_>>>()?, 1)?.transpose(1, 2)
        }
    }
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
    if !device.is_cpu() {
        return causal_mask_on_card(start, count, device);
    }
    let keys = start + count;
    let mask: Vec<f32> = (0..count)
        .flat_map(|row| {
            (0..keys).map(move |key| if key <= start + row { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Tensor::from_vec(mask, (count, keys), device)
}

/// The same, made where it is used: megabytes for each layer are not uploaded.
#[expect(clippy::cast_possible_truncation, reason = "fewer than 2^32 tokens")]
fn causal_mask_on_card(start: usize, count: usize, device: &Device) -> Result<Tensor> {
    let keys = start + count;
    let shape = (count, keys);
    let query = Tensor::arange(start as u32, keys as u32, device)?.reshape((count, 1))?;
    let key = Tensor::arange(0, keys as u32, device)?.reshape((1, keys))?;
    let everywhere = |number: f32| Tensor::new(number, device)?.broadcast_as(shape);
    let hidden = key.broadcast_gt(&query)?;
    hidden.where_cond(&everywhere(f32::NEG_INFINITY)?, &everywhere(0.0)?)
}

/// Repeats each of the key (or value) heads for the query heads that share it.
///
/// `x`: (batch, heads, tokens, size). Returns (batch, heads · times, tokens, size).
///
/// # Errors
/// A candle error, such as out of memory.
pub fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (batch, heads, tokens, size) = x.dims4()?;
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
    x.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// (batch, heads, tokens, size) → (batch, tokens, heads · size), contiguous.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
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
    fn a_mask_is_the_same_wherever_it_is_made() {
        for (start, count) in [(0, 7), (5, 3), (9, 1)] {
            let rows = |mask: Result<Tensor>| mask.unwrap().to_vec2::<f32>().unwrap();
            let ours = rows(causal_mask_on_card(start, count, &Device::Cpu));
            assert_eq!(ours, rows(causal_mask(start, count, &Device::Cpu)));
        }
    }

    #[test]
    fn views_give_what_copies_give() {
        // One batch entry, which is viewed, and several, which are not.
        for (batch, heads, tokens, size) in [(1, 3, 70, 8), (2, 3, 33, 4)] {
            let shape = (batch, heads, tokens, size);
            let (q, k, v) = (ramp(shape, 0.1), ramp(shape, 0.2), ramp(shape, 0.3));
            let hidden: Vec<f32> =
                (0..tokens).map(|key| if key % 3 == 1 { f32::NEG_INFINITY } else { 0.0 }).collect();
            let hidden = Tensor::from_vec(hidden, (1, 1, 1, tokens), &Device::Cpu).unwrap();
            for mask in [AttentionMask::None, AttentionMask::Causal, AttentionMask::Keys(&hidden)] {
                let at_a_time = batch * heads * tokens * 16; // several slices
                let made = |operands| sliced(&q, &k, &v, mask, Slicing { at_a_time, operands });
                let (copied, viewed) =
                    (made(Operands::Copied).unwrap(), made(Operands::Viewed).unwrap());

                assert_eq!(viewed.dims(), copied.dims());
                let expected: Vec<f32> = copied.flatten_all().unwrap().to_vec1().unwrap();
                assert!(largest_difference(&viewed, &expected) < 1e-6, "{mask:?}");
            }
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
