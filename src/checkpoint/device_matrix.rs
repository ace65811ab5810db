//! Matrices that a GPU keeps as they are quantized in their file: GGML's blocks that candle
//! has kernels for, and 8-bit floats with scales by row. Others are decoded on their way.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result};

use super::ggml::GgmlType;
use super::storage::{EightBitFormat, EightBits, Part, Scale, Storage};
use super::weights::Store;

/// A matrix as it is quantized.
pub enum DeviceMatrix {
    /// In blocks, on the device.
    Blocks(QTensor),
    /// In e4m3, with a scale for each row, on the host still.
    Fp8 {
        /// Row by row.
        codes: Vec<u8>,
        /// One a row.
        scales: Vec<f32>,
    },
}

/// One that has not been copied yet.
pub(super) struct StoredMatrix<'a> {
    bytes: &'a [u8],
    kind: Kind<'a>,
    shape: (usize, usize),
}

enum Kind<'a> {
    Blocks(GgmlDType),
    Fp8(&'a Scale),
}

/// Whether a GPU can keep the matrix that lies in `parts`.
pub(super) fn can_be_of(parts: &[Part]) -> bool {
    kind_of(parts).is_some()
}

/// The matrix that lies in `parts`, if a GPU can keep it.
pub(super) fn of<'a>(
    store: &'a Store,
    parts: &'a [Part],
    shape: (usize, usize),
) -> Option<StoredMatrix<'a>> {
    let kind = kind_of(parts)?;
    let bytes = store.bytes_of(parts.first()?);
    Some(StoredMatrix { bytes, kind, shape })
}

fn kind_of(parts: &[Part]) -> Option<Kind<'_>> {
    let [part] = parts else { return None };
    match &part.storage {
        Storage::Ggml(kind) => Some(Kind::Blocks(kernel_of(*kind)?)),
        Storage::Eight(EightBits { format: EightBitFormat::E4m3, scale, rotated_by: None })
            if !matches!(scale, Scale::Blocks { .. }) =>
        {
            Some(Kind::Fp8(scale))
        }
        Storage::Eight(_) | Storage::Plain(_) => None,
    }
}

/// What candle calls a type that it has kernels for.
fn kernel_of(kind: GgmlType) -> Option<GgmlDType> {
    let kernels = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    let name = kind.name().replace("_K", "K");
    kernels.into_iter().find(|kernel| format!("{kernel:?}") == name)
}

impl StoredMatrix<'_> {
    /// Bytes that it takes on the device.
    pub(super) fn byte_count(&self) -> usize {
        match self.kind {
            Kind::Blocks(_) => self.bytes.len(),
            Kind::Fp8(_) => self.bytes.len() + self.shape.0 * size_of::<f32>(),
        }
    }

    /// It on `device`.
    pub(super) fn on(&self, device: &Device) -> Result<DeviceMatrix> {
        let rows = self.shape.0;
        Ok(match self.kind {
            Kind::Blocks(kernel) => {
                let storage = QStorage::from_data(aligned(self.bytes), device, kernel)?;
                DeviceMatrix::Blocks(QTensor::new(storage, self.shape)?)
            }
            Kind::Fp8(scale) => DeviceMatrix::Fp8 {
                codes: self.bytes.to_vec(),
                scales: match scale {
                    Scale::Rows(scales) => scales.to_vec(),
                    Scale::One(scale) => vec![*scale; rows],
                    Scale::Blocks { .. } => candle_core::bail!("scales by block"),
                },
            },
        })
    }
}

/// `bytes` where candle takes them as blocks of numbers of two bytes.
fn aligned(bytes: &[u8]) -> Cow<'_, [u8]> {
    match bytes.as_ptr().addr().is_multiple_of(8) {
        true => Cow::Borrowed(bytes),
        false => Cow::Owned(bytes.to_vec()),
    }
}
