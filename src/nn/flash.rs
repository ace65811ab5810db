//! Attention without a score matrix, for heads of 128 in bfloat16 on an NVIDIA GPU.
//!
//! Flash attention 3 on Hopper, flash attention 2 on other GPUs from Ampere on;
//! compiled with feature `flash-attn`. Never run so far: no GPU was at hand.
#![expect(unsafe_code, reason = "calls the kernels' C interface")]

use std::ffi::{c_int, c_void};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor,
};
use half::bf16;

use super::flash_layout::{SIZE, is_readable, strides, sums, tokens_first};
use super::kernels::length;

/// Whether heads of this `size` and format can be attended here.
pub(super) fn fits(device: &Device, dtype: DType, size: usize) -> bool {
    let Device::Cuda(device) = device else { return false };
    dtype == DType::BF16 && size == SIZE && Version::of(device).is_ok()
}

/// softmax(q · kᵀ / √128) · v.
///
/// `q`: (batch, heads, queries, 128); `k`, `v`: (batch, key heads, keys, 128); of
/// any strides whose last is 1. Returns (batch, heads, queries, 128), the heads of a
/// token together.
///
/// # Errors
/// A candle error if the shapes do not fit, or of the GPU.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (q, k, v) = (tokens_first(q)?, tokens_first(k)?, tokens_first(v)?);
    for x in [&q, &k, &v] {
        if !is_readable(x)? {
            candle_core::bail!("flash attention cannot read {:?} where it lies", x.layout());
        }
    }
    q.apply_op3_no_bwd(&k, &v, &Flash)?.transpose(1, 2)
}

#[derive(Debug, Clone, Copy)]
enum Version {
    Two,
    Three,
}

impl Version {
    fn of(device: &CudaDevice) -> Result<Self> {
        match device.cuda_stream().context().compute_capability().w()? {
            (9, _) => Ok(Self::Three),
            (major, _) if major >= 8 => Ok(Self::Two),
            older => {
                candle_core::bail!("flash attention wants compute capability 8.0, not {older:?}")
            }
        }
    }
}

/// As `flash_call.h` declares it.
#[repr(C)]
struct FlashTensor {
    first: u64,
    batch_stride: i64,
    token_stride: i64,
    head_stride: i64,
}

/// As `flash_call.h` declares it.
#[repr(C)]
struct FlashCall {
    q: FlashTensor,
    k: FlashTensor,
    v: FlashTensor,
    o: FlashTensor,
    log_sums: u64,
    batch: c_int,
    heads: c_int,
    key_heads: c_int,
    queries: c_int,
    keys: c_int,
    scale: f32,
}

unsafe extern "C" {
    fn flash_attention_v2(call: *const FlashCall, stream: *mut c_void) -> c_int;
    fn flash_attention_v3(call: *const FlashCall, stream: *mut c_void) -> c_int;
}

struct Flash;

impl CustomOp3 for Flash {
    fn name(&self) -> &'static str {
        "flash attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("flash attention is for NVIDIA cards")
    }

    /// `q`: (batch, queries, heads, 128); `k`, `v`: (batch, keys, key heads, 128).
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = q.device.clone();
        let (batch, queries, heads, size) = q_layout.shape().dims4()?;
        let (_, keys, key_heads, _) = k_layout.shape().dims4()?;
        let fitting = k_layout.dims() == [batch, keys, key_heads, SIZE]
            && v_layout.dims() == k_layout.dims()
            && heads.is_multiple_of(key_heads.max(1));
        if !fitting || size != SIZE || keys == 0 {
            candle_core::bail!("flash attention of {q_layout:?}, {k_layout:?}, {v_layout:?}");
        }
        let made_layout = Layout::contiguous((batch, queries, heads, SIZE));
        // SAFETY: the kernel writes all of both before anyone reads them.
        let (made, log_sums) = unsafe {
            (
                device.alloc::<bf16>(made_layout.shape().elem_count().max(1))?,
                device.alloc::<f32>(sums(batch, heads, queries).max(1))?,
            )
        };
        let made = CudaStorage::wrap_cuda_slice(made, device.clone());
        #[expect(clippy::cast_possible_truncation, reason = "arithmetic is in 32 bits")]
        let scale = (1.0 / (SIZE as f64).sqrt()) as f32;
        let call = FlashCall {
            q: tensor(q, q_layout)?,
            k: tensor(k, k_layout)?,
            v: tensor(v, v_layout)?,
            o: tensor(&made, &made_layout)?,
            log_sums: log_sums.device_ptr(&device.cuda_stream()).0,
            batch: length(batch)?,
            heads: length(heads)?,
            key_heads: length(key_heads)?,
            queries: length(queries)?,
            keys: length(keys)?,
            scale,
        };
        // The kernels count the sums in 32 bits.
        length(sums(batch, heads, queries))?;
        if queries > 0 && batch > 0 {
            start(&call, &device)?;
        }
        Ok((made, made_layout.shape().clone()))
    }
}

/// A tensor of (batch, tokens, heads, 128) as the kernels take it.
fn tensor(storage: &CudaStorage, layout: &Layout) -> Result<FlashTensor> {
    let numbers = storage.as_cuda_slice::<bf16>()?;
    let first = numbers.device_ptr(&storage.device.cuda_stream()).0;
    let [batch_stride, token_stride, head_stride] = strides(layout)?.map(|stride| stride as i64);
    let first = first + (layout.start_offset() * size_of::<bf16>()) as u64;
    Ok(FlashTensor { first, batch_stride, token_stride, head_stride })
}

fn start(call: &FlashCall, device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let handle = stream.cu_stream().cast::<c_void>();
    // SAFETY: the addresses are of tensors that the caller holds, with the lengths
    // and strides of their layouts; all are freed in the order of this same stream.
    let error = unsafe {
        match Version::of(device)? {
            Version::Two => flash_attention_v2(call, handle),
            Version::Three => flash_attention_v3(call, handle),
        }
    };
    if error != 0 {
        candle_core::bail!("flash attention: CUDA error {error}");
    }
    Ok(())
}
