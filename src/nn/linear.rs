//! A dense layer.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{D, DType, Device, Module, Result, Tensor};

use super::activation::gelu_tanh;
use super::few_rows;
use super::fp8::{self, Fp8Rows};
#[cfg(feature = "cuda")]
use super::fusion::Fusion;
use super::gemm::{Matrix, MatrixMut, Previous, Threads, multiply};
use super::kernels::{Elements, add_bias};
use super::low_rank;
use super::q8::{self, Q8Matrix, Q8Rows};
use super::trace::{self, Kind};
use super::widened;
use crate::checkpoint::{
    AdapterSlot, DeviceMatrix, LowRank, MappedElements, MappedMatrix, MatrixFormat, Weights,
};
use crate::interruption;

/// Multiplications of a product on a CPU between two checks: a second or two of two cores.
const CPU_PRODUCTS_AT_A_TIME: usize = 1 << 36;

/// y = x · weightᵀ (+ bias), with what a request's LoRAs add to the product.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// What the settings' LoRAs add to each product, where they are not in the weight.
    added: Arc<[LowRank]>,
    /// What may change it while it computes.
    adapter: Option<AdapterSlot>,
}

enum Weight {
    Exact(candle_nn::Linear),
    /// Where its file is mapped, on a CPU.
    Mapped(MappedMatrix),
    /// In GGML's blocks, on a GPU: made wide for each product.
    Blocks(QTensor),
    Fp8 {
        rows: Fp8Rows,
        inputs: Inputs,
        dtype: DType,
        origin: Origin,
    },
    Q8 {
        matrix: Q8Matrix,
        dtype: DType,
    },
}

/// Whether a matrix was quantized before it was stored, or while it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Stored,
    Loaded,
}

/// What becomes of the inputs of a layer whose matrix is rounded.
#[derive(Debug, Clone, Copy)]
enum Inputs {
    Quantized,
    Exact,
}

