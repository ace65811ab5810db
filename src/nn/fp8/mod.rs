//! Matrices of 8-bit floats: half the bytes of 16-bit ones, and twice the speed on
//! GPUs that multiply them.
//!
//! The format is e4m3 (Micikevicius et al., "FP8 Formats for Deep Learning",
//! arXiv:2209.05433): four bits of exponent, three of fraction, 448 at most. Each row
//! has a scale of its own, a power of two: so scaling rounds nothing, and a product
//! can be scaled before or after it is made.

mod format;
mod steps;

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{D, DType, Device, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cublaslt::Fp8Product;
use super::kernels::{Elements, run};
use super::widened::{self, Narrow};
#[cfg(feature = "cuda")]
use steps::ScaledProduct;
use steps::{RoundedRows, WideRows};

/// Where the scales begin is a multiple of this, in bytes.
const SCALES_ALIGNMENT: usize = 16;

/// How an NVIDIA GPU sums 8-bit products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fp8Sums {
    /// In 32 bits.
    Exact,
    /// On Hopper in its multiplying units, which keep fewer digits and are faster.
    Fast,
}

/// Whether sums are fast.
static FAST_SUMS: AtomicBool = AtomicBool::new(false);

impl Fp8Sums {
    /// What [`Fp8Sums::choose`] was told; exact ones without that.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there is no card"))]
    pub(super) fn chosen() -> Self {
        if FAST_SUMS.load(Ordering::Relaxed) { Self::Fast } else { Self::Exact }
    }

    /// Has all products of this process summed this way.
    pub fn choose(self) {
        FAST_SUMS.store(self == Self::Fast, Ordering::Relaxed);
    }
}

/// A matrix in e4m3 with a scale for each row.
#[derive(Clone)]
pub struct Fp8Rows {
    /// The elements row by row, then the scales, as bytes in a row.
    pub(super) bytes: Tensor,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Fp8Rows {
    /// Rounds the rows of `x`: (…, width), on any device.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn quantize(x: &Tensor) -> Result<Self> {
        let width = x.dim(D::Minus1)?;
        let rows = x.elem_count() / width.max(1);
        let bytes = run(&RoundedRows::new(&x.contiguous()?, rows, width)?)?;
        Ok(Self { bytes, rows, width })
    }

    /// A matrix (rows, width) of `codes` row by row, with `scales`, which need not be powers of
    /// two: widened elements are then rounded once.
    ///
    /// # Errors
    /// A candle error if the sizes do not fit, or out of memory.
    pub fn stored(
        codes: Vec<u8>,
        scales: &[f32],
        (rows, width): (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        if codes.len() != rows * width || scales.len() != rows {
            candle_core::bail!("{} codes are no {rows} rows of {width}", codes.len());
        }
        let mut bytes = codes;
        bytes.resize(scales_at(rows, width), 0);
        bytes.extend(scales.iter().flat_map(|scale| scale.to_ne_bytes()));
        let count = bytes.len();
        Ok(Self { bytes: Tensor::from_vec(bytes, count, device)?, rows, width })
    }

    /// A matrix that takes no memory, for what is only counted.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn placeholder(rows: usize, width: usize) -> Result<Self> {
        let bytes = Tensor::zeros((), DType::U8, &Device::Cpu)?
            .broadcast_as(Self::byte_count(rows, width))?;
        Ok(Self { bytes, rows, width })
    }

    /// Bytes of a matrix with its scales.
    #[must_use]
    pub fn byte_count(rows: usize, width: usize) -> usize {
        scales_at(rows, width) + rows * size_of::<f32>()
    }

    /// (rows, width), in `dtype`. Exact, where that has the range.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn widen(&self, dtype: DType) -> Result<Tensor> {
        run(&WideRows::new(self, dtype))
    }

    /// x · rowsᵀ on a CPU, with `x` as it is: (…, width). Returns (…, rows) in its format.
    ///
    /// # Errors
    /// As [`widened::product`].
    pub(super) fn widened_product(&self, x: &Tensor) -> Result<Tensor> {
        let numbers = Elements::<u8>::of(&self.bytes)?;
        let bytes = numbers.all();
        let widen_row = |row: usize, made: &mut [f32]| steps::widen_row(bytes, self, row, made);
        let (outputs, inputs) = (self.rows, self.width);
        widened::product(x, &Narrow { outputs, inputs, widen_row: &widen_row })
    }

    /// The address of the scales on the device.
    pub(super) fn scales_address(&self) -> Result<u64> {
        let first = super::kernels::address(&self.bytes)?;
        // The elements move in packs, the scales as a whole: a GPU faults elsewhere.
        if !first.is_multiple_of(SCALES_ALIGNMENT as u64) {
            candle_core::bail!("8-bit rows must begin at a multiple of {SCALES_ALIGNMENT}");
        }
        Ok(first + scales_at(self.rows, self.width) as u64)
    }
}

fn scales_at(rows: usize, width: usize) -> usize {
    (rows * width).next_multiple_of(SCALES_ALIGNMENT)
}

/// x · weightᵀ of two rounded matrices, summed in 32 bits.
///
/// `x`: (tokens, inputs); `weight`: (outputs, inputs). Returns (tokens, outputs) in
/// `dtype`. GPUs that multiply 8-bit floats do; elsewhere the same elements are
/// multiplied in `dtype`.
///
/// # Errors
/// A candle error if the shapes do not fit, or out of memory.
pub(super) fn product(x: &Fp8Rows, weight: &Fp8Rows, dtype: DType) -> Result<Tensor> {
    if x.width != weight.width {
        candle_core::bail!("rows of {} and of {} do not fit", x.width, weight.width);
    }
    #[cfg(feature = "cuda")]
    if dtype == DType::BF16 {
        match super::cublaslt::fp8_product(x, weight)? {
            Some(Fp8Product::Whole(product)) => return Ok(product),
            Some(Fp8Product::Bare(bare)) => return run(&ScaledProduct::new(&bare, x, weight)?),
            None => {}
        }
    }
    x.widen(dtype)?.matmul(&weight.widen(dtype)?.t()?)
}

/// The product of the bare elements `bare`, (tokens, outputs), scaled.
#[cfg(test)]
pub(super) fn scaled_product(bare: &Tensor, x: &Fp8Rows, weight: &Fp8Rows) -> Result<Tensor> {
    run(&steps::ScaledProduct::new(bare, x, weight)?)
}
