//! What the noise level does to tokens: normalise and modulate; gate and add.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, Vectors, add_bias, address, address_or_null,
    expect_alike, expect_bias, expect_contiguous, length, pack_of, run, threads_for_row,
    vector_stride,
};
use super::norm::LayerNorm;
use super::rows::{sum_of, vectorised};
use super::trace::{self, Kind};

/// A vector of factors for each entry of a batch, and another one for the tokens
/// from a given one on.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// (batch or 1, 1, width).
    pub early: &'a Tensor,
    /// The first token that has others, and those. It may lie behind the last one.
    pub late: Option<(usize, &'a Tensor)>,
}

impl<'a> Factors<'a> {
    /// The same for all tokens.
    #[must_use]
    pub fn of_all(early: &'a Tensor) -> Self {
        Self { early, late: None }
    }

    /// The first of the late tokens among `tokens`.
    fn switch(&self, tokens: usize) -> usize {
        self.late.map_or(tokens, |(first, _)| first)
    }

    fn late(&self) -> &'a Tensor {
        self.late.map_or(self.early, |(_, late)| late)
    }

    fn expect_fit(&self, x: &Tensor) -> Result<()> {
        let (batch, _, width) = x.dims3()?;
        for factors in [self.early, self.late()] {
            let (entries, ones, numbers) = factors.dims3()?;
            if ![1, batch].contains(&entries) || ones != 1 || numbers != width {
                candle_core::bail!("factors {:?} do not fit tokens {:?}", factors.dims(), x.dims());
            }
        }
        expect_alike(x, &[self.early, self.late()])
    }

    /// `change` of the tokens with their factors; composed.
    fn apply(
        &self,
        x: &Tensor,
        change: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let Some((first, late)) = self.late.filter(|(first, _)| *first < tokens) else {
            return change(x, self.early);
        };
        let rest = tokens - first;
        let early = change(&x.narrow(1, 0, first)?, self.early)?;
        Tensor::cat(&[early, change(&x.narrow(1, first, rest)?, late)?], 1)
    }
}

/// norm(x) · (1 + scale) + shift, rounded after every operation.
///
/// `x`: (batch, tokens, width). Returns the same.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn modulated_norm(
    x: &Tensor,
    norm: &LayerNorm,
    scale: Factors,
    shift: Factors,
) -> Result<Tensor> {
    let _span = trace::span(Kind::Norm, "modulated norm");
    if !Fusion::LayerNormModulation.applies_to(x) {
        return modulated_norm_composed(x, norm, scale, shift);
    }
    let x = &x.contiguous()?;
    run(&ModulatedNorm::new(x, norm.eps(), scale, shift)?)
}

fn modulated_norm_composed(
    x: &Tensor,
    norm: &LayerNorm,
    scale: Factors,
    shift: Factors,
) -> Result<Tensor> {
    let scaled =
        scale.apply(&norm.forward(x)?, |part, scale| part.broadcast_mul(&(scale + 1.0)?))?;
    shift.apply(&scaled, |part, shift| part.broadcast_add(shift))
}

struct ModulatedNorm<'a> {
    x: &'a Tensor,
    eps: f32,
    scale: Factors<'a>,
    shift: Factors<'a>,
    switch: usize,
    dims: (usize, usize, usize),
}

impl<'a> ModulatedNorm<'a> {
    fn new(x: &'a Tensor, eps: f32, scale: Factors<'a>, shift: Factors<'a>) -> Result<Self> {
        let dims = x.dims3()?;
        expect_contiguous("a token", x)?;
        scale.expect_fit(x)?;
        shift.expect_fit(x)?;
        let switch = scale.switch(dims.1);
        if switch != shift.switch(dims.1) {
            candle_core::bail!("scale and shift must switch at the same token");
        }
        Ok(Self { x, eps, scale, shift, switch, dims })
    }
}

/// As `modulation.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ModulatedNormCall {
    x: u64,
    y: u64,
    scale: Vectors,
    shift: Vectors,
    late_scale: Vectors,
    late_shift: Vectors,
    tokens: i32,
    width: i32,
    switch_token: i32,
    eps: f32,
}

