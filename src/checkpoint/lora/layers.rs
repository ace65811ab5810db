//! A LoRA's matrices as layers that are loaded multiply with them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result};

use super::{Halves, Lora, LowRank, list};
use crate::interruption;

/// A file's changes of the layers of one component, on its device.
pub struct LoraLayers {
    /// By the layers' names.
    pub(super) changes: HashMap<String, LowRank>,
    /// Bytes that they take.
    bytes: usize,
}

impl LoraLayers {
    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Lora {
    /// The changes of `layers`, whose names and shapes (outputs, inputs) are given, as
    /// `dtype` on `device`. The inner error says why the file is none for them.
    ///
    /// # Errors
    /// A candle error, such as out of memory or a cancellation.
    pub fn layers(
        &self,
        layers: &BTreeMap<String, [usize; 2]>,
        (dtype, device): (DType, &Device),
    ) -> Result<std::result::Result<LoraLayers, String>> {
        let unknown = self.unknown_keys(layers.keys().map(String::as_str));
        if !unknown.is_empty() {
            let keys = list(unknown);
            return Ok(Err(format!("is for another model: no layer here is meant by {keys}")));
        }
        let mut made = LoraLayers { changes: HashMap::new(), bytes: 0 };
        for (name, shape) in layers {
            interruption::check()?;
            let Halves { down, up, strength: factor } = match self.halves(name, shape)? {
                Some(Ok(halves)) => halves,
                Some(Err(fault)) => return Ok(Err(format!("cannot be used: {fault}"))),
                None => continue,
            };
            made.bytes += (down.elem_count() + up.elem_count()) * dtype.size_in_bytes();
            let down = down.to_dtype(dtype)?.to_device(device)?;
            let up = up.to_dtype(dtype)?.to_device(device)?;
            made.changes.insert(name.clone(), LowRank { down, up, factor });
        }
        Ok(Ok(made))
    }

    /// Bytes that [`Lora::layers`] takes at most in `dtype`.
    #[must_use]
    pub fn bytes_in(&self, dtype: DType) -> usize {
        self.tensors.elements().saturating_mul(dtype.size_in_bytes())
    }
}
