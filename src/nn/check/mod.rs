//! Holds what a device makes of each fused step against what a CPU makes of it.

mod inputs;
mod steps;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Result, Tensor};
use serde::Serialize;

use inputs::{Extent, Inputs};
use steps::STEPS;

/// Steps that are alike: one process for each, so that a crash leaves the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Products with weights.
    Product,
    /// What the noise level does to tokens.
    Modulation,
    /// Queries, keys and values.
    Heads,
    /// Activations.
    Activation,
    /// Normalisations.
    Norm,
    /// Guidance and Euler's step.
    Guidance,
    /// Attention, with and without a score matrix.
    Attention,
    /// Convolutions.
    Convolution,
    /// 8-bit elements and their products.
    Fp8,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Product,
        Self::Modulation,
        Self::Heads,
        Self::Activation,
        Self::Norm,
        Self::Guidance,
        Self::Attention,
        Self::Convolution,
        Self::Fp8,
    ];

    /// Its name for command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Modulation => "modulation",
            Self::Heads => "heads",
            Self::Activation => "activation",
            Self::Norm => "norm",
            Self::Guidance => "guidance",
            Self::Attention => "attention",
            Self::Convolution => "convolution",
            Self::Fp8 => "fp8",
        }
    }
}

/// How large the tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// As small as each step's blocks allow: for a checker that makes a GPU a hundred
    /// times slower.
    Small,
    /// Lengths that nothing divides, tails, several blocks.
    Odd,
    /// Those of an edit of a megapixel with two references, in bfloat16.
    Full,
}

impl Sizes {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Odd, Self::Full];

    /// Its name for command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Odd => "odd",
            Self::Full => "full",
        }
    }

    fn formats(self) -> &'static [(DType, f64)] {
        match self {
            Self::Small | Self::Odd => &FORMATS,
            // The format that counts: in three of them a CPU would take minutes.
            Self::Full => &FORMATS[1..2],
        }
    }

    fn extents(self) -> &'static [Extent] {
        match self {
            Self::Small => &inputs::SMALL,
            Self::Odd => &inputs::ODD,
            Self::Full => &inputs::FULL,
        }
    }
}

/// There is no such family, or there are no such sizes.
#[derive(Debug, thiserror::Error)]
#[error("nothing is called '{name}'; there are {known}")]
pub struct UnknownName {
    name: String,
    known: String,
}

fn by_name<T: Copy, const COUNT: usize>(
    all: [T; COUNT],
    name_of: fn(T) -> &'static str,
    name: &str,
) -> std::result::Result<T, UnknownName> {
    let found = all.into_iter().find(|it| name_of(*it) == name);
    found.ok_or_else(|| UnknownName { name: name.to_owned(), known: all.map(name_of).join(", ") })
}

impl FromStr for Family {
    type Err = UnknownName;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownName> {
        by_name(Self::ALL, Self::name, name)
    }
}

impl FromStr for Sizes {
    type Err = UnknownName;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownName> {
        by_name(Self::ALL, Self::name, name)
    }
}

/// How one step came out.
#[derive(Debug, Clone, Serialize)]
pub struct StepCheck {
    /// The step.
    pub step: &'static str,
    /// The dtype, as candle calls it.
    pub dtype: &'static str,
    /// Of what is made.
    pub shape: Vec<usize>,
    /// Between a number that the device made and the one that the CPU made.
    pub largest_difference: f64,
    /// The largest that two orders of summing, and a GPU's own functions, may make.
    pub tolerance: f64,
    /// How many of the elements differ by more.
    pub wrong: usize,
    /// The first of them.
    pub first_wrong: Option<WrongNumber>,
    /// Why the device made nothing.
    pub refusal: Option<String>,
}

/// A number that the device got wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WrongNumber {
    /// Its place in the tensor.
    pub index: Vec<usize>,
    /// What the CPU made.
    pub expected: f32,
    /// What the device made.
    pub seen: f32,
}

impl StepCheck {
    /// Whether the device is right. It is not if it made no number at all.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.refusal.is_none() && self.largest_difference <= self.tolerance
    }
}

impl fmt::Display for WrongNumber {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { index, expected, seen } = self;
        write!(f, "at {index:?} {expected:e} is expected, {seen:e} is seen")
    }
}

/// Formats, and the difference that elements of about 1 may have in each: a few units
/// in the last place.
const FORMATS: [(DType, f64); 3] =
    [(DType::F32, 2e-5), (DType::BF16, 1.0 / 64.0), (DType::F16, 1.0 / 512.0)];

