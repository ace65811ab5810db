//! Products of matrices by NVIDIA's cublasLt, which scales 8-bit rows, adds a bias
//! and activates before a number leaves the multiplying unit.
//!
//! Never run so far: no GPU was at hand.
#![expect(unsafe_code, reason = "calls cublasLt's C interface")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, D, DType, Device, Error, Layout, Result, Shape,
    Tensor,
};
use half::bf16;

use super::fp8::{Fp8Rows, Fp8Sums};
use super::kernels::address;

/// Bytes that a product may use for itself: what NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// What the addresses of fresh memory are multiples of at least, and what the library
/// takes for granted if it is told nothing.
const USUAL_ALIGNMENT: u32 = 256;
/// Rows of 8-bit elements begin at multiples of this.
const FP8_ALIGNMENT: usize = 16;
/// The first compute capability that multiplies 8-bit floats.
const FIRST_WITH_FP8: (i32, i32) = (8, 9);

/// `CUBLAS_OP_T` of cublas_api.h.
const TRANSPOSED: i32 = 1;

// Of cublasLt.h since CUDA 12.9; bindings to earlier versions have no names for them.
const A_SCALE_MODE: c_int = 31;
const B_SCALE_MODE: c_int = 32;
/// A scale for each row of a matrix, or each column.
const SCALE_OUTER_VECTOR: i32 = 3;

unsafe extern "C" {
    fn cublasLtMatmulDescSetAttribute(
        descriptor: *mut c_void,
        attribute: c_int,
        value: *const c_void,
        bytes: usize,
    ) -> c_int;
}

/// gelu(x · weightᵀ + bias) in bfloat16, or nothing where cublasLt does not make it.
///
/// `x`: (…, inputs); `weight`: (outputs, inputs); `bias`: (outputs).
///
/// # Errors
/// A candle error if the shapes do not fit, or of the GPU.
pub(super) fn gelu_product(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Option<Tensor>> {
    let (outputs, inputs) = weight.dims2()?;
    let fits = x.dtype() == DType::BF16 && weight.is_contiguous() && bias.is_contiguous();
    if !fits || x.dim(D::Minus1)? != inputs {
        return Ok(None);
    }
    let x = &x.contiguous()?;
    let tokens = x.elem_count() / inputs.max(1);
    let problem = Problem {
        tokens,
        inputs,
        outputs,
        format: Format::Bf16,
        scaling: Scaling::None,
        epilogue: Epilogue::BiasGelu,
        alignment: USUAL_ALIGNMENT,
        sums: Fp8Sums::Exact,
    };
    let operands = Operands {
        x: address(x)?,
        weight: address(weight)?,
        bias: address(bias)?,
        ..Operands::default()
    };
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(outputs);
    make(x, problem, operands, shape.into())
}

/// A product of 8-bit rows.
pub(super) enum Fp8Product {
    /// Scaled.
    Whole(Tensor),
    /// Of the bare elements.
    Bare(Tensor),
}

/// x · weightᵀ in bfloat16, or nothing where the GPU does not multiply 8-bit floats.
///
/// # Errors
/// A candle error of the GPU.
pub(super) fn fp8_product(x: &Fp8Rows, weight: &Fp8Rows) -> Result<Option<Fp8Product>> {
    let Device::Cuda(device) = x.bytes.device() else { return Ok(None) };
    let stream = device.cuda_stream();
    let capability = stream.context().compute_capability().w()?;
    let aligned = |number: usize| number.is_multiple_of(FP8_ALIGNMENT);
    if capability < FIRST_WITH_FP8 || !aligned(x.width) || !aligned(weight.rows) {
        return Ok(None);
    }
    let problem = Problem {
        tokens: x.rows,
        inputs: x.width,
        outputs: weight.rows,
        format: Format::Fp8,
        scaling: Scaling::OfRows,
        epilogue: Epilogue::None,
        alignment: USUAL_ALIGNMENT,
        sums: Fp8Sums::chosen(),
    };
    let bare =
        Operands { x: address(&x.bytes)?, weight: address(&weight.bytes)?, ..Operands::default() };
    let whole =
        Operands { x_scales: x.scales_address()?, weight_scales: weight.scales_address()?, ..bare };
    let shape = Shape::from((problem.tokens, problem.outputs));
    if let Some(product) = make(&x.bytes, problem, whole, shape.clone())? {
        return Ok(Some(Fp8Product::Whole(product)));
    }
    let problem = Problem { scaling: Scaling::None, ..problem };
    Ok(make(&x.bytes, problem, bare, shape)?.map(Fp8Product::Bare))
}

/// A kind of product: what decides on the algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Problem {
    tokens: usize,
    inputs: usize,
    outputs: usize,
    format: Format,
    scaling: Scaling,
    epilogue: Epilogue,
    /// Bytes that the addresses of both matrices are multiples of. What is made is in
    /// fresh memory.
    alignment: u32,
    sums: Fp8Sums,
}