impl Operation for ModulatedNorm<'_> {
    type Call = ModulatedNormCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "modulated layer norm";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let (_, tokens, width) = self.dims;
        let x = Elements::<N>::of(self.x)?;
        let (x, eps) = (x.all(), self.eps);
        let scale = FactorRows::<N>::of(&self.scale, self.dims)?;
        let shift = FactorRows::<N>::of(&self.shift, self.dims)?;
        let (scale, shift) = (scale.rows(), shift.rows());
        made.par_chunks_mut(width).with_min_len(8).enumerate().for_each(|(row, made)| {
            let (x, scale) = (&x[row * width..][..width], scale.of_row(row, tokens));
            let shift = shift.of_row(row, tokens);
            vectorised(|| modulated_norm_row(x, scale, shift, made, eps));
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<ModulatedNormCall>> {
        let (batch, tokens, width) = self.dims;
        let call = ModulatedNormCall {
            x: address(self.x)?,
            y: made,
            scale: Vectors::of(self.scale.early)?,
            shift: Vectors::of(self.shift.early)?,
            late_scale: Vectors::of(self.scale.late())?,
            late_shift: Vectors::of(self.shift.late())?,
            tokens: length(tokens)?,
            width: length(width)?,
            switch_token: length(self.switch)?,
            eps: self.eps,
        };
        let factors = [call.scale, call.shift, call.late_scale, call.late_shift];
        let mut addresses = vec![call.x, made];
        addresses.extend(factors.map(|factor| factor.first));
        let strides = [self.scale.early, self.shift.early, self.scale.late(), self.shift.late()];
        let mut lengths = vec![width];
        for factors in strides {
            lengths.push(vector_stride(factors)?);
        }
        let pack = pack_of(self.x.dtype(), &addresses, &lengths);
        let threads = threads_for_row(width, pack);
        let kernel = "modulated_layer_norm";
        Ok(Launch { kernel, blocks: batch * tokens, threads, shared: threads / 32, call, pack })
    }
}

#[inline(always)]
fn modulated_norm_row<N: Element>(x: &[N], scale: &[N], shift: &[N], made: &mut [N], eps: f32) {
    let width = x.len() as f32;
    let mean = sum_of(x, |x| x) / width;
    let variance = sum_of(x, |x| (x - mean) * (x - mean)) / width;
    let inverse = 1.0 / (variance + eps).sqrt();
    for (((made, x), scale), shift) in made.iter_mut().zip(x).zip(scale).zip(shift) {
        let normalised = N::rounded((x.wide() - mean) * inverse);
        let scaled = N::rounded(normalised * N::rounded(scale.wide() + 1.0));
        *made = N::narrow(scaled + shift.wide());
    }
}

/// The factors' elements, held.
struct FactorRows<'a, N> {
    early: Elements<'a, N>,
    late: Elements<'a, N>,
    strides: (usize, usize),
    switch: usize,
    width: usize,
}

impl<'a, N: Element> FactorRows<'a, N> {
    fn of(factors: &Factors<'a>, (_, tokens, width): (usize, usize, usize)) -> Result<Self> {
        Ok(Self {
            early: Elements::of(factors.early)?,
            late: Elements::of(factors.late())?,
            strides: (vector_stride(factors.early)?, vector_stride(factors.late())?),
            switch: factors.switch(tokens),
            width,
        })
    }

    /// What threads can share.
    fn rows(&self) -> Rows<'_, N> {
        Rows {
            early: (self.early.all(), self.strides.0),
            late: (self.late.all(), self.strides.1),
            switch: self.switch,
            width: self.width,
        }
    }
}

struct Rows<'a, N> {
    early: (&'a [N], usize),
    late: (&'a [N], usize),
    switch: usize,
    width: usize,
}

impl<N> Rows<'_, N> {
    /// The factors of row `row` of batches of `tokens`.
    fn of_row(&self, row: usize, tokens: usize) -> &[N] {
        let (entry, token) = (row / tokens, row % tokens);
        let (numbers, stride) = if token < self.switch { self.early } else { self.late };
        &numbers[entry * stride..][..self.width]
    }
}

