//! The files of a tokenizer: a whole `tokenizer.json`, or its parts.
//!
//! A `tokenizer.json` also holds the padding and the cut of whatever text was
//! tokenised last before it was saved. The pipelines say both anew with each text,
//! so both are dropped here, as is a random omission of merges.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use crate::checkpoint::{CheckpointError, Snapshot};
use crate::model::LoadError;

/// The tokenizer in `file`, without what remains of earlier calls.
pub(in crate::model) fn whole(snapshot: &Snapshot, file: &str) -> Result<Tokenizer, LoadError> {
    let fault = |error: tokenizers::Error| LoadError::Tokenizer(format!("{file}: {error}"));
    let text = snapshot.text(file)?;
    check_normalizer(&text).map_err(|reason| LoadError::Tokenizer(format!("{file}: {reason}")))?;
    let mut tokenizer: Tokenizer = text.parse().map_err(fault)?;
    tokenizer.with_truncation(None).map_err(fault)?;
    tokenizer.with_padding(None);
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// Refuses what no tokenizer of these pipelines does to a text before it is cut: some of
/// it makes gigabytes of a word, or ends the library by a panic.
fn check_normalizer(text: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Normalized {
        #[serde(default)]
        normalizer: Value,
    }
    // What is no JSON, the library says better.
    let Ok(Normalized { normalizer }) = serde_json::from_str(text) else { return Ok(()) };
    match first_unknown(&normalizer) {
        Some(unknown) => Err(format!("normalizer '{unknown}' is not supported")),
        None => Ok(()),
    }
}

/// The name of what is neither a form of Unicode nor lower case nor one space for many.
fn first_unknown(normalizer: &Value) -> Option<&str> {
    if normalizer.is_null() {
        return None;
    }
    let name = normalizer["type"].as_str().unwrap_or("without a type");
    match name {
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => None,
        "Replace" if normalizer["pattern"]["Regex"] == r"\s+" && normalizer["content"] == " " => {
            None
        }
        "Sequence" => normalizer["normalizers"].as_array()?.iter().find_map(first_unknown),
        _ => Some(name),
    }
}

/// Refuses ids that the encoder of `vocab_size` rows has no embedding for.
pub(in crate::model) fn check_ids(
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<(), LoadError> {
    let vocab = tokenizer.get_vocab(true);
    if let Some((token, id)) = vocab.iter().max_by_key(|(_, id)| **id)
        && usize::try_from(*id).is_ok_and(|id| id >= vocab_size)
    {
        return Err(LoadError::Tokenizer(format!(
            "token {token} has id {id}, but vocab_size = {vocab_size} in the text encoder's \
             config.json"
        )));
    }
    Ok(())
}

/// A byte-pair encoding from `vocab.json` and `merges.txt` in `folder`.
pub(in crate::model) fn bpe(snapshot: &Snapshot, folder: &str) -> Result<BpeBuilder, LoadError> {
    let vocab: Vocab = json(snapshot, &format!("{folder}/vocab.json"))?;
    let file = format!("{folder}/merges.txt");
    let pair = |line: &str| {
        let pair = line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.ok_or_else(|| LoadError::Tokenizer(format!("{file}: '{line}' is not a pair")))
    };
    let text = snapshot.text(&file)?;
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let merges = lines.map(pair).collect::<Result<Merges, _>>()?;
    Ok(BPE::builder().vocab_and_merges(vocab, merges))
}

/// Adds the added tokens of `folder` to a tokenizer made from its parts: those of
/// `added_tokens.json`, and of `tokenizer_config.json`, which knows more about them.
pub(in crate::model) fn add_tokens(
    snapshot: &Snapshot,
    folder: &str,
    tokenizer: &mut Tokenizer,
) -> Result<(), LoadError> {
    let fault = |reason: String| LoadError::Tokenizer(format!("{folder}: {reason}"));
    for (id, entry) in added_tokens(snapshot, folder)? {
        let content = entry.content.clone();
        let added = if entry.special {
            tokenizer.add_special_tokens([entry.into_token()])
        } else {
            tokenizer.add_tokens([entry.into_token()])
        };
        added.map_err(|error| fault(error.to_string()))?;
        let given = tokenizer.token_to_id(&content);
        if given != Some(id) {
            return Err(fault(format!(
                "added token {content} shall have id {id}, but {given:?} is next"
            )));
        }
    }
    Ok(())
}

/// An added token of `tokenizer_config.json`.
#[derive(Deserialize)]
struct AddedTokenEntry {
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    normalized: bool,
}

impl AddedTokenEntry {
    /// What a file says that names a token and its id alone.
    fn plain(content: String) -> Self {
        Self {
            content,
            special: true,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
        }
    }

    fn into_token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized)
    }
}

/// The added tokens by id.
fn added_tokens(
    snapshot: &Snapshot,
    folder: &str,
) -> Result<BTreeMap<u32, AddedTokenEntry>, CheckpointError> {
    #[derive(Deserialize, Default)]
    struct TokenizerConfig {
        #[serde(default)]
        added_tokens_decoder: BTreeMap<u32, AddedTokenEntry>,
    }
    let plain: BTreeMap<String, u32> =
        json_if_there(snapshot, &format!("{folder}/added_tokens.json"))?;
    let config: TokenizerConfig =
        json_if_there(snapshot, &format!("{folder}/tokenizer_config.json"))?;
    let mut tokens: BTreeMap<u32, AddedTokenEntry> =
        plain.into_iter().map(|(content, id)| (id, AddedTokenEntry::plain(content))).collect();
    tokens.extend(config.added_tokens_decoder);
    Ok(tokens)
}

/// The value that a JSON `file` holds.
pub(in crate::model) fn json<T: DeserializeOwned>(
    snapshot: &Snapshot,
    file: &str,
) -> Result<T, CheckpointError> {
    serde_json::from_str(&snapshot.text(file)?).map_err(|error| CheckpointError::Malformed {
        file: file.to_owned(),
        reason: format!("is not the JSON that is expected: {error}"),
    })
}

/// The same, or the default if there is no such file.
pub(in crate::model) fn json_if_there<T: DeserializeOwned + Default>(
    snapshot: &Snapshot,
    file: &str,
) -> Result<T, CheckpointError> {
    if snapshot.has(file) { json(snapshot, file) } else { Ok(T::default()) }
}
