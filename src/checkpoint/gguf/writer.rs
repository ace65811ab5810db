//! Writes a GGUF file as it goes: the header, which says where each tensor will lie, then the
//! tensors in the same order, piece by piece.

#[cfg(test)]
mod tests;

use std::io::Write;

use super::super::ggml::GgmlType;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufValue, GgufValueType, MAGIC};

/// The version that is written.
const VERSION: u32 = 3;

/// Tensors start at multiples of this.
const ALIGNMENT: usize = DEFAULT_ALIGNMENT as usize;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// What it is called.
    pub name: String,
    /// How it is stored.
    pub kind: GgmlType,
    /// Rows first.
    pub shape: Vec<usize>,
}

/// Why a GGUF file is not written.
#[derive(Debug, thiserror::Error)]
pub enum GgufWriteError {
    /// The system refuses.
    #[error("cannot write")]
    Io(#[from] std::io::Error),
    /// A tensor has no size: its rows are no whole blocks, or it is more than there can be.
    #[error("tensor {name:?} of shape {shape:?} cannot be stored as {kind}")]
    Shape {
        /// What it is called.
        name: String,
        /// Rows first.
        shape: Vec<usize>,
        /// How it was to be stored.
        kind: GgmlType,
    },
    /// Metadata that is not written: texts and arrays whose content is not known, numbers beyond
    /// 64 bits, and the alignment, which is always 32.
    #[error("metadata {key:?} cannot be written")]
    Metadata {
        /// Of the value.
        key: String,
    },
    /// Bytes come for another tensor than the next in order.
    #[error("tensor {given:?} is given where {} is expected", expected.as_deref().unwrap_or("none"))]
    Order {
        /// The one that came.
        given: String,
        /// The one whose turn it is.
        expected: Option<String>,
    },
    /// A tensor has more bytes than its shape says.
    #[error("tensor {name:?} is given more bytes than the {bytes} that it has")]
    TooManyBytes {
        /// What it is called.
        name: String,
        /// How many it has.
        bytes: usize,
    },
    /// The end comes before a tensor's.
    #[error("tensor {name:?} lacks {missing} bytes")]
    Unfinished {
        /// What it is called.
        name: String,
        /// How many have not come.
        missing: usize,
    },
}

/// A GGUF file in the making.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    /// Those that are not complete: name and bytes.
    waiting: std::collections::VecDeque<(String, usize)>,
    /// How many bytes of the first of them are written.
    written: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. What fits 32 bits is written as such, as ggml's own programs expect.
    ///
    /// # Errors
    /// A [`GgufWriteError`] if a shape or a value cannot be written, or nothing can.
    pub fn start(
        mut out: W,
        metadata: &[(&str, GgufValue)],
        tensors: &[PlannedTensor],
    ) -> Result<Self, GgufWriteError> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            let unwritten = || GgufWriteError::Metadata { key: (*key).to_owned() };
            push_text(&mut header, key);
            let known = *key != ALIGNMENT_KEY;
            known.then(|| push_value(&mut header, value)).flatten().ok_or_else(unwritten)?;
        }
        let mut waiting = std::collections::VecDeque::new();
        let mut offset = 0;
        for tensor in tensors {
            let bytes = push_tensor(&mut header, tensor, offset)?;
            offset += bytes.next_multiple_of(ALIGNMENT) as u64;
            waiting.push_back((tensor.name.clone(), bytes));
        }
        header.resize(header.len() + padding(header.len()), 0);
        out.write_all(&header)?;
        let mut writer = Self { out, waiting, written: 0 };
        writer.pass_complete()?;
        Ok(writer)
    }

    /// Writes `bytes`, which are the next of the tensor `name`: of all that are planned, the first
    /// that is not complete.
    ///
    /// # Errors
    /// A [`GgufWriteError`] if it is another's turn, if it has no so many bytes, or if the system
    /// refuses.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufWriteError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let expected = match self.waiting.front() {
            Some((next, expected)) if next == name => *expected,
            other => {
                let (given, expected) = (name.to_owned(), other.map(|(next, _)| next.clone()));
                return Err(GgufWriteError::Order { given, expected });
            }
        };
        if bytes.len() > expected - self.written {
            return Err(GgufWriteError::TooManyBytes { name: name.to_owned(), bytes: expected });
        }
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        self.pass_complete()
    }

    /// The end of the file.
    ///
    /// # Errors
    /// A [`GgufWriteError`] if a tensor is not complete, or if the system refuses.
    pub fn finish(mut self) -> Result<W, GgufWriteError> {
        if let Some((name, bytes)) = self.waiting.pop_front() {
            return Err(GgufWriteError::Unfinished { name, missing: bytes - self.written });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Goes on to the next tensor that lacks bytes.
    fn pass_complete(&mut self) -> Result<(), GgufWriteError> {
        while let Some((_, bytes)) = self.waiting.front()
            && *bytes == self.written
        {
            self.out.write_all(&[0; ALIGNMENT][..padding(self.written)])?;
            self.waiting.pop_front();
            self.written = 0;
        }
        Ok(())
    }
}

/// How many bytes come after so many, up to where the next tensor starts.
fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT) - bytes
}

