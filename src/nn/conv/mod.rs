//! 2-D convolution that keeps its scratch memory bounded.
//!
//! On a CPU it needs next to none ([`direct`]). On a GPU its input is unfolded into a
//! matrix before it is multiplied: nine times the input for a 3×3 kernel. So large inputs
//! are convolved strip by strip, and the matrix stays below a fixed size. We unfold, not
//! candle, so that padding, bias and the order of the result take no passes of their own.
//! A program with feature `cudnn` leaves all of it to cuDNN where that is found.
//!
//! Several convolutions one after another need not make whole pictures in between:
//! [`RollingConv`] takes its picture band by band.

mod direct;
mod rolling;

use std::ops::Range;
#[cfg(feature = "cudnn")]
use std::sync::OnceLock;

#[cfg(feature = "cudnn")]
use candle_core::Device;
#[cfg(feature = "cudnn")]
use candle_core::cuda_backend::cudarc::cudnn::Cudnn;
use candle_core::{Result, Tensor};

use self::direct::{Kernels, Places, Sides};
pub use self::rolling::{Band, RollingConv, WaitingRows};
use super::fusion::Fusion;
use super::trace::{self, Kind};
use super::unfold::{View, Window, lines, unfold};
use crate::interruption;

/// Elements in an unfolded input at a time: 256 MiB of f32.
const UNFOLDED_AT_A_TIME: usize = 64 * 1024 * 1024;
/// The same where we unfold: 512 MiB of bfloat16.
const UNFOLDED_AT_A_TIME_ON_CARD: usize = 256 * 1024 * 1024;

/// A 2-D convolution with stride and zero padding.
pub struct Conv2d {
    method: Method,
    kernel: usize,
    padding: Padding,
    stride: usize,
}

/// What a convolution is asked for.
struct Call<'a> {
    /// (batch, in, height, width)
    x: &'a Tensor,
    sides: Sides,
    /// Of what is made.
    rows: Range<usize>,
    /// What it is added to, of those rows.
    residual: Option<&'a Tensor>,
}

impl Call<'_> {
    /// What the kernels see.
    fn seen(&self) -> Result<Tensor> {
        let (_, _, height, width) = self.x.dims4()?;
        match self.sides {
            Sides::AsTheyAre => Ok(self.x.clone()),
            Sides::Doubled => self.x.upsample_nearest2d(2 * height, 2 * width),
        }
    }
}