/// x + gate · (update + bias), rounded after every operation.
///
/// `x`, `update`: (batch, tokens, width); `bias`: (width). Returns the shape of `x`.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn gated_add(
    x: &Tensor,
    update: &Tensor,
    bias: Option<&Tensor>,
    gate: Factors,
) -> Result<Tensor> {
    let _span = trace::span(Kind::Elementwise, "gated sum");
    if !Fusion::GatedAdd.applies_to(x) {
        return gated_add_composed(x, update, bias, gate);
    }
    let (x, update) = (&x.contiguous()?, &update.contiguous()?);
    run(&GatedAdd::new(x, update, bias, gate)?)
}

fn gated_add_composed(
    x: &Tensor,
    update: &Tensor,
    bias: Option<&Tensor>,
    gate: Factors,
) -> Result<Tensor> {
    let update = add_bias(update.clone(), bias)?;
    x + gate.apply(&update, |part, gate| part.broadcast_mul(gate))?
}

struct GatedAdd<'a> {
    x: &'a Tensor,
    update: &'a Tensor,
    bias: Option<&'a Tensor>,
    gate: Factors<'a>,
    dims: (usize, usize, usize),
}

impl<'a> GatedAdd<'a> {
    fn new(
        x: &'a Tensor,
        update: &'a Tensor,
        bias: Option<&'a Tensor>,
        gate: Factors<'a>,
    ) -> Result<Self> {
        let dims = x.dims3()?;
        expect_contiguous("a token", x)?;
        expect_contiguous("an update", update)?;
        gate.expect_fit(x)?;
        expect_alike(x, &[update])?;
        if update.dims() != x.dims() {
            candle_core::bail!("update {:?} does not fit {:?}", update.dims(), x.dims());
        }
        expect_bias(x, bias, dims.2)?;
        Ok(Self { x, update, bias, gate, dims })
    }
}

/// As `modulation.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GatedAddCall {
    x: u64,
    update: u64,
    y: u64,
    bias: u64,
    gate: Vectors,
    late_gate: Vectors,
    tokens: i32,
    width: i32,
    switch_token: i32,
}