/// What layers of one kind are given: made once by [`Linear::input`] for all that
/// multiply the same tensor.
pub enum LayerInput<'a> {
    /// As it is.
    Exact(&'a Tensor),
    /// Rounded, and as it was.
    Fp8(Fp8Rows, &'a Tensor),
    /// As integers, and as it was.
    Q8(Q8Rows, &'a Tensor),
}

impl<'a> LayerInput<'a> {
    /// As it was given.
    fn exact(&self) -> &'a Tensor {
        match self {
            Self::Exact(x) | Self::Fp8(_, x) | Self::Q8(_, x) => x,
        }
    }
}

impl Linear {
    /// Takes `weight` (outputs, inputs) and `bias` (outputs).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = Weight::load_exact(weights, inputs, outputs)?;
        let bias = Some(weights.get("bias", outputs)?);
        Self::of(weight, bias, weights, (outputs, inputs))
    }

    /// As [`Self::load`], for a layer that can do with fewer digits: its matrix is
    /// kept in the format of [`Weights::matrices`].
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_quantizable(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = Weight::load(weights, inputs, outputs)?;
        let bias = Some(weights.get("bias", outputs)?);
        Self::of(weight, bias, weights, (outputs, inputs))
    }

    /// The same without a bias.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_quantizable_without_bias(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let weight = Weight::load(weights, inputs, outputs)?;
        Self::of(weight, None, weights, (outputs, inputs))
    }

    /// Takes `weight` (outputs, inputs) alone.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load_without_bias(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = Weight::load_exact(weights, inputs, outputs)?;
        Self::of(weight, None, weights, (outputs, inputs))
    }

    /// The layer of `weight`, which was taken from `weights`: (outputs, inputs).
    fn of(
        weight: Weight,
        bias: Option<Tensor>,
        weights: &Weights,
        shape: (usize, usize),
    ) -> Result<Self> {
        let added = match &weight {
            Weight::Mapped(matrix) if matrix.is_quantized() => weights.low_rank("weight", shape)?,
            Weight::Blocks(_) | Weight::Fp8 { origin: Origin::Stored, .. } => {
                weights.low_rank("weight", shape)?
            }
            Weight::Exact(_) | Weight::Mapped(_) | Weight::Fp8 { .. } | Weight::Q8 { .. } => {
                Arc::new([])
            }
        };
        Ok(Self { weight, bias, added, adapter: weights.adapter_slot(shape.0, shape.1) })
    }

    /// A layer from a (outputs, inputs) matrix at hand.
    #[must_use]
    pub fn from_weight(weight: Tensor) -> Self {
        Self { weight: Weight::exact(weight), bias: None, added: Arc::new([]), adapter: None }
    }

    /// The same with a `bias` (outputs).
    pub(super) fn with_bias(self, bias: Tensor) -> Self {
        Self { bias: Some(bias), ..self }
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
        self.product_of(&self.input(x)?)
    }

    /// `x` as this layer, and every other in the same format, multiplies it.
    ///
    /// # Errors
    /// A candle error, such as out of memory.
    pub fn input<'a>(&self, x: &'a Tensor) -> Result<LayerInput<'a>> {
        match &self.weight {
            Weight::Fp8 { inputs: Inputs::Quantized, .. } => {
                let _span = trace::span(Kind::Elementwise, "rounding to 8 bits");
                Ok(LayerInput::Fp8(Fp8Rows::quantize(x)?, x))
            }
            Weight::Q8 { .. } if Q8Rows::are_wanted() => {
                let _span = trace::span(Kind::Elementwise, "rounding to integers");
                Ok(LayerInput::Q8(Q8Rows::quantize(x)?, x))
            }
            Weight::Exact(_)
            | Weight::Mapped(_)
            | Weight::Blocks(_)
            | Weight::Fp8 { .. }
            | Weight::Q8 { .. } => Ok(LayerInput::Exact(x)),
        }
    }

    /// As [`Self::product`], of what [`Self::input`] made of x.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or the input is of another format.
    pub fn product_of(&self, input: &LayerInput) -> Result<Tensor> {
        let product = self.unchanged_product(input)?;
        let product = match self.added.is_empty() {
            true => product,
            false => low_rank::added(product, input.exact(), &self.added)?,
        };
        match self.changes() {
            None => Ok(product),
            Some(changes) => low_rank::added(product, input.exact(), &changes),
        }
    }

    /// What changes this layer now.
    fn changes(&self) -> Option<Arc<[LowRank]>> {
        self.adapter.as_ref()?.changes()
    }

    fn unchanged_product(&self, input: &LayerInput) -> Result<Tensor> {
        let _span = trace::counted(Kind::Product, "product", || self.operations(input));
        match (&self.weight, input) {
            (Weight::Exact(layer), LayerInput::Exact(x)) => multiplied(layer.weight(), x),
            (Weight::Mapped(matrix), LayerInput::Exact(x)) => multiplied_where_mapped(matrix, x),
            (Weight::Blocks(blocks), LayerInput::Exact(x)) => {
                multiplied(&blocks.dequantize(x.device())?.to_dtype(x.dtype())?, x)
            }
            (Weight::Q8 { matrix, .. }, LayerInput::Exact(x)) => matrix.widened_product(x),
            (Weight::Q8 { matrix, dtype }, LayerInput::Q8(rows, x)) => {
                q8::product(rows, x.shape(), matrix, *dtype)
            }
            (Weight::Fp8 { rows, .. }, LayerInput::Exact(x)) if x.device().is_cpu() => {
                rows.widened_product(x)
            }
            (Weight::Fp8 { rows, dtype, .. }, LayerInput::Exact(x)) => {
                multiplied(&rows.widen(*dtype)?, x)
            }
            (Weight::Fp8 { rows, dtype, .. }, LayerInput::Fp8(quantized, x)) => {
                let product = fp8::product(quantized, rows, *dtype)?;
                let mut dims = x.dims().to_vec();
                dims.pop();
                dims.push(product.dim(D::Minus1)?);
                product.reshape(dims)
            }
            (_, LayerInput::Fp8(..) | LayerInput::Q8(..)) => {
                candle_core::bail!("an input of 8 bits is for layers of the same 8 bits")
            }
        }
    }

    /// As [`Self::forward`], of what [`Self::input`] made of x.
    ///
    /// # Errors
    /// As [`Self::product_of`].
    pub fn forward_of(&self, input: &LayerInput) -> Result<Tensor> {
        add_bias(self.product_of(input)?, self.bias())
    }

    /// gelu(x · weightᵀ + bias), with GELU's tanh approximation. Shapes as
    /// [`Self::forward`].
    ///
    /// # Errors
    /// A candle error if the shapes do not fit.
    pub fn gelu_tanh(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Weight::Exact(layer), Some(bias)) = (&self.weight, &self.bias)
            && Fusion::GeluEpilogue.applies_to(x)
            // What is added to a product comes before GELU.
            && self.changes().is_none()
        {
            let span = trace::span(Kind::Product, "product, bias, GELU");
            if let Some(made) = super::cublaslt::gelu_product(x, layer.weight(), bias)? {
                span.count(|| self.operations(&LayerInput::Exact(x)));
                return Ok(made);
            }
        }
        gelu_tanh(&self.product(x)?, self.bias())
    }

    /// Floating-point operations of the product with `input`.
    fn operations(&self, input: &LayerInput) -> f64 {
        let outputs = match &self.weight {
            Weight::Exact(layer) => layer.weight().dim(0).unwrap_or(0),
            Weight::Mapped(matrix) => matrix.shape().0,
            Weight::Blocks(blocks) => blocks.shape().dims().first().copied().unwrap_or(0),
            Weight::Fp8 { rows, .. } => rows.rows,
            Weight::Q8 { matrix, .. } => matrix.outputs,
        };
        2.0 * input.exact().elem_count() as f64 * outputs as f64
    }

    /// What [`Self::product`] leaves out: (outputs).
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Weight {
    fn exact(weight: Tensor) -> Self {
        Self::Exact(candle_nn::Linear::new(weight, None))
    }

    /// `weight` (outputs, inputs) as it is: where its file is mapped, if that can be.
    fn load_exact(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let shape = (outputs, inputs);
        if let Some(matrix) = weights.get_mapped("weight", shape)? {
            return Ok(Self::Mapped(matrix));
        }
        match weights.get_quantized("weight", shape)? {
            Some(matrix) => Self::stored(matrix, shape, (weights.dtype(), weights.device())),
            None => Ok(Self::exact(weights.get("weight", shape)?)),
        }
    }

    /// `matrix` as it is quantized in its file.
    fn stored(
        matrix: DeviceMatrix,
        (outputs, inputs): (usize, usize),
        (dtype, device): (DType, &Device),
    ) -> Result<Self> {
        Ok(match matrix {
            DeviceMatrix::Blocks(blocks) => Self::Blocks(blocks),
            DeviceMatrix::Fp8 { codes, scales } => Self::Fp8 {
                rows: Fp8Rows::stored(codes, &scales, (outputs, inputs), device)?,
                inputs: Inputs::Exact,
                dtype,
                origin: Origin::Stored,
            },
        })
    }

    /// `weight` (outputs, inputs) in the format of [`Weights::matrices`], which is rounded,
    /// and dropped, at once.
    fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self> {
        let kept_in = |bytes| weights.in_turn().get_kept_in("weight", (outputs, inputs), bytes);
        let (hollow, dtype) = (weights.is_placeholder(), weights.dtype());
        let fp8 = |inputs_are| {
            let weight = kept_in(Fp8Rows::byte_count(outputs, inputs))?;
            let rows = match hollow {
                true => Fp8Rows::placeholder(outputs, inputs)?,
                false => Fp8Rows::quantize(&weight)?,
            };
            Ok(Self::Fp8 { rows, inputs: inputs_are, dtype, origin: Origin::Loaded })
        };
        match weights.matrices() {
            MatrixFormat::AsStored | MatrixFormat::AsComputed => {
                Self::load_exact(weights, inputs, outputs)
            }
            MatrixFormat::Fp8 => fp8(Inputs::Quantized),
            MatrixFormat::Fp8Weights => fp8(Inputs::Exact),
            MatrixFormat::Q8_0 => {
                let weight = kept_in(Q8Matrix::byte_count(outputs, inputs))?;
                let matrix = match hollow {
                    true => Q8Matrix::placeholder(outputs, inputs),
                    false => Q8Matrix::quantize(&weight)?,
                };
                Ok(Self::Q8 { matrix, dtype })
            }
        }
    }
}

