//! Rounding to rows of e4m3, and back; scaling a product of such rows.

use candle_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::format::{exponent_for, from_e4m3, power_of_two, to_e4m3};
use super::{Fp8Rows, scales_at};
use crate::nn::kernels::{
    Element, Elements, Launch, Operation, WARP, address, expect_contiguous, length, pack_of,
    threads_for_row,
};
use crate::nn::rows::vectorised;

/// Rows that a thread of a CPU takes at least.
const FEWEST_ROWS: usize = 4;

/// (rows, width) → bytes of [`Fp8Rows`].
pub(super) struct RoundedRows<'a> {
    x: &'a Tensor,
    rows: usize,
    width: usize,
}

impl<'a> RoundedRows<'a> {
    pub(super) fn new(x: &'a Tensor, rows: usize, width: usize) -> Result<Self> {
        expect_contiguous("what is rounded", x)?;
        Ok(Self { x, rows, width })
    }
}

/// As `fp8.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundingCall {
    x: u64,
    y: u64,
    scales: u64,
    width: i32,
}

impl Operation for RoundedRows<'_> {
    type Call = RoundingCall;
    type Made<N: Element> = u8;

    const NAME: &'static str = "rounding to e4m3";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn shape(&self) -> Shape {
        Fp8Rows::byte_count(self.rows, self.width).into()
    }

    fn compute<N: Element>(&self, made: &mut [u8]) -> Result<()> {
        let x = Elements::<N>::of(self.x)?;
        let count = self.rows * self.width;
        let (codes, scales) = made.split_at_mut(scales_at(self.rows, self.width));
        let (scales, _) = scales.as_chunks_mut::<{ size_of::<f32>() }>();
        codes[..count]
            .par_chunks_mut(self.width)
            .zip(x.all()[..count].par_chunks(self.width))
            .zip(scales)
            .with_min_len(FEWEST_ROWS)
            .for_each(|((codes, x), scale)| {
                vectorised(|| *scale = round_row(x, codes).to_ne_bytes());
            });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<RoundingCall>> {
        let call = RoundingCall {
            x: address(self.x)?,
            y: made,
            scales: made + scales_at(self.rows, self.width) as u64,
            width: length(self.width)?,
        };
        let pack = pack_of(self.x.dtype(), &[call.x], &[self.width]);
        let threads = threads_for_row(self.width, pack);
        let shared = threads / WARP;
        Ok(Launch { kernel: "fp8_round", blocks: self.rows, threads, shared, call, pack })
    }
}

/// Returns the scale.
#[inline(always)]
fn round_row<N: Element>(x: &[N], codes: &mut [u8]) -> f32 {
    // Written so that NaN is passed over: it stays one by itself.
    let larger = |largest: f32, x: &N| {
        let x = x.wide().abs();
        if x > largest { x } else { largest }
    };
    let exponent = exponent_for(x.iter().fold(0.0, larger));
    let inverse = power_of_two(-exponent);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = to_e4m3(x.wide() * inverse);
    }
    power_of_two(exponent)
}

/// [`Fp8Rows`] → (rows, width).
pub(super) struct WideRows<'a> {
    of: &'a Fp8Rows,
    dtype: DType,
}

impl<'a> WideRows<'a> {
    pub(super) fn new(of: &'a Fp8Rows, dtype: DType) -> Self {
        Self { of, dtype }
    }
}

/// One row of [`WideRows`]; `bytes` are those of `of`, on a CPU.
pub(super) fn widen_row(bytes: &[u8], of: &Fp8Rows, row: usize, made: &mut [f32]) {
    let (codes, scales) = bytes.split_at(scales_at(of.rows, of.width));
    let (scales, _) = scales.as_chunks::<{ size_of::<f32>() }>();
    widen_codes(&codes[row * of.width..], f32::from_ne_bytes(scales[row]), made);
}

fn widen_codes<N: Element>(codes: &[u8], scale: f32, made: &mut [N]) {
    vectorised(
        #[inline(always)]
        || {
            for (made, code) in made.iter_mut().zip(codes) {
                *made = N::narrow(from_e4m3(*code) * scale);
            }
        },
    );
}

/// As `fp8.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct WideningCall {
    x: u64,
    scales: u64,
    y: u64,
    width: i32,
}

