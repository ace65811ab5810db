//! Image and text tokens on their way through the transformer's blocks.
//!
//! Several passes go block by block together, so that a block that does not stay is loaded
//! once for all of them. A pass may be of several pictures, and of several prompts that are
//! equally long: then products of matrices are larger, and fewer.

use candle_core::{Result, Tensor};

use super::modulation::StepModulation;
use super::step_cache::StepCache;
use super::transformer::{Block, BlockModulations, TokenPositions, Transformer};
use crate::interruption;
use crate::model::residency::Offloadable;
use crate::nn::{intermediate, trace};

/// The text that a flow is predicted for; or several, equally long.
#[derive(Clone, Copy)]
pub struct PromptTokens<'a> {
    /// (prompts, text tokens, text width)
    pub embeds: &'a Tensor,
    /// Of these tokens, and of the pictures.
    pub positions: &'a TokenPositions,
}

/// Pictures that go through the blocks together, once for each of some texts.
pub struct PassInputs<'a> {
    /// (pictures, image tokens, in channels): of each the picture being made first, then the
    /// references.
    pub latents: &'a Tensor,
    /// How many of the tokens have their flow read, the first ones; of the others, nothing
    /// is computed that only their own flow would need.
    pub read: usize,
    /// What flows are predicted for.
    pub prompts: Vec<PromptTokens<'a>>,
    /// What each of `prompts` knows of earlier steps; empty if every step is computed. The
    /// pictures of a pass decide together.
    pub caches: &'a mut [StepCache],
}

/// One pass.
struct Pass<'a> {
    text: Tensor,
    image: Tensor,
    positions: &'a TokenPositions,
    read: usize,
    cache: Option<&'a mut StepCache>,
    /// Whether `image` is already what the last block leaves.
    is_over: bool,
}

/// Which block it is that tokens go through.
#[derive(Clone, Copy)]
struct BlockPlace {
    index: usize,
    is_last: bool,
}

impl Transformer {
    /// Predicts the flow (noise minus picture) for each prompt of each of `inputs`, in that
    /// order: (prompts · pictures, `read`, in channels), all pictures of the first prompt
    /// first. `modulation`: of the noise level, from [`Transformer::modulations`].
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_each(
        &self,
        inputs: Vec<PassInputs>,
        modulation: StepModulation,
    ) -> Result<Vec<Tensor>> {
        let mut passes = Vec::new();
        for inputs in inputs {
            passes.extend(self.begin(inputs)?);
        }
        let blocks = &self.transformer_blocks;
        let mut loading = blocks.first().map(Offloadable::start_loading).transpose()?;
        for index in 0.. {
            let Some(block) = loading.take() else { break };
            interruption::check_layer(index, blocks.len())?;
            let next = blocks.get(index + 1);
            // The first block may turn out to be the only one that is needed.
            if index > 0 || !passes.iter().all(Pass::may_skip) {
                next.inspect(|next| next.read_ahead());
            }
            let place = BlockPlace { index, is_last: next.is_none() };
            let through = |block: &Block| {
                let passes = passes.into_iter();
                passes
                    .map(|pass| pass.through(block, place, modulation))
                    .collect::<Result<Vec<_>>>()
            };
            let load_next = |passes: &Vec<Pass>| {
                let is_needed = passes.iter().any(|pass| !pass.is_over);
                next.filter(|_| is_needed).map(Offloadable::start_loading).transpose()
            };
            (passes, loading) = block.with(through, load_next)?;
        }
        let flow =
            |pass: Pass| self.proj_out.forward(&self.norm_out.forward(&pass.image, modulation)?);
        passes.into_iter().map(flow).collect()
    }

    /// The passes of `inputs` before the first block.
    fn begin<'a>(&self, inputs: PassInputs<'a>) -> Result<Vec<Pass<'a>>> {
        let PassInputs { latents, read, prompts, caches } = inputs;
        let image = self.img_in.forward(latents)?;
        let mut caches = caches.iter_mut();
        let begin = |prompt: PromptTokens<'a>| {
            let text = self.txt_in.forward(&self.txt_norm.forward(prompt.embeds)?)?;
            let (prompts, pictures) = (text.dim(0)?, image.dim(0)?);
            Ok(Pass {
                text: each_times(&text, pictures)?,
                image: all_times(&image, prompts)?,
                positions: prompt.positions,
                read,
                cache: caches.next(),
                is_over: false,
            })
        };
        prompts.into_iter().map(begin).collect()
    }
}

/// (batch · times, …): each entry `times` times, one after another.
fn each_times(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.clone());
    }
    let (batch, tokens, width) = x.dims3()?;
    let repeated = x.unsqueeze(1)?.expand((batch, times, tokens, width))?;
    repeated.reshape((batch * times, tokens, width))
}

/// (times · batch, …): all entries `times` times.
fn all_times(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 { Ok(x.clone()) } else { Tensor::cat(&vec![x; times], 0) }
}

impl Pass<'_> {
    fn may_skip(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.may_skip())
    }

    fn through(
        mut self,
        block: &Block,
        place: BlockPlace,
        modulation: StepModulation,
    ) -> Result<Self> {
        if self.is_over {
            return Ok(self);
        }
        interruption::check()?;
        let BlockPlace { index, is_last } = place;
        let _span = trace::numbered("block", index);
        let modulations = BlockModulations {
            image: modulation.of_image(index, self.positions.first_picture)?,
            text: modulation.of_text(index)?,
        };
        let (text, image, positions) = (&self.text, &self.image, self.positions);
        let (text, image) = if is_last {
            let (tokens, read) = ((text, image), self.read);
            (text.clone(), block.forward_last(tokens, read, &modulations, positions)?)
        } else {
            block.forward(text, image, &modulations, positions)?
        };
        intermediate::note("block", &image)?;
        let before = std::mem::replace(&mut self.image, image);
        self.text = text;
        self.cached(&before, place)
    }

    /// The same, once its cache has been told what a block made of the image tokens `before`.
    fn cached(mut self, before: &Tensor, place: BlockPlace) -> Result<Self> {
        let Some(cache) = self.cache.as_deref_mut() else { return Ok(self) };
        match place {
            // There is nothing to skip.
            BlockPlace { index: 0, is_last: true } => {}
            BlockPlace { index: 0, .. } => {
                if let Some(image) = cache.after_first((before, &self.image), self.read)? {
                    (self.image, self.is_over) = (image, true);
                }
            }
            BlockPlace { is_last: true, .. } => cache.after_last(&self.image)?,
            BlockPlace { .. } => {}
        }
        Ok(self)
    }
}
