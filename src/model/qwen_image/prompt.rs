//! Words and places of pictures → token ids.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::positions::{Grid, Segment};
use crate::checkpoint::Snapshot;
use crate::model::components::tokenizer_files;
use crate::model::{CutTokens, LoadError};

/// How Qwen2 cuts a text before it merges bytes: contractions, words with one
/// leading sign or blank, single digits, signs, line ends, blanks.
///
/// Source: transformers 5.23, `tokenization_qwen2.py`.
const WORD_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const IMAGE_PAD: &str = "<|image_pad|>";
const VISION_START: &str = "<|vision_start|>";
const VISION_END: &str = "<|vision_end|>";
const AFTER_PROMPT: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// What the encoder is told around a prompt.
///
/// Sources: diffusers 0.42.1, `prompt_template_encode` of the pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptTemplate {
    /// Before the pictures and the prompt.
    before: &'static str,
    /// How a picture is announced.
    pictures: PictureMarks,
    /// After the prompt.
    after: &'static str,
    /// Leading tokens whose hidden states are dropped: exactly those of `before`.
    pub drop_tokens: usize,
    /// The most tokens that are kept after those; the rest is cut off.
    pub max_tokens: Option<usize>,
}

/// How a picture is announced to the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PictureMarks {
    /// By its place alone.
    Plain,
    /// By a number from 1, too.
    Numbered,
}

impl PromptTemplate {
    /// `QwenImagePipeline` and all that is made from it.
    pub const TEXT: Self = Self {
        before: "<|im_start|>system\nDescribe the image by detailing the color, shape, size, \
                 texture, quantity, text, spatial relationships of the objects and \
                 background:<|im_end|>\n<|im_start|>user\n",
        pictures: PictureMarks::Plain,
        after: AFTER_PROMPT,
        drop_tokens: 34,
        max_tokens: Some(512),
    };

    /// `QwenImageEditPlusPipeline`.
    pub const EDIT_PLUS: Self = Self { pictures: PictureMarks::Numbered, ..Self::EDIT };

    /// `QwenImageEditPipeline`.
    pub const EDIT: Self = Self {
        before: "<|im_start|>system\nDescribe the key features of the input image (color, shape, \
                 size, texture, objects, background), then explain how the user's text \
                 instruction should alter or modify the image. Generate a new image that meets \
                 the user's requirements while maintaining consistency with the original input \
                 where appropriate.<|im_end|>\n<|im_start|>user\n",
        pictures: PictureMarks::Plain,
        after: AFTER_PROMPT,
        drop_tokens: 64,
        max_tokens: None,
    };

    /// The whole text for one prompt, with one placeholder a picture.
    fn fill(&self, pictures: usize, prompt: &str) -> String {
        let place = |number| match self.pictures {
            PictureMarks::Plain => format!("{VISION_START}{IMAGE_PAD}{VISION_END}"),
            PictureMarks::Numbered => {
                format!("Picture {number}: {VISION_START}{IMAGE_PAD}{VISION_END}")
            }
        };
        let places: String = (1..=pictures).map(place).collect();
        format!("{}{places}{prompt}{}", self.before, self.after)
    }
}

/// A prompt as the encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenisedPrompt {
    /// Ids, with one placeholder for each token of a picture.
    pub token_ids: Vec<u32>,
    /// Words and pictures in order.
    pub segments: Vec<Segment>,
    /// What of the prompt itself is not among the ids.
    pub cut: Option<CutTokens>,
}

/// A prompt holds more or fewer picture placeholders than there are pictures.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must not contain the reserved words {IMAGE_PAD} and <|video_pad|>")]
pub struct ReservedWords;

/// The tokenizer of a checkpoint.
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    image_token_id: u32,
}