impl Operation for WideRows<'_> {
    type Call = WideningCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "widening of e4m3";

    fn subject(&self) -> &Tensor {
        &self.of.bytes
    }

    fn format(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> Shape {
        (self.of.rows, self.of.width).into()
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let Fp8Rows { bytes, rows, width } = self.of;
        let bytes = Elements::<u8>::of(bytes)?;
        let (codes, scales) = bytes.all().split_at(scales_at(*rows, *width));
        let (scales, _) = scales.as_chunks::<{ size_of::<f32>() }>();
        made.par_chunks_mut(*width)
            .zip(codes.par_chunks(*width))
            .zip(scales)
            .with_min_len(FEWEST_ROWS)
            .for_each(|((made, codes), scale)| {
                widen_codes(codes, f32::from_ne_bytes(*scale), made)
            });
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<WideningCall>> {
        let width = self.of.width;
        let call = WideningCall {
            x: address(&self.of.bytes)?,
            scales: self.of.scales_address()?,
            y: made,
            width: length(width)?,
        };
        let pack = pack_of(self.dtype, &[made], &[width]);
        let threads = threads_for_row(width, pack);
        let blocks = self.of.rows;
        Ok(Launch { kernel: "fp8_widen", blocks, threads, shared: 0, call, pack })
    }
}

/// A product of the bare elements of two matrices → the product of the matrices.
pub(super) struct ScaledProduct<'a> {
    /// (tokens, outputs)
    bare: &'a Tensor,
    x: &'a Fp8Rows,
    weight: &'a Fp8Rows,
}

impl<'a> ScaledProduct<'a> {
    pub(super) fn new(bare: &'a Tensor, x: &'a Fp8Rows, weight: &'a Fp8Rows) -> Result<Self> {
        expect_contiguous("a bare product", bare)?;
        if bare.dims() != [x.rows, weight.rows] {
            let (tokens, outputs) = (x.rows, weight.rows);
            candle_core::bail!("{:?} is no product of {tokens} and {outputs} rows", bare.dims());
        }
        Ok(Self { bare, x, weight })
    }
}

/// As `fp8.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct ScalingCall {
    x: u64,
    rows: u64,
    columns: u64,
    y: u64,
    width: i32,
}

