//! Weights as layers of candle take them.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::Weights;

impl Weights {
    /// This place as candle's layers take it: they draw on the same account.
    #[must_use]
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), self.dtype, self.device.clone())
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _initial: candle_nn::Init,
        dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.with_dtype(dtype).get(name, shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    /// Without files every name is there.
    fn contains_tensor(&self, name: &str) -> bool {
        let name = self.full_name(name);
        self.store.source.files().is_none_or(|files| files.contains(&name))
    }
}