impl PromptTokenizer {
    /// Builds the tokenizer from `processor/tokenizer.json`, else
    /// `tokenizer/tokenizer.json`, else `tokenizer/vocab.json`, `merges.txt` and
    /// the added tokens.
    ///
    /// # Errors
    /// [`LoadError`] if the files are missing or do not fit each other.
    pub fn load(snapshot: &Snapshot, image_token_id: u32) -> Result<Self, LoadError> {
        let whole = ["processor/tokenizer.json", "tokenizer/tokenizer.json"];
        let tokenizer = match whole.into_iter().find(|file| snapshot.has(file)) {
            Some(file) => tokenizer_files::whole(snapshot, file)?,
            None => from_parts(snapshot)?,
        };
        if tokenizer.token_to_id(IMAGE_PAD) != Some(image_token_id) {
            return Err(LoadError::Tokenizer(format!(
                "{IMAGE_PAD} has id {:?}, text_encoder/config.json says {image_token_id}",
                tokenizer.token_to_id(IMAGE_PAD)
            )));
        }
        Ok(Self { tokenizer, image_token_id })
    }

    /// Refuses ids that an encoder of `vocab_size` rows does not know.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] with the id.
    pub fn check_ids(&self, vocab_size: usize) -> Result<(), LoadError> {
        tokenizer_files::check_ids(&self.tokenizer, vocab_size)
    }

    /// Refuses a vocabulary in which the words before a prompt are not the tokens
    /// that `template` drops.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] with both numbers.
    pub fn check(&self, template: &PromptTemplate) -> Result<(), LoadError> {
        let ids = self.ids(template.before);
        let count = ids.map_err(|error| LoadError::Tokenizer(error.to_string()))?.len();
        if count == template.drop_tokens {
            return Ok(());
        }
        let expected = template.drop_tokens;
        Err(LoadError::Tokenizer(format!(
            "the words before a prompt make {count} tokens, the model expects {expected}"
        )))
    }

    /// The ids of a plain text.
    ///
    /// # Errors
    /// The tokenizer's own error.
    pub fn ids(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false)?.get_ids().to_vec())
    }

    /// The ids of `prompt` in `template`, with each picture's placeholder
    /// repeated for its merged tokens, counted by `pictures`.
    ///
    /// # Errors
    /// The outer one is the tokenizer's own; the inner one says that the prompt
    /// itself contains a placeholder.
    pub fn tokenise(
        &self,
        template: &PromptTemplate,
        prompt: &str,
        pictures: &[Grid],
    ) -> tokenizers::Result<Result<TokenisedPrompt, ReservedWords>> {
        if prompt.contains(IMAGE_PAD) || prompt.contains("<|video_pad|>") {
            return Ok(Err(ReservedWords));
        }
        let mut ids = self.ids(&template.fill(pictures.len(), prompt))?;
        let mut cut = None;
        if let Some(most) = template.max_tokens {
            // Of the template's end, too, but nobody misses that.
            let around = template.drop_tokens + self.ids(template.after)?.len();
            cut = CutTokens::beyond(most, ids.len().saturating_sub(around));
            // The reference cuts the hidden states; none depends on a later token.
            ids.truncate(template.drop_tokens + most);
        }
        let mut prompt = TokenisedPrompt { token_ids: Vec::new(), segments: Vec::new(), cut };
        let mut pictures = pictures.iter();
        let mut words_from = 0;
        for id in ids {
            if id != self.image_token_id {
                prompt.token_ids.push(id);
                continue;
            }
            let Some(grid) = pictures.next() else {
                return Ok(Err(ReservedWords));
            };
            let start = prompt.token_ids.len();
            prompt.segments.push(Segment::Text(words_from..start));
            prompt.token_ids.extend(std::iter::repeat_n(id, grid.len()));
            words_from = start + grid.len();
            prompt.segments.push(Segment::Picture(start..words_from, *grid));
        }
        prompt.segments.push(Segment::Text(words_from..prompt.token_ids.len()));
        Ok(Ok(prompt))
    }
}

/// The tokenizer from its parts, as the text-to-image repositories publish it.
fn from_parts(snapshot: &Snapshot) -> Result<Tokenizer, LoadError> {
    let folder = "tokenizer";
    let fault = |error: tokenizers::Error| LoadError::Tokenizer(format!("{folder}: {error}"));
    let mut tokenizer =
        Tokenizer::new(tokenizer_files::bpe(snapshot, folder)?.build().map_err(fault)?);
    let split = Split::new(
        SplitPattern::Regex(WORD_PATTERN.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(fault)?;
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_normalizer(Some(NFC)).map_err(fault)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer_files::add_tokens(snapshot, folder, &mut tokenizer)?;
    Ok(tokenizer)
}
