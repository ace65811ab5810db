//! How the elements of a tensor lie in its file, and the way from there to 32-bit floats.
//!
//! A file decides that tensor by tensor: a single one may hold 16-bit floats, GGML's
//! blocks and 8-bit numbers with scales. Whatever is not plain is decoded row by row.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::float8::{from_e4m3, from_e5m2};
use super::ggml::GgmlType;
use super::rotation;

/// Numbers that need no decoding, as safetensors and as GGML call them.
const PLAIN_TYPES: [(Dtype, GgmlType); 3] =
    [(Dtype::F32, GgmlType::F32), (Dtype::BF16, GgmlType::Bf16), (Dtype::F16, GgmlType::F16)];

/// How elements lie in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Storage {
    /// As safetensors names it.
    Plain(Dtype),
    /// In blocks of GGML's.
    Ggml(GgmlType),
    /// In 8 bits each.
    Eight(EightBits),
}

/// Elements of 8 bits, and what makes numbers of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EightBits {
    pub(super) format: EightBitFormat,
    pub(super) scale: Scale,
    /// Elements of the groups in which rows were rotated before they were quantized.
    pub(super) rotated_by: Option<usize>,
}

/// Formats of 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EightBitFormat {
    /// Floats with four bits of exponent.
    E4m3,
    /// Floats with five.
    E5m2,
    /// Integers.
    Int8,
}

/// What elements are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scale {
    /// All of them by one number.
    One(f32),
    /// Each row by its own.
    Rows(Arc<[f32]>),
    /// Each block of (rows, columns) by its own, row of blocks by row of blocks.
    Blocks {
        /// Rows and columns of a block.
        block: (usize, usize),
        /// How many blocks a row has.
        columns: usize,
        scales: Arc<[f32]>,
    },
}

/// Rows of a tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// Which of the component's files.
    pub(super) buffer: usize,
    /// Bytes of it.
    pub(super) range: Range<usize>,
    pub(super) storage: Storage,
    pub(super) rows: usize,
    /// Elements of a row.
    pub(super) width: usize,
}

impl Part {
    /// A part of `shape`; a vector is one row.
    pub(super) fn new(
        buffer: usize,
        range: Range<usize>,
        storage: Storage,
        shape: &[usize],
    ) -> Option<Self> {
        let (rows, inner) = match shape {
            [] | [_] => (1, shape),
            [rows, inner @ ..] => (*rows, inner),
        };
        let width = inner.iter().try_fold(1_usize, |width, side| width.checked_mul(*side))?;
        let fits = storage.bytes_of(rows, width) == Some(range.len());
        fits.then_some(Self { buffer, range, storage, rows, width })
    }
}

impl Storage {
    /// What a GGUF file means by `kind`.
    pub(super) fn of_gguf(kind: GgmlType) -> Self {
        let plain = PLAIN_TYPES.iter().find(|(_, known)| *known == kind);
        plain.map_or(Self::Ggml(kind), |(dtype, _)| Self::Plain(*dtype))
    }