enum Method {
    /// By candle's unfolding, in strips.
    Candle {
        /// (out channels, in channels, kernel, kernel), in the format it computes in.
        weight: Tensor,
        /// (1, out channels, 1, 1), likewise.
        bias: Tensor,
    },
    /// By cuDNN.
    #[cfg(feature = "cudnn")]
    Cudnn {
        /// As candle's.
        weight: Tensor,
        /// Likewise.
        bias: Tensor,
    },
    /// On a CPU, sums in 32 bits, as torch's are.
    Direct(Kernels),
    /// By a product with what we unfold.
    Unfolded {
        /// (out channels, lines): weight, bias, and zeros.
        matrix: Tensor,
    },
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
        let method = Method::new(weight, bias)?;
        Ok(Self { method, kernel: weight.dim(2)?, padding, stride })
    }

    /// `x`: (batch, in, height, width). Returns (batch, out, height', width') in
    /// the format of `x`.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or out of memory.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.make(self.whole(x, Sides::AsTheyAre)?)
    }

    /// As [`Self::forward`] of a picture with each pixel four times: twice as high, and as
    /// wide.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_doubled(&self, x: &Tensor) -> Result<Tensor> {
        self.make(self.whole(x, Sides::Doubled)?)
    }

    /// residual + [`Self::forward`] of x. `residual` has the shape of that.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_onto(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.make(Call { residual: Some(residual), ..self.whole(x, Sides::AsTheyAre)? })
    }

    /// All rows of what it makes of `x`.
    fn whole<'a>(&self, x: &'a Tensor, sides: Sides) -> Result<Call<'a>> {
        let rows = 0..self.places(sides.zoom() * x.dim(2)?);
        Ok(Call { x, sides, rows, residual: None })
    }

    fn make(&self, call: Call) -> Result<Tensor> {
        let name = match (call.sides, call.residual) {
            (Sides::AsTheyAre, None) => "convolution",
            (Sides::AsTheyAre, Some(_)) => "convolution, sum",
            (Sides::Doubled, _) => "convolution of doubled sides",
        };
        let operations = || self.operations(&call).unwrap_or(0.0);
        let _span = trace::counted(Kind::Convolution, name, operations);
        if let Method::Direct(kernels) = &self.method {
            return self.directly(kernels, &call);
        }
        let made = self.make_of_seen(&call.seen()?, call.rows)?;
        match call.residual {
            None => Ok(made),
            Some(residual) => residual + made,
        }
    }

    /// Some `rows` of what it makes of `x`, where that is not done [`Self::directly`].
    fn make_of_seen(&self, x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        match &self.method {
            Method::Candle { weight, bias } => self.by_candle(x, rows, weight, bias),
            #[cfg(feature = "cudnn")]
            Method::Cudnn { weight, bias } => self.by_cudnn(x, rows, weight, bias),
            Method::Direct(kernels) => {
                self.directly(kernels, &Call { x, sides: Sides::AsTheyAre, rows, residual: None })
            }
            Method::Unfolded { matrix } => {
                self.by_unfolding(x, rows, matrix, UNFOLDED_AT_A_TIME_ON_CARD)
            }
        }
    }

    /// Multiplications and additions.
    fn operations(&self, call: &Call) -> Result<f64> {
        let (batch, _, _, width) = call.x.dims4()?;
        let numbers = match &self.method {
            #[cfg(feature = "cudnn")]
            Method::Cudnn { weight, .. } => weight.elem_count(),
            Method::Candle { weight, .. } | Method::Unfolded { matrix: weight } => {
                weight.elem_count()
            }
            Method::Direct(kernels) => kernels.count(self.kernel),
        };
        let places = call.rows.len() * self.places(call.sides.zoom() * width);
        Ok(2.0 * (batch * places * numbers) as f64)
    }

    /// Where the kernel stands on a side of `length` pixels.
    fn places(&self, length: usize) -> usize {
        let (before, after) = self.padding.sides();
        (length + before + after - self.kernel) / self.stride + 1
    }

    fn by_candle(
        &self,
        x: &Tensor,
        places: Range<usize>,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = self.pad(&x.to_dtype(weight.dtype())?)?;
        let (batch, in_channels, _, width) = x.dims4()?;
        let out_width = (width - self.kernel) / self.stride + 1;
        let unfolded_row = batch * in_channels * self.kernel * self.kernel * out_width;
        let rows = (UNFOLDED_AT_A_TIME / unfolded_row).clamp(1, places.len().max(1));
        let mut strips = Vec::with_capacity(places.len().div_ceil(rows));
        for start in places.clone().step_by(rows) {
            interruption::check()?;
            let count = rows.min(places.end - start);
            let in_rows = (count - 1) * self.stride + self.kernel;
            let strip = x.narrow(2, start * self.stride, in_rows)?.contiguous()?;
            let strip = strip.conv2d(weight, 0, self.stride, 1, 1)?;
            strips.push(strip.broadcast_add(bias)?.to_dtype(dtype)?);
        }
        Tensor::cat(&strips, 2)
    }

    #[cfg(feature = "cudnn")]
    fn by_cudnn(
        &self,
        x: &Tensor,
        rows: Range<usize>,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        interruption::check()?;
        let made = match self.padding {
            Padding::Around(pixels) => x.contiguous()?.conv2d(weight, pixels, self.stride, 1, 1),
            Padding::RightBottom => self.pad(x)?.conv2d(weight, 0, self.stride, 1, 1),
        };
        made?.narrow(2, rows.start, rows.len())?.broadcast_add(bias)
    }

    /// `at_a_time`: elements of an unfolded strip.
    fn by_unfolding(
        &self,
        x: &Tensor,
        rows: Range<usize>,
        matrix: &Tensor,
        at_a_time: usize,
    ) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (batch, channels, height, width) = x.dims4()?;
        let view = View { rows, ..self.view([channels, height, width]) };
        let picture = |index| -> Result<Tensor> {
            let x = x.narrow(0, index, 1)?;
            let strips = strips(&view, at_a_time).map(|View { window, rows, .. }| {
                interruption::check()?;
                let count = rows.len();
                let made = matrix.matmul(&unfold(&x, window, rows)?)?;
                made.reshape((1, (), count, window.row_length))
            });
            Tensor::cat(&strips.collect::<Result<Vec<_>>>()?, 2)
        };
        let made = (0..batch).map(picture).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&made, 0)
    }

    fn directly(&self, kernels: &Kernels, call: &Call) -> Result<Tensor> {
        interruption::check()?;
        let (_, channels, height, width) = call.x.dims4()?;
        let zoom = call.sides.zoom();
        let View { window, .. } = self.view([channels, zoom * height, zoom * width]);
        let places = Places { window, rows: call.rows.clone(), sides: call.sides };
        kernels.convolve(call.x, places, call.residual)
    }

    /// A whole picture of (channels, height, width).
    fn view(&self, [channels, height, width]: [usize; 3]) -> View {
        let Self { kernel, stride, .. } = *self;
        let (before, _) = self.padding.sides();
        let window = Window { kernel, stride, before, row_length: self.places(width) };
        View { channels, height, width, window, rows: 0..self.places(height) }
    }

    fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let (before, after) = self.padding.sides();
        x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)
    }
}

