//! What U-Net and autoencoder both load.

use candle_core::Result;

use crate::checkpoint::Weights;
use crate::nn::{Conv2d, Padding};

/// A square convolution of kernel size and stride, padded to keep the size that
/// the stride leaves.
///
/// # Errors
/// As [`Weights::get`].
pub(in crate::model) fn load_conv(
    weights: &Weights,
    inputs: usize,
    outputs: usize,
    (kernel, stride): (usize, usize),
) -> Result<Conv2d> {
    let weight = weights.get("weight", (outputs, inputs, kernel, kernel))?;
    let bias = weights.get("bias", outputs)?;
    Conv2d::new(&weight, &bias, Padding::Around(kernel / 2), stride)
}