    /// The name that people know it by.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Plain(dtype) => format!("{dtype:?}"),
            Self::Ggml(kind) => kind.name().to_owned(),
            Self::Eight(eight) => {
                let name = match eight.format {
                    EightBitFormat::E4m3 => "F8_E4M3",
                    EightBitFormat::E5m2 => "F8_E5M2",
                    EightBitFormat::Int8 => "I8",
                };
                let rotated = if eight.rotated_by.is_some() { ", rotated" } else { "" };
                let scales = match &eight.scale {
                    Scale::One(scale) if *scale == 1.0 => "",
                    Scale::One(_) => ", scaled",
                    Scale::Rows(_) => ", scaled by row",
                    Scale::Blocks { .. } => ", scaled by block",
                };
                format!("{name}{scales}{rotated}")
            }
        }
    }

    /// Whether rows must be decoded before they can be computed with.
    pub(super) fn is_quantized(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Whether this program reads it.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Self::Plain(dtype) if ggml_type(*dtype).is_none())
    }

    /// Bytes of `rows` rows of `width` elements, if there can be such rows.
    pub(super) fn bytes_of(&self, rows: usize, width: usize) -> Option<usize> {
        let of_row = match self {
            Self::Plain(dtype) => width.checked_mul(dtype.bitsize())?.div_ceil(8),
            Self::Ggml(kind) => kind.row_bytes(width)?,
            Self::Eight(_) => width,
        };
        of_row.checked_mul(rows)
    }

    /// Writes row `row` of `bytes`, whose rows have `made.len()` elements. Zeros where there
    /// is no such row: sizes are checked where files are opened.
    #[inline(always)]
    pub(super) fn decode_row(&self, bytes: &[u8], row: usize, made: &mut [f32]) {
        let of_row = self.bytes_of(1, made.len()).unwrap_or(0);
        let Some(bytes) = bytes.get(row * of_row..(row + 1) * of_row) else {
            made.fill(0.0);
            return;
        };
        match self {
            Self::Plain(dtype) => match ggml_type(*dtype) {
                Some(kind) => kind.decode(bytes, made),
                None => made.fill(0.0),
            },
            Self::Ggml(kind) => kind.decode(bytes, made),
            Self::Eight(eight) => eight.decode_row(bytes, row, made),
        }
    }
}

/// What GGML calls numbers that lie one by one: it decodes them, too.
#[inline(always)]
fn ggml_type(dtype: Dtype) -> Option<GgmlType> {
    PLAIN_TYPES.iter().find(|(known, _)| *known == dtype).map(|(_, kind)| *kind)
}

impl EightBits {
    #[inline(always)]
    fn decode_row(&self, bytes: &[u8], row: usize, made: &mut [f32]) {
        let codes = made.iter_mut().zip(bytes);
        match self.format {
            EightBitFormat::E4m3 => codes.for_each(|(made, code)| *made = from_e4m3(*code)),
            EightBitFormat::E5m2 => codes.for_each(|(made, code)| *made = from_e5m2(*code)),
            EightBitFormat::Int8 => {
                codes.for_each(|(made, code)| *made = f32::from(code.cast_signed()));
            }
        }
        self.scale.apply(row, made);
        if let Some(group) = self.rotated_by {
            rotation::rotate(made, group);
        }
    }
}

impl Scale {
    #[inline(always)]
    fn apply(&self, row: usize, made: &mut [f32]) {
        match self {
            Self::One(scale) => made.iter_mut().for_each(|made| *made *= scale),
            Self::Rows(scales) => {
                let scale = scales.get(row).copied().unwrap_or(f32::NAN);
                made.iter_mut().for_each(|made| *made *= scale);
            }
            Self::Blocks { block, columns, scales } => {
                let first = row / block.0 * columns;
                for (made, column) in made.chunks_mut(block.1).zip(first..) {
                    let scale = scales.get(column).copied().unwrap_or(f32::NAN);
                    made.iter_mut().for_each(|made| *made *= scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_scaled_by_its_own_number_and_each_block_by_its() {
        let eight = |scale| {
            Storage::Eight(EightBits { format: EightBitFormat::Int8, scale, rotated_by: None })
        };
        let bytes: Vec<u8> = (1..=8).collect();
        let rows = |storage: &Storage| {
            [0, 1].map(|row| {
                let mut made = [0.0; 4];
                storage.decode_row(&bytes, row, &mut made);
                made
            })
        };

        let made = rows(&eight(Scale::Rows([2.0, -1.0].into())));
        assert_eq!(made, [[2.0, 4.0, 6.0, 8.0], [-5.0, -6.0, -7.0, -8.0]]);
        let blocks =
            Scale::Blocks { block: (1, 3), columns: 2, scales: [1.0, 2.0, 3.0, 4.0].into() };
        assert_eq!(rows(&eight(blocks)), [[1.0, 2.0, 3.0, 8.0], [15.0, 18.0, 21.0, 32.0]]);
        let storage = eight(Scale::One(0.5));
        let mut beyond = [1.0; 4];
        storage.decode_row(&bytes, 2, &mut beyond);
        assert_eq!(beyond, [0.0; 4]);
    }
}
