//! GGUF files: what their headers say, without reading a tensor; and writing them.
//!
//! [`GgufHeader::read`] takes the bytes of a whole file, mapped or not, and believes none of its
//! numbers: what it allocates is bounded by the bytes that are there, and by constants. Layout:
//! ggml's docs/gguf.md, versions 2 and 3.

mod cursor;
mod error;
mod metadata;
mod tensors;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;

pub use error::GgufError;
pub use metadata::{GgufValue, GgufValueType};
pub use tensors::GgufTensor;
pub use writer::{GgufWriteError, GgufWriter, PlannedTensor};

use cursor::Cursor;

/// What files start with.
const MAGIC: &[u8; 4] = b"GGUF";

/// The versions that are read: they differ in nothing but that the third may be big endian.
const VERSIONS: [u32; 2] = [2, 3];

/// Where no `general.alignment` says otherwise, tensors start at multiples of this.
const DEFAULT_ALIGNMENT: u32 = 32;

/// The key of the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// What a file says of itself before its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    /// Of the format: 2 or 3.
    pub version: u32,
    /// What the file says of itself, by key.
    pub metadata: HashMap<String, GgufValue>,
    /// Tensors start at multiples of this.
    pub alignment: u64,
    /// In the order of the file.
    pub tensors: Vec<GgufTensor>,
}

impl GgufHeader {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// A [`GgufError`] if it is no GGUF file of a known version, if it is not whole, if its
    /// tensors do not lie in it apart from each other, or if one's type is not read.
    pub fn read(file: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(file);
        let version = version(&mut cursor)?;
        let tensors = cursor.u64("the number of tensors")?;
        let pairs = cursor.u64("the number of metadata pairs")?;
        let metadata = metadata::read(&mut cursor, pairs)?;
        let alignment = alignment(&metadata)?;
        let tensors = tensors::read(&mut cursor, tensors, alignment)?;
        Ok(Self { version, metadata, alignment, tensors })
    }

    /// The text under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let GgufValue::Text(text) = self.metadata.get(key)? else { return None };
        Some(text)
    }

    /// The whole number under `key`.
    #[must_use]
    pub fn integer(&self, key: &str) -> Option<i128> {
        let GgufValue::Integer(number) = self.metadata.get(key)? else { return None };
        Some(*number)
    }
}

fn version(cursor: &mut Cursor) -> Result<u32, GgufError> {
    if cursor.array("the magic number").ok() != Some(*MAGIC) {
        return Err(GgufError::NotGguf);
    }
    let version = cursor.u32("the version")?;
    match version {
        _ if VERSIONS.contains(&version) => Ok(version),
        _ if VERSIONS.contains(&version.swap_bytes()) => Err(GgufError::BigEndian),
        _ => Err(GgufError::Version { version }),
    }
}

fn alignment(metadata: &HashMap<String, GgufValue>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT.into()) };
    let unusable = || GgufError::Alignment { value: value.clone() };
    let GgufValue::Integer(number) = value else { return Err(unusable()) };
    // ggml takes it for 32 bits.
    let alignment = u32::try_from(*number).ok().filter(|alignment| alignment.is_power_of_two());
    alignment.map(u64::from).ok_or_else(unusable)
}