impl Operation for ScaledProduct<'_> {
    type Call = ScalingCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "scaling of a product";

    fn subject(&self) -> &Tensor {
        self.bare
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        let bare = Elements::<N>::of(self.bare)?;
        let scales = |of: &Fp8Rows| -> Result<Vec<f32>> {
            let bytes = Elements::<u8>::of(&of.bytes)?;
            let (scales, _) = bytes.all()[scales_at(of.rows, of.width)..].as_chunks();
            Ok(scales.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
        };
        let (rows, columns) = (scales(self.x)?, scales(self.weight)?);
        let width = self.weight.rows;
        made.par_chunks_mut(width).zip(bare.all().par_chunks(width)).zip(rows).for_each(
            |((made, bare), row)| {
                for ((made, bare), column) in made.iter_mut().zip(bare).zip(&columns) {
                    *made = N::narrow(bare.wide() * (row * column));
                }
            },
        );
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<ScalingCall>> {
        let width = self.weight.rows;
        let call = ScalingCall {
            x: address(self.bare)?,
            rows: self.x.scales_address()?,
            columns: self.weight.scales_address()?,
            y: made,
            width: length(width)?,
        };
        let pack = pack_of(self.bare.dtype(), &[call.x, made], &[width]);
        let threads = threads_for_row(width, pack);
        Ok(Launch { kernel: "fp8_scale", blocks: self.x.rows, threads, shared: 0, call, pack })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::nn::fp8::product;
    use crate::nn::kernels::emulation::{assert_close, emulate, numbers};
    use crate::nn::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on, both_forms};
    use crate::nn::kernels::run;

    /// (rows, width): one number, odd rows, whole packs, more than a block's threads.
    const SHAPES: [(usize, usize); 4] = [(1, 1), (3, 37), (5, 64), (2, 2052)];
    const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

    /// Rows of very different sizes, the first of zeros.
    fn uneven(rows: usize, width: usize, dtype: DType) -> Tensor {
        let sizes: Vec<f32> = (0..rows).map(|row| [0.0, 1.0, 3e-3, 900.0][row % 4]).collect();
        let sizes = Tensor::from_vec(sizes, (rows, 1), &Device::Cpu).unwrap();
        let sizes = sizes.to_dtype(dtype).unwrap();
        numbers(&[rows, width], 1, dtype).broadcast_mul(&sizes).unwrap()
    }

    #[test]
    fn a_rounded_number_is_within_a_sixteenth_or_a_step_of_the_smallest() {
        for dtype in FORMATS {
            for (rows, width) in SHAPES {
                let x = uneven(rows, width, dtype);

                let wide = Fp8Rows::quantize(&x).unwrap().widen(dtype).unwrap();

                let list = |x: &Tensor| -> Vec<Vec<f32>> {
                    x.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
                };
                for (exact, rounded) in list(&x).iter().zip(&list(&wide)) {
                    let largest = exact.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                    // Half a unit of three digits, or of the format's smallest elements:
                    // the largest number of a row is above 224 · scale.
                    let step = largest / 224.0 / 1024.0;
                    for (exact, rounded) in exact.iter().zip(rounded) {
                        let difference = (exact - rounded).abs();
                        // 2⁻²⁴: half precision loses what is below that.
                        let allowed = (exact.abs() / 16.0).max(step) + 6e-8;
                        assert!(difference <= allowed, "{dtype:?}: {rounded} for {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_that_holds_no_number_keeps_that_to_itself() {
        let x = Tensor::new(&[[1.0_f32, f32::NAN, -2.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();

        let wide = Fp8Rows::quantize(&x).unwrap().widen(DType::F32).unwrap();

        let wide: Vec<Vec<f32>> = wide.to_vec2().unwrap();
        assert!(wide[0][1].is_nan() && wide[0][0] == 1.0 && wide[0][2] == -2.0, "{wide:?}");
        assert_eq!(wide[1], [1.0, 2.0, 3.0]);
    }

    #[test]
    fn what_is_not_finite_goes_through_rounding_and_back_as_through_torchs_scaled_rows() {
        let (rows, width) = (3, 37);
        for dtype in NUMBER_FORMATS {
            let forms = |inputs: &[Tensor]| {
                let rounding = RoundedRows::new(&inputs[0], rows, width).unwrap();
                let widened = both_forms(&rounding).into_iter().flat_map(|(_, bytes)| {
                    both_forms(&WideRows::new(&Fp8Rows { bytes, rows, width }, dtype))
                });
                widened.collect()
            };
            // A NaN stays where it is. An infinity has no scale: it becomes NaN, and what
            // is finite beside it nothing.
            let reference = |inputs: &[Vec<f64>]| {
                let row = |row: &[f64]| {
                    let has_infinity = row.iter().any(|x| x.is_infinite());
                    let made = |x: &f64| match (x.is_finite(), has_infinity) {
                        (false, _) => f64::NAN,
                        (true, true) => 0.0,
                        (true, false) => *x,
                    };
                    row.iter().map(made).collect::<Vec<_>>()
                };
                inputs[0].chunks(width).flat_map(row).collect()
            };
            // Powers of two: e4m3 holds them exactly.
            let ones = Tensor::full(0.5_f32, (rows, width), &Device::Cpu).unwrap();
            assert_passed_on(&[ones.to_dtype(dtype).unwrap()], forms, reference);
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_a_product_that_is_scaled_or_made() {
        for dtype in NUMBER_FORMATS {
            let half = |rows, columns| {
                Tensor::full(0.5_f32, (rows, columns), &Device::Cpu)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap()
            };
            let rows = |x: &Tensor| Fp8Rows::quantize(x).unwrap();
            let (x, weight) = (rows(&half(3, 16)), rows(&half(5, 16)));
            let forms = |inputs: &[Tensor]| {
                both_forms(&ScaledProduct::new(&inputs[0], &x, &weight).unwrap())
            };
            // 0.5 is 256 · 2⁻⁹ in both.
            let scale = 2.0_f64.powi(-18);
            let reference = |inputs: &[Vec<f64>]| inputs[0].iter().map(|x| x * scale).collect();
            assert_passed_on(&[(half(3, 5) * 1024.0).unwrap()], forms, reference);

            // A number that is none: in one token, or in one output's weights.
            let forms = |inputs: &[Tensor]| {
                vec![("product", product(&rows(&inputs[0]), &rows(&inputs[1]), dtype).unwrap())]
            };
            let reference = |inputs: &[Vec<f64>]| {
                let spoilt = |row: &[f64]| row.iter().any(|x| !x.is_finite());
                let token = |x: &[f64]| {
                    let output =
                        |row: &[f64]| if spoilt(x) || spoilt(row) { f64::NAN } else { 4.0 };
                    inputs[1].chunks(16).map(output).collect::<Vec<_>>()
                };
                inputs[0].chunks(16).flat_map(token).collect()
            };
            assert_passed_on(&[half(3, 16), half(5, 16)], forms, reference);
        }
    }

    /// Rows of elements of all sizes, each with another largest number: around what a
    /// scale still holds, none at all, and none that is finite.
    fn all_sizes(width: usize, dtype: DType) -> Tensor {
        let largest =
            [448.0, 449.0, 480.0, 1.75, 1.875, 2.0, 0.0, 1e-44, f32::NAN, f32::INFINITY, 6e4];
        let numbers: Vec<f32> = largest
            .iter()
            .flat_map(|largest| {
                (0..width).map(move |column| {
                    let sign = if column % 3 == 1 { -1.0 } else { 1.0 };
                    let digits = 1.0 + (column * 37 % 128) as f32 / 128.0;
                    let size = 0.5_f32.powi(i32::try_from(column % 24).unwrap());
                    if column == width / 2 { *largest } else { sign * largest.min(digits * size) }
                })
            })
            .collect();
        let numbers = Tensor::from_vec(numbers, (largest.len(), width), &Device::Cpu).unwrap();
        numbers.to_dtype(dtype).unwrap()
    }

    /// The codes and the scales, without what may be between them.
    fn parts(of: &Fp8Rows) -> (Vec<u8>, Vec<u8>) {
        let bytes: Vec<u8> = of.bytes.to_vec1().unwrap();
        let scales = bytes[scales_at(of.rows, of.width)..].to_vec();
        (bytes[..of.rows * of.width].to_vec(), scales)
    }

    #[test]
    fn kernels_make_the_very_bytes_and_numbers_that_loops_make() {
        for dtype in FORMATS {
            let uneven = SHAPES.map(|(rows, width)| uneven(rows, width, dtype));
            let all_sizes = [7, 64, 333].map(|width| all_sizes(width, dtype));
            for x in uneven.iter().chain(&all_sizes) {
                let (rows, width) = x.dims2().unwrap();
                let rounding = RoundedRows::new(x, rows, width).unwrap();
                let [looped, emulated] = [run(&rounding), emulate(&rounding)]
                    .map(|bytes| Fp8Rows { bytes: bytes.unwrap(), rows, width });

                assert_eq!(parts(&emulated), parts(&looped), "{dtype:?} {rows} {width}");
                let widening = WideRows::new(&looped, dtype);
                let [looped, emulated] = [run(&widening), emulate(&widening)].map(|wide| {
                    let wide = wide.unwrap().to_dtype(DType::F32).unwrap();
                    let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
                    let wide: Vec<f32> = wide.flatten_all().unwrap().to_vec1().unwrap();
                    wide.iter().map(bits).collect::<Vec<_>>()
                });
                assert_eq!(emulated, looped, "{dtype:?} {rows} {width}");
            }
        }
    }

    #[test]
    fn a_product_is_that_of_the_rounded_numbers_scaled_before_or_after() {
        for (dtype, tolerance) in [(DType::F32, 2e-3), (DType::BF16, 64.0)] {
            // Sums of about 2000, so within 2⁻⁸ of that in 16 bits, of several roundings.
            let x = Fp8Rows::quantize(&uneven(6, 48, dtype)).unwrap();
            let sizes: Vec<f32> = (0..20).map(|row| [1.0, 0.25, 0.03][row % 3]).collect();
            let sizes = Tensor::from_vec(sizes, (20, 1), &Device::Cpu).unwrap();
            let sizes = sizes.to_dtype(dtype).unwrap();
            let weight = numbers(&[20, 48], 7, dtype).broadcast_mul(&sizes).unwrap();
            let weight = Fp8Rows::quantize(&weight).unwrap();
            let wide = |of: &Fp8Rows| of.widen(DType::F32).unwrap();
            let expected = wide(&x).matmul(&wide(&weight).t().unwrap()).unwrap();

            assert_close(&product(&x, &weight, dtype).unwrap(), &expected, tolerance);

            let unscaled = |of: &Fp8Rows| {
                let bytes = Elements::<u8>::of(&of.bytes).unwrap();
                let codes = &bytes.all()[..of.rows * of.width];
                let numbers: Vec<f32> = codes.iter().map(|code| from_e4m3(*code)).collect();
                Tensor::from_vec(numbers, (of.rows, of.width), &Device::Cpu).unwrap()
            };
            let bare = unscaled(&x).matmul(&unscaled(&weight).t().unwrap()).unwrap();
            let bare = bare.to_dtype(dtype).unwrap();
            let scaling = ScaledProduct::new(&bare, &x, &weight).unwrap();
            assert_close(&run(&scaling).unwrap(), &expected, tolerance);
            assert_close(&emulate(&scaling).unwrap(), &run(&scaling).unwrap(), 0.0);
        }
    }
}
