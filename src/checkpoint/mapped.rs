//! Matrices that are used where their files are mapped, as they lie there or row by row.
//!
//! Nothing of them is copied: the system keeps as much of a file in memory as there is room
//! for, processes that serve the same file share it, and a restart finds it there.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::Dtype;

use super::storage::Part;
use super::tensor_files::decode_row;
use super::weights::Store;

/// A matrix (rows, columns) in a file.
#[derive(Clone)]
pub struct MappedMatrix {
    store: Arc<Store>,
    elements: Elements,
    /// (rows, columns)
    shape: (usize, usize),
}

/// Where the elements of a matrix lie.
#[derive(Clone)]
enum Elements {
    Plain(Place),
    Quantized(Arc<[Part]>),
}

/// Where a tensor lies among the files of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) range: Range<usize>,
    pub(super) dtype: Dtype,
}

/// The elements of a matrix, row by row.
#[derive(Clone, Copy)]
pub enum MappedElements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats with the range of 32-bit ones.
    BF16(&'a [bf16]),
    /// 16-bit floats.
    F16(&'a [f16]),
    /// Fewer bits: rows must be decoded.
    Quantized(QuantizedRows<'a>),
}

/// Rows that are decoded before they are computed with.
#[derive(Clone, Copy)]
pub struct QuantizedRows<'a> {
    store: &'a Store,
    parts: &'a [Part],
}

impl QuantizedRows<'_> {
    /// Writes the elements of row `row`. To be inlined into what is compiled for the
    /// processor's vectors.
    #[inline(always)]
    pub fn decode_row(&self, row: usize, made: &mut [f32]) {
        decode_row(self.parts, |part| self.store.bytes_of(part), row, made);
    }
}

impl MappedMatrix {
    /// The matrix at `place`, if its elements can be read where they lie.
    pub(super) fn new(store: Arc<Store>, place: Place, shape: (usize, usize)) -> Option<Self> {
        let count = shape.0.checked_mul(shape.1)?;
        let length = match plain(&store, &place)? {
            MappedElements::F32(elements) => elements.len(),
            MappedElements::BF16(elements) => elements.len(),
            MappedElements::F16(elements) => elements.len(),
            MappedElements::Quantized(_) => return None,
        };
        (length == count).then_some(Self { store, elements: Elements::Plain(place), shape })
    }

    /// The matrix whose rows lie in `parts`.
    pub(super) fn quantized(store: Arc<Store>, parts: &[Part], shape: (usize, usize)) -> Self {
        Self { store, elements: Elements::Quantized(parts.into()), shape }
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes that it takes in its file.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        match &self.elements {
            Elements::Plain(place) => place.range.len(),
            Elements::Quantized(parts) => parts.iter().map(|part| part.range.len()).sum(),
        }
    }

    /// Whether its rows must be decoded.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        matches!(self.elements, Elements::Quantized(_))
    }

    /// Its elements.
    #[must_use]
    pub fn elements(&self) -> MappedElements<'_> {
        match &self.elements {
            // It was read when it was made, and a mapping does not move.
            Elements::Plain(place) => plain(&self.store, place).unwrap_or(MappedElements::F32(&[])),
            Elements::Quantized(parts) => {
                MappedElements::Quantized(QuantizedRows { store: &self.store, parts })
            }
        }
    }
}

/// The elements at `place`.
fn plain<'a>(store: &'a Store, place: &Place) -> Option<MappedElements<'a>> {
    let bytes = store.bytes_at(place)?;
    if cfg!(target_endian = "big") {
        return None;
    }
    if place.dtype == Dtype::F32 {
        typed(bytes).map(MappedElements::F32)
    } else if place.dtype == Dtype::BF16 {
        typed(bytes).map(MappedElements::BF16)
    } else if place.dtype == Dtype::F16 {
        typed(bytes).map(MappedElements::F16)
    } else {
        None
    }
}

/// `bytes` as elements, if they begin where such may.
fn typed<T: Pod>(bytes: &[u8]) -> Option<&[T]> {
    bytemuck::try_cast_slice(bytes).ok()
}
