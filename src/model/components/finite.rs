//! Elements that are not finite, found before they become a picture; and a second try in
//! float32 for what overflows in 16 bits.

use candle_core::{DType, Result as TensorResult, Tensor};

use crate::device::dtype_name;
use crate::model::{ModelError, Offloadable};

/// A half of a picture autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum VaeHalf {
    /// Pictures → latents.
    Encoder,
    /// Latents → pictures.
    Decoder,
}

impl VaeHalf {
    fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Encoder => "encoded",
            Self::Decoder => "decoded",
        }
    }
}

/// What something was computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Arithmetic {
    /// The dtype of the model.
    OfModel,
    /// Float32, after that had overflowed.
    Upcast,
}

impl Arithmetic {
    /// Tells the client, once, that a half of the VAE had overflowed in `dtype`.
    pub(in crate::model) fn tell(self, warnings: &mut Vec<String>, half: VaeHalf, dtype: DType) {
        let (dtype, name, done) = (dtype_name(dtype), half.name(), half.done());
        let sentence = format!(
            "'dtype' {dtype} overflowed in the VAE's {name}; the picture was {done} in float32."
        );
        if self == Self::Upcast && !warnings.contains(&sentence) {
            warnings.push(sentence);
        }
    }
}

/// Whether all numbers of `x` are finite: only then their sum is, in 32 bits. Costs one
/// reduction, and waits for it.
fn is_finite(x: &Tensor) -> TensorResult<bool> {
    Ok(x.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?.is_finite())
}

/// `x`, which the `stage` of a model has made, if all of its numbers are finite.
///
/// # Errors
/// [`ModelError::NotFinite`], or a candle error.
pub(in crate::model) fn expect_finite(x: Tensor, stage: &str) -> Result<Tensor, ModelError> {
    if is_finite(&x)? { Ok(x) } else { Err(not_finite(stage, x.dtype())) }
}

fn not_finite(stage: impl Into<String>, dtype: DType) -> ModelError {
    ModelError::NotFinite { stage: stage.into(), dtype: dtype_name(dtype) }
}

/// The state after each step, as sums that stay on the device until the last step.
#[derive(Default)]
pub(in crate::model) struct StepSums(Vec<Tensor>);

impl StepSums {
    /// Notes the state after the next step. Does not wait for it.
    pub(in crate::model) fn note(&mut self, state: &Tensor) -> TensorResult<()> {
        self.0.push(state.to_dtype(DType::F32)?.sum_all()?);
        Ok(())
    }

    /// Names the first step after which a number of `network`, which computes in
    /// `dtype`, was not finite.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`], or a candle error.
    pub(in crate::model) fn expect_finite(
        self,
        network: &str,
        dtype: DType,
    ) -> Result<(), ModelError> {
        let sums: Vec<f32> = Tensor::stack(&self.0, 0)?.to_vec1()?;
        match sums.iter().position(|sum| !sum.is_finite()) {
            Some(step) => Err(not_finite(format!("{network} at step {}", step + 1), dtype)),
            None => Ok(()),
        }
    }
}

/// What `action` makes of `vae`, which computes in `dtype`, or, if that is not finite,
/// of the same weights `in_float32`.
///
/// # Errors
/// [`ModelError::NotFinite`] if that is not finite either, or a candle error.
pub(in crate::model) fn finite_or_in_float32<T>(
    (vae, dtype): (&Offloadable<T>, DType),
    in_float32: Option<&Offloadable<T>>,
    half: VaeHalf,
    action: impl Fn(&T) -> TensorResult<Tensor>,
) -> Result<(Tensor, Arithmetic), ModelError> {
    let made = vae.with(&action)?;
    if is_finite(&made)? {
        return Ok((made, Arithmetic::OfModel));
    }
    let stage = format!("VAE {}", half.name());
    let Some(in_float32) = in_float32 else {
        return Err(not_finite(stage, dtype));
    };
    tracing::debug!(stage, dtype = dtype_name(dtype), "overflowed: once more in float32");
    let made = in_float32.with(&action)?;
    if is_finite(&made)? {
        return Ok((made, Arithmetic::Upcast));
    }
    Err(not_finite(stage, DType::F32))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::checkpoint::Weights;
    use crate::model::Residency;

    /// A "VAE" that makes its dtype's largest number twice as large.
    fn held(dtype: DType) -> Offloadable<DType> {
        let weights = Weights::recording("vae", dtype);
        Offloadable::new(Residency::OnDemand, &weights, |weights| Ok(weights.dtype())).unwrap()
    }

    fn twice(x: f32) -> impl Fn(&DType) -> TensorResult<Tensor> {
        move |dtype| Tensor::new(&[x, 1.0], &Device::Cpu)?.to_dtype(*dtype)? * 2.0
    }

    fn numbers(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_overflows_in_16_bits_is_made_once_more_in_float32() {
        let (vae, wide) = (held(DType::F16), held(DType::F32));
        let make = |x| {
            let half = VaeHalf::Decoder;
            finite_or_in_float32((&vae, DType::F16), Some(&wide), half, twice(x))
        };

        let (made, arithmetic) = make(1000.0).unwrap();
        assert_eq!((numbers(&made), arithmetic), (vec![2000.0, 2.0], Arithmetic::OfModel));
        let (made, arithmetic) = make(60_000.0).unwrap();
        assert_eq!((numbers(&made), arithmetic), (vec![120_000.0, 2.0], Arithmetic::Upcast));
        let mut warnings = Vec::new();
        for _picture in 0..2 {
            arithmetic.tell(&mut warnings, VaeHalf::Decoder, DType::F16);
            Arithmetic::OfModel.tell(&mut warnings, VaeHalf::Encoder, DType::F16);
        }
        assert_eq!(
            warnings,
            [
                "'dtype' float16 overflowed in the VAE's decoder; the picture was decoded in float32."
            ]
        );
        for x in [f32::NAN, f32::INFINITY] {
            let error = make(x).unwrap_err().to_string();
            assert!(error.contains("VAE decoder") && error.contains("float32"), "{error}");
        }
    }

    #[test]
    fn what_overflows_without_a_second_try_names_its_stage_and_format() {
        let vae = held(DType::F32);
        let half = VaeHalf::Encoder;

        let error = finite_or_in_float32((&vae, DType::F32), None, half, twice(f32::MAX));

        let error = error.unwrap_err().to_string();
        assert!(error.contains("VAE encoder") && error.contains("float32"), "{error}");
    }

    #[test]
    fn the_first_step_that_is_not_finite_is_named() {
        let state = |x: f32| Tensor::new(&[1.0, x], &Device::Cpu).unwrap();
        let error = |states: &[f32]| {
            let mut sums = StepSums::default();
            states.iter().for_each(|x| sums.note(&state(*x)).unwrap());
            sums.expect_finite("transformer", DType::BF16).err().map(|error| error.to_string())
        };

        assert_eq!(error(&[1.0, -2.0]), None);
        for spoilt in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = error(&[1.0, 2.0, spoilt, 4.0, spoilt]).unwrap();
            assert!(error.contains("transformer at step 3"), "{error}");
            assert!(error.contains("bfloat16"), "{error}");
        }
    }
}
