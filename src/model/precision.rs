//! What a choice of number format means for the layers of a model.

use candle_core::DType;

use super::DtypeChoice;
use crate::checkpoint::MatrixFormat;
use crate::device::dtype_name;

/// The format of matrices that `choice` means.
#[must_use]
pub(super) fn matrix_format(choice: DtypeChoice) -> MatrixFormat {
    match choice {
        DtypeChoice::Fp8 => MatrixFormat::Fp8,
        DtypeChoice::Fp8Weights => MatrixFormat::Fp8Weights,
        DtypeChoice::Auto | DtypeChoice::Float32 | DtypeChoice::Bfloat16 | DtypeChoice::Float16 => {
            MatrixFormat::AsComputed
        }
    }
}

/// What a model computes in, for people: torch's name of the number format, and what
/// its matrices are kept in if that is another one.
#[must_use]
pub(super) fn precision_name(dtype: DType, matrices: MatrixFormat) -> String {
    let name = dtype_name(dtype);
    match matrices {
        MatrixFormat::AsComputed => name.to_owned(),
        MatrixFormat::Fp8 => format!("{name} with fp8 layers"),
        MatrixFormat::Fp8Weights => format!("{name} with fp8 weights"),
    }
}