/// x · weightᵀ, which can be broken off on a CPU.
pub(super) fn multiplied(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return candle_nn::Linear::new(weight.clone(), None).forward(x);
    }
    let is_wide = x.dtype() == DType::F32 && weight.dtype() == DType::F32;
    let rows = x.elem_count() / weight.dim(1)?.max(1);
    if is_wide && !few_rows::are_few(rows) {
        let shape = weight.dims2()?;
        let weight = weight.contiguous()?;
        let elements = Elements::<f32>::of(&weight)?;
        multiplied_in_strips((elements.all(), shape), x, CPU_PRODUCTS_AT_A_TIME)
    } else {
        widened::product_with_tensor(x, weight)
    }
}

/// The same with a matrix where its file is mapped.
fn multiplied_where_mapped(matrix: &MappedMatrix, x: &Tensor) -> Result<Tensor> {
    let shape = matrix.shape();
    let are_few = few_rows::are_few(x.elem_count() / shape.1.max(1));
    match matrix.elements() {
        MappedElements::F32(elements) if x.dtype() == DType::F32 && !are_few => {
            multiplied_in_strips((elements, shape), x, CPU_PRODUCTS_AT_A_TIME)
        }
        MappedElements::F32(elements) => widened::product_with_slice(x, elements, shape),
        MappedElements::BF16(elements) => widened::product_with_slice(x, elements, shape),
        MappedElements::F16(elements) => widened::product_with_slice(x, elements, shape),
        MappedElements::Quantized(rows) => widened::product_with_rows(x, rows, shape),
    }
}

