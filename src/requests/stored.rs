//! A request as bytes, from which it can be prepared again: by another process, too.
//!
//! A line that says which layout it is, a line of JSON, then the bytes of texts and files one
//! after the other, as long as the JSON says. Equal requests have equal bytes, whatever form
//! they came in: a digest of them tells requests apart ([`StoredOutside::as_sent`]).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::fields::{Fields, RawValue};
use super::parameters::Accepted;
use super::table;
use crate::domain::Seed;
use crate::imaging::codec::OutputFormat;

/// The first line of this layout.
const LAYOUT: &[u8] = b"diffuser-api request 1\n";

/// A request that can be prepared.
pub(crate) struct StoredRequest {
    pub(crate) fields: Fields,
    pub(crate) outside: StoredOutside,
}

/// What is stored of a request besides its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredOutside {
    pub(crate) endpoint: Endpoint,
    /// The model, where the address named it.
    pub(crate) deployment: Option<String>,
    /// The format of the file that was asked for instead of JSON.
    file: Option<StoredFormat>,
    /// The models that may be used, if not all.
    pub(crate) models: Option<Vec<String>>,
    /// Where addresses in the reply begin.
    pub(crate) origin: String,
    /// Where the client wants somebody told once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) webhook: Option<String>,
    /// Whether its client sees unfinished pictures, though it waits for the reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_followed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredFormat {
    Png,
    Jpeg,
    Webp,
}

impl StoredOutside {
    pub(crate) fn new(
        endpoint: Endpoint,
        (deployment, accepted): (Option<String>, Accepted),
        models: Option<Vec<String>>,
        origin: String,
    ) -> Self {
        let file = match accepted {
            Accepted::Json => None,
            Accepted::File(OutputFormat::Png) => Some(StoredFormat::Png),
            Accepted::File(OutputFormat::Jpeg { .. }) => Some(StoredFormat::Jpeg),
            Accepted::File(OutputFormat::Webp { .. }) => Some(StoredFormat::Webp),
        };
        Self { endpoint, deployment, file, models, origin, webhook: None, is_followed: false }
    }

    /// What the client itself says: neither where the server is, nor what a key is good for.
    pub(crate) fn as_sent(&self) -> Self {
        Self { models: None, origin: String::new(), ..self.clone() }
    }

    /// What the reply is to be.
    pub(crate) fn accepted(&self) -> Accepted {
        let quality = 100;
        match self.file {
            None => Accepted::Json,
            Some(StoredFormat::Png) => Accepted::File(OutputFormat::Png),
            Some(StoredFormat::Jpeg) => Accepted::File(OutputFormat::Jpeg { quality }),
            Some(StoredFormat::Webp) => Accepted::File(OutputFormat::Webp { quality }),
        }
    }
}

/// The line of JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    outside: StoredOutside,
    fields: Vec<(String, StoredValue)>,
    /// The seed that was drawn, or asked for.
    seed: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredValue {
    /// So many bytes.
    Text(usize),
    File(usize),
    Json(Value),
    Oversized,
}

/// Bytes that are no request of this layout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableRequest {
    #[error("it has another layout")]
    Layout,
    #[error("it is cut short")]
    CutShort,
    #[error("its head is no JSON of ours")]
    Head(#[from] serde_json::Error),
}

/// A request on its way into a store: its bytes, but for the seed.
pub(crate) struct Writing {
    head: Head,
    tail: Vec<Bytes>,
}

