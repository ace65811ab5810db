//! Two predictions → the guided flow; flow → the next latents.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::fusion::Fusion;
use super::kernels::{
    Element, Elements, Launch, Operation, WARP, address, address_or_null, expect_alike,
    expect_contiguous, length, run,
};
use super::rows::vectorised;
use super::trace::{self, Kind};

/// Warps of a block: each takes a token.
const WARPS: usize = 4;

/// How long the guided flow is at each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CfgRescale {
    /// As it comes out.
    Free,
    /// As long as the conditional flow there.
    OfConditional,
}

/// Classifier-free guidance: away from the unconditional flow, and perhaps back to
/// the length of the conditional one at every token.
///
/// Both: (1, tokens, channels). Returns the same. Every operation is rounded;
/// lengths are summed in 32 bits.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn guide(
    conditional: &Tensor,
    unconditional: &Tensor,
    scale: f64,
    length: CfgRescale,
) -> Result<Tensor> {
    let _span = trace::span(Kind::Elementwise, "guidance");
    if !Fusion::Guidance.applies_to(conditional) {
        return guide_composed(conditional, unconditional, scale, length);
    }
    let (conditional, unconditional) = (&conditional.contiguous()?, &unconditional.contiguous()?);
    run(&GuidedStep::guide(conditional, unconditional, scale, length)?)
}

fn guide_composed(
    conditional: &Tensor,
    unconditional: &Tensor,
    scale: f64,
    length: CfgRescale,
) -> Result<Tensor> {
    let combined = (unconditional + ((conditional - unconditional)? * scale)?)?;
    match length {
        CfgRescale::Free => Ok(combined),
        CfgRescale::OfConditional => {
            let wanted = token_lengths(conditional)?;
            let actual = token_lengths(&combined)?;
            combined.broadcast_mul(&(wanted / actual)?)
        }
    }
}

/// The Euclidean length of each token, summed in 32 bits: (1, tokens, 1).
fn token_lengths(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.to_dtype(x.dtype())
}

/// latents + change · flow. In 16-bit formats the product is rounded, the sum is
/// made in 32 bits and rounded again, as in the reference.
///
/// `latents`, `flow`: (1, tokens, channels). Returns the same.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub fn euler_step(latents: &Tensor, flow: &Tensor, sigma_change: f32) -> Result<Tensor> {
    let _span = trace::span(Kind::Elementwise, "Euler step");
    if !Fusion::Guidance.applies_to(latents) {
        return euler_step_composed(latents, flow, sigma_change);
    }
    run(&GuidedStep::euler(&latents.contiguous()?, &flow.contiguous()?, sigma_change)?)
}

fn euler_step_composed(latents: &Tensor, flow: &Tensor, sigma_change: f32) -> Result<Tensor> {
    let dtype = latents.dtype();
    let change = (flow.to_dtype(DType::F32)? * f64::from(sigma_change))?.to_dtype(dtype)?;
    (latents.to_dtype(DType::F32)? + change.to_dtype(DType::F32)?)?.to_dtype(dtype)
}

/// Guidance, the Euler step, or both at once. What is made is the flow, or the
/// latents if there are any.
struct GuidedStep<'a> {
    conditional: &'a Tensor,
    unconditional: Option<&'a Tensor>,
    latents: Option<&'a Tensor>,
    scale: f32,
    length: CfgRescale,
    sigma_change: f32,
    width: usize,
}