/// All steps of a family, or of all, in all dtypes; `report` is told of each
/// at once, for the next one may end the program.
///
/// # Errors
/// A candle error if the CPU, or the making of the tensors, fails.
pub fn check(
    device: &Device,
    family: Option<Family>,
    sizes: Sizes,
    report: &mut dyn FnMut(StepCheck),
) -> Result<()> {
    let wanted = |of: Family| family.is_none_or(|family| family == of);
    for extent in sizes.extents() {
        for &(dtype, tolerance) in sizes.formats() {
            for step in STEPS.iter().filter(|step| wanted(step.family)) {
                // The last of these lines is what a crash happened in.
                tracing::info!(step = step.name, dtype = dtype.as_str(), ?extent, "checking");
                let expected = (step.make)(&Inputs::new(extent, dtype, &Device::Cpu))?;
                let seen = (step.make)(&Inputs::new(extent, dtype, device));
                let seen = seen.and_then(|x| x.to_device(&Device::Cpu));
                report(compared(step, &expected, seen, step.size * tolerance)?);
            }
        }
    }
    Ok(())
}

fn compared(
    step: &steps::Step,
    expected: &Tensor,
    seen: Result<Tensor>,
    tolerance: f64,
) -> Result<StepCheck> {
    let mut check = StepCheck {
        step: step.name,
        dtype: expected.dtype().as_str(),
        shape: expected.dims().to_vec(),
        largest_difference: f64::NAN,
        tolerance,
        wrong: 0,
        first_wrong: None,
        refusal: None,
    };
    match seen {
        Ok(seen) if seen.dims() == expected.dims() => check.compare(expected, &seen)?,
        Ok(seen) => check.refusal = Some(format!("a shape of {:?}", seen.dims())),
        Err(error) => check.refusal = error.to_string().lines().next().map(str::to_owned),
    }
    Ok(check)
}

impl StepCheck {
    fn compare(&mut self, expected: &Tensor, seen: &Tensor) -> Result<()> {
        let list =
            |x: &Tensor| -> Result<Vec<f32>> { x.to_dtype(DType::F32)?.flatten_all()?.to_vec1() };
        let (expected, seen) = (list(expected)?, list(seen)?);
        self.largest_difference = 0.0;
        for (place, (&expected, &seen)) in expected.iter().zip(&seen).enumerate() {
            let difference = f64::from((expected - seen).abs());
            // A NaN is larger than all, and stays.
            let largest = self.largest_difference;
            if difference > largest || (difference.is_nan() && !largest.is_nan()) {
                self.largest_difference = difference;
            }
            if difference.is_nan() || difference > self.tolerance {
                self.wrong += 1;
                self.first_wrong.get_or_insert_with(|| WrongNumber {
                    index: index_of(place, &self.shape),
                    expected,
                    seen,
                });
            }
        }
        Ok(())
    }
}

/// Where in a tensor of `shape` number `place` is.
fn index_of(mut place: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (index, length) in index.iter_mut().zip(shape).rev() {
        (*index, place) = (place % length, place / length);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(family: Option<Family>, sizes: Sizes) -> Vec<StepCheck> {
        let mut checks = Vec::new();
        check(&Device::Cpu, family, sizes, &mut |check| checks.push(check)).unwrap();
        checks
    }

    #[test]
    fn a_cpu_agrees_with_itself_in_every_family() {
        for sizes in [Sizes::Small, Sizes::Odd] {
            let checks = checked(None, sizes);

            for check in &checks {
                assert!(check.passed() && check.largest_difference == 0.0, "{check:?}");
            }
            let of_families: usize =
                Family::ALL.iter().map(|family| checked(Some(*family), sizes).len()).sum();
            assert_eq!(of_families, checks.len());
        }
    }

    #[test]
    fn the_first_wrong_number_is_named_and_one_that_is_none_does_not_pass() {
        let step = &STEPS[0];
        let numbers = |list: [[f32; 3]; 2]| Tensor::new(&list, &Device::Cpu).unwrap();
        let expected = numbers([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        let outcome = |seen| compared(step, &expected, seen, 0.25).unwrap();

        let close = outcome(Ok(numbers([[1.0, 2.2, 3.0], [4.0, 5.0, 6.0]])));
        let wrong = outcome(Ok(numbers([[1.0, 2.2, 3.0], [4.0, 7.0, f32::NAN]])));
        let turned = outcome(expected.t());
        let refused = outcome(Err(candle_core::Error::Msg("no\nmore".to_owned())));

        assert!(close.passed() && close.wrong == 0, "{close:?}");
        assert!(!wrong.passed() && wrong.largest_difference.is_nan(), "{wrong:?}");
        let first = WrongNumber { index: vec![1, 1], expected: 5.0, seen: 7.0 };
        assert_eq!((wrong.wrong, wrong.first_wrong), (2, Some(first)));
        assert!(!turned.passed() && turned.refusal.unwrap().contains("[3, 2]"));
        assert_eq!(refused.refusal.as_deref(), Some("no"));
    }

    #[test]
    fn full_sizes_are_those_of_an_edit_with_two_references() {
        let [extent] = inputs::FULL;

        assert_eq!(extent.image_tokens, 4096 + 2 * 4096);
        assert_eq!(extent.width(), 3072);
    }
}
