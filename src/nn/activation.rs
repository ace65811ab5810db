//! Activations, computed in 32 bits whatever the dtype, as torch does.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, add_bias, address, address_or_null, expect_alike,
    expect_bias, expect_contiguous, length, pack_of, run,
};
use super::rows::vectorised;
use super::softmax::exp_of_negative;
use super::trace::{self, Kind};

/// Threads of a block that works number by number.
const THREADS: usize = 256;
/// Elements that a thread of a CPU takes at a time.
const CHUNK: usize = 16 * 1024;

/// GELU in its tanh approximation, of x + bias: the transformer's feed-forward layers.
///
/// `x`: (…, width); `bias`: (width).
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn gelu_tanh(x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    activate(x, bias, Function::GeluTanh)
}

/// GELU with the error function: the vision tower's merger.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu_erf)
}

/// x · sigmoid(x).
///
/// # Errors
/// A candle error, such as out of memory.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activate(x, None, Function::Silu)
}

fn in_f32(x: &Tensor, function: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let _span = trace::span(Kind::Activation, "in 32 bits");
    if x.dtype() == DType::F32 {
        return function(x);
    }
    function(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

#[derive(Debug, Clone, Copy)]
enum Function {
    GeluTanh,
    Silu,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Self::GeluTanh => "bias, GELU",
            Self::Silu => "SiLU",
        }
    }
}

fn activate(x: &Tensor, bias: Option<&Tensor>, function: Function) -> Result<Tensor> {
    let _span = trace::span(Kind::Activation, function.name());
    if !Fusion::BiasActivation.applies_to(x) {
        return activate_composed(x, bias, function);
    }
    run(&Activation::new(&x.contiguous()?, bias, function)?)
}

fn activate_composed(x: &Tensor, bias: Option<&Tensor>, function: Function) -> Result<Tensor> {
    let biased = add_bias(x.clone(), bias)?;
    match function {
        Function::GeluTanh => in_f32(&biased, Tensor::gelu),
        Function::Silu => in_f32(&biased, Tensor::silu),
    }
}

struct Activation<'a> {
    x: &'a Tensor,
    bias: Option<&'a Tensor>,
    function: Function,
    width: usize,
}

impl<'a> Activation<'a> {
    fn new(x: &'a Tensor, bias: Option<&'a Tensor>, function: Function) -> Result<Self> {
        expect_contiguous("what is activated", x)?;
        let width = x.dims().last().copied().unwrap_or(1);
        expect_bias(x, bias, width)?;
        Ok(Self { x, bias, function, width })
    }
}

/// As `activation.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ActivationCall {
    x: u64,
    bias: u64,
    y: u64,
    count: i64,
    width: i32,
}

impl Operation for Activation<'_> {
    type Call = ActivationCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "activation";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let x = Elements::<N>::of(self.x)?;
        let x = &x.all()[..made.len()];
        let bias = self.bias.map(Elements::<N>::of).transpose()?;
        let bias = bias.as_ref().map(|bias| &bias.all()[..self.width]);
        // Whole rows, where there is a bias.
        let chunk = self.width * CHUNK.div_ceil(self.width.max(1)).max(1);
        made.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(made, x)| {
            vectorised(|| match (self.function, bias) {
                (Function::GeluTanh, None) => map(x, made, gelu_of),
                (Function::Silu, None) => map(x, made, silu_of),
                (Function::GeluTanh, Some(bias)) => map_biased(x, bias, made, gelu_of),
                (Function::Silu, Some(bias)) => map_biased(x, bias, made, silu_of),
            });
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<ActivationCall>> {
        let count = self.x.elem_count();
        let call = ActivationCall {
            x: address(self.x)?,
            bias: address_or_null(self.bias)?,
            y: made,
            count: count as i64,
            width: length(self.width)?,
        };
        let row = if self.bias.is_some() { self.width } else { count };
        let pack = pack_of(self.x.dtype(), &[call.x, call.bias, made], &[row]);
        let kernel = match self.function {
            Function::GeluTanh => "biased_gelu",
            Function::Silu => "biased_silu",
        };
        let blocks = count.div_ceil(THREADS * pack);
        Ok(Launch { kernel, blocks, threads: THREADS, shared: 0, call, pack })
    }
}

