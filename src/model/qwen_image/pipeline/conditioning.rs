//! Prompts, and the pictures shown with them → what steers the transformer.

use candle_core::{Result as TensorResult, Tensor};

use super::{Pipeline, preprocess};
use crate::domain::{ImageRequest, Prompt, RgbImage};
use crate::model::ModelError;
use crate::model::cache::{ContentHash, ContentKey};
use crate::model::components::finite::expect_finite;
use crate::model::qwen_image::positions::{Grid, text_start};
use crate::model::qwen_image::prompt::TokenisedPrompt;
use crate::model::qwen_image::text_encoder::PromptInput;

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
    /// What of the prompts was left out: sentences for the client.
    pub(super) warnings: Vec<String>,
}

impl Guidance {
    /// Words of each prompt, in tokens.
    pub(super) fn words(&self) -> Vec<usize> {
        [&self.positive].into_iter().chain(&self.negative).map(|prompt| prompt.words).collect()
    }
}

/// The pictures that prompts are about.
struct ShownPictures<'a> {
    images: &'a [RgbImage],
    /// Tokens of the language model for each.
    grids: Vec<Grid>,
    key: ContentKey,
}

/// A prompt as the language model takes it.
struct Words {
    tokens: TokenisedPrompt,
    /// How many tokens are kept: all but those of the template's beginning.
    kept: usize,
    key: ContentKey,
}

impl Words {
    fn input(&self) -> PromptInput<'_> {
        let TokenisedPrompt { token_ids, segments, .. } = &self.tokens;
        PromptInput { token_ids, segments }
    }
}

impl Pipeline {
    /// `shown`: what the encoder sees. `grids`: what the transformer is going to see.
    ///
    /// What of the encoder is not resident is loaded only if something is new.
    pub(super) fn encode_prompts(
        &self,
        shown: &[RgbImage],
        request: &ImageRequest,
        grids: &[Grid],
    ) -> Result<Guidance, ModelError> {
        let pictures = self.shown_pictures(shown);
        let start = text_start(grids, self.components.transformer.frame_order());
        let longest = MAX_POSITION - start.min(MAX_POSITION);
        let words = |field, prompt| self.words(field, prompt, &pictures, longest);
        let negative = request.negative_prompt.as_ref().filter(|_| request.guidance.acts());
        let positive = words("prompt", &request.prompt)?;
        let negative = negative.map(|prompt| words("negative_prompt", prompt)).transpose()?;

        let cut = |field, words: &Words| words.tokens.cut.map(|cut| cut.sentence(field));
        let mut warnings = Vec::from_iter(cut("prompt", &positive));
        warnings.extend(negative.as_ref().and_then(|words| cut("negative_prompt", words)));

        let all: Vec<&Words> = std::iter::once(&positive).chain(&negative).collect();
        let mut embeds = self.embeds(&pictures, &all)?.into_iter();
        let shown: usize = pictures.grids.iter().map(|grid| grid.len()).sum();
        let mut conditioning = |words: &Words| {
            embeds.next().map(|embeds| Conditioning { embeds, words: words.kept - shown })
        };
        let positive = conditioning(&positive)
            .ok_or_else(|| ModelError::BadOutput("no prompt embeddings".to_owned()))?;
        let negative = negative.as_ref().and_then(conditioning);
        Ok(Guidance { positive, negative, scale: request.guidance.get(), warnings })
    }