impl Writing {
    /// Copies what is JSON; what came as bytes is shared. Not for the async runtime.
    pub(crate) fn of(fields: &Fields, outside: StoredOutside) -> Self {
        let mut tail = Vec::new();
        let mut keep = |bytes: &Bytes| {
            tail.push(bytes.clone());
            bytes.len()
        };
        let mut stored = Vec::new();
        for (name, value) in fields.iter() {
            let value = match value {
                RawValue::Text(bytes) => StoredValue::Text(keep(bytes)),
                RawValue::File(bytes) => StoredValue::File(keep(bytes)),
                RawValue::Json(value) => StoredValue::Json(value.clone()),
                RawValue::Oversized => StoredValue::Oversized,
            };
            stored.push((name.to_owned(), value));
        }
        Self { head: Head { outside, fields: stored, seed: None }, tail }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Result<Bytes, serde_json::Error> {
        let mut bytes = LAYOUT.to_vec();
        serde_json::to_writer(&mut bytes, &self.head)?;
        bytes.push(b'\n');
        self.tail.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(bytes.into())
    }

    /// The same with the seed that it will always be made with.
    pub(crate) fn with_seed(mut self, seed: Seed) -> Self {
        self.head.seed = Some(seed.get());
        self
    }
}

impl StoredRequest {
    /// Reads what [`Writing`] wrote. Not for the async runtime.
    ///
    /// # Errors
    /// [`UnreadableRequest`] says what is wrong with it.
    pub(crate) fn read(bytes: &Bytes) -> Result<Self, UnreadableRequest> {
        let rest = bytes.strip_prefix(LAYOUT).ok_or(UnreadableRequest::Layout)?;
        let line = rest.iter().position(|byte| *byte == b'\n');
        let line = line.ok_or(UnreadableRequest::CutShort)?;
        let Head { outside, fields: stored, seed } = serde_json::from_slice(&rest[..line])?;
        let mut tail = bytes.slice(LAYOUT.len() + line + 1..);
        let mut take = |length: usize| {
            (length <= tail.len()).then(|| tail.split_to(length)).ok_or(UnreadableRequest::CutShort)
        };
        let mut fields = Fields::default();
        for (name, value) in stored {
            let value = match value {
                StoredValue::Text(length) => RawValue::Text(take(length)?),
                StoredValue::File(length) => RawValue::File(take(length)?),
                StoredValue::Json(value) => RawValue::Json(value),
                StoredValue::Oversized => RawValue::Oversized,
            };
            fields.push(name, value);
        }
        if let Some(seed) = seed {
            fields.take_all(&[table::SEED.name]);
            fields.push(table::SEED.name.to_owned(), RawValue::Json(seed.into()));
        }
        Ok(Self { fields, outside })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outside() -> StoredOutside {
        let jpeg = Accepted::File(OutputFormat::Jpeg { quality: 100 });
        let models = Some(vec!["tiny".to_owned()]);
        let asked = (Some("named".to_owned()), jpeg);
        StoredOutside::new(Endpoint::Edits, asked, models, "http://here".to_owned())
    }

    fn fields() -> Fields {
        let mut fields = Fields::default();
        fields.push("prompt".to_owned(), RawValue::Text(Bytes::from_static("größer\n".as_bytes())));
        fields.push("image".to_owned(), RawValue::File(Bytes::from_static(b"\x89PNG\n\xff")));
        fields.push("image".to_owned(), RawValue::File(Bytes::from_static(b"")));
        fields.push("loras".to_owned(), RawValue::Json(json!([{"name": "a", "scale": 0.1}])));
        fields.push("seed".to_owned(), RawValue::Text(Bytes::from_static(b"-1")));
        fields.push("extra".to_owned(), RawValue::Oversized);
        fields
    }

    fn shown(fields: &Fields) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name} {value:?}")).collect()
    }

    #[test]
    fn a_request_comes_back_as_it_was_stored() {
        let bytes = Writing::of(&fields(), outside()).bytes().unwrap();

        let read = StoredRequest::read(&bytes).unwrap();

        assert_eq!(shown(&read.fields), shown(&fields()));
        assert_eq!(read.outside, outside());
        assert_eq!(bytes, Writing::of(&read.fields, read.outside).bytes().unwrap());
    }

    #[test]
    fn the_seed_that_was_drawn_stands_in_for_the_one_that_was_asked_for() {
        let seed = Seed::new(u64::MAX);
        let bytes = Writing::of(&fields(), outside()).with_seed(seed).bytes().unwrap();

        let mut read = StoredRequest::read(&bytes).unwrap().fields;

        let seed = read.integer(&table::SEED).unwrap();
        assert_eq!(seed, Some(u64::MAX.into()));
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = Writing::of(&fields(), outside()).bytes().unwrap();
        for length in 0..bytes.len() {
            assert!(StoredRequest::read(&bytes.slice(..length)).is_err(), "{length}");
        }
        let later = [b"diffuser-api request 2\n", &bytes[LAYOUT.len()..]].concat();
        let refused = StoredRequest::read(&later.into()).err().unwrap();
        assert!(matches!(refused, UnreadableRequest::Layout), "{refused}");
    }
}
