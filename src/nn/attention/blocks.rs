//! Attention on a CPU, a block of queries and a block of keys at a time.
//!
//! What a block of queries makes of the keys that it has met is scaled whenever a larger
//! score comes (online softmax: Milakov and Gimelshein, arXiv:1805.02867; in blocks: Dao
//! and others, arXiv:2205.14135). So the scores of a block stay in the processor's cache,
//! keys and values are read where they lie, and no memory grows with the square of the
//! tokens. Threads share the blocks of queries.

use std::ops::Range;

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::AttentionMask;
use crate::interruption::{self, Watch};
use crate::nn::gemm::{Matrix, MatrixMut, Previous, Threads, multiply};
use crate::nn::kernels::{Element, Elements, in_format};
use crate::nn::rows::vectorised;
use crate::nn::softmax::{exp_of_negative, maximum, subtrahend, weigh};

/// Queries of a block: enough that reading keys and values costs little beside the
/// products with them.
const MOST_QUERIES: usize = 256;
const FEWEST_QUERIES: usize = 64;
/// Keys of a block: their scores with those queries are 512 KiB.
const KEYS: usize = 512;
/// Blocks of queries that each thread has, so that all end at about the same time.
const BLOCKS_PER_THREAD: usize = 4;

/// Multiplications of queries and keys from which on it is asked in between whether they
/// are still wanted: some hundredths of a second.
const WATCHED_FROM: usize = 1 << 30;

/// [`super::attention()`] on a CPU. Keys and values may have fewer heads than queries, each
/// for as many heads of queries. What is returned lies token by token in memory.
///
/// # Errors
/// A candle error if the shapes do not fit, or [`interruption::Cancelled`].
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: AttentionMask) -> Result<Tensor> {
    in_format!(q.dtype(), "attention", N => attention_of::<N>(q, k, v, mask))
}

fn attention_of<N: Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: AttentionMask,
) -> Result<Tensor> {
    let (batch, heads, queries, size) = q.dims4()?;
    let (_, kv_heads, keys, _) = k.dims4()?;
    let alike = k.dims() == [batch, kv_heads, keys, size] && v.dims() == k.dims();
    if !alike || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        candle_core::bail!("no attention of {:?} on {:?} and {:?}", q.dims(), k.dims(), v.dims());
    }
    let [q, k, v] = [rows_of(q)?, rows_of(k)?, rows_of(v)?];
    let work = Work::<N> {
        q: Heads::of(&q)?,
        k: Heads::of(&k)?,
        v: Heads::of(&v)?,
        mask: Mask::of(mask, [batch, heads, keys])?,
        heads,
        shared_by: heads / kv_heads,
        queries,
        keys,
        size,
    };
    let mut made = vec![N::from_f64(0.0); batch * queries * heads * size];
    if !made.is_empty() {
        interruption::check()?;
        work.run(&mut made)?;
    }
    Tensor::from_vec(made, (batch, queries, heads, size), &Device::Cpu)?.transpose(1, 2)
}

/// The same tensor, the elements of each token of a head one after another.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

/// Elements of (batch, heads, tokens, size), wherever heads and tokens lie.
struct Heads<'a, N> {
    numbers: Elements<'a, N>,
    /// The same if they need no widening.
    wide: Option<Elements<'a, f32>>,
    strides: &'a [usize],
    size: usize,
}

impl<'a, N: Element> Heads<'a, N> {
    fn of(x: &'a Tensor) -> Result<Self> {
        let numbers = Elements::of(x)?;
        let wide = Elements::of(x).ok();
        Ok(Self { numbers, wide, strides: x.stride(), size: x.dim(D::Minus1)? })
    }

    fn start(&self, at: Token) -> usize {
        at.batch * self.strides[0] + at.head * self.strides[1] + at.token * self.strides[2]
    }

