//! What the noise level does to the tokens of a stream: shift, scale and gate.
//!
//! Source: diffusers 0.42.1, `QwenImageTransformerBlock._modulate`.

use candle_core::{D, Result, Tensor};

use crate::checkpoint::Weights;
use crate::nn::{self, LayerNorm, Linear};

/// What the noise levels of a schedule do to the tokens of every block.
///
/// It depends on nothing else, so it is computed once for all steps, in one
/// product for each layer; the layers, a third of all weights, need not stay in
/// memory for it.
pub struct ModulationTable {
    pub(super) blocks: Vec<BlockTable>,
    /// Of the last normalisation: (levels, 2 · width).
    pub(super) output: Tensor,
    /// The row of noise level 0, if reference pictures are seen at that.
    pub(super) reference_level: Option<usize>,
}

/// Of one block, each (levels, 6 · width).
pub(super) struct BlockTable {
    pub(super) image: Tensor,
    pub(super) text: Tensor,
}

impl ModulationTable {
    /// What acts in step `step` of the schedule that it was made for.
    #[must_use]
    pub fn at(&self, step: usize) -> StepModulation<'_> {
        StepModulation { table: self, step }
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let blocks = self.blocks.iter().map(|block| of(&block.image) + of(&block.text));
        blocks.sum::<usize>() + of(&self.output)
    }
}

/// A row of a [`ModulationTable`].
#[derive(Clone, Copy)]
pub struct StepModulation<'a> {
    table: &'a ModulationTable,
    step: usize,
}

impl StepModulation<'_> {
    /// The modulations of the attention half and of the feed-forward half of the
    /// image stream of block `block`. Tokens from `first_reference` on are of
    /// reference pictures.
    pub(super) fn of_image(
        self,
        block: usize,
        first_reference: usize,
    ) -> Result<(Modulation, Modulation)> {
        let table = &self.table.blocks[block].image;
        let (attention, feed_forward) = Modulation::of_row(table, self.step)?;
        let Some(level) = self.table.reference_level else {
            return Ok((attention, feed_forward));
        };
        let [first, second] = Factors::of_row(table, level)?;
        Ok((
            Modulation { references: Some((first_reference, first)), ..attention },
            Modulation { references: Some((first_reference, second)), ..feed_forward },
        ))
    }

    /// The same of the text stream, which knows the picture's noise level alone.
    pub(super) fn of_text(self, block: usize) -> Result<(Modulation, Modulation)> {
        Modulation::of_row(&self.table.blocks[block].text, self.step)
    }

    /// Scale and shift of the last normalisation, each (1, 1, width).
    pub(super) fn of_output(self) -> Result<(Tensor, Tensor)> {
        let row = self.table.output.narrow(0, self.step, 1)?.unsqueeze(1)?;
        let parts = row.chunk(2, D::Minus1)?;
        // Here the scale comes first, then the shift: the other way round than in the blocks.
        Ok((parts[0].clone(), parts[1].clone()))
    }
}

/// The layers that a block's part of the table is computed with.
pub(super) struct ModulationLayers {
    image: Linear,
    text: Linear,
}

impl ModulationLayers {
    /// Takes `img_mod` and `txt_mod` of the block at `weights`.
    pub(super) fn load(weights: &Weights, width: usize) -> Result<Self> {
        let linear = |name| Linear::load(&weights.at(name), width, 6 * width);
        Ok(Self { image: linear("img_mod.1")?, text: linear("txt_mod.1")? })
    }

    /// `levels`: the embedded noise levels, SiLU applied, (levels, width).
    pub(super) fn forward(&self, levels: &Tensor) -> Result<BlockTable> {
        Ok(BlockTable { image: self.image.forward(levels)?, text: self.text.forward(levels)? })
    }
}

/// Shift, scale and gate of one half of a block.
pub(super) struct Modulation {
    picture: Factors,
    /// Those of the tokens from the given one on.
    references: Option<(usize, Factors)>,
}

/// Each (1, 1, width).
#[derive(Clone)]
struct Factors {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// Of the attention half and of the feed-forward half.
    fn of_row(table: &Tensor, row: usize) -> Result<(Self, Self)> {
        let [first, second] = Factors::of_row(table, row)?;
        let alike = |picture| Self { picture, references: None };
        Ok((alike(first), alike(second)))
    }

    /// norm(x) · (1 + scale) + shift; `x`: (batch, tokens, width).
    pub(super) fn modulated_norm(&self, norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
        let (scale, shift) = (self.factors(|of| &of.scale), self.factors(|of| &of.shift));
        nn::modulated_norm(x, norm, scale, shift)
    }

    /// x + gate · `layer`(input); `x`: (batch, tokens, width).
    pub(super) fn gated_add(&self, x: &Tensor, layer: &Linear, input: &Tensor) -> Result<Tensor> {
        nn::gated_add(x, &layer.product(input)?, layer.bias(), self.factors(|of| &of.gate))
    }

    fn factors<'a>(&'a self, which: impl Fn(&'a Factors) -> &'a Tensor) -> nn::Factors<'a> {
        let late = self.references.as_ref().map(|(from, references)| (*from, which(references)));
        nn::Factors { early: which(&self.picture), late }
    }
}

impl Factors {
    /// Of the first and of the second half of a block.
    fn of_row(table: &Tensor, row: usize) -> Result<[Self; 2]> {
        let parts = table.narrow(0, row, 1)?.unsqueeze(1)?.chunk(6, D::Minus1)?;
        Ok([0, 3].map(|first| Self {
            shift: parts[first].clone(),
            scale: parts[first + 1].clone(),
            gate: parts[first + 2].clone(),
        }))
    }
}