impl<'a> GuidedStep<'a> {
    fn guide(
        conditional: &'a Tensor,
        unconditional: &'a Tensor,
        scale: f64,
        length: CfgRescale,
    ) -> Result<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "arithmetic is in 32 bits")]
        let scale = scale as f32;
        Self {
            conditional,
            unconditional: Some(unconditional),
            latents: None,
            scale,
            length,
            sigma_change: 0.0,
            width: 0,
        }
        .checked()
    }

    fn euler(latents: &'a Tensor, flow: &'a Tensor, sigma_change: f32) -> Result<Self> {
        Self {
            conditional: flow,
            unconditional: None,
            latents: Some(latents),
            scale: 1.0,
            length: CfgRescale::Free,
            sigma_change,
            width: 0,
        }
        .checked()
    }

    fn checked(mut self) -> Result<Self> {
        self.width = self.conditional.dim(D::Minus1)?;
        expect_contiguous("a flow", self.conditional)?;
        for other in [self.unconditional, self.latents].into_iter().flatten() {
            expect_contiguous("a flow, or latents,", other)?;
            expect_alike(self.conditional, &[other])?;
            if other.dims() != self.conditional.dims() {
                let dims = self.conditional.dims();
                candle_core::bail!("{:?} does not fit {dims:?}", other.dims());
            }
        }
        Ok(self)
    }

    fn keeps_length(&self) -> bool {
        self.unconditional.is_some() && self.length == CfgRescale::OfConditional
    }
}

/// As `guidance.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GuidedStepCall {
    conditional: u64,
    unconditional: u64,
    latents: u64,
    flow: u64,
    next: u64,
    tokens: i64,
    width: i32,
    keep_length: i32,
    scale: f32,
    sigma_change: f32,
}

impl Operation for GuidedStep<'_> {
    type Call = GuidedStepCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "guided step";

    fn subject(&self) -> &Tensor {
        self.conditional
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let width = self.width;
        let conditional = Elements::<N>::of(self.conditional)?;
        let unconditional = self.unconditional.map(Elements::<N>::of).transpose()?;
        let latents = self.latents.map(Elements::<N>::of).transpose()?;
        let conditional = conditional.all();
        let unconditional = unconditional.as_ref().map(Elements::all);
        let latents = latents.as_ref().map(Elements::all);
        made.par_chunks_mut(width).with_min_len(64).enumerate().for_each(|(token, made)| {
            let row = token * width..(token + 1) * width;
            let conditional = &conditional[row.clone()];
            let unconditional = unconditional.map(|numbers| &numbers[row.clone()]);
            vectorised(|| {
                self.flow_row(conditional, unconditional, made);
                if let Some(latents) = latents {
                    for (made, latents) in made.iter_mut().zip(&latents[row.clone()]) {
                        let change = N::rounded(made.wide() * self.sigma_change);
                        *made = N::narrow(latents.wide() + change);
                    }
                }
            });
        });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<GuidedStepCall>> {
        let tokens = self.conditional.elem_count() / self.width.max(1);
        let (flow, next) = if self.latents.is_some() { (0, made) } else { (made, 0) };
        let call = GuidedStepCall {
            conditional: address(self.conditional)?,
            unconditional: address_or_null(self.unconditional)?,
            latents: address_or_null(self.latents)?,
            flow,
            next,
            tokens: tokens as i64,
            width: length(self.width)?,
            keep_length: i32::from(self.keeps_length()),
            scale: self.scale,
            sigma_change: self.sigma_change,
        };
        let (blocks, threads) = (tokens.div_ceil(WARPS), WARPS * WARP);
        // Tokens are short: nothing is gained by wider moves.
        Ok(Launch { kernel: "guided_step", blocks, threads, shared: 0, call, pack: 1 })
    }
}