/// Parts of `view` whose matrices have `at_a_time` elements each, or one row.
fn strips(view: &View, at_a_time: usize) -> impl Iterator<Item = View> {
    let row = (view.lines() * view.window.row_length).max(1);
    let rows = (at_a_time / row).clamp(1, view.rows.len().max(1));
    let end = view.rows.end;
    (view.rows.start..end)
        .step_by(rows)
        .map(move |start| View { rows: start..end.min(start + rows), ..view.clone() })
}

impl Padding {
    /// Zeros left of and above the input, and right of and below it.
    fn sides(self) -> (usize, usize) {
        match self {
            Self::Around(pixels) => (pixels, pixels),
            Self::RightBottom => (0, 1),
        }
    }
}

impl Method {
    fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        #[cfg(feature = "cudnn")]
        if cudnn_is_there(weight.device()) {
            let bias = bias.reshape((1, weight.dim(0)?, 1, 1))?;
            return Ok(Self::Cudnn { weight: weight.contiguous()?, bias });
        }
        if weight.device().is_cpu() {
            return Ok(Self::Direct(Kernels::new(weight, bias)?));
        }
        if Fusion::Unfolding.applies_to(weight) {
            return Self::unfolded(weight, bias);
        }
        Self::candle(weight, bias)
    }

    fn candle(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let bias = bias.reshape((1, weight.dim(0)?, 1, 1))?;
        Ok(Self::Candle { weight: weight.contiguous()?, bias })
    }

    fn unfolded(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (outputs, channels, kernel, _) = weight.dims4()?;
        let seen = weight.reshape((outputs, ()))?;
        let rest = lines(channels, kernel) - seen.dim(1)? - 1;
        let zeros = Tensor::zeros((outputs, rest), weight.dtype(), weight.device())?;
        let matrix = Tensor::cat(&[seen, bias.reshape((outputs, 1))?, zeros], 1)?;
        Ok(Self::Unfolded { matrix })
    }
}