impl Operation for GatedAdd<'_> {
    type Call = GatedAddCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "gated add";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let (_, tokens, width) = self.dims;
        let (x, update) = (Elements::<N>::of(self.x)?, Elements::<N>::of(self.update)?);
        let (x, update) = (x.all(), update.all());
        let bias = self.bias.map(Elements::<N>::of).transpose()?;
        let bias = bias.as_ref().map(|bias| &bias.all()[..width]);
        let gate = FactorRows::<N>::of(&self.gate, self.dims)?;
        let gate = gate.rows();
        made.par_chunks_mut(width).with_min_len(8).enumerate().for_each(|(row, made)| {
            let (x, update) = (&x[row * width..][..width], &update[row * width..][..width]);
            let gate = gate.of_row(row, tokens);
            match bias {
                Some(bias) => vectorised(|| gated_row(x, (update, bias), gate, made)),
                None => vectorised(|| gated_row_without_bias(x, update, gate, made)),
            }
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<GatedAddCall>> {
        let (batch, tokens, width) = self.dims;
        let call = GatedAddCall {
            x: address(self.x)?,
            update: address(self.update)?,
            y: made,
            bias: address_or_null(self.bias)?,
            gate: Vectors::of(self.gate.early)?,
            late_gate: Vectors::of(self.gate.late())?,
            tokens: length(tokens)?,
            width: length(width)?,
            switch_token: length(self.gate.switch(tokens))?,
        };
        let (early, late) = (call.gate, call.late_gate);
        let addresses = [call.x, call.update, made, call.bias, early.first, late.first];
        let strides = (vector_stride(self.gate.early)?, vector_stride(self.gate.late())?);
        let pack = pack_of(self.x.dtype(), &addresses, &[width, strides.0, strides.1]);
        let threads = threads_for_row(width, pack);
        Ok(Launch { kernel: "gated_add", blocks: batch * tokens, threads, shared: 0, call, pack })
    }
}

#[inline(always)]
fn gated_row<N: Element>(x: &[N], (update, bias): (&[N], &[N]), gate: &[N], made: &mut [N]) {
    let updates =
        update.iter().zip(bias).map(|(update, bias)| N::rounded(update.wide() + bias.wide()));
    for (((made, x), update), gate) in made.iter_mut().zip(x).zip(updates).zip(gate) {
        *made = N::narrow(x.wide() + N::rounded(gate.wide() * update));
    }
}

#[inline(always)]
fn gated_row_without_bias<N: Element>(x: &[N], update: &[N], gate: &[N], made: &mut [N]) {
    for (((made, x), update), gate) in made.iter_mut().zip(x).zip(update).zip(gate) {
        *made = N::narrow(x.wide() + N::rounded(gate.wide() * update.wide()));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::kernels::emulation::{assert_close, emulate, formats, in_nan, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    /// (batch, tokens, width): one block and many, rows that packs divide and rows
    /// that they do not, rows longer than a block.
    const SHAPES: [(usize, usize, usize); 4] = [(1, 1, 4), (2, 5, 36), (1, 7, 33), (2, 3, 4200)];

    #[test]
    fn modulated_norms_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(8.0) {
            for (batch, tokens, width) in SHAPES {
                let x = numbers(&[batch, tokens, width], 1, dtype);
                // Views into (batch, 2 · width), as layers make them, and one shared vector.
                let chunks = numbers(&[batch, 1, 2 * width], 2, dtype);
                let (scale, shift) =
                    (chunks.narrow(2, 0, width).unwrap(), chunks.narrow(2, width, width).unwrap());
                let late_scale = numbers(&[1, 1, width], 3, dtype);
                let late_shift = numbers(&[1, 1, width], 4, dtype);
                let norm = LayerNorm::new(width, 1e-6, dtype, &Device::Cpu).unwrap();
                for switch in [None, Some(tokens / 2)] {
                    let scale =
                        Factors { early: &scale, late: switch.map(|first| (first, &late_scale)) };
                    let shift =
                        Factors { early: &shift, late: switch.map(|first| (first, &late_shift)) };
                    let composed = modulated_norm_composed(&x, &norm, scale, shift).unwrap();
                    let operation = ModulatedNorm::new(&x, 1e-6, scale, shift).unwrap();

                    let looped = run(&operation).unwrap();

                    assert_close(&looped, &composed, tolerance);
                    assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
                }
            }
        }
    }

    #[test]
    fn gated_sums_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(4.0) {
            for (batch, tokens, width) in SHAPES {
                let x = numbers(&[batch, tokens, width], 1, dtype);
                let update = numbers(&[batch, tokens, width], 2, dtype);
                let early = numbers(&[batch, 1, 3 * width], 3, dtype);
                let early = early.narrow(2, width, width).unwrap();
                let late = numbers(&[batch, 1, width], 4, dtype);
                let bias = numbers(&[width], 5, dtype);
                for (switch, bias) in [(None, None), (Some(tokens / 2), Some(&bias))] {
                    let gate = Factors { early: &early, late: switch.map(|first| (first, &late)) };
                    let composed = gated_add_composed(&x, &update, bias, gate).unwrap();
                    let operation = GatedAdd::new(&x, &update, bias, gate).unwrap();

                    let looped = run(&operation).unwrap();

                    assert_close(&looped, &composed, tolerance);
                    assert_close(&emulate(&operation).unwrap(), &looped, tolerance);
                }
            }
        }
    }

    /// Tokens, the first of those with late factors, width.
    const SWITCHED: (usize, usize, usize) = (4, 2, 37);

    #[test]
    fn what_is_not_finite_goes_through_a_modulated_norm_as_through_torchs() {
        let (tokens, switch, width) = SWITCHED;
        for dtype in NUMBER_FORMATS {
            let vector = |seed| numbers(&[1, 1, width], seed, dtype);
            let inputs = [
                numbers(&[1, tokens, width], 1, dtype),
                vector(2),
                vector(3),
                vector(4),
                vector(5),
            ];
            let norm = LayerNorm::new(width, 1e-6, dtype, &Device::Cpu).unwrap();
            let forms = |inputs: &[Tensor]| {
                let [x, scale, late_scale, shift, late_shift] = inputs else { panic!("five") };
                let scale = Factors { early: scale, late: Some((switch, late_scale)) };
                let shift = Factors { early: shift, late: Some((switch, late_shift)) };
                let operation = ModulatedNorm::new(x, 1e-6, scale, shift).unwrap();
                let mut forms = both_forms(&operation);
                let composed = modulated_norm_composed(x, &norm, scale, shift).unwrap();
                forms.push(("composition", composed));
                forms
            };
            let reference = |inputs: &[Vec<f64>]| {
                let row = |(token, x): (usize, &[f64])| {
                    let late = usize::from(token >= switch);
                    let (scale, shift) = (&inputs[1 + late], &inputs[3 + late]);
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let squares = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                    let deviation = (squares / width as f64 + 1e-6).sqrt();
                    let made =
                        |at: usize| (x[at] - mean) / deviation * (1.0 + scale[at]) + shift[at];
                    (0..width).map(made).collect::<Vec<_>>()
                };
                inputs[0].chunks(width).enumerate().flat_map(row).collect()
            };
            assert_passed_on(&inputs, forms, reference);
        }
    }

    #[test]
    fn what_is_not_finite_goes_through_a_gated_sum_as_through_torchs() {
        let (tokens, switch, width) = SWITCHED;
        for dtype in NUMBER_FORMATS {
            let tokens_of = |seed| numbers(&[1, tokens, width], seed, dtype);
            let vector = |seed| numbers(&[1, 1, width], seed, dtype);
            let bias = numbers(&[width], 5, dtype);
            let inputs = [tokens_of(1), tokens_of(2), vector(3), vector(4), bias];
            for biased in [false, true] {
                let inputs = &inputs[..if biased { 5 } else { 4 }];
                let forms = |inputs: &[Tensor]| {
                    let (x, update, bias) = (&inputs[0], &inputs[1], inputs.get(4));
                    let gate = Factors { early: &inputs[2], late: Some((switch, &inputs[3])) };
                    let mut forms = both_forms(&GatedAdd::new(x, update, bias, gate).unwrap());
                    forms.push(("composition", gated_add_composed(x, update, bias, gate).unwrap()));
                    forms
                };
                let reference = |inputs: &[Vec<f64>]| {
                    let made = |at: usize| {
                        let (token, column) = (at / width, at % width);
                        let gate = inputs[2 + usize::from(token >= switch)][column];
                        let bias = inputs.get(4).map_or(0.0, |bias| bias[column]);
                        inputs[0][at] + gate * (inputs[1][at] + bias)
                    };
                    (0..tokens * width).map(made).collect()
                };
                assert_passed_on(inputs, forms, reference);
            }
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let (dtype, _) = formats(1.0)[0];
        let x = numbers(&[2, 3, 4], 1, dtype);
        let fitting = numbers(&[2, 1, 4], 2, dtype);
        let wide = numbers(&[2, 1, 5], 2, dtype);
        let many = numbers(&[3, 1, 4], 2, dtype);
        let turned = in_nan(&numbers(&[2, 4, 3], 2, dtype)).transpose(1, 2).unwrap();

        for factors in [&wide, &many] {
            let error = GatedAdd::new(&x, &x, None, Factors::of_all(factors)).err().unwrap();
            assert!(error.to_string().contains("do not fit"), "{error}");
        }
        let gate = Factors::of_all(&fitting);
        assert!(GatedAdd::new(&x, &turned, None, gate).is_err());
        assert!(GatedAdd::new(&x, &x, Some(&wide), gate).is_err());
        let late = Factors { early: &fitting, late: Some((1, &fitting)) };
        assert!(ModulatedNorm::new(&x, 1e-6, gate, late).is_err());
    }
}
