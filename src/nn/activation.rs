//! Activations, computed in 32 bits whatever the number format, as torch does.

use candle_core::{DType, Result, Tensor};

/// GELU in its tanh approximation: the transformer's feed-forward layers.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu)
}

/// GELU with the error function: the vision tower's merger.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu_erf)
}

/// x · sigmoid(x).
///
/// # Errors
/// A candle error, such as out of memory.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::silu)
}

fn in_f32(x: &Tensor, function: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return function(x);
    }
    function(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}
