//! A dense layer.

use candle_core::{Module, Result, Tensor};

use crate::checkpoint::Weights;

/// y = x · weightᵀ (+ bias).
pub struct Linear {
    product: candle_nn::Linear,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` (outputs, inputs) and `bias` (outputs).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = weights.get("weight", (outputs, inputs))?;
        let bias = weights.get("bias", outputs)?;
        Ok(Self { bias: Some(bias), ..Self::from_weight(weight) })
    }

    /// Takes `weight` (outputs, inputs) alone.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self::from_weight(weights.get("weight", (outputs, inputs))?))
    }

    /// A layer from a (outputs, inputs) matrix at hand.
    #[must_use]
    pub fn from_weight(weight: Tensor) -> Self {
        Self { product: candle_nn::Linear::new(weight, None), bias: None }
    }

    /// `x`: (…, inputs), contiguous for speed. Returns (…, outputs).
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        add_bias(self.product(x)?, self.bias())
    }

    /// x · weightᵀ, for a step that adds the bias itself. Shapes as [`Self::forward`].
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.product.forward(x)
    }

    /// What [`Self::product`] leaves out: (outputs).
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// x + bias; `x`: (…, width), `bias`: (width).
pub(super) fn add_bias(x: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x),
    }
}
