//! Normalisations over the last dimension; statistics always in 32 bits.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::checkpoint::Weights;

/// Root-mean-square normalisation with a weight.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight` (size).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: weights.get("weight", size)?, eps })
    }

    /// `x`: (…, size). In 16-bit formats the normalised value is rounded before
    /// the weight multiplies it, as the reference does.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normalised = wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        normalised.to_dtype(x.dtype())?.broadcast_mul(&self.weight)
    }
}

/// Layer normalisation without parameters of its own.
pub struct LayerNorm {
    ones: Tensor,
    zeros: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// For vectors of `size` numbers of `dtype` on `device`.
    ///
    /// # Errors
    /// A candle error if the device refuses memory.
    pub fn new(size: usize, eps: f32, dtype: DType, device: &Device) -> Result<Self> {
        let ones = Tensor::ones(size, dtype, device)?;
        let zeros = Tensor::zeros(size, dtype, device)?;
        Ok(Self { ones, zeros, eps })
    }

    /// `x`: (…, size).
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::layer_norm(&x.contiguous()?, &self.ones, &self.zeros, self.eps)
    }
}