/// Whether cuDNN's library is found, and takes this GPU.
#[cfg(feature = "cudnn")]
fn cudnn_is_there(device: &Device) -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    let Device::Cuda(device) = device else { return false };
    *THERE.get_or_init(|| match Cudnn::new(device.cuda_stream()) {
        Ok(_) => true,
        Err(error) => {
            tracing::info!(%error, "cuDNN is not there: convolutions are products of matrices");
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::kernels::emulation::{assert_close, formats, numbers};
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on};
    use super::*;

    impl Conv2d {
        /// As a GPU does it with that fusion off.
        fn by_strips(weight: &Tensor, bias: &Tensor, padding: Padding, stride: usize) -> Self {
            let method = Method::candle(weight, bias).unwrap();
            Self { method, kernel: weight.dim(2).unwrap(), padding, stride }
        }
    }

    #[test]
    fn what_we_unfold_is_convolved_as_candle_does() {
        // candle's convolution on a CPU is one of 32 bits.
        for (dtype, tolerance) in
            formats(64.0).into_iter().filter(|(dtype, _)| *dtype == DType::F32)
        {
            for (kernel, padding, stride) in [
                (3, Padding::Around(1), 1),
                (1, Padding::Around(0), 1),
                (3, Padding::RightBottom, 2),
                (3, Padding::Around(0), 1),
            ] {
                let x = numbers(&[2, 5, 9, 12], 1, dtype);
                let weight = numbers(&[4, 5, kernel, kernel], 2, dtype);
                let bias = numbers(&[4], 3, dtype);
                let candle = Conv2d::by_strips(&weight, &bias, padding, stride);
                let method = Method::unfolded(&weight, &bias).unwrap();
                let ours = Conv2d { method, kernel, padding, stride };
                let Method::Unfolded { matrix } = &ours.method else { unreachable!() };
                let expected = candle.forward(&x).unwrap();
                let on_cpu = Conv2d::new(&weight, &bias, padding, stride).unwrap();
                assert_close(&on_cpu.forward(&x).unwrap(), &expected, tolerance);
                let rows = expected.dim(2).unwrap();

                // In one strip, in strips of two rows, and in strips of one row each.
                for at_a_time in [usize::MAX, 2 * 48 * 12, 1] {
                    let as_on_card = ours.by_unfolding(&x, 0..rows, matrix, at_a_time).unwrap();
                    assert_close(&as_on_card, &expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn doubled_sides_and_a_sum_are_what_they_are_step_by_step() {
        for (dtype, _) in formats(1.0) {
            for (kernel, padding, stride) in [
                (3, Padding::Around(1), 1),
                (1, Padding::Around(0), 1),
                (3, Padding::RightBottom, 2),
            ] {
                let x = numbers(&[2, 5, 9, 31], 1, dtype);
                let weight = numbers(&[4, 5, kernel, kernel], 2, dtype);
                let conv = Conv2d::new(&weight, &numbers(&[4], 3, dtype), padding, stride).unwrap();

                let doubled = conv.forward(&x.upsample_nearest2d(18, 62).unwrap()).unwrap();
                assert_close(&conv.forward_doubled(&x).unwrap(), &doubled, 0.0);

                let plain = conv.forward(&x).unwrap();
                let residual = numbers(plain.dims(), 4, dtype);
                let sum = (&residual + plain).unwrap();
                assert_close(&conv.forward_onto(&residual, &x).unwrap(), &sum, 0.0);
            }
        }
    }

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
                let (weight, bias, padding) = (&tensors[1], &tensors[2], Padding::Around(1));
                let ours = Conv2d::new(weight, bias, padding, 1).unwrap();
                let mut made = vec![("ours", ours.forward(&tensors[0]).unwrap())];
                if tensors[0].dtype() == DType::F32 {
                    let candle = Conv2d::by_strips(weight, bias, padding, 1);
                    made.push(("candle's", candle.forward(&tensors[0]).unwrap()));
                }
                made
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
