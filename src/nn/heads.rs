//! Queries, keys and values of two streams → the heads of one attention.

use candle_core::{DType, Result, Shape, Tensor};
use candle_nn::rotary_emb::rope_i;
use rayon::prelude::*;

use super::attention::{HeadLayout, layout_for, split_heads};
use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, WARP, add_bias, address, address_or_null, expect_alike,
    expect_bias, expect_contiguous, length, pack_of, run,
};
use super::norm::RmsNorm;
use super::rows::{sum_of, vectorised};
use super::trace::{self, Kind};

/// Warps of a block: each takes a head of a token.
const WARPS: usize = 4;

/// One stream's tokens after a projection, and what is still to be done to them.
#[derive(Clone, Copy)]
pub struct HeadStream<'a> {
    /// (batch, tokens, heads · size), before the bias.
    pub x: &'a Tensor,
    /// (heads · size)
    pub bias: Option<&'a Tensor>,
    /// Normalises each head; (size).
    pub norm: Option<&'a RmsNorm>,
    /// Cosines and sines, each (tokens, size / 2) in f32: turns adjacent elements.
    pub rotation: Option<(&'a Tensor, &'a Tensor)>,
}

/// The heads of two streams, the tokens of `first` before those of `second`.
///
/// Returns (batch, heads, tokens, size), laid out as [`super::attention()`] likes it.
/// In 16-bit formats the sum with the bias, the normalised number and its product
/// with the weight are rounded; the turn is in 32 bits.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn joint_heads(first: HeadStream, second: HeadStream, heads: usize) -> Result<Tensor> {
    let _span = trace::span(Kind::Norm, "joint heads");
    if !Fusion::JointHeads.applies_to(first.x) {
        return joint_heads_composed(&first, &second, heads);
    }
    let contiguous = [first.x.contiguous()?, second.x.contiguous()?];
    let first = HeadStream { x: &contiguous[0], ..first };
    let second = HeadStream { x: &contiguous[1], ..second };
    let size = first.x.dim(2)? / heads;
    let layout = layout_for(first.x, size);
    let made = run(&JointHeads::new(&[first, second], heads, layout)?)?;
    match layout {
        HeadLayout::HeadsFirst => Ok(made),
        HeadLayout::TokensFirst => made.transpose(1, 2),
    }
}

fn joint_heads_composed(first: &HeadStream, second: &HeadStream, heads: usize) -> Result<Tensor> {
    let heads_of = |stream: &HeadStream| -> Result<Tensor> {
        let mut x = split_heads(&add_bias(stream.x.clone(), stream.bias)?, heads)?;
        if let Some(norm) = stream.norm {
            x = norm.forward(&x)?;
        }
        match stream.rotation {
            Some((cos, sin)) => rope_i(&x.to_dtype(DType::F32)?, cos, sin)?.to_dtype(x.dtype()),
            None => Ok(x),
        }
    };
    Tensor::cat(&[heads_of(first)?, heads_of(second)?], 2)
}

struct JointHeads<'a> {
    streams: &'a [HeadStream<'a>; 2],
    layout: HeadLayout,
    batch: usize,
    /// Of each stream.
    tokens: [usize; 2],
    heads: usize,
    size: usize,
}

