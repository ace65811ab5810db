//! Prompts, and the pictures shown with them → what steers the transformer.

use candle_core::{Result as TensorResult, Tensor};

use super::{Pipeline, preprocess};
use crate::domain::{ImageRequest, Prompt, RgbImage};
use crate::model::ModelError;
use crate::model::qwen_image::positions::{Grid, text_start};

/// Longest sequence that the rotary tables of the reference reach.
const MAX_POSITION: usize = 4096;

/// A prompt as the transformer takes it.
pub(super) struct Conditioning {
    /// (1, tokens, text width).
    pub(super) embeds: Tensor,
    /// How many of the tokens are words; the others are pictures.
    pub(super) words: usize,
}

/// The prompts of one request.
pub(super) struct Guidance {
    pub(super) positive: Conditioning,
    /// With it, and above scale 1, predictions are steered away from it.
    pub(super) negative: Option<Conditioning>,
    pub(super) scale: f64,
}

/// The pictures that a prompt is about, as tokens of the language model.
struct ShownPictures {
    /// (tokens, text width), picture by picture; `None` without pictures.
    tokens: Option<Tensor>,
    /// Tokens of each.
    grids: Vec<Grid>,
}

impl Pipeline {
    /// `shown`: what the encoder sees. `grids`: what the transformer is going to see.
    pub(super) fn encode_prompts(
        &self,
        shown: &[RgbImage],
        request: &ImageRequest,
        grids: &[Grid],
    ) -> Result<Guidance, ModelError> {
        let pictures = self.encode_shown(shown)?;
        let start = text_start(grids, self.components.transformer.frame_order());
        let longest = MAX_POSITION - start.min(MAX_POSITION);
        let encode = |field, prompt| self.encode_prompt(field, prompt, &pictures, longest);
        let scale = request.guidance.get();
        let negative = request.negative_prompt.as_ref().filter(|_| scale > 1.0);
        Ok(Guidance {
            positive: encode("prompt", &request.prompt)?,
            negative: negative.map(|prompt| encode("negative_prompt", prompt)).transpose()?,
            scale,
        })
    }

    fn encode_shown(&self, shown: &[RgbImage]) -> TensorResult<ShownPictures> {
        let Some(processor) = self.components.processor.as_ref().filter(|_| !shown.is_empty())
        else {
            return Ok(ShownPictures { tokens: None, grids: Vec::new() });
        };
        let vision = self.vision_config();
        let inputs = shown
            .iter()
            .map(|image| preprocess::encoder_input(image, processor, vision, self.tensor_kind()))
            .collect::<TensorResult<Vec<_>>>()?;
        let patches: Vec<&Tensor> = inputs.iter().map(|input| &input.patches).collect();
        let grids: Vec<Grid> = inputs.iter().map(|input| input.grid).collect();
        let patches = Tensor::cat(&patches, 0)?;
        let merge = vision.spatial_merge_size;
        let merged = |grid: &Grid| Grid { height: grid.height / merge, width: grid.width / merge };
        Ok(ShownPictures {
            tokens: Some(self.components.text_encoder.encode_pictures(&patches, &grids)?),
            grids: grids.iter().map(merged).collect(),
        })
    }

    fn encode_prompt(
        &self,
        field: &'static str,
        prompt: &Prompt,
        pictures: &ShownPictures,
        longest: usize,
    ) -> Result<Conditioning, ModelError> {
        let unsuitable = |reason: String| ModelError::Unsuitable { field, reason };
        let template = self.variant.template;
        let tokens = self
            .components
            .tokenizer
            .tokenise(&template, prompt.as_str(), &pictures.grids)
            .map_err(|error| ModelError::BadOutput(format!("no tokens: {error}")))?
            .map_err(|reserved| unsuitable(format!("The {field} {reserved}.")))?;
        let length = tokens.token_ids.len() - template.drop_tokens;
        if length > longest {
            return Err(unsuitable(format!(
                "The {field} is too long for this model: with the pictures it makes {length} \
                 tokens, at most {longest} fit."
            )));
        }
        let hidden_states = self.components.text_encoder.forward(
            &tokens.token_ids,
            &tokens.segments,
            pictures.tokens.as_ref(),
        )?;
        let shown: usize = pictures.grids.iter().map(|grid| grid.len()).sum();
        Ok(Conditioning {
            embeds: hidden_states.narrow(1, template.drop_tokens, length)?.contiguous()?,
            words: length - shown,
        })
    }
}
