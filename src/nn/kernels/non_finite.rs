//! What becomes of NaN and infinities, for tests: each dtype, each form of an
//! operation, each of its inputs in turn, held against 64-bit arithmetic.

use candle_core::{DType, Tensor};

use super::emulation::{emulate, in_nan};
use super::{Operation, run};

/// The formats that operations come in.
pub(in crate::nn) const NUMBER_FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The loop of a CPU and the kernel of a GPU, by name.
pub(in crate::nn) fn both_forms<O: Operation>(operation: &O) -> Vec<(&'static str, Tensor)> {
    vec![("loop", run(operation).unwrap()), ("kernel", emulate(operation).unwrap())]
}

/// Holds the `forms` of an operation against its `reference` in 64 bits, with a NaN,
/// +∞ and −∞ in each of `inputs` in turn, at its beginning, middle and end.
///
/// Where the reference has NaN, or an infinity, every form must have the same; where
/// it is finite, a few units in the last place of the format are allowed.
#[track_caller]
pub(in crate::nn) fn assert_passed_on(
    inputs: &[Tensor],
    forms: impl Fn(&[Tensor]) -> Vec<(&'static str, Tensor)>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    for (spoilt, input) in inputs.iter().enumerate() {
        let count = input.elem_count();
        for place in [0, count / 2, count - 1] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut inputs = inputs.to_vec();
                inputs[spoilt] = with(input, place, value);
                let lists: Vec<Vec<f64>> = inputs.iter().map(numbers_of).collect();
                let expected = reference(&lists);
                for (form, made) in forms(&inputs) {
                    let dtype = made.dtype();
                    let what = format!("{form} in {dtype:?}, {value} at {place} of input {spoilt}");
                    assert_alike(&what, &made, &expected);
                }
            }
        }
    }
}

/// Of a number of about one, after several roundings.
fn tolerance(dtype: DType) -> f64 {
    let tolerances = [(DType::BF16, 1.0 / 16.0), (DType::F16, 1.0 / 128.0)];
    tolerances.iter().find(|(known, _)| *known == dtype).map_or(1e-4, |(_, tolerance)| *tolerance)
}

#[track_caller]
fn assert_alike(what: &str, made: &Tensor, expected: &[f64]) {
    let tolerance = tolerance(made.dtype());
    let made = numbers_of(made);
    assert_eq!(made.len(), expected.len(), "{what}");
    for (index, (ours, theirs)) in made.iter().zip(expected).enumerate() {
        let alike = if theirs.is_finite() {
            (ours - theirs).abs() <= tolerance * (1.0 + theirs.abs())
        } else {
            ours.is_nan() && theirs.is_nan() || ours == theirs
        };
        assert!(alike, "{what}: number {index} is {ours}, not {theirs}");
    }
}

/// `x` with `value` at `place`, inside a larger storage of NaN.
fn with(x: &Tensor, place: usize, value: f32) -> Tensor {
    let mut list: Vec<f32> =
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    list[place] = value;
    let spoilt = Tensor::from_vec(list, x.shape(), x.device()).unwrap();
    in_nan(&spoilt.to_dtype(x.dtype()).unwrap())
}

fn numbers_of(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
