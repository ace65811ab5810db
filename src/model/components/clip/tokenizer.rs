//! Words → CLIP's token ids, framed and padded to the encoder's length.
//!
//! Source: transformers 5.23, `tokenization_clip.py`.

use serde::Deserialize;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, normalizers};

use crate::checkpoint::Snapshot;
use crate::model::components::tokenizer_files;
use crate::model::{CutTokens, LoadError};

/// The tokenizer classes that are served.
pub(in crate::model) const CLASSES: &[&str] =
    &["CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"];

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// The parts of a text that are merged on their own; what matches nothing
/// (blanks) is dropped.
const WORD_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A text as the encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenisedText {
    /// Ids, as many as the encoder has positions: start, words, end, padding.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub length: usize,
    /// What of the words did not fit.
    pub cut: Option<CutTokens>,
}

/// The tokenizer of one encoder.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
    max_length: usize,
}

/// The files' special tokens: a word, or a word with its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Word(String),
    Described { content: String },
}

impl SpecialToken {
    fn into_content(self) -> String {
        match self {
            Self::Word(content) | Self::Described { content } => content,
        }
    }
}

/// The end of a text where something is added or taken away.
#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Side {
    Left,
    Right,
}

/// `tokenizer_config.json` and `special_tokens_map.json`, what is used of them.
#[derive(Deserialize, Default)]
struct TokenizerSettings {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    padding_side: Option<Side>,
    truncation_side: Option<Side>,
    /// Hugely large where there is no limit.
    model_max_length: Option<f64>,
    /// Where it is there, the map has no say.
    added_tokens_decoder: Option<serde_json::Value>,
}

impl TokenizerSettings {
    /// What is set that is not implemented.
    fn check(&self) -> Result<(), String> {
        let is_left = |side: &Option<Side>| *side == Some(Side::Left);
        if is_left(&self.padding_side) || is_left(&self.truncation_side) {
            return Err("padding_side and truncation_side = left are not supported".to_owned());
        }
        for (key, token, only) in
            [("bos_token", &self.bos_token, START), ("eos_token", &self.eos_token, END)]
        {
            if let Some(SpecialToken::Word(content) | SpecialToken::Described { content }) = token
                && content != only
            {
                return Err(format!("{key} = {content} is not supported, only {only} is"));
            }
        }
        Ok(())
    }

    /// Tokens of each text, start, end and padding included, for an encoder that has
    /// so many `positions`.
    fn text_length(&self, positions: usize) -> Result<usize, String> {
        const START_WORD_END: usize = 3;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 10⁶")]
        let limit = self.model_max_length.filter(|limit| *limit < 1e6).map(|limit| limit as usize);
        match limit {
            Some(limit) if !(START_WORD_END..=positions).contains(&limit) => Err(format!(
                "model_max_length is {limit}, the text encoder has {positions} positions"
            )),
            limit => Ok(limit.unwrap_or(positions)),
        }
    }
}

impl ClipTokenizer {
    /// Builds the tokenizer of `component` from `tokenizer.json`, or else from
    /// `vocab.json`, `merges.txt` and the added tokens. Texts become as many tokens as
    /// `tokenizer_config.json` says, and at most `positions`.
    ///
    /// # Errors
    /// [`LoadError`] if the files are missing or do not fit each other.
    pub fn load(snapshot: &Snapshot, component: &str, positions: usize) -> Result<Self, LoadError> {
        let file = |name: &str| format!("{component}/{name}");
        let fault = |reason: String| LoadError::Tokenizer(format!("{component}: {reason}"));
        let mut tokenizer = if snapshot.has(&file("tokenizer.json")) {
            tokenizer_files::whole(snapshot, &file("tokenizer.json"))?
        } else {
            from_parts(snapshot, component)?
        };
        let read = |name| tokenizer_files::json_if_there(snapshot, &file(name));
        let settings: TokenizerSettings = read("tokenizer_config.json")?;
        let map: TokenizerSettings = read("special_tokens_map.json")?;
        settings.check().map_err(fault)?;
        let max_length = settings.text_length(positions).map_err(fault)?;
        let map = map.pad_token.filter(|_| settings.added_tokens_decoder.is_none());
        let padding = map.or(settings.pad_token).map(SpecialToken::into_content);
        let padding = padding.unwrap_or_else(|| END.to_owned());
        // Padding is a special token: SDXL's "!" is not merged with a word's end
        // where a text has it, either.
        let special = [START, END, padding.as_str()];
        let special = special.map(|token| AddedToken::from(token, true).normalized(false));
        tokenizer.add_special_tokens(special).map_err(|error| fault(error.to_string()))?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| fault(format!("there is no token {token}")))
        };
        let (start, end, padding) = (id(START)?, id(END)?, id(&padding)?);
        Ok(Self { tokenizer, start, end, padding, max_length })
    }

    /// Refuses ids that an encoder of `vocab_size` rows does not know.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] with the id.
    pub fn check_ids(&self, vocab_size: usize) -> Result<(), LoadError> {
        tokenizer_files::check_ids(&self.tokenizer, vocab_size)
    }

    /// How many tokens each text becomes.
    #[must_use]
    pub fn text_length(&self) -> usize {
        self.max_length
    }

    /// The ids of `text`, cut where the encoder's positions end.
    ///
    /// # Errors
    /// The tokenizer's own error.
    pub fn tokenise(&self, text: &str) -> tokenizers::Result<TokenisedText> {
        let encoding = self.tokenizer.encode(text, false)?;
        let room = self.max_length.saturating_sub(2);
        let words = &encoding.get_ids()[..encoding.get_ids().len().min(room)];
        let mut ids = vec![self.start];
        ids.extend(words);
        ids.push(self.end);
        let length = ids.len();
        ids.resize(self.max_length.max(length), self.padding);
        let cut = CutTokens::beyond(room, encoding.get_ids().len());
        Ok(TokenisedText { ids, length, cut })
    }
}

fn from_parts(snapshot: &Snapshot, component: &str) -> Result<Tokenizer, LoadError> {
    let wrong = |error: tokenizers::Error| LoadError::Tokenizer(format!("{component}: {error}"));
    let bpe = tokenizer_files::bpe(snapshot, component)?
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .unk_token(END.to_owned())
        .build()
        .map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(bpe);
    let blanks = normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned());
    tokenizer
        .with_normalizer(Some(normalizers::Sequence::new(vec![
            NormalizerWrapper::NFC(NFC),
            NormalizerWrapper::Replace(Replace::new(blanks, " ").map_err(wrong)?),
            NormalizerWrapper::Lowercase(Lowercase),
        ])))
        .map_err(wrong)?;
    let words = SplitPattern::Regex(WORD_PATTERN.to_owned());
    let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(wrong)?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(words),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ])));
    tokenizer_files::add_tokens(snapshot, component, &mut tokenizer)?;
    Ok(tokenizer)
}
