//! Launches on an NVIDIA GPU.
//!
//! All work of a model is on one stream, that of the thread which owns it: so a
//! launch comes after what made its tensors, and before what frees them.
#![expect(unsafe_code, reason = "kernels take addresses, and nobody checks what they do with them")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Result};
use half::{bf16, f16};

use super::{Element, Launch, Operation};

/// The kernels as PTX, which the driver compiles for the GPU when a module is
/// first used: (dtype, pack) and their text.
const MODULES: [(DType, usize, &str, &str); 6] = [
    (DType::BF16, 4, "ours_bf16_4", include_str!(concat!(env!("OUT_DIR"), "/bf16_4.ptx"))),
    (DType::BF16, 1, "ours_bf16_1", include_str!(concat!(env!("OUT_DIR"), "/bf16_1.ptx"))),
    (DType::F16, 4, "ours_f16_4", include_str!(concat!(env!("OUT_DIR"), "/f16_4.ptx"))),
    (DType::F16, 1, "ours_f16_1", include_str!(concat!(env!("OUT_DIR"), "/f16_1.ptx"))),
    (DType::F32, 4, "ours_f32_4", include_str!(concat!(env!("OUT_DIR"), "/f32_4.ptx"))),
    (DType::F32, 1, "ours_f32_1", include_str!(concat!(env!("OUT_DIR"), "/f32_1.ptx"))),
];

/// What a GPU can hold.
pub(in crate::nn) trait OnCard: CudaDType + DeviceRepr {}

impl<T: CudaDType + DeviceRepr> OnCard for T {}

/// The address of the first number of a storage.
#[expect(clippy::wildcard_enum_match_arm, reason = "kernels know four formats")]
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    match storage.dtype() {
        DType::F32 => Ok(pointer(storage.as_cuda_slice::<f32>()?, &storage.device)),
        DType::BF16 => Ok(pointer(storage.as_cuda_slice::<bf16>()?, &storage.device)),
        DType::F16 => Ok(pointer(storage.as_cuda_slice::<f16>()?, &storage.device)),
        DType::U8 => Ok(pointer(storage.as_cuda_slice::<u8>()?, &storage.device)),
        other => candle_core::bail!("no kernel reads {other:?}"),
    }
}

fn pointer<T>(slice: &CudaSlice<T>, device: &CudaDevice) -> u64 {
    // The guard would note the use for other streams, of which there are none.
    slice.device_ptr(&device.cuda_stream()).0
}

/// Makes what `operation` says on `device`.
#[expect(clippy::wildcard_enum_match_arm, reason = "kernels know three formats")]
pub(super) fn make<O: Operation>(operation: &O, device: &CudaDevice) -> Result<CudaStorage> {
    match operation.format() {
        DType::F32 => make_as::<f32, O>(operation, device),
        DType::BF16 => make_as::<bf16, O>(operation, device),
        DType::F16 => make_as::<f16, O>(operation, device),
        other => candle_core::bail!("{} knows no {other:?}", O::NAME),
    }
}

fn make_as<N: Element, O: Operation>(operation: &O, device: &CudaDevice) -> Result<CudaStorage> {
    let count = operation.shape().elem_count();
    // The driver may refuse to give no bytes at all.
    // SAFETY: the kernel writes every number of it before anyone reads; later
    // readers are on the same stream.
    let made = unsafe { device.alloc::<O::Made<N>>(count.max(1)) }?;
    if count > 0 {
        let launch = operation.launch(pointer(&made, device))?;
        start(&launch, operation.format(), device)?;
    }
    Ok(CudaStorage::wrap_cuda_slice(made, device.clone()))
}

/// The struct that a kernel takes.
#[repr(transparent)]
struct Argument<Call>(Call);

// SAFETY: calls are `repr(C)` structs of elements and addresses that the tests hold
// against the kernels' own declarations.
unsafe impl<Call: Copy> DeviceRepr for Argument<Call> {}

fn start<Call: Copy>(launch: &Launch<Call>, dtype: DType, device: &CudaDevice) -> Result<()> {
    let Some((_, _, module, text)) =
        MODULES.iter().find(|(format, pack, ..)| (*format, *pack) == (dtype, launch.pack))
    else {
        candle_core::bail!("{} is not compiled for {dtype:?}", launch.kernel);
    };
    launch.expect_launchable()?;
    #[expect(clippy::cast_possible_truncation, reason = "launchable, so below 2^31")]
    let [blocks, threads, shared] =
        [launch.blocks, launch.threads, launch.shared * size_of::<f32>()].map(|size| size as u32);
    let function = device.get_or_load_custom_func(launch.kernel, module, text)?;
    let argument = Argument(launch.call);
    let mut builder = function.builder();
    builder.arg(&argument);
    let size = LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: shared,
    };
    // SAFETY: the addresses in the call are of tensors that the operation holds
    // and of the result; both live on until what is queued here has run, for they
    // are freed in the order of the same stream. The tests run every kernel from
    // the same launches and see that it stays inside them.
    unsafe { builder.launch(size) }.w()?;
    Ok(())
}