/// The same of f32 by strips of rows, of `at_a_time` multiplications or a single row each,
/// each put where it belongs.
fn multiplied_in_strips(
    (weights, (outputs, inputs)): (&[f32], (usize, usize)),
    x: &Tensor,
    at_a_time: usize,
) -> Result<Tensor> {
    let rows = (at_a_time / (outputs * inputs).max(1)).max(1);
    let x = x.contiguous()?;
    let numbers = Elements::<f32>::of(&x)?;
    let weights = Matrix::new(weights, (outputs, inputs), inputs)?.transposed();
    let mut dims = x.dims().to_vec();
    let width = dims.pop();
    if width != Some(inputs) {
        candle_core::bail!("rows of {width:?} numbers for a layer of {inputs}");
    }
    dims.push(outputs);
    let mut made = vec![0.0; dims.iter().product()];
    let strips = made.chunks_mut((rows * outputs).max(1));
    for (made, x) in strips.zip(numbers.all().chunks((rows * inputs).max(1))) {
        interruption::check()?;
        let count = made.len() / outputs;
        let x = Matrix::new(x, (count, inputs), inputs)?;
        let made = MatrixMut::new(made, (count, outputs), outputs)?;
        multiply(made, Previous::Replaced, (x, weights), Threads::All)?;
    }
    Tensor::from_vec(made, dims, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::numbers;
    use super::super::kernels::non_finite::{NUMBER_FORMATS, assert_passed_on};
    use super::*;

    #[test]
    fn a_large_product_is_made_by_strips_and_can_be_broken_off_between_them() {
        let x = numbers(&[2, 5, 9], 1, DType::F32);
        let layer = candle_nn::Linear::new(numbers(&[4, 9], 2, DType::F32), None);
        let expected = layer.forward(&x).unwrap();
        let elements = Elements::<f32>::of(layer.weight()).unwrap();
        let asked = std::cell::Cell::new(0);
        let by_strips = |stops_at| {
            asked.set(0);
            let is_cancelled = || {
                asked.set(asked.get() + 1);
                asked.get() == stops_at
            };
            // Three rows at a time.
            interruption::watched(&is_cancelled, || {
                multiplied_in_strips((elements.all(), (4, 9)), &x, 3 * 4 * 9)
            })
        };

        let made = by_strips(usize::MAX).unwrap();

        assert_eq!((made.dims(), asked.get()), (expected.dims(), 4));
        let list = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Sums of nine products below ten, in whatever order.
        let pairs = list(&made).into_iter().zip(list(&expected));
        assert!(pairs.into_iter().all(|(ours, whole)| (ours - whole).abs() < 1e-5));
        assert!(by_strips(2).is_err());
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn what_is_not_finite_reaches_everything_that_a_layer_makes_of_it() {
        let (tokens, inputs, outputs) = (3, 9, 5);
        for dtype in NUMBER_FORMATS {
            let tensors = [
                numbers(&[tokens, inputs], 1, dtype),
                numbers(&[outputs, inputs], 2, dtype),
                numbers(&[outputs], 3, dtype),
            ];
            let forms = |tensors: &[Tensor]| {
                let layer = Linear::from_weight(tensors[1].clone()).with_bias(tensors[2].clone());
                vec![("layer", layer.forward(&tensors[0]).unwrap())]
            };
            let reference = |tensors: &[Vec<f64>]| {
                let product = |x: &[f64], row: &[f64]| {
                    x.iter().zip(row).map(|(x, weight)| x * weight).sum::<f64>()
                };
                let token = |x: &[f64]| {
                    let rows = tensors[1].chunks(inputs).zip(&tensors[2]);
                    rows.map(|(row, bias)| product(x, row) + bias).collect::<Vec<_>>()
                };
                tensors[0].chunks(inputs).flat_map(token).collect()
            };
            assert_passed_on(&tensors, forms, reference);
        }
    }

    /// A layer of 9 inputs and 4 outputs, computing in `dtype`, from a file in `stored`; and
    /// the same of copies.
    fn from_file(stored: DType, dtype: DType) -> (Linear, Linear) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("part")).unwrap();
        let tensors = std::collections::HashMap::from([
            ("weight".to_owned(), numbers(&[4, 9], 2, stored)),
            ("bias".to_owned(), numbers(&[4], 3, stored)),
        ]);
        let file = folder.path().join("part/model.safetensors");
        candle_core::safetensors::save(&tensors, file).unwrap();
        let snapshot = crate::checkpoint::Snapshot::Directory(folder.path().to_owned());
        let kind = (dtype, &Device::Cpu);
        let weights = Weights::open(&snapshot, "part", "model", kind, str::to_owned).unwrap();
        let layer = Linear::load(&weights, 9, 4).unwrap();
        assert_eq!(weights.finish().unwrap(), (4 * 9 + 4) * dtype.size_in_bytes());
        let copied = |name: &str, shape: &[usize]| weights.get(name, shape).unwrap();
        let copy = Linear::from_weight(copied("weight", &[4, 9]));
        (layer, copy.with_bias(copied("bias", &[4])))
    }

    #[test]
    fn a_matrix_where_its_file_is_mapped_multiplies_as_its_copy_does() {
        let bits = |x: &Tensor| -> Vec<f32> {
            x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (mapped, copied) = from_file(dtype, dtype);
            assert!(matches!(mapped.weight, Weight::Mapped(_)), "{dtype:?}");
            // Few rows and many go other ways.
            for rows in [1, 5, 600] {
                let x = numbers(&[rows, 9], 1, dtype);

                let [mapped, copied] = [&mapped, &copied].map(|layer| layer.forward(&x).unwrap());

                assert_eq!(bits(&mapped), bits(&copied), "{dtype:?} {rows}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_stored_otherwise_than_it_is_computed_in_is_copied() {
        for (stored, dtype) in [(DType::F16, DType::BF16), (DType::BF16, DType::F32)] {
            let (layer, _) = from_file(stored, dtype);
            assert!(matches!(layer.weight, Weight::Exact(_)), "{stored:?} {dtype:?}");
        }
    }

    /// What a GPU keeps quantized is multiplied here as it would be there.
    #[test]
    fn blocks_and_scaled_floats_that_stay_quantized_multiply_as_what_they_mean() {
        use candle_core::quantized::GgmlDType;
        let x = numbers(&[2, 3, 64], 1, DType::F32);
        let weight = numbers(&[8, 64], 2, DType::F32).force_contiguous().unwrap();
        let list = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let layer = |weight| Linear { weight, bias: None, added: Arc::new([]), adapter: None };

        let blocks = QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap();
        let meant = blocks.dequantize(&Device::Cpu).unwrap();
        let made = layer(Weight::Blocks(blocks)).forward(&x).unwrap();
        assert_eq!(list(&made), list(&Linear::from_weight(meant).forward(&x).unwrap()));

        // Codes of 0.5, 1 and -2, and rows scaled by no power of two.
        let codes: Vec<u8> = (0..8 * 64).map(|at| [0x30, 0x38, 0xc0][at % 3]).collect();
        let scales: Vec<f32> = (1..=8_u8).map(|row| f32::from(row) / 3.0).collect();
        let meant: Vec<f32> =
            (0..8 * 64).map(|at| [0.5, 1.0, -2.0][at % 3] * scales[at / 64]).collect();
        let meant = Tensor::from_vec(meant, (8, 64), &Device::Cpu).unwrap();
        let matrix = DeviceMatrix::Fp8 { codes, scales };
        let weight = Weight::stored(matrix, (8, 64), (DType::F32, &Device::Cpu)).unwrap();
        let made = layer(weight).forward(&x).unwrap();
        let expected = Linear::from_weight(meant).forward(&x).unwrap();
        // Sums of 64 products below sixteen, in another order.
        let far = list(&made).into_iter().zip(list(&expected)).map(|(a, b)| (a - b).abs());
        assert!(far.fold(0.0, f32::max) < 1e-4);
    }

    /// So a layer makes the same whether its 16-bit matrix is copied or used where it lies.
    #[test]
    fn a_matrix_of_16_bits_multiplies_to_the_bit_as_its_copy_in_32() {
        for (inputs, outputs) in [(256, 64), (3072, 700), (1280, 3420)] {
            let narrow = numbers(&[outputs, inputs], 2, DType::BF16).force_contiguous().unwrap();
            let wide = narrow.to_dtype(DType::F32).unwrap();
            for rows in [1, 5, 41, 300, 600, 1410] {
                let x = numbers(&[rows, inputs], 1, DType::F32).force_contiguous().unwrap();
                let list = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let copied = list(multiplied(&wide, &x).unwrap());
                let elements = Elements::<half::bf16>::of(&narrow).unwrap();
                let shape = (outputs, inputs);
                let where_it_lies = widened::product_with_slice(&x, elements.all(), shape);
                assert!(copied == list(where_it_lies.unwrap()), "{rows} rows of {inputs}");
            }
        }
    }
}