impl GuidedStep<'_> {
    #[inline(always)]
    fn flow_row<N: Element>(&self, conditional: &[N], unconditional: Option<&[N]>, made: &mut [N]) {
        let Some(unconditional) = unconditional else {
            made.copy_from_slice(conditional);
            return;
        };
        for ((made, conditional), unconditional) in
            made.iter_mut().zip(conditional).zip(unconditional)
        {
            let away = N::rounded(conditional.wide() - unconditional.wide());
            *made = N::narrow(unconditional.wide() + N::rounded(away * self.scale));
        }
        if self.keeps_length() {
            // Summed in order, as the composition does.
            let length =
                |row: &[N]| N::rounded(row.iter().map(|x| x.wide() * x.wide()).sum::<f32>().sqrt());
            let ratio = N::rounded(length(conditional) / length(made));
            for made in made.iter_mut() {
                *made = N::narrow(made.wide() * ratio);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use super::*;

    /// (tokens, width): fewer than a block, a block and one, widths around a warp.
    const SHAPES: [(usize, usize); 4] = [(1, 4), (5, 33), (9, 64), (4, 7)];

    fn exact_guidance(conditional: &[f64], unconditional: &[f64], length: CfgRescale) -> Vec<f64> {
        let pairs = conditional.iter().zip(unconditional);
        let combined: Vec<f64> = pairs.map(|(c, u)| u + 2.5 * (c - u)).collect();
        let long = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let ratio = match length {
            CfgRescale::Free => return combined,
            CfgRescale::OfConditional => long(conditional) / long(&combined),
        };
        combined.iter().map(|x| x * ratio).collect()
    }

    #[test]
    fn what_is_not_finite_goes_through_guidance_as_through_torchs() {
        let (tokens, width) = (5, 33);
        for dtype in NUMBER_FORMATS {
            let inputs = [1, 2].map(|seed| numbers(&[1, tokens, width], seed, dtype));
            for length in [CfgRescale::Free, CfgRescale::OfConditional] {
                let forms = |inputs: &[Tensor]| {
                    let (conditional, unconditional) = (&inputs[0], &inputs[1]);
                    let guided = GuidedStep::guide(conditional, unconditional, 2.5, length);
                    let mut forms = both_forms(&guided.unwrap());
                    let composed = guide_composed(conditional, unconditional, 2.5, length);
                    forms.push(("composition", composed.unwrap()));
                    forms
                };
                let reference = |inputs: &[Vec<f64>]| {
                    let rows = inputs[0].chunks(width).zip(inputs[1].chunks(width));
                    rows.flat_map(|(c, u)| exact_guidance(c, u, length)).collect()
                };
                assert_passed_on(&inputs, forms, reference);
            }
            let forms = |inputs: &[Tensor]| {
                let (latents, flow) = (&inputs[0], &inputs[1]);
                let mut forms = both_forms(&GuidedStep::euler(latents, flow, -0.3).unwrap());
                forms.push(("composition", euler_step_composed(latents, flow, -0.3).unwrap()));
                forms
            };
            let reference = |inputs: &[Vec<f64>]| {
                inputs[0].iter().zip(&inputs[1]).map(|(latent, flow)| latent - 0.3 * flow).collect()
            };
            assert_passed_on(&inputs, forms, reference);
        }
    }

    #[test]
    fn guidance_and_steps_agree_as_composition_loop_and_kernel() {
        for (dtype, tolerance) in formats(16.0) {
            for (tokens, width) in SHAPES {
                let [conditional, unconditional, latents] =
                    [1, 2, 3].map(|seed| numbers(&[1, tokens, width], seed, dtype));
                for length in [CfgRescale::Free, CfgRescale::OfConditional] {
                    let composed =
                        guide_composed(&conditional, &unconditional, 2.5, length).unwrap();
                    let guided =
                        GuidedStep::guide(&conditional, &unconditional, 2.5, length).unwrap();
                    let looped = run(&guided).unwrap();
                    assert_close(&looped, &composed, tolerance);
                    assert_close(&emulate(&guided).unwrap(), &looped, tolerance);

                    let next = euler_step_composed(&latents, &composed, -0.3).unwrap();
                    let step = GuidedStep::euler(&latents, &composed, -0.3).unwrap();
                    assert_close(&run(&step).unwrap(), &next, tolerance);
                    assert_close(&emulate(&step).unwrap(), &next, tolerance);

                    // Both at once.
                    let both = GuidedStep { latents: Some(&latents), sigma_change: -0.3, ..guided };
                    assert_close(&run(&both).unwrap(), &next, tolerance);
                    assert_close(&emulate(&both).unwrap(), &next, tolerance);
                }
            }
        }
    }
}
