//! From what files have, or what takes its place, to the tensors that are handed out.

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;
use safetensors::tensor::TensorView;

use super::{Weights, elements_in};
use crate::checkpoint::tensor_files::Stored;
#[cfg(feature = "cuda")]
use crate::checkpoint::upload::{self, UploadOrder};
use crate::interruption;

/// Random elements that a CPU draws; a larger tensor repeats them, which takes a tenth of the
/// time and no other to multiply.
const DRAWN_ON_CPU: usize = 1 << 18;

impl Weights {
    /// `stored` as it is handed out.
    pub(super) fn read(&self, name: &str, stored: &Stored) -> candle_core::Result<Tensor> {
        match stored.view().filter(|view| stored_dtype(self.dtype) == Some(view.dtype())) {
            Some(view) if self.loras.is_empty() => self.upload(&view),
            _ => {
                let wide = Tensor::from_vec(decoded(stored)?, stored.shape(), &Device::Cpu)?;
                self.handed_out(name, wide)
            }
        }
    }

    /// What the files have in 32 bits, changed by the LoRAs, in the dtype and on the device
    /// asked for.
    pub(super) fn handed_out(&self, name: &str, wide: Tensor) -> candle_core::Result<Tensor> {
        self.changed(name, wide)?.to_dtype(self.dtype)?.to_device(&self.device)
    }

    /// `view` as it is stored.
    fn upload(&self, view: &TensorView) -> candle_core::Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.device {
            let order =
                if self.prefetching { UploadOrder::Prefetched } else { UploadOrder::InTurn };
            return upload::upload(device, order, self.dtype, view.shape(), view.data());
        }
        view.load(&self.device)
    }

    /// `wide` with what the LoRAs add to it.
    fn changed(&self, name: &str, wide: Tensor) -> candle_core::Result<Tensor> {
        let mut tensor = wide;
        for lora in self.loras.iter() {
            match lora.change(name, tensor.dims())? {
                Some(Ok(change)) => tensor = (tensor + change)?,
                Some(Err(fault)) => self.note(fault)?,
                None => {}
            }
        }
        Ok(tensor)
    }

    pub(super) fn check_loras(&self, name: &str, shape: &Shape) -> candle_core::Result<()> {
        for lora in self.loras.iter() {
            if let Some(Err(fault)) = lora.change(name, shape.dims())? {
                self.note(fault)?;
            }
        }
        Ok(())
    }

    /// A tensor of weights that have no files.
    pub(super) fn made_up(
        &self,
        name: &str,
        shape: Shape,
        bytes: usize,
    ) -> candle_core::Result<Tensor> {
        if self.is_placeholder() {
            self.count_checked(name.to_owned(), bytes);
            return self.placeholder(shape);
        }
        self.account().bytes_taken += bytes;
        (self.on_read.0)(bytes);
        if name.ends_with("bias") {
            return Tensor::zeros(shape, self.dtype, &self.device);
        }
        if shape.rank() < 2 || name.ends_with("gamma") {
            return Tensor::ones(shape, self.dtype, &self.device);
        }
        let numbers = elements_in(&shape);
        if !self.device.is_cpu() || !numbers.is_multiple_of(DRAWN_ON_CPU) {
            return Tensor::randn(0f32, 0.02, shape, &self.device)?.to_dtype(self.dtype);
        }
        let drawn = Tensor::randn(0f32, 0.02, DRAWN_ON_CPU, &self.device)?.to_dtype(self.dtype)?;
        let repeated = drawn.broadcast_as((numbers / DRAWN_ON_CPU, DRAWN_ON_CPU))?;
        repeated.contiguous()?.reshape(shape)
    }
}

/// All elements of `stored` in 32 bits, decoded on all processors.
fn decoded(stored: &Stored) -> candle_core::Result<Vec<f32>> {
    /// Between two checks: some hundred rows.
    const ELEMENTS_AT_A_TIME: usize = 1 << 21;
    let (rows, width) = stored.rows_and_width();
    let at_a_time = (ELEMENTS_AT_A_TIME / width.max(1)).max(1);
    let mut made = vec![0.0; rows * width];
    interruption::shared(|watch| {
        let parts = made.par_chunks_mut((at_a_time * width).max(1)).enumerate();
        parts.try_for_each(|(number, made)| {
            watch.over(|| {
                interruption::check()?;
                let first = number * at_a_time;
                stored.decode(first..rows.min(first + at_a_time), made);
                Ok::<(), candle_core::Error>(())
            })
        })
    })?;
    Ok(made)
}

/// What the files call `dtype`, if weights can be stored in it.
pub(super) fn stored_dtype(dtype: DType) -> Option<safetensors::Dtype> {
    let names = [
        (DType::F32, safetensors::Dtype::F32),
        (DType::BF16, safetensors::Dtype::BF16),
        (DType::F16, safetensors::Dtype::F16),
    ];
    names.iter().find(|(known, _)| *known == dtype).map(|(_, stored)| *stored)
}
