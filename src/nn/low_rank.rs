//! What low-rank changes of a layer's matrix add to its products: the matrix stays as it
//! is, in whatever format.

use candle_core::{Result, Tensor};

use super::linear::multiplied;
use super::trace::{self, Kind};
use crate::checkpoint::LowRank;

/// `product` with what `changes` make of `x`. Their products are summed in 32 bits, as the
/// layers' own are, of numbers in the format of `x`.
pub(super) fn added(product: Tensor, x: &Tensor, changes: &[LowRank]) -> Result<Tensor> {
    changes.iter().try_fold(product, |sum, LowRank { down, up, factor }| {
        let operations = || {
            let (rows, ranks) = (x.elem_count() / down.dims()[1].max(1), down.dims()[0]);
            2.0 * rows as f64 * ranks as f64 * (down.dims()[1] + up.dims()[0]) as f64
        };
        let _span = trace::counted(Kind::Product, "low-rank product", operations);
        let narrow = (multiplied(down, x)? * *factor)?; // (…, rank)
        sum + multiplied(up, &narrow)?
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    use candle_core::{DType, Device};

    use super::super::kernels::emulation::{assert_close, numbers};
    use super::super::{Linear, gelu_tanh};
    use super::*;
    use crate::checkpoint::{Adapters, Lora, LoraLayers, MatrixFormat, Weights};

    /// The changes of a layer `layer` of 64 inputs and 96 outputs, and what they add to a
    /// product of `x`, at strength 0.5.
    fn two_loras(x: &Tensor) -> (Vec<(Arc<LoraLayers>, f64)>, Tensor) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        let mut sum = None;
        let loras = [3_u8, 8].map(|rank| {
            let seed = 2 * u32::from(rank);
            let rank = usize::from(rank);
            let down = numbers(&[rank, 64], seed, DType::F32);
            let up = numbers(&[96, rank], seed + 1, DType::F32);
            let tensors = [("layer.lora_A.weight", &down), ("layer.lora_B.weight", &up)];
            let tensors = tensors.map(|(name, tensor)| (name, tensor.clone()));
            candle_core::safetensors::save(&HashMap::from(tensors), &file).unwrap();
            let narrow = x.broadcast_matmul(&down.t().unwrap()).unwrap();
            let added = (narrow.broadcast_matmul(&up.t().unwrap()).unwrap() * 0.5).unwrap();
            sum = Some(sum.take().map_or(added.clone(), |sum: Tensor| (sum + added).unwrap()));
            let layers = BTreeMap::from([("layer".to_owned(), [96, 64])]);
            let lora = Lora::open(&file, 1.0).unwrap();
            let layers = lora.layers(&layers, (DType::F32, &Device::Cpu)).unwrap();
            (Arc::new(layers.unwrap_or_else(|fault| panic!("{fault}"))), 0.5)
        });
        (loras.into(), sum.unwrap())
    }

    #[test]
    fn what_loras_add_is_exact_whatever_the_matrix_is_rounded_to_and_in_every_form() {
        let x = (numbers(&[2, 7, 64], 1, DType::F32) * 0.1).unwrap();
        let (loras, added) = two_loras(&x);
        for matrices in [
            MatrixFormat::AsComputed,
            MatrixFormat::Fp8,
            MatrixFormat::Fp8Weights,
            MatrixFormat::Q8_0,
        ] {
            let adapters = Arc::new(Adapters::default());
            let weights = Weights::random("component", (DType::F32, &Device::Cpu));
            let weights = weights.adaptable(&adapters).with_matrices(matrices).at("layer");
            let layer = Linear::load_quantizable(&weights, 64, 96).unwrap();
            let forms = || {
                let input = layer.input(&x).unwrap();
                let products = [layer.product(&x), layer.product_of(&input)];
                let sums = [layer.forward(&x), layer.forward_of(&input)];
                (products.map(Result::unwrap), sums.map(Result::unwrap), layer.gelu_tanh(&x))
            };
            let (plain, ..) = forms();

            let active = adapters.activate(&loras, "two");
            let (products, sums, activated) = forms();
            drop(active);

            let expected = (&plain[0] + &added).unwrap();
            let most = added.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            // Sums of some hundred products below ten, in whatever order.
            products.iter().for_each(|made| assert_close(made, &expected, 1e-4));
            // Random weights have biases of 0.
            sums.iter().for_each(|made| assert_close(made, &expected, 1e-4));
            let gelu = gelu_tanh(&expected, None).unwrap();
            assert_close(&activated.unwrap(), &gelu, 1e-4);
            assert!(most > 1.0 && adapters.active_key().is_none(), "{matrices:?}");
            assert_close(&forms().0[0], &plain[0], 0.0);
        }
    }
}
