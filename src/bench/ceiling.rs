//! What a device reaches at most, with products like those of the transformer.

use std::time::Instant;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use serde::Serialize;

use crate::model::benchmark::BenchmarkError;
use crate::model::{DeviceChoice, DtypeChoice, LoadError};

/// What a device reaches at most.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    /// Where.
    pub device: String,
    /// In which dtype.
    pub dtype: String,
    /// Products of matrices.
    pub products: Vec<ProductSpeed>,
    /// Gigabytes that a copy on the device reads and writes in a second.
    pub copy_gb_s: f64,
}

/// What a product of matrices reaches.
#[derive(Debug, Clone, Serialize)]
pub struct ProductSpeed {
    /// Rows of the left matrix.
    pub rows: usize,
    /// What is summed over.
    pub inputs: usize,
    /// Columns of what is made.
    pub outputs: usize,
    /// Tera floating-point operations a second, of the fastest.
    pub tflops: f64,
}

/// Inputs and outputs of the transformer's layers, that of [`tflops`] first; and a square
/// as published figures have it.
const SIDES: [(usize, usize); 4] = [(3072, 12_288), (12_288, 3072), (3072, 3072), (8192, 8192)];
/// Rows of a pass with one reference of a megapixel; a CPU has enough to do with fewer,
/// and where all of [`SIDES`] are measured with still fewer.
const ROWS: usize = 8192;
const ROWS_ON_CPU: usize = 512;
const ROWS_OF_EACH_ON_CPU: usize = 64;
/// For how long each is repeated, at least.
const SECONDS: f64 = 1.0;
/// Products that are queued before a device is waited for.
const QUEUED: usize = 8;
/// Elements that are copied: far more than a cache holds.
const COPIED: usize = 1 << 30;
const COPIED_ON_CPU: usize = 1 << 24;

impl Ceiling {
    fn of(device: &Device, dtype: DType) -> TensorResult<Self> {
        let rows = if device.is_cpu() { ROWS_OF_EACH_ON_CPU } else { ROWS };
        let product = |(inputs, outputs)| {
            let tflops = product_tflops(device, dtype, (rows, inputs, outputs))?;
            Ok(ProductSpeed { rows, inputs, outputs, tflops })
        };
        Ok(Self {
            device: crate::device::device_name(device),
            dtype: crate::device::dtype_name(dtype).to_owned(),
            products: SIDES.into_iter().map(product).collect::<TensorResult<_>>()?,
            copy_gb_s: copy_gb_s(device, dtype)?,
        })
    }
}

/// What `device` reaches at most in `dtype`.
///
/// # Errors
/// [`BenchmarkError`]: no such device, out of memory.
pub fn ceiling(device: DeviceChoice, dtype: DtypeChoice) -> Result<Ceiling, BenchmarkError> {
    let device = crate::device::open(device).map_err(LoadError::from)?;
    let dtype = crate::device::dtype(dtype, &device);
    Ok(Ceiling::of(&device, dtype)?)
}

/// Of the transformer's feed-forward layers.
pub(super) fn tflops(device: &Device, dtype: DType) -> TensorResult<f64> {
    let (inputs, outputs) = SIDES[0];
    let rows = if device.is_cpu() { ROWS_ON_CPU } else { ROWS };
    product_tflops(device, dtype, (rows, inputs, outputs))
}

fn product_tflops(
    device: &Device,
    dtype: DType,
    (rows, inputs, outputs): (usize, usize, usize),
) -> TensorResult<f64> {
    let random = |rows, columns| -> TensorResult<Tensor> {
        // A CPU takes longer to draw all of them than to multiply them.
        let drawn = if device.is_cpu() { 1 } else { rows };
        let numbers = Tensor::randn(0f32, 1.0, (drawn, columns), device)?.to_dtype(dtype)?;
        numbers.broadcast_as((rows, columns))?.contiguous()
    };
    let (left, right) = (random(rows, inputs)?, random(outputs, inputs)?.t()?);
    let seconds = fastest(device, || left.matmul(&right))?;
    Ok(2.0 * (rows * inputs * outputs) as f64 / seconds / 1e12)
}

fn copy_gb_s(device: &Device, dtype: DType) -> TensorResult<f64> {
    let count = if device.is_cpu() { COPIED_ON_CPU } else { COPIED };
    let numbers = Tensor::zeros(count, dtype, device)?;
    let seconds = fastest(device, || numbers.copy())?;
    Ok(2.0 * (count * dtype.size_in_bytes()) as f64 / seconds / 1e9)
}

/// Seconds of the fastest of some calls of `work`, which a device may queue.
fn fastest(device: &Device, work: impl Fn() -> TensorResult<Tensor>) -> TensorResult<f64> {
    let queued = if device.is_cpu() { 1 } else { QUEUED };
    let several = || -> TensorResult<f64> {
        let started = Instant::now();
        for _ in 0..queued {
            drop(work()?);
        }
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64() / queued as f64)
    };
    several()?;
    let (started, mut least) = (Instant::now(), f64::INFINITY);
    while started.elapsed().as_secs_f64() < SECONDS {
        least = least.min(several()?);
    }
    Ok(least)
}
