//! A dense layer.

use candle_core::{Module, Result, Tensor};

use crate::checkpoint::Weights;

/// y = x · weightᵀ (+ bias).
pub struct Linear(candle_nn::Linear);

impl Linear {
    /// Takes `weight` (outputs, inputs) and `bias` (outputs).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = weights.get("weight", (outputs, inputs))?;
        let bias = weights.get("bias", outputs)?;
        Ok(Self(candle_nn::Linear::new(weight, Some(bias))))
    }

    /// Takes `weight` (outputs, inputs) alone.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = weights.get("weight", (outputs, inputs))?;
        Ok(Self(candle_nn::Linear::new(weight, None)))
    }

    /// A layer from a (outputs, inputs) matrix at hand.
    #[must_use]
    pub fn from_weight(weight: Tensor) -> Self {
        Self(candle_nn::Linear::new(weight, None))
    }

    /// `x`: (…, inputs), contiguous for speed. Returns (…, outputs).
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