/// The largest power of two, up to the usual one, that divides all `addresses`.
fn alignment_of(addresses: [u64; 2]) -> u32 {
    let zeros = addresses.map(u64::trailing_zeros).into_iter().min().unwrap_or_default();
    1 << zeros.min(USUAL_ALIGNMENT.trailing_zeros())
}

/// Of both matrices; the product is in bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Format {
    Bf16,
    Fp8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Scaling {
    None,
    /// Of both matrices.
    OfRows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Epilogue {
    None,
    BiasGelu,
}

/// Addresses on the GPU; 0 for what there is not.
#[derive(Debug, Clone, Copy, Default)]
struct Operands {
    x: u64,
    weight: u64,
    x_scales: u64,
    weight_scales: u64,
    bias: u64,
}

/// The product of `problem`, or nothing if no algorithm makes it. `subject`: a tensor
/// on the GPU in question.
fn make(
    subject: &Tensor,
    problem: Problem,
    operands: Operands,
    shape: Shape,
) -> Result<Option<Tensor>> {
    let Device::Cuda(device) = subject.device() else { return Ok(None) };
    if shape.elem_count() == 0 {
        return Ok(None);
    }
    let problem = Problem { alignment: alignment_of([operands.x, operands.weight]), ..problem };
    with_library(device, |library| {
        let Some(algorithm) = library.algorithm(&problem, &operands)? else { return Ok(None) };
        let product = Product { problem, operands, algorithm, shape };
        Ok(Some(subject.apply_op1_no_bwd(&product)?))
    })
}

/// A product that is going to be made.
struct Product {
    problem: Problem,
    operands: Operands,
    algorithm: Algorithm,
    shape: Shape,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "cublasLt product"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("cublasLt is for NVIDIA cards")
    }

    fn cuda_fwd(&self, subject: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = subject.device.clone();
        // SAFETY: the product is written whole before anyone reads it.
        let made = unsafe { device.alloc::<bf16>(self.shape.elem_count()) }?;
        let address = made.device_ptr(&device.cuda_stream()).0;
        self.algorithm.start(&self.problem, &self.operands, address, &device)?;
        Ok((CudaStorage::wrap_cuda_slice(made, device), self.shape.clone()))
    }
}

/// An algorithm with the library that it belongs to.
#[derive(Clone)]
struct Algorithm {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    chosen: sys::cublasLtMatmulAlgo_t,
}

impl Algorithm {
    fn start(
        &self,
        problem: &Problem,
        operands: &Operands,
        made: u64,
        device: &CudaDevice,
    ) -> Result<()> {
        let described = Described::new(problem, operands)?;
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        // SAFETY: the layouts are those of the operands, which the caller holds, and
        // of `made`; all are freed in the order of this same stream, and so is the
        // workspace, which only this stream uses.
        let status = unsafe {
            result::matmul(
                self.handle,
                described.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                operands.weight as *const c_void,
                described.weight.0,
                operands.x as *const c_void,
                described.x.0,
                made as *const c_void,
                described.made.0,
                made as *mut c_void,
                described.made.0,
                &raw const self.chosen,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                device.cuda_stream().cu_stream().cast(),
            )
        };
        status.map_err(|error| failed("product", &error))
    }
}

thread_local! {
    /// By the number of the GPU. A model has one thread and one stream.
    static LIBRARIES: RefCell<HashMap<usize, Library>> = RefCell::default();
}

fn with_library<R>(
    device: &CudaDevice,
    action: impl FnOnce(&mut Library) -> Result<R>,
) -> Result<R> {
    let stream = device.cuda_stream();
    LIBRARIES.with_borrow_mut(|libraries| {
        let library = match libraries.entry(stream.context().ordinal()) {
            Entry::Occupied(opened) => opened.into_mut(),
            Entry::Vacant(place) => place.insert(Library::new(&stream)?),
        };
        action(library)
    })
}

/// cublasLt on one GPU.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    /// What was found for each problem so far.
    algorithms: HashMap<Problem, Option<sys::cublasLtMatmulAlgo_t>>,
}