impl<'a> JointHeads<'a> {
    fn new(streams: &'a [HeadStream<'a>; 2], heads: usize, layout: HeadLayout) -> Result<Self> {
        let (batch, _, width) = streams[0].x.dims3()?;
        let size = width / heads;
        if size * heads != width || !size.is_multiple_of(2) {
            candle_core::bail!("{heads} heads of even size do not make {width} numbers");
        }
        let mut tokens = [0; 2];
        for (stream, tokens) in streams.iter().zip(&mut tokens) {
            *tokens = stream.x.dim(1)?;
            if stream.x.dims() != [batch, *tokens, width] {
                candle_core::bail!("{:?} does not fit {:?}", stream.x.dims(), streams[0].x.dims());
            }
            expect_contiguous("a projection", stream.x)?;
            expect_alike(streams[0].x, &[stream.x])?;
            expect_bias(streams[0].x, stream.bias, width)?;
            expect_bias(streams[0].x, stream.norm.map(RmsNorm::weight), size)?;
            for angles in stream.rotation.map_or(vec![], |(cos, sin)| vec![cos, sin]) {
                if angles.dims() != [*tokens, size / 2] || angles.dtype() != DType::F32 {
                    candle_core::bail!("rotations {:?} do not fit", angles.layout());
                }
                expect_contiguous("rotations", angles)?;
            }
        }
        Ok(Self { streams, layout, batch, tokens, heads, size })
    }

    fn all_tokens(&self) -> usize {
        self.tokens[0] + self.tokens[1]
    }

    fn stream_call(&self, index: usize) -> Result<StreamCall> {
        let HeadStream { x, bias, norm, rotation } = self.streams[index];
        Ok(StreamCall {
            x: address(x)?,
            bias: address_or_null(bias)?,
            weight: address_or_null(norm.map(RmsNorm::weight))?,
            cos: address_or_null(rotation.map(|(cos, _)| cos))?,
            sin: address_or_null(rotation.map(|(_, sin)| sin))?,
            stride: (self.heads * self.size) as i64,
            tokens: length(self.tokens[index])?,
            eps: norm.map_or(0.0, RmsNorm::eps),
        })
    }
}

/// As `heads.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct StreamCall {
    x: u64,
    bias: u64,
    weight: u64,
    cos: u64,
    sin: u64,
    stride: i64,
    tokens: i32,
    eps: f32,
}

/// As `heads.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct JointHeadsCall {
    first: StreamCall,
    second: StreamCall,
    y: u64,
    batch_stride: i64,
    head_stride: i64,
    token_stride: i64,
    rows: i64,
    heads: i32,
    size: i32,
}

impl Operation for JointHeads<'_> {
    type Call = JointHeadsCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "joint heads";

    fn subject(&self) -> &Tensor {
        self.streams[0].x
    }

    fn shape(&self) -> Shape {
        match self.layout {
            HeadLayout::HeadsFirst => (self.batch, self.heads, self.all_tokens(), self.size),
            HeadLayout::TokensFirst => (self.batch, self.all_tokens(), self.heads, self.size),
        }
        .into()
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let held =
            [Offloadable::<N>::of(&self.streams[0])?, Offloadable::<N>::of(&self.streams[1])?];
        let streams = [held[0].share(self.size), held[1].share(self.size)];
        let (tokens, heads, size) = (self.all_tokens(), self.heads, self.size);
        made.par_chunks_mut(size).with_min_len(64).enumerate().for_each(|(row, made)| {
            let (entry, head, token) = match self.layout {
                HeadLayout::HeadsFirst => {
                    (row / tokens / heads, row / tokens % heads, row % tokens)
                }
                HeadLayout::TokensFirst => {
                    (row / heads / tokens, row % heads, row / heads % tokens)
                }
            };
            let later = usize::from(token >= self.tokens[0]);
            let own = token - later * self.tokens[0];
            let place = (entry * self.tokens[later] + own) * heads + head;
            vectorised(|| streams[later].make(place * size, head * size, own * size / 2, made));
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<JointHeadsCall>> {
        let (tokens, heads, size) = (self.all_tokens(), self.heads, self.size);
        let (head_stride, token_stride) = match self.layout {
            HeadLayout::HeadsFirst => (tokens * size, size),
            HeadLayout::TokensFirst => (size, heads * size),
        };
        let rows = self.batch * tokens * heads;
        // The kernel counts these in 32 bits, too.
        length(tokens)?;
        length(heads * size)?;
        let call = JointHeadsCall {
            first: self.stream_call(0)?,
            second: self.stream_call(1)?,
            y: made,
            batch_stride: (tokens * heads * size) as i64,
            head_stride: head_stride as i64,
            token_stride: token_stride as i64,
            rows: rows as i64,
            heads: length(heads)?,
            size: length(size)?,
        };
        let addresses =
            [&call.first, &call.second].map(|stream| [stream.x, stream.bias, stream.weight]);
        let addresses = [addresses.as_flattened(), &[made]].concat();
        let pack = pack_of(self.subject().dtype(), &addresses, &[size]);
        let threads = WARPS * WARP;
        let blocks = rows.div_ceil(WARPS);
        Ok(Launch { kernel: "joint_heads", blocks, threads, shared: 0, call, pack })
    }
}

/// A stream's elements, held.
struct Offloadable<'a, N> {
    x: Elements<'a, N>,
    bias: Option<Elements<'a, N>>,
    weight: Option<Elements<'a, N>>,
    rotation: Option<(Elements<'a, f32>, Elements<'a, f32>)>,
    eps: f32,
}

impl<'a, N: Element> Offloadable<'a, N> {
    fn of(stream: &HeadStream<'a>) -> Result<Self> {
        let rotation =
            |(cos, sin)| Ok::<_, candle_core::Error>((Elements::of(cos)?, Elements::of(sin)?));
        Ok(Self {
            x: Elements::of(stream.x)?,
            bias: stream.bias.map(Elements::of).transpose()?,
            weight: stream.norm.map(|norm| Elements::of(norm.weight())).transpose()?,
            rotation: stream.rotation.map(rotation).transpose()?,
            eps: stream.norm.map_or(0.0, RmsNorm::eps),
        })
    }

    /// What threads can share.
    fn share(&self, size: usize) -> Shared<'_, N> {
        Shared {
            x: self.x.all(),
            bias: self.bias.as_ref().map(Elements::all),
            weight: self.weight.as_ref().map(|weight| &weight.all()[..size]),
            rotation: self.rotation.as_ref().map(|(cos, sin)| (cos.all(), sin.all())),
            eps: self.eps,
        }
    }
}