#[inline(always)]
fn map<N: Element>(x: &[N], made: &mut [N], function: impl Fn(f32) -> f32) {
    for (made, x) in made.iter_mut().zip(x) {
        *made = N::narrow(function(x.wide()));
    }
}

#[inline(always)]
fn map_biased<N: Element>(x: &[N], bias: &[N], made: &mut [N], function: impl Fn(f32) -> f32) {
    for (made, x) in made.chunks_mut(bias.len()).zip(x.chunks(bias.len())) {
        for ((made, x), bias) in made.iter_mut().zip(x).zip(bias) {
            *made = N::narrow(function(N::rounded(x.wide() + bias.wide())));
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let small = exp_of_negative(-x.abs());
    let numerator = if x >= 0.0 { 1.0 } else { small };
    numerator / (1.0 + small)
}

#[inline(always)]
pub(super) fn silu_of(x: f32) -> f32 {
    x * sigmoid(x)
}

/// ½ · (1 + tanh u) = sigmoid(2 u), with u = √(2/π) · (x + 0.044715 · x³).
#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    x * sigmoid(2.0 * ROOT * (x + 0.044_715 * x * x * x))
}

/// silu(gate) · x, rounded in between.
///
/// `gate`, `x`: of one shape. Returns the same.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn gated_silu(gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    if !Fusion::GatedSilu.applies_to(x) {
        return activate_composed(gate, None, Function::Silu)? * x;
    }
    run(&GatedSilu::new(&gate.contiguous()?, &x.contiguous()?)?)
}

struct GatedSilu<'a> {
    gate: &'a Tensor,
    x: &'a Tensor,
}

impl<'a> GatedSilu<'a> {
    fn new(gate: &'a Tensor, x: &'a Tensor) -> Result<Self> {
        expect_contiguous("a gate", gate)?;
        expect_contiguous("what is gated", x)?;
        expect_alike(x, &[gate])?;
        if gate.dims() != x.dims() {
            candle_core::bail!("gate {:?} does not fit {:?}", gate.dims(), x.dims());
        }
        Ok(Self { gate, x })
    }
}

/// As `activation.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GatedSiluCall {
    gate: u64,
    x: u64,
    y: u64,
    count: i64,
}

