//! What the noise level does to the tokens of a stream: shift, scale and gate.
//!
//! Source: diffusers 0.42.1, `QwenImageTransformerBlock._modulate`.

use candle_core::{D, Result, Tensor};

use crate::nn::Linear;

/// The embedded noise level, SiLU applied, each (batch, width).
pub(super) struct NoiseLevel {
    /// Of the picture being made.
    pub(super) picture: Tensor,
    /// Of the reference pictures, where that is another one.
    pub(super) references: Option<ReferenceLevel>,
}

/// The noise level of reference pictures: none at all.
pub(super) struct ReferenceLevel {
    /// Embedded as [`NoiseLevel::picture`] is.
    pub(super) temb: Tensor,
    /// Image tokens before the first one of a reference picture.
    pub(super) first_token: usize,
}

/// Shift, scale and gate of one half of a block.
pub(super) struct Modulation {
    picture: Factors,
    /// Those of the tokens from the given one on.
    references: Option<(usize, Factors)>,
}

/// Each (batch, 1, width).
#[derive(Clone)]
struct Factors {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// The modulations of the attention half and of the feed-forward half of the
    /// image stream.
    pub(super) fn of_image(linear: &Linear, level: &NoiseLevel) -> Result<(Self, Self)> {
        let (attention, feed_forward) = Self::of_text(linear, level)?;
        let Some(references) = &level.references else {
            return Ok((attention, feed_forward));
        };
        let [first, second] = Factors::of(linear, &references.temb)?;
        let from = references.first_token;
        Ok((
            Self { references: Some((from, first)), ..attention },
            Self { references: Some((from, second)), ..feed_forward },
        ))
    }

    /// The same of the text stream, which knows the picture's noise level alone.
    pub(super) fn of_text(linear: &Linear, level: &NoiseLevel) -> Result<(Self, Self)> {
        let [first, second] = Factors::of(linear, &level.picture)?;
        let alike = |picture| Self { picture, references: None };
        Ok((alike(first), alike(second)))
    }

    /// x · (1 + scale) + shift; `x`: (batch, tokens, width).
    pub(super) fn modulate(&self, x: &Tensor) -> Result<Tensor> {
        self.by_part(x, |factors, part| {
            part.broadcast_mul(&(&factors.scale + 1.0)?)?.broadcast_add(&factors.shift)
        })
    }

    /// x + gate · update, both (batch, tokens, width).
    pub(super) fn gated_add(&self, x: &Tensor, update: &Tensor) -> Result<Tensor> {
        x + self.by_part(update, |factors, part| part.broadcast_mul(&factors.gate))?
    }

    fn by_part(
        &self,
        x: &Tensor,
        change: impl Fn(&Factors, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some((from, references)) = &self.references else {
            return change(&self.picture, x);
        };
        let rest = x.dim(1)? - from;
        let picture = change(&self.picture, &x.narrow(1, 0, *from)?)?;
        Tensor::cat(&[picture, change(references, &x.narrow(1, *from, rest)?)?], 1)
    }
}

impl Factors {
    /// Of the first and of the second half of a block.
    fn of(linear: &Linear, temb: &Tensor) -> Result<[Self; 2]> {
        let parts = linear.forward(temb)?.unsqueeze(1)?.chunk(6, D::Minus1)?;
        Ok([0, 3].map(|first| Self {
            shift: parts[first].clone(),
            scale: parts[first + 1].clone(),
            gate: parts[first + 2].clone(),
        }))
    }
}