fn push_text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn push_type(header: &mut Vec<u8>, kind: GgufValueType) {
    header.extend(kind.code().to_le_bytes());
}

/// The type and the value, if it can be written.
fn push_value(header: &mut Vec<u8>, value: &GgufValue) -> Option<()> {
    match value {
        GgufValue::Integer(number) => {
            let kind = integer_type(&[*number])?;
            push_type(header, kind);
            push_integer(header, kind, *number);
        }
        GgufValue::Integers(numbers) => {
            let kind = integer_type(numbers)?;
            push_array(header, kind, numbers.len());
            numbers.iter().for_each(|number| push_integer(header, kind, *number));
        }
        GgufValue::Float(number) => {
            push_type(header, GgufValueType::F32);
            header.extend(single(*number).to_le_bytes());
        }
        GgufValue::Floats(numbers) => {
            push_array(header, GgufValueType::F32, numbers.len());
            numbers.iter().for_each(|number| header.extend(single(*number).to_le_bytes()));
        }
        GgufValue::Bool(value) => {
            push_type(header, GgufValueType::Bool);
            header.push((*value).into());
        }
        GgufValue::Text(text) => {
            push_type(header, GgufValueType::Text);
            push_text(header, text);
        }
        GgufValue::LongText { .. } | GgufValue::Array { .. } => return None,
    }
    Some(())
}

#[expect(clippy::cast_possible_truncation, reason = "ggml keeps its settings in 32 bits")]
fn single(number: f64) -> f32 {
    number as f32
}

fn push_array(header: &mut Vec<u8>, element: GgufValueType, length: usize) {
    push_type(header, GgufValueType::Array);
    push_type(header, element);
    header.extend((length as u64).to_le_bytes());
}

/// The first type that has all of `numbers`. Shapes are arrays of `int32`, other numbers are
/// mostly `uint32`.
fn integer_type(numbers: &[i128]) -> Option<GgufValueType> {
    let within =
        |least: i128, most: i128| numbers.iter().all(|number| (least..=most).contains(number));
    if numbers.len() != 1 && within(i32::MIN.into(), i32::MAX.into()) {
        return Some(GgufValueType::I32);
    }
    let types = [
        (GgufValueType::U32, 0, u32::MAX.into()),
        (GgufValueType::I32, i32::MIN.into(), i32::MAX.into()),
        (GgufValueType::U64, 0, u64::MAX.into()),
        (GgufValueType::I64, i64::MIN.into(), i64::MAX.into()),
    ];
    let fitting = types.into_iter().find(|(_, least, most)| within(*least, *most));
    fitting.map(|(kind, ..)| kind)
}

/// `number`, which is of type `kind`: its lowest bytes.
fn push_integer(header: &mut Vec<u8>, kind: GgufValueType, number: i128) {
    let wide = matches!(kind, GgufValueType::U64 | GgufValueType::I64);
    header.extend(number.to_le_bytes().iter().take(if wide { 8 } else { 4 }));
}

/// The tensor's entry; returns how many bytes it takes.
fn push_tensor(
    header: &mut Vec<u8>,
    tensor: &PlannedTensor,
    offset: u64,
) -> Result<usize, GgufWriteError> {
    let PlannedTensor { name, kind, shape } = tensor;
    let size = || {
        let (width, rows) = shape.split_last().map_or((1, &[][..]), |(width, rows)| (*width, rows));
        rows.iter().try_fold(kind.row_bytes(width)?, |bytes, side| bytes.checked_mul(*side))
    };
    let unstorable =
        || GgufWriteError::Shape { name: name.clone(), shape: shape.clone(), kind: *kind };
    // Room for the padding of this and of all others.
    let bytes = size().filter(|bytes| *bytes < 1 << 48).ok_or_else(unstorable)?;
    let dimensions = u32::try_from(shape.len()).map_err(|_| unstorable())?;
    push_text(header, name);
    header.extend(dimensions.to_le_bytes());
    shape.iter().rev().for_each(|side| header.extend((*side as u64).to_le_bytes()));
    header.extend(kind.code().to_le_bytes());
    header.extend(offset.to_le_bytes());
    Ok(bytes)
}
