//! Why a file is not read as GGUF.

use super::{GgufValue, GgufValueType};

/// Each variant says where, or which key or tensor. Names are quoted as files have them, with
/// what is no text escaped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufError {
    /// It starts otherwise.
    #[error("is no GGUF file: it does not start with \"GGUF\"")]
    NotGguf,
    /// Its numbers are the wrong way round.
    #[error("is a big endian GGUF file; little endian ones are read")]
    BigEndian,
    /// The format's version is not known.
    #[error("is a GGUF file of version {version}; versions 2 and 3 are read")]
    Version {
        /// What the file says.
        version: u32,
    },
    /// The header ends too early.
    #[error("ends at byte {length}, in {what}: it is not whole")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// How long the file is, in bytes.
        length: usize,
    },
    /// The header claims more than any file has.
    #[error("claims to have {claimed} {what}; up to {most} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        claimed: u64,
        /// How many are read.
        most: u64,
    },
    /// A key or a name is longer than any is.
    #[error("has, at byte {at}, {what} of {length} bytes; up to {most} are read")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        at: usize,
        /// Its claimed length in bytes.
        length: u64,
        /// How long it may be.
        most: u64,
    },
    /// A key or a name is no text.
    #[error("has, at byte {at}, {what} that is not UTF-8")]
    NotText {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        at: usize,
    },
    /// A value is of no type that is known.
    #[error("has metadata {key:?} of the unknown type {code}")]
    ValueType {
        /// Of the value.
        key: String,
        /// What the file says.
        code: u32,
    },
    /// An array holds arrays.
    #[error("has metadata {key:?} that is an array of arrays, which are not read")]
    NestedArray {
        /// Of the array.
        key: String,
    },
    /// A key stands twice.
    #[error("has metadata {key:?} twice")]
    DuplicateKey {
        /// Which.
        key: String,
    },
    /// The alignment is not one.
    #[error("has general.alignment {value}, which is no power of two of 32 bits")]
    Alignment {
        /// What it is instead.
        value: GgufValue,
    },
    /// A tensor's name stands twice.
    #[error("has tensor {name:?} twice")]
    DuplicateTensor {
        /// Which.
        name: String,
    },
    /// A tensor is stored in a way that is not read.
    #[error("has tensor {tensor:?} of type {code} ({}), which is not read", name.unwrap_or("unknown"))]
    TensorType {
        /// Its name.
        tensor: String,
        /// The type's number.
        code: u32,
        /// GGML's name for it.
        name: Option<&'static str>,
    },
    /// A tensor has too many dimensions.
    #[error("has tensor {tensor:?} of {dimensions} dimensions; up to {most} are read")]
    Dimensions {
        /// Its name.
        tensor: String,
        /// How many.
        dimensions: u32,
        /// How many are read.
        most: u32,
    },
    /// A tensor's size is no number.
    #[error("has tensor {tensor:?} of shape {shape:?}, which is more than there can be")]
    TooLarge {
        /// Its name.
        tensor: String,
        /// Rows first.
        shape: Vec<u64>,
    },
    /// A tensor's rows are no whole blocks.
    #[error("has tensor {tensor:?} whose rows of {width} are no whole blocks of {kind}")]
    PartialBlock {
        /// Its name.
        tensor: String,
        /// Elements of a row.
        width: u64,
        /// How it is stored.
        kind: &'static str,
    },
    /// A tensor starts where none may.
    #[error("has tensor {tensor:?} at offset {offset}, which is no multiple of {alignment}")]
    Unaligned {
        /// Its name.
        tensor: String,
        /// After the header.
        offset: u64,
        /// What offsets are multiples of.
        alignment: u64,
    },
    /// A tensor ends behind the file's end.
    #[error(
        "is {length} bytes, but tensor {tensor:?} ends {}: it is not whole",
        end.map_or_else(|| "beyond all of them".to_owned(), |end| format!("at byte {end}"))
    )]
    OutOfFile {
        /// Its name.
        tensor: String,
        /// Where it ends, where that is a number.
        end: Option<u64>,
        /// The file's length.
        length: usize,
    },
    /// Two tensors share bytes.
    #[error("has tensors {first:?} and {second:?} in the same place")]
    Overlap {
        /// The name of the one that starts first.
        first: String,
        /// The other's.
        second: String,
    },
}

impl std::fmt::Display for GgufValue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(number) => write!(formatter, "{number}"),
            Self::Float(number) => write!(formatter, "{number}"),
            Self::Bool(value) => write!(formatter, "{value}"),
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::LongText { bytes } => write!(formatter, "a text of {bytes} bytes"),
            Self::Integers(numbers) => write!(formatter, "{numbers:?}"),
            Self::Floats(numbers) => write!(formatter, "{numbers:?}"),
            Self::Array { element, length } => write!(formatter, "{length} of {element}"),
        }
    }
}

impl std::fmt::Display for GgufValueType {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::F32 => "float32",
            Self::Bool => "bool",
            Self::Text => "string",
            Self::Array => "array",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F64 => "float64",
        })
    }
}