    /// `count` tokens as a matrix: where they lie if they are f32, else widened in `room`.
    fn matrix<'b>(
        &'b self,
        first: Token,
        count: usize,
        room: &'b mut Vec<f32>,
    ) -> Result<Matrix<'b>> {
        if let Some(numbers) = &self.wide {
            let numbers = &numbers.all()[self.start(first)..];
            return Matrix::new(numbers, (count, self.size), self.strides[2]);
        }
        self.scaled(first, count, 1.0, room)
    }

    /// `count` tokens, each number times `scale`, in `room`.
    fn scaled<'b>(
        &self,
        first: Token,
        count: usize,
        scale: f32,
        room: &'b mut Vec<f32>,
    ) -> Result<Matrix<'b>> {
        room.resize(count * self.size, 0.0);
        let numbers = &self.numbers.all()[self.start(first)..];
        let stride = self.strides[2].max(1);
        vectorised(
            #[inline(always)]
            || {
                for (wide, token) in room.chunks_exact_mut(self.size).zip(numbers.chunks(stride)) {
                    for (wide, number) in wide.iter_mut().zip(token) {
                        *wide = number.wide() * scale;
                    }
                }
            },
        );
        Matrix::new(room, (count, self.size), self.size)
    }
}

/// The place of a token's head.
#[derive(Debug, Clone, Copy)]
struct Token {
    batch: usize,
    head: usize,
    token: usize,
}

/// What is hidden from whom.
enum Mask {
    Nothing,
    /// What is after a query.
    Later,
    /// What is added to the scores: (batch, heads, keys).
    Keys(Vec<f32>),
}

impl Mask {
    fn of(mask: AttentionMask, [batch, heads, keys]: [usize; 3]) -> Result<Self> {
        Ok(match mask {
            AttentionMask::None => Self::Nothing,
            AttentionMask::Causal => Self::Later,
            AttentionMask::Keys(mask) => {
                let of_each = mask.broadcast_as((batch, heads, 1, keys))?;
                Self::Keys(of_each.flatten_all()?.to_vec1()?)
            }
        })
    }
}

/// One attention.
struct Work<'a, N> {
    q: Heads<'a, N>,
    k: Heads<'a, N>,
    v: Heads<'a, N>,
    mask: Mask,
    heads: usize,
    /// How many heads of queries look at the same keys.
    shared_by: usize,
    queries: usize,
    keys: usize,
    size: usize,
}

/// Queries of one head that are answered together.
#[derive(Debug, Clone, Copy)]
struct Block {
    first: Token,
    queries: usize,
}

/// Room for what one thread works on.
#[derive(Default)]
struct Room {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    answer: Answer,
}

/// What a block of queries has made of the keys that it has met.
#[derive(Default)]
struct Answer {
    /// (queries, keys of the block): scores, then weights.
    scores: Vec<f32>,
    /// (queries, size): sums of weighted values.
    made: Vec<f32>,
    /// Of each query.
    largest: Vec<f32>,
    /// Of each query's weights.
    sums: Vec<f32>,
}

