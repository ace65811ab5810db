//! Matrices that are used where their files are mapped.
//!
//! Nothing of them is copied: the system keeps as much of a file in memory as there is room
//! for, processes that serve the same file share it, and a restart finds it there.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::Dtype;

use super::weights::Store;

/// A matrix (rows, columns) in a file.
#[derive(Clone)]
pub struct MappedMatrix {
    store: Arc<Store>,
    place: Place,
    /// (rows, columns)
    shape: (usize, usize),
}

/// Where a tensor lies among the files of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) range: Range<usize>,
    pub(super) dtype: Dtype,
}

/// The elements of a matrix, row by row.
#[derive(Debug, Clone, Copy)]
pub enum MappedElements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats with the range of 32-bit ones.
    BF16(&'a [bf16]),
    /// 16-bit floats.
    F16(&'a [f16]),
}

impl MappedMatrix {
    /// The matrix at `place`, if its elements can be read where they lie.
    pub(super) fn new(store: Arc<Store>, place: Place, shape: (usize, usize)) -> Option<Self> {
        let matrix = Self { store, place, shape };
        let count = shape.0.checked_mul(shape.1)?;
        let is_whole = match matrix.read()? {
            MappedElements::F32(elements) => elements.len() == count,
            MappedElements::BF16(elements) => elements.len() == count,
            MappedElements::F16(elements) => elements.len() == count,
        };
        is_whole.then_some(matrix)
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes that it takes in its file.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.place.range.len()
    }

    /// Its elements.
    #[must_use]
    pub fn elements(&self) -> MappedElements<'_> {
        // It was read when it was made, and a mapping does not move.
        self.read().unwrap_or(MappedElements::F32(&[]))
    }

    fn read(&self) -> Option<MappedElements<'_>> {
        let bytes = self.store.bytes_at(&self.place)?;
        if cfg!(target_endian = "big") {
            return None;
        }
        let dtype = self.place.dtype;
        if dtype == Dtype::F32 {
            typed(bytes).map(MappedElements::F32)
        } else if dtype == Dtype::BF16 {
            typed(bytes).map(MappedElements::BF16)
        } else if dtype == Dtype::F16 {
            typed(bytes).map(MappedElements::F16)
        } else {
            None
        }
    }
}

/// `bytes` as elements, if they begin where such may.
fn typed<T: Pod>(bytes: &[u8]) -> Option<&[T]> {
    bytemuck::try_cast_slice(bytes).ok()
}
