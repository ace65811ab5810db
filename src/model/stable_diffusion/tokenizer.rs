//! Words → CLIP's token ids, framed and padded to the encoder's length.
//!
//! Source: transformers 5.23, `tokenization_clip.py`.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, normalizers};

use crate::checkpoint::{CheckpointError, Snapshot};
use crate::model::{CutTokens, LoadError};

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

/// `tokenizer_config.json` and `special_tokens_map.json`, what is used of them.
#[derive(Deserialize, Default)]
struct TokenizerSettings {
    pad_token: Option<SpecialToken>,
    /// Hugely large where there is no limit.
    model_max_length: Option<f64>,
    /// Where it is there, the map has no say.
    added_tokens_decoder: Option<serde_json::Value>,
}

impl ClipTokenizer {
    /// Builds the tokenizer of `component` from `vocab.json` and `merges.txt`, or
    /// else from `tokenizer.json`. Texts become at most `positions` tokens.
    ///
    /// # Errors
    /// [`LoadError`] if the files are missing or do not fit each other.
    pub fn load(snapshot: &Snapshot, component: &str, positions: usize) -> Result<Self, LoadError> {
        let file = |name: &str| format!("{component}/{name}");
        let fault = |reason: String| LoadError::Tokenizer(format!("{component}: {reason}"));
        let mut tokenizer =
            if snapshot.has(&file("vocab.json")) || !snapshot.has(&file("tokenizer.json")) {
                from_parts(snapshot, component)?
            } else {
                let bytes = snapshot.bytes(&file("tokenizer.json"))?;
                Tokenizer::from_bytes(bytes).map_err(|error| fault(error.to_string()))?
            };
        let settings: TokenizerSettings = read_if_there(snapshot, &file("tokenizer_config.json"))?;
        let map: TokenizerSettings = read_if_there(snapshot, &file("special_tokens_map.json"))?;
        let map = map.pad_token.filter(|_| settings.added_tokens_decoder.is_none());
        let padding = match map.or(settings.pad_token) {
            Some(SpecialToken::Word(content) | SpecialToken::Described { content }) => content,
            None => END.to_owned(),
        };
        // Padding is a special token: SDXL's "!" is not merged with a word's end
        // where a text has it, either.
        let special = [START, END, padding.as_str()];
        let special = special.map(|token| AddedToken::from(token, true).normalized(false));
        tokenizer.add_special_tokens(special).map_err(|error| fault(error.to_string()))?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| fault(format!("there is no token {token}")))
        };
        let (start, end, padding) = (id(START)?, id(END)?, id(&padding)?);
        let limit = settings.model_max_length.filter(|limit| *limit < 1e6);
        if limit.is_some_and(|limit| limit != positions as f64) {
            return Err(fault(format!(
                "model_max_length is {limit:?}, the text encoder has {positions} positions"
            )));
        }
        Ok(Self { tokenizer, start, end, padding, max_length: positions })
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
    let fault = |reason: String| LoadError::Tokenizer(format!("{component}: {reason}"));
    let wrong = |error: tokenizers::Error| fault(error.to_string());
    let vocab: HashMap<String, u32> = read(snapshot, &format!("{component}/vocab.json"))?;
    let merges = snapshot.text(&format!("{component}/merges.txt"))?;
    let merges = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(|line| {
            let pair = line.split_once(' ');
            let pair = pair.map(|(left, right)| (left.to_owned(), right.to_owned()));
            pair.ok_or_else(|| fault(format!("merges.txt: '{line}' is not a pair")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
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
    Ok(tokenizer)
}

fn read<T: serde::de::DeserializeOwned>(
    snapshot: &Snapshot,
    file: &str,
) -> Result<T, CheckpointError> {
    serde_json::from_str(&snapshot.text(file)?).map_err(|error| CheckpointError::Malformed {
        file: file.to_owned(),
        reason: error.to_string(),
    })
}

fn read_if_there<T: serde::de::DeserializeOwned + Default>(
    snapshot: &Snapshot,
    file: &str,
) -> Result<T, CheckpointError> {
    if snapshot.has(file) { read(snapshot, file) } else { Ok(T::default()) }
}
