//! What a choice of dtype means for the layers of a model.

use candle_core::{DType, Device};

use super::{DtypeChoice, LoadError, ModelConfig};
use crate::checkpoint::MatrixFormat;
use crate::device::dtype_name;

/// The format of matrices that `choice` means.
#[must_use]
pub(super) fn matrix_format(choice: DtypeChoice) -> MatrixFormat {
    match choice {
        DtypeChoice::Fp8 => MatrixFormat::Fp8,
        DtypeChoice::Fp8Weights => MatrixFormat::Fp8Weights,
        DtypeChoice::Q8_0 => MatrixFormat::Q8_0,
        DtypeChoice::Auto => MatrixFormat::AsStored,
        DtypeChoice::Float32 | DtypeChoice::Bfloat16 | DtypeChoice::Float16 => {
            MatrixFormat::AsComputed
        }
    }
}

/// The same for the text encoder: 8-bit floats are for the transformer's blocks alone.
#[must_use]
pub(super) fn text_encoder_matrices(choice: DtypeChoice) -> MatrixFormat {
    match matrix_format(choice) {
        MatrixFormat::Q8_0 => MatrixFormat::Q8_0,
        MatrixFormat::AsStored => MatrixFormat::AsStored,
        MatrixFormat::AsComputed | MatrixFormat::Fp8 | MatrixFormat::Fp8Weights => {
            MatrixFormat::AsComputed
        }
    }
}

/// The device that the settings name, if it computes in their dtype.
///
/// # Errors
/// A [`DeviceError`](crate::device::DeviceError), or a setting that the device cannot follow.
pub(super) fn open_device(config: &ModelConfig) -> Result<Device, LoadError> {
    let device = crate::device::open(config.device)?;
    if matrix_format(config.dtype) == MatrixFormat::Q8_0 && !device.is_cpu() {
        let reason = "q8_0 is for CPUs: use fp8 or fp8-weights on a GPU, or device cpu";
        return Err(LoadError::Setting { setting: "model.dtype", reason: reason.to_owned() });
    }
    Ok(device)
}

/// What a model computes in, for people: torch's name of the dtype, and what
/// its matrices are kept in if that is another one: `quantized` are the formats in which
/// files have some of them.
#[must_use]
pub(super) fn precision_name(dtype: DType, matrices: MatrixFormat, quantized: &[String]) -> String {
    let name = dtype_name(dtype);
    match matrices {
        MatrixFormat::AsStored if !quantized.is_empty() => {
            format!("{name} with weights in {}", quantized.join(", "))
        }
        MatrixFormat::AsStored | MatrixFormat::AsComputed => name.to_owned(),
        MatrixFormat::Fp8 => format!("{name} with fp8 layers"),
        MatrixFormat::Fp8Weights => format!("{name} with fp8 weights"),
        MatrixFormat::Q8_0 => format!("{name} with q8_0 layers"),
    }
}