impl<N: Element> Work<'_, N> {
    fn run(&self, made: &mut [N]) -> Result<()> {
        if made.len().saturating_mul(self.keys) < WATCHED_FROM {
            return self.fill(made, Watch::of_nothing());
        }
        interruption::shared(|watch| self.fill(made, watch))
    }

    /// `made`: (batch, queries, heads, size).
    fn fill(&self, made: &mut [N], watch: Watch) -> Result<()> {
        let threads = rayon::current_num_threads();
        let even = self.queries.div_ceil(threads * BLOCKS_PER_THREAD);
        let rows = even.clamp(FEWEST_QUERIES, MOST_QUERIES);
        let token_width = self.heads * self.size;
        let blocks = made.par_chunks_mut(self.queries * token_width).enumerate();
        let blocks = blocks.flat_map(|(batch, made)| {
            let blocks = made.par_chunks_mut(rows * token_width).enumerate();
            blocks.map(move |(at, made)| (batch, at * rows, made))
        });
        blocks.try_for_each_init(Room::default, |room, (batch, token, made)| {
            let queries = made.len() / token_width;
            watch.over(|| {
                for head in 0..self.heads {
                    interruption::check()?;
                    let block = Block { first: Token { batch, head, token }, queries };
                    self.attend(block, room)?;
                    room.answer.write(&mut made[head * self.size..], token_width, self.size);
                }
                Ok(())
            })
        })
    }

    fn attend(&self, block: Block, room: &mut Room) -> Result<()> {
        let Room { queries, keys, values, answer } = room;
        let scale = 1.0 / (self.size as f32).sqrt();
        let queries = self.q.scaled(block.first, block.queries, scale, queries)?;
        let seen = match self.mask {
            Mask::Later => self.keys.min(block.first.token + block.queries),
            Mask::Nothing | Mask::Keys(_) => self.keys,
        };
        answer.begin(block.queries, self.size);
        for start in (0..seen).step_by(KEYS) {
            let count = KEYS.min(seen - start);
            let head = block.first.head / self.shared_by;
            let first = Token { batch: block.first.batch, head, token: start };
            answer.scores.resize(block.queries * count, 0.0);
            let keys = self.k.matrix(first, count, keys)?.transposed();
            let scores = MatrixMut::new(&mut answer.scores, (block.queries, count), count)?;
            multiply(scores, Previous::Replaced, (queries, keys), Threads::This)?;
            self.hide(&mut answer.scores, block.first, start..start + count);
            answer.weigh(count, self.size);
            let weights = Matrix::new(&answer.scores, (block.queries, count), count)?;
            let values = self.v.matrix(first, count, values)?;
            let made = MatrixMut::new(&mut answer.made, (block.queries, self.size), self.size)?;
            multiply(made, Previous::AddedTo, (weights, values), Threads::This)?;
        }
        Ok(())
    }

    /// Puts the mask on `scores`, those of queries from `first` on with `keys`.
    fn hide(&self, scores: &mut [f32], first: Token, keys: Range<usize>) {
        let rows = scores.chunks_exact_mut(keys.len());
        match &self.mask {
            Mask::Nothing => {}
            Mask::Later => rows.enumerate().for_each(|(row, scores)| {
                let seen = (first.token + row + 1).saturating_sub(keys.start);
                scores.iter_mut().skip(seen).for_each(|score| *score = f32::NEG_INFINITY);
            }),
            Mask::Keys(mask) => {
                let start = (first.batch * self.heads + first.head) * self.keys;
                let mask = &mask[start + keys.start..start + keys.end];
                rows.for_each(|scores| {
                    scores.iter_mut().zip(mask).for_each(|(score, mask)| *score += mask);
                });
            }
        }
    }
}

impl Answer {
    fn begin(&mut self, queries: usize, size: usize) {
        let Self { made, largest, sums, .. } = self;
        for (numbers, count, value) in [
            (made, queries * size, 0.0),
            (largest, queries, f32::NEG_INFINITY),
            (sums, queries, 0.0),
        ] {
            numbers.clear();
            numbers.resize(count, value);
        }
    }

    /// Turns scores with `keys` keys into weights, and makes what was there before fit them.
    fn weigh(&mut self, keys: usize, size: usize) {
        let Self { scores, made, largest, sums } = self;
        vectorised(
            #[inline(always)]
            || {
                let rows = scores.chunks_exact_mut(keys).zip(made.chunks_exact_mut(size));
                for ((scores, made), (largest, sum)) in rows.zip(largest.iter_mut().zip(sums)) {
                    let next = maximum(scores, *largest);
                    let weights = weigh(scores, next);
                    // 1 in most blocks: a larger score comes seldom.
                    let before = exp_of_negative(*largest - subtrahend(next));
                    if before != 1.0 {
                        made.iter_mut().for_each(|made| *made *= before);
                    }
                    *sum = *sum * before + weights;
                    *largest = next;
                }
            },
        );
    }

    /// Writes the answers `stride` elements after one another.
    fn write<N: Element>(&self, to: &mut [N], stride: usize, size: usize) {
        vectorised(
            #[inline(always)]
            || {
                let rows = to.chunks_mut(stride).zip(self.made.chunks_exact(size));
                for ((to, made), sum) in rows.zip(&self.sums) {
                    // Who may see nothing gathers nothing.
                    let share = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
                    for (to, made) in to.iter_mut().zip(made) {
                        *to = N::narrow(made * share);
                    }
                }
            },
        );
    }
}