struct Shared<'a, N> {
    x: &'a [N],
    bias: Option<&'a [N]>,
    weight: Option<&'a [N]>,
    rotation: Option<(&'a [f32], &'a [f32])>,
    eps: f32,
}

impl<N: Element> Shared<'_, N> {
    /// The head at `place` of the elements, `column` of the bias and `angle` of the
    /// rotations.
    #[inline(always)]
    fn make(&self, place: usize, column: usize, angle: usize, made: &mut [N]) {
        let size = made.len();
        made.copy_from_slice(&self.x[place..][..size]);
        if let Some(bias) = self.bias {
            for (made, bias) in made.iter_mut().zip(&bias[column..]) {
                *made = N::narrow(made.wide() + bias.wide());
            }
        }
        if let Some(weight) = self.weight {
            let length = (sum_of(made, |x| x * x) / size as f32 + self.eps).sqrt();
            for (made, weight) in made.iter_mut().zip(weight) {
                *made = N::narrow(N::rounded(made.wide() / length) * weight.wide());
            }
        }
        if let Some((cos, sin)) = self.rotation {
            let (cos, sin) = (&cos[angle..], &sin[angle..]);
            for ((pair, cos), sin) in made.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let [even, odd] = pair.map(N::wide);
                *pair = [even * cos - odd * sin, even * sin + odd * cos].map(N::narrow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    /// (batch, tokens of the first, of the second, heads, size).
    const SHAPES: [(usize, usize, usize, usize, usize); 4] =
        [(1, 1, 1, 1, 2), (2, 3, 5, 3, 6), (1, 4, 9, 2, 128), (2, 2, 3, 3, 136)];

    /// Head by head, the tokens of the first stream before those of the second.
    /// `inputs`: x of both, bias, weight, cosines, sines, as both streams share them.
    fn exact_heads(inputs: &[Vec<f64>], tokens: usize, heads: usize, size: usize) -> Vec<f64> {
        let head_of = |stream: usize, token: usize, head: usize| {
            let first = (token * heads + head) * size;
            let biased = |at: usize| inputs[stream][first + at] + inputs[2][head * size + at];
            let x: Vec<f64> = (0..size).map(biased).collect();
            let mean = x.iter().map(|x| x * x).sum::<f64>() / size as f64;
            let x = |at: usize| x[at] / (mean + 1e-6).sqrt() * inputs[3][at];
            let turned = |pair: usize| {
                let angle = token * size / 2 + pair;
                let (cos, sin) = (inputs[4][angle], inputs[5][angle]);
                let (even, odd) = (x(2 * pair), x(2 * pair + 1));
                [even * cos - odd * sin, even * sin + odd * cos]
            };
            (0..size / 2).flat_map(turned).collect::<Vec<_>>()
        };
        let rows = (0..heads).flat_map(|head| (0..2 * tokens).map(move |token| (head, token)));
        rows.flat_map(|(head, token)| head_of(token / tokens, token % tokens, head)).collect()
    }

    #[test]
    fn what_is_not_finite_goes_through_the_making_of_heads_as_through_torchs() {
        let (tokens, heads, size) = (3, 2, 6);
        for dtype in NUMBER_FORMATS {
            let x = |seed| numbers(&[1, tokens, heads * size], seed, dtype);
            let angles = |seed| numbers(&[tokens, size / 2], seed, DType::F32);
            let (bias, weight) = (numbers(&[heads * size], 3, dtype), numbers(&[size], 4, dtype));
            let inputs = [x(1), x(2), bias, weight, angles(5), angles(6)];
            let forms = |inputs: &[Tensor]| {
                let norm = RmsNorm::new(inputs[3].clone(), 1e-6);
                let streams = [0, 1].map(|stream| HeadStream {
                    x: &inputs[stream],
                    bias: Some(&inputs[2]),
                    norm: Some(&norm),
                    rotation: Some((&inputs[4], &inputs[5])),
                });
                let operation = JointHeads::new(&streams, heads, HeadLayout::HeadsFirst).unwrap();
                let mut forms = both_forms(&operation);
                let composed = joint_heads_composed(&streams[0], &streams[1], heads).unwrap();
                forms.push(("composition", composed));
                forms
            };
            let reference = |inputs: &[Vec<f64>]| exact_heads(inputs, tokens, heads, size);
            assert_passed_on(&inputs, forms, reference);
        }
    }

    #[test]
    fn heads_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(8.0) {
            for (batch, first, second, heads, size) in SHAPES {
                let width = heads * size;
                let x = [first, second].map(|tokens| numbers(&[batch, tokens, width], 1, dtype));
                let bias = numbers(&[width], 2, dtype);
                let norms = [3, 4].map(|seed| RmsNorm::new(numbers(&[size], seed, dtype), 1e-6));
                let angles = [first, second].map(|tokens| {
                    [5, 6].map(|seed| numbers(&[tokens, size / 2], seed, DType::F32))
                });
                let stream = |index: usize, plain: bool| HeadStream {
                    x: &x[index],
                    bias: (index == 0).then_some(&bias),
                    norm: (!plain).then_some(&norms[index]),
                    rotation: (!plain).then_some((&angles[index][0], &angles[index][1])),
                };
                for plain in [false, true] {
                    let streams = [stream(0, plain), stream(1, plain)];
                    let composed = joint_heads_composed(&streams[0], &streams[1], heads).unwrap();
                    let operation =
                        JointHeads::new(&streams, heads, HeadLayout::HeadsFirst).unwrap();

                    let looped = run(&operation).unwrap();

                    assert_close(&looped, &composed, tolerance);
                    assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
                    let operation =
                        JointHeads::new(&streams, heads, HeadLayout::TokensFirst).unwrap();
                    let turned = composed.transpose(1, 2).unwrap();
                    assert_close(&run(&operation).unwrap(), &turned, tolerance);
                    assert_close(&emulate(&operation).unwrap(), &turned, tolerance);
                }
            }
        }
    }
}