impl Library {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = result::create_handle().map_err(|error| failed("handle", &error))?;
        // SAFETY: nobody reads what a product did not write there.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }.w()?;
        Ok(Self { handle, workspace, stream: stream.clone(), algorithms: HashMap::new() })
    }

    fn algorithm(&mut self, problem: &Problem, operands: &Operands) -> Result<Option<Algorithm>> {
        if !self.algorithms.contains_key(problem) {
            let found = find(self.handle, problem, operands)?;
            if found.is_none() {
                tracing::debug!(?problem, "cublasLt has no algorithm");
            }
            self.algorithms.insert(*problem, found);
        }
        let chosen = self.algorithms.get(problem).copied().flatten();
        let workspace = self.workspace.device_ptr(&self.stream).0;
        Ok(chosen.map(|chosen| Algorithm { handle: self.handle, workspace, chosen }))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: no product is being started; those that run do not need the handle.
        // What could fail here no longer matters.
        _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The fastest algorithm by the library's own estimate, if it has any.
fn find(
    handle: sys::cublasLtHandle_t,
    problem: &Problem,
    operands: &Operands,
) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
    let Ok(described) = Described::new(problem, operands) else { return Ok(None) };
    let preference = Preference::new(problem.alignment)?;
    // SAFETY: all of these live until the end of the call.
    let found = unsafe {
        result::get_matmul_algo_heuristic(
            handle,
            described.description.0,
            described.weight.0,
            described.x.0,
            described.made.0,
            described.made.0,
            preference.0,
        )
    };
    Ok(found.ok().map(|found| found.algo))
}

/// A problem in cublasLt's words. It counts columns first: a matrix of ours is the
/// transposed of one of its own, so it makes (outputs, tokens) = weightᵀ · x.
struct Described {
    description: Description,
    weight: MatrixLayout,
    x: MatrixLayout,
    made: MatrixLayout,
}

impl Described {
    fn new(problem: &Problem, operands: &Operands) -> Result<Self> {
        let Problem { tokens, inputs, outputs, format, scaling, epilogue, sums, .. } = *problem;
        let numbers = match format {
            Format::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Format::Fp8 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
        };
        let description = Description::new()?;
        description
            .set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if scaling == Scaling::OfRows {
            description.set_number(A_SCALE_MODE, SCALE_OUTER_VECTOR)?;
            description.set_number(B_SCALE_MODE, SCALE_OUTER_VECTOR)?;
            description.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                &operands.weight_scales,
            )?;
            description.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                &operands.x_scales,
            )?;
        }
        if sums == Fp8Sums::Fast {
            description
                .set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
        }
        if epilogue == Epilogue::BiasGelu {
            // Its GELU is the tanh approximation.
            let gelu = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS;
            description
                .set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &gelu)?;
            description.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &operands.bias,
            )?;
        }
        Ok(Self {
            description,
            weight: MatrixLayout::new(numbers, inputs, outputs)?,
            x: MatrixLayout::new(numbers, inputs, tokens)?,
            made: MatrixLayout::new(sys::cudaDataType_t::CUDA_R_16BF, outputs, tokens)?,
        })
    }
}

/// Owns cublasLt's description of a product.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(sums, sys::cudaDataType_t::CUDA_R_32F)
            .map(Self)
            .map_err(|error| failed("description", &error))
    }

    /// `value`: of the type that cublasLt gives the attribute.
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: cublasLt copies as many bytes as the value has.
        let status = unsafe {
            result::set_matmul_desc_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        status.map_err(|error| failed("attribute", &error))
    }

    /// For attributes that the bindings may have no name for.
    fn set_number(&self, attribute: c_int, value: i32) -> Result<()> {
        // SAFETY: as `set`; versions that do not know the attribute refuse it.
        let status = unsafe {
            cublasLtMatmulDescSetAttribute(
                self.0.cast(),
                attribute,
                (&raw const value).cast(),
                size_of::<i32>(),
            )
        };
        if status == 0 { Ok(()) } else { Err(failed("attribute", &status)) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it is nobody else's.
        _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Owns cublasLt's description of a matrix.
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    /// Without gaps.
    fn new(numbers: sys::cudaDataType_t, rows: usize, columns: usize) -> Result<Self> {
        result::create_matrix_layout(numbers, rows as u64, columns as u64, rows as i64)
            .map(Self)
            .map_err(|error| failed("layout", &error))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: it is nobody else's.
        _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Owns what an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `alignment`: of the addresses of both matrices.
    fn new(alignment: u32) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let handle = result::create_matmul_pref().map_err(|error| failed("preference", &error))?;
        let preference = Self(handle);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment)?;
        Ok(preference)
    }

    /// `value`: of the type that cublasLt gives the attribute.
    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<()> {
        // SAFETY: cublasLt copies as many bytes as the value has.
        let status = unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        status.map_err(|error| failed("preference", &error))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it is nobody else's.
        _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn failed(what: &str, status: &impl std::fmt::Debug) -> Error {
    Error::msg(format!("cublasLt: {what}: {status:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_what_both_addresses_share_and_never_more_than_the_usual() {
        for (addresses, expected) in [
            ([4096, 512], 256),
            ([4096, 4096 + 128], 128),
            ([4096 + 16, 4096 + 128], 16),
            ([4096 + 2, 512], 2),
            ([0, 512], 256),
        ] {
            assert_eq!(alignment_of(addresses), expected, "{addresses:?}");
        }
    }
}