    fn shown_pictures<'a>(&self, images: &'a [RgbImage]) -> ShownPictures<'a> {
        let Some(processor) = self.components.processor.as_ref() else {
            let key = ContentHash::of("shown_pictures").finish();
            return ShownPictures { images: &[], grids: Vec::new(), key };
        };
        let vision = self.vision_config();
        let merge = vision.spatial_merge_size;
        let grid = |image: &RgbImage| {
            let patches = preprocess::encoder_grid(image, processor, vision);
            Grid { height: patches.height / merge, width: patches.width / merge }
        };
        let hash = images.iter().fold(ContentHash::of("shown_pictures"), |hash, image| {
            hash.bytes(&image.width().to_le_bytes()).bytes(image.pixels())
        });
        ShownPictures { images, grids: images.iter().map(grid).collect(), key: hash.finish() }
    }

    fn words(
        &self,
        field: &'static str,
        prompt: &Prompt,
        pictures: &ShownPictures,
        longest: usize,
    ) -> Result<Words, ModelError> {
        let unsuitable = |reason: String| ModelError::Unsuitable { field, reason };
        let template = self.variant.template;
        let tokens = self
            .components
            .tokenizer
            .tokenise(&template, prompt.as_str(), &pictures.grids)
            .map_err(|error| ModelError::BadOutput(format!("no tokens: {error}")))?
            .map_err(|reserved| unsuitable(format!("The {field} {reserved}.")))?;
        let kept = tokens.token_ids.len() - template.drop_tokens;
        if kept > longest {
            return Err(unsuitable(format!(
                "The {field} is too long for this model: with the pictures it makes {kept} \
                 tokens, at most {longest} fit."
            )));
        }
        let hash = ContentHash::of("prompt").bytes(pictures.key.bytes());
        let key = hash.numbers(tokens.token_ids.iter().copied()).finish();
        Ok(Words { tokens, kept, key })
    }

    /// The embeddings of each of `prompts`, (1, kept tokens, text width).
    fn embeds(
        &self,
        pictures: &ShownPictures,
        prompts: &[&Words],
    ) -> Result<Vec<Tensor>, ModelError> {
        let known: Vec<Option<Tensor>> =
            prompts.iter().map(|words| self.cache.tensor(&words.key)).collect();
        if let Some(known) = known.iter().cloned().collect() {
            return Ok(known);
        }
        let picture_tokens = self.picture_tokens(pictures)?;
        let unknown = prompts.iter().zip(&known).filter(|(_, known)| known.is_none());
        let unknown: Vec<&Words> = unknown.map(|(words, _)| *words).collect();
        let mut made = self.embed(&unknown, picture_tokens.as_ref())?.into_iter();
        let embeds = known.into_iter().map(|known| known.or_else(|| made.next()));
        Ok(embeds.flatten().collect())
    }

    /// (tokens, text width), picture by picture; `None` without pictures.
    fn picture_tokens(&self, pictures: &ShownPictures) -> Result<Option<Tensor>, ModelError> {
        let Some(processor) =
            self.components.processor.as_ref().filter(|_| !pictures.images.is_empty())
        else {
            return Ok(None);
        };
        let make = || {
            let vision = self.vision_config();
            let inputs = pictures
                .images
                .iter()
                .map(|image| {
                    preprocess::encoder_input(image, processor, vision, self.tensor_kind())
                })
                .collect::<TensorResult<Vec<_>>>()?;
            let patches: Vec<&Tensor> = inputs.iter().map(|input| &input.patches).collect();
            let grids: Vec<Grid> = inputs.iter().map(|input| input.grid).collect();
            let patches = Tensor::cat(&patches, 0)?;
            let tokens = self.components.text_encoder.encode_pictures(&patches, &grids)?;
            expect_finite(tokens, "vision tower")
        };
        self.cache.tensor_or(pictures.key, make).map(Some)
    }

    /// The embeddings of each of `prompts`, which no earlier request has had.
    fn embed(
        &self,
        prompts: &[&Words],
        picture_tokens: Option<&Tensor>,
    ) -> Result<Vec<Tensor>, ModelError> {
        let inputs: Vec<PromptInput> = prompts.iter().map(|words| words.input()).collect();
        let made = self.components.text_encoder.forward_each(&inputs, picture_tokens)?;
        let kept = |(words, hidden_states): (&&Words, Tensor)| {
            let dropped = words.tokens.token_ids.len() - words.kept;
            let kept = hidden_states.narrow(1, dropped, words.kept)?.force_contiguous()?;
            let kept = expect_finite(kept, "text encoder")?;
            self.cache.keep(words.key, &kept);
            Ok(kept)
        };
        prompts.iter().zip(made).map(kept).collect()
    }
}
