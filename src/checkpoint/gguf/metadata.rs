//! What a GGUF file says of itself: numbers and short texts are kept, of what is longer (a
//! tokenizer's words, a template) only how long it is.

use std::collections::HashMap;

use super::GgufError;
use super::cursor::Cursor;

/// More pairs than any file has: those of language models have about forty.
const MOST_PAIRS: u64 = 1 << 16;

/// The longest key, in bytes: GGUF's own limit.
const LONGEST_KEY: u64 = (1 << 16) - 1;

/// The longest text that is kept, in bytes.
const LONGEST_TEXT: usize = 1024;

/// The longest array of numbers that is kept.
const LONGEST_ARRAY: u64 = 16;

/// What a file may end in.
const VALUE: &str = "a metadata value";

/// What a key stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// A whole number of any type.
    Integer(i128),
    /// Of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text of up to 1024 bytes; what is not UTF-8 in it is replaced.
    Text(String),
    /// A longer one.
    LongText {
        /// How long.
        bytes: usize,
    },
    /// Up to 16 whole numbers.
    Integers(Vec<i128>),
    /// Up to 16 others.
    Floats(Vec<f64>),
    /// Any other array.
    Array {
        /// Of what.
        element: GgufValueType,
        /// How many.
        length: u64,
    },
}

/// The types of values, in the order of their numbers in files.
#[allow(missing_docs, reason = "they are what they are called")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl GgufValueType {
    /// All of them, in the order of their numbers in files.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type that files call `code`.
    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Its number in files.
    pub(super) fn code(self) -> u32 {
        self as u32
    }

    fn content(self) -> Content {
        match self {
            Self::U8 => Content::Integer(Width { bytes: 1, signed: false }),
            Self::U16 => Content::Integer(Width { bytes: 2, signed: false }),
            Self::U32 => Content::Integer(Width { bytes: 4, signed: false }),
            Self::U64 => Content::Integer(Width { bytes: 8, signed: false }),
            Self::I8 => Content::Integer(Width { bytes: 1, signed: true }),
            Self::I16 => Content::Integer(Width { bytes: 2, signed: true }),
            Self::I32 => Content::Integer(Width { bytes: 4, signed: true }),
            Self::I64 => Content::Integer(Width { bytes: 8, signed: true }),
            Self::F32 => Content::Single,
            Self::F64 => Content::Double,
            Self::Bool => Content::Bool,
            Self::Text => Content::Text,
            Self::Array => Content::Array,
        }
    }
}

/// How a value is read.
enum Content {
    Integer(Width),
    Single,
    Double,
    Bool,
    Text,
    Array,
}

/// Of a whole number.
#[derive(Clone, Copy)]
struct Width {
    bytes: u64,
    signed: bool,
}

/// Reads so many `pairs` of key and value.
pub(super) fn read(
    cursor: &mut Cursor,
    pairs: u64,
) -> Result<HashMap<String, GgufValue>, GgufError> {
    if pairs > MOST_PAIRS {
        let what = "metadata pairs";
        return Err(GgufError::TooMany { what, claimed: pairs, most: MOST_PAIRS });
    }
    let mut metadata = HashMap::new();
    for _ in 0..pairs {
        let key = cursor.text(LONGEST_KEY, "a metadata key")?;
        let value = value(cursor, key)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(metadata)
}

fn value_type(cursor: &mut Cursor, key: &str) -> Result<GgufValueType, GgufError> {
    let code = cursor.u32("a metadata type")?;
    let known = GgufValueType::from_code(code);
    known.ok_or_else(|| GgufError::ValueType { key: key.to_owned(), code })
}

fn value(cursor: &mut Cursor, key: &str) -> Result<GgufValue, GgufError> {
    Ok(match value_type(cursor, key)?.content() {
        Content::Integer(width) => GgufValue::Integer(integer(cursor, width)?),
        Content::Single => GgufValue::Float(single(cursor)?),
        Content::Double => GgufValue::Float(double(cursor)?),
        Content::Bool => GgufValue::Bool(cursor.array(VALUE)? != [0]),
        Content::Text => text(cursor)?,
        Content::Array => array(cursor, key)?,
    })
}

fn text(cursor: &mut Cursor) -> Result<GgufValue, GgufError> {
    let length = cursor.u64(VALUE)?;
    let bytes = cursor.bytes(length, VALUE)?;
    if bytes.len() > LONGEST_TEXT {
        return Ok(GgufValue::LongText { bytes: bytes.len() });
    }
    Ok(GgufValue::Text(String::from_utf8_lossy(bytes).into_owned()))
}

fn single(cursor: &mut Cursor) -> Result<f64, GgufError> {
    cursor.array(VALUE).map(f32::from_le_bytes).map(f64::from)
}

fn double(cursor: &mut Cursor) -> Result<f64, GgufError> {
    cursor.array(VALUE).map(f64::from_le_bytes)
}

fn integer(cursor: &mut Cursor, width: Width) -> Result<i128, GgufError> {
    let bytes = cursor.bytes(width.bytes, VALUE)?;
    let negative = width.signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let sign = if negative { -1 } else { 0 };
    Ok(bytes.iter().rev().fold(sign, |number, byte| number << 8 | i128::from(*byte)))
}

fn array(cursor: &mut Cursor, key: &str) -> Result<GgufValue, GgufError> {
    let element = value_type(cursor, key)?;
    let length = cursor.u64(VALUE)?;
    let short = length <= LONGEST_ARRAY;
    match element.content() {
        Content::Array => return Err(GgufError::NestedArray { key: key.to_owned() }),
        Content::Integer(width) if short => {
            let numbers = (0..length).map(|_| integer(cursor, width));
            return numbers.collect::<Result<_, _>>().map(GgufValue::Integers);
        }
        Content::Single if short => {
            let numbers = (0..length).map(|_| single(cursor));
            return numbers.collect::<Result<_, _>>().map(GgufValue::Floats);
        }
        Content::Double if short => {
            let numbers = (0..length).map(|_| double(cursor));
            return numbers.collect::<Result<_, _>>().map(GgufValue::Floats);
        }
        Content::Integer(Width { bytes, .. }) => skip(cursor, length, bytes)?,
        Content::Single => skip(cursor, length, 4)?,
        Content::Double => skip(cursor, length, 8)?,
        Content::Bool => skip(cursor, length, 1)?,
        Content::Text => skip_texts(cursor, length)?,
    }
    Ok(GgufValue::Array { element, length })
}

/// Passes over `length` elements of so many `bytes`.
fn skip(cursor: &mut Cursor, length: u64, bytes: u64) -> Result<(), GgufError> {
    cursor.bytes(length.saturating_mul(bytes), VALUE).map(|_| ())
}

/// Passes over `length` texts. Each takes eight bytes at least, so that the file's end ends this.
fn skip_texts(cursor: &mut Cursor, length: u64) -> Result<(), GgufError> {
    for _ in 0..length {
        let bytes = cursor.u64(VALUE)?;
        cursor.bytes(bytes, VALUE)?;
    }
    Ok(())
}
