//! 2-D convolution that keeps its scratch memory bounded.
//!
//! On a GPU candle unfolds a convolution's whole input into a matrix before
//! multiplying: nine times the input for a 3×3 kernel. Here large inputs are
//! convolved strip by strip, so that the unfolded matrix stays below a fixed size.

use candle_core::{DType, Result, Tensor};

use super::trace::{self, Kind};
use crate::interruption;

/// Numbers in an unfolded input at a time: 256 MiB of f32.
const UNFOLDED_AT_A_TIME: usize = 64 * 1024 * 1024;

/// A 2-D convolution with stride and zero padding.
pub struct Conv2d {
    /// (out channels, in channels, kernel, kernel), in the format it computes in.
    weight: Tensor,
    /// (1, out channels, 1, 1), likewise.
    bias: Tensor,
    kernel: usize,
    padding: Padding,
    stride: usize,
}

/// Zeros around the input, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// As many on all four sides.
    Around(usize),
    /// One column on the right, one row at the bottom.
    RightBottom,
}

impl Conv2d {
    /// A convolution with `weight` (out, in, k, k) and `bias` (out).
    ///
    /// # Errors
    /// A candle error if the weight is not four-dimensional.
    pub fn new(weight: &Tensor, bias: &Tensor, padding: Padding, stride: usize) -> Result<Self> {
        let (out_channels, _, kernel, _) = weight.dims4()?;
        // candle's CPU convolution has no 16-bit arithmetic; torch sums in 32 bits, too.
        let compute = if weight.device().is_cpu() { DType::F32 } else { weight.dtype() };
        let weight = weight.to_dtype(compute)?.contiguous()?;
        let bias = bias.to_dtype(compute)?.reshape((1, out_channels, 1, 1))?;
        Ok(Self { weight, bias, kernel, padding, stride })
    }

    /// `x`: (batch, in, height, width). Returns (batch, out, height', width') in
    /// the format of `x`.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = self.pad(&x.to_dtype(self.weight.dtype())?)?;
        let (batch, in_channels, height, width) = x.dims4()?;
        let out_rows = (height - self.kernel) / self.stride + 1;
        let out_width = (width - self.kernel) / self.stride + 1;
        let _span = trace::counted(Kind::Convolution, "convolution", || {
            2.0 * (batch * out_rows * out_width * self.weight.elem_count()) as f64
        });
        let unfolded_row = batch * in_channels * self.kernel * self.kernel * out_width;
        let rows = (UNFOLDED_AT_A_TIME / unfolded_row).clamp(1, out_rows);
        let mut strips = Vec::with_capacity(out_rows.div_ceil(rows));
        for start in (0..out_rows).step_by(rows) {
            interruption::check()?;
            let count = rows.min(out_rows - start);
            let in_rows = (count - 1) * self.stride + self.kernel;
            let strip = x.narrow(2, start * self.stride, in_rows)?.contiguous()?;
            let strip = strip.conv2d(&self.weight, 0, self.stride, 1, 1)?;
            strips.push(strip.broadcast_add(&self.bias)?.to_dtype(dtype)?);
        }
        Tensor::cat(&strips, 2)
    }

    fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let (before, after) = match self.padding {
            Padding::Around(0) => return Ok(x.clone()),
            Padding::Around(pixels) => (pixels, pixels),
            Padding::RightBottom => (0, 1),
        };
        x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::numbers;
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on};
    use super::*;

    #[test]
    fn what_is_not_finite_reaches_every_pixel_that_a_kernel_brings_it_to() {
        let (inputs, outputs, side) = (2, 3, 5);
        for dtype in NUMBER_FORMATS {
            let tensors = [
                numbers(&[1, inputs, side, side], 1, dtype),
                numbers(&[outputs, inputs, 3, 3], 2, dtype),
                numbers(&[outputs], 3, dtype),
            ];
            let forms = |tensors: &[Tensor]| {
                let conv = Conv2d::new(&tensors[1], &tensors[2], Padding::Around(1), 1).unwrap();
                vec![("candle's", conv.forward(&tensors[0]).unwrap())]
            };
            // What is padded is a zero times the kernel: NaN where that is not finite.
            let reference = |tensors: &[Vec<f64>]| {
                let at = |channel: usize, row: usize, column: usize| {
                    let inside = (1..=side).contains(&row) && (1..=side).contains(&column);
                    let place = |row, column| (channel * side + row - 1) * side + column - 1;
                    if inside { tensors[0][place(row, column)] } else { 0.0 }
                };
                let pixel = |place: usize| {
                    let (output, row, column) =
                        (place / side / side, place / side % side, place % side);
                    let kernel = (0..inputs * 9).map(|index| {
                        let (channel, y, x) = (index / 9, index / 3 % 3, index % 3);
                        let weight = tensors[1][output * inputs * 9 + index];
                        weight * at(channel, row + y, column + x)
                    });
                    kernel.sum::<f64>() + tensors[2][output]
                };
                (0..outputs * side * side).map(pixel).collect()
            };
            assert_passed_on(&tensors, forms, reference);
        }
    }
}