impl Operation for GatedSilu<'_> {
    type Call = GatedSiluCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "gated silu";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let (gate, x) = (Elements::<N>::of(self.gate)?, Elements::<N>::of(self.x)?);
        let (gate, x) = (&gate.all()[..made.len()], &x.all()[..made.len()]);
        made.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(x.par_chunks(CHUNK)).for_each(
            |((made, gate), x)| {
                vectorised(|| {
                    for ((made, gate), x) in made.iter_mut().zip(gate).zip(x) {
                        *made = N::narrow(N::rounded(silu_of(gate.wide())) * x.wide());
                    }
                });
            },
        );
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<GatedSiluCall>> {
        let count = self.x.elem_count();
        let call = GatedSiluCall {
            gate: address(self.gate)?,
            x: address(self.x)?,
            y: made,
            count: count as i64,
        };
        let pack = pack_of(self.x.dtype(), &[call.gate, call.x, made], &[count]);
        let blocks = count.div_ceil(THREADS * pack);
        Ok(Launch { kernel: "gated_silu", blocks, threads: THREADS, shared: 0, call, pack })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    /// (rows, width): a tail of one number, whole blocks, several blocks.
    const SHAPES: [(usize, usize); 4] = [(1, 1), (5, 36), (3, 333), (2, 2048)];

    #[test]
    fn activations_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(4.0) {
            for (rows, width) in SHAPES {
                // Far out on both sides, too.
                let x = (numbers(&[rows, width], 1, dtype) * 8.0).unwrap();
                let bias = numbers(&[width], 2, dtype);
                for function in [Function::GeluTanh, Function::Silu] {
                    for bias in [None, Some(&bias)] {
                        let composed = activate_composed(&x, bias, function).unwrap();
                        let operation = Activation::new(&x, bias, function).unwrap();

                        let looped = run(&operation).unwrap();

                        assert_close(&looped, &composed, tolerance);
                        assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn gated_activations_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(8.0) {
            for (rows, width) in SHAPES {
                let gate = numbers(&[rows, width], 1, dtype);
                let x = numbers(&[rows, width], 2, dtype);
                let composed =
                    (activate_composed(&gate, None, Function::Silu).unwrap() * &x).unwrap();
                let operation = GatedSilu::new(&gate, &x).unwrap();

                let looped = run(&operation).unwrap();

                assert_close(&looped, &composed, tolerance);
                assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
            }
        }
    }

    /// As torch defines them: −∞ times 0 is NaN.
    fn exact(function: Function, x: f64) -> f64 {
        let root = (2.0 / std::f64::consts::PI).sqrt();
        match function {
            Function::GeluTanh => 0.5 * x * (1.0 + (root * (x + 0.044_715 * x.powi(3))).tanh()),
            Function::Silu => x / (1.0 + (-x).exp()),
        }
    }

    #[test]
    fn what_is_not_finite_goes_through_an_activation_as_through_torchs() {
        let (rows, width) = (3, 37);
        for dtype in NUMBER_FORMATS {
            let [x, bias] = [numbers(&[rows, width], 1, dtype), numbers(&[width], 2, dtype)];
            for function in [Function::GeluTanh, Function::Silu] {
                for biased in [false, true] {
                    let inputs =
                        if biased { vec![x.clone(), bias.clone()] } else { vec![x.clone()] };
                    let forms = |inputs: &[Tensor]| {
                        let (x, bias) = (&inputs[0], inputs.get(1));
                        let mut forms = both_forms(&Activation::new(x, bias, function).unwrap());
                        forms.push(("composition", activate_composed(x, bias, function).unwrap()));
                        forms
                    };
                    let reference = |inputs: &[Vec<f64>]| {
                        let bias = |at: usize| inputs.get(1).map_or(0.0, |bias| bias[at % width]);
                        let x = inputs[0].iter().enumerate();
                        x.map(|(at, x)| exact(function, x + bias(at))).collect()
                    };
                    assert_passed_on(&inputs, forms, reference);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_goes_through_a_gated_activation_as_through_torchs() {
        for dtype in NUMBER_FORMATS {
            let inputs = [1, 2].map(|seed| numbers(&[3, 37], seed, dtype));
            let forms = |inputs: &[Tensor]| {
                let (gate, x) = (&inputs[0], &inputs[1]);
                let mut forms = both_forms(&GatedSilu::new(gate, x).unwrap());
                let composed = activate_composed(gate, None, Function::Silu).unwrap() * x;
                forms.push(("composition", composed.unwrap()));
                forms
            };
            let reference = |inputs: &[Vec<f64>]| {
                let pairs = inputs[0].iter().zip(&inputs[1]);
                pairs.map(|(gate, x)| exact(Function::Silu, *gate) * x).collect()
            };
            assert_passed_on(&inputs, forms, reference);
        }
    }

    #[test]
    fn nan_and_infinities_stay_in_gelu_with_the_error_function() {
        for dtype in NUMBER_FORMATS {
            let x = Tensor::new(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 1.0], &Device::Cpu);
            let made = gelu_erf(&x.unwrap().to_dtype(dtype).unwrap()).unwrap();
            let made: Vec<f32> = made.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            // torch has NaN for +∞, too.
            assert!(made[0].is_nan() && made[1].is_nan() && !made[2].is_finite(), "{made:?}");
            assert!((made[3] - 0.841_345).abs() < 4e-3, "{made:?}");
        }
    }

    #[test]
    fn activations_of_extremes_are_finite() {
        for x in [-1e30_f32, -100.0, -0.0, 0.0, 100.0, 1e30] {
            let positive = x.max(0.0);
            assert!((silu_of(x) - positive).abs() < 1e-6 * positive.max(1.0), "silu({x})");
            assert!((gelu_of(x) - positive).abs() < 1e-6 * positive.max(1.0), "gelu({x})");
        }
    }
}
