//! What a file of weights says that it holds: names, shapes and where they lie, without a
//! tensor being read. Safetensors and GGUF are told apart by their first bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;

use super::gguf::{GgufHeader, GgufTensor, GgufValue};
use super::storage::Storage;
use super::tensor_files::with_bytes;
use super::{CheckpointError, content, scales};

/// The kinds of files that hold weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Hugging Face's.
    Safetensors,
    /// GGML's.
    Gguf,
}

/// What a file holds.
#[derive(Debug)]
pub struct FileListing {
    pub(super) format: FileFormat,
    pub(super) tensors: BTreeMap<String, ListedTensor>,
    /// What it says of itself besides: texts and numbers, as texts.
    pub(super) metadata: BTreeMap<String, String>,
}

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct ListedTensor {
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

impl FileListing {
    /// What the file at `path` holds.
    ///
    /// # Errors
    /// [`CheckpointError`] if it cannot be read, or is no file of weights.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let malformed =
            |reason| CheckpointError::Malformed { file: path.display().to_string(), reason };
        with_bytes(path, |bytes| Self::read(bytes).map_err(malformed))?
    }

    /// The same of the tensors whose names start with `prefix`, without it, with matrices and
    /// their scales as one.
    ///
    /// # Errors
    /// As [`FileListing::open`], or if it is quantized in a way that is not known.
    pub fn open_scaled(path: &Path, prefix: &str) -> Result<Self, CheckpointError> {
        let malformed =
            |reason| CheckpointError::Malformed { file: path.display().to_string(), reason };
        let read = |bytes: &[u8]| {
            let mut listing = Self::read(bytes)?.below(prefix);
            scales::attach(&mut listing, bytes, prefix)?;
            Ok(listing)
        };
        with_bytes(path, |bytes| read(bytes).map_err(malformed))?
    }

    /// The kind of the file.
    #[must_use]
    pub fn format(&self) -> FileFormat {
        self.format
    }

    /// Whether there is a tensor `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// What the file says of itself under `key`.
    #[must_use]
    pub fn said(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// How many tensors lie in which way, by its name, and their bytes.
    #[must_use]
    pub fn storages(&self) -> BTreeMap<String, (usize, usize)> {
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for tensor in self.tensors.values() {
            let (count, bytes) = counts.entry(tensor.storage.name()).or_default();
            *count += 1;
            *bytes += tensor.range.len();
        }
        counts
    }

    /// What the file that consists of `bytes` holds, or what is wrong with it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        match bytes.starts_with(b"GGUF") {
            true => Self::of_gguf(bytes),
            false => Self::of_safetensors(bytes),
        }
    }

    fn of_safetensors(bytes: &[u8]) -> Result<Self, String> {
        let broken = |error| {
            let known = content::of_weights(bytes);
            let known = known.unwrap_or_else(|| format!("is not whole: {error}"));
            format!("{known} (expected a safetensors file, or a GGUF file)")
        };
        SafeTensors::deserialize(bytes).map_err(broken)?;
        let (header_bytes, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        // The file starts with the header's length in eight bytes.
        let data_start = 8 + header_bytes;
        let listed = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let (begin, end) = info.data_offsets;
            let (shape, storage) = (info.shape.clone(), Storage::Plain(info.dtype));
            (name, ListedTensor { shape, storage, range: data_start + begin..data_start + end })
        };
        Ok(Self {
            format: FileFormat::Safetensors,
            tensors: header.tensors().into_iter().map(listed).collect(),
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
        })
    }

    fn of_gguf(bytes: &[u8]) -> Result<Self, String> {
        let header = GgufHeader::read(bytes)
            .map_err(|error| format!("is a GGUF file that cannot be read: {error}"))?;
        let listed = |tensor: GgufTensor| {
            let storage = Storage::of_gguf(tensor.kind);
            (tensor.name, ListedTensor { shape: tensor.shape, storage, range: tensor.range })
        };
        let text = |(key, value)| match value {
            GgufValue::Text(text) => Some((key, text)),
            GgufValue::Integer(number) => Some((key, number.to_string())),
            GgufValue::Bool(is_so) => Some((key, is_so.to_string())),
            GgufValue::Float(_)
            | GgufValue::LongText { .. }
            | GgufValue::Integers(_)
            | GgufValue::Floats(_)
            | GgufValue::Array { .. } => None,
        };
        Ok(Self {
            format: FileFormat::Gguf,
            tensors: header.tensors.into_iter().map(listed).collect(),
            metadata: header.metadata.into_iter().filter_map(text).collect(),
        })
    }

    /// Leaves the tensors whose names start with `prefix`, and takes it from them.
    pub(super) fn below(mut self, prefix: &str) -> Self {
        if !prefix.is_empty() {
            let stripped = |(name, tensor): (String, ListedTensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor))
            };
            self.tensors = self.tensors.into_iter().filter_map(stripped).collect();
        }
        self
    }
}
