//! Bytes from the host to an NVIDIA GPU, through memory that the GPU reads itself.
//!
//! Bytes are copied, by several threads, to one of a few pieces of pinned memory,
//! which the GPU fetches while the next piece is filled. From other memory the
//! driver would do the same with one thread, and make the caller wait.
//!
//! Never run so far: no GPU was at hand.
#![expect(unsafe_code, reason = "the driver's interface")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Bytes of a piece of pinned memory.
const STAGE_BYTES: usize = 32 << 20;
const STAGES: usize = 3;
/// Bytes that a thread copies at a time.
const SHARE_BYTES: usize = 2 << 20;

/// When the GPU makes an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadOrder {
    /// After everything that it was told before, and before everything after: the
    /// tensor is like any other.
    InTurn,
    /// At once, beside what it computes. The tensor must not be computed with before
    /// [`await_uploads`], nor dropped before [`release`].
    Prefetched,
}

/// A tensor on `device` of the elements in `bytes`, which are of format `dtype`.
///
/// # Errors
/// A candle error, such as out of memory.
#[expect(clippy::wildcard_enum_match_arm, reason = "weights come in three formats")]
pub(super) fn upload(
    device: &CudaDevice,
    order: UploadOrder,
    dtype: DType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<Tensor> {
    let expected = shape.iter().product::<usize>() * dtype.size_in_bytes();
    if expected != bytes.len() {
        candle_core::bail!("{} bytes do not make {shape:?} in {dtype:?}", bytes.len());
    }
    let storage = with_uploader(device, |uploader| match dtype {
        DType::F32 => uploader.upload::<f32>(device, order, bytes),
        DType::BF16 => uploader.upload::<bf16>(device, order, bytes),
        DType::F16 => uploader.upload::<f16>(device, order, bytes),
        other => candle_core::bail!("weights are not uploaded as {other:?}"),
    })?;
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// Has the GPU compute nothing more until all uploads so far are there. Returns at
/// once.
///
/// # Errors
/// A candle error of the driver.
pub(super) fn await_uploads(device: &CudaDevice) -> Result<()> {
    with_uploader(device, |uploader| {
        device.cuda_stream().wait(&uploader.prefetch.record_event(None).w()?).w()
    })
}

/// Has the GPU free nothing that was uploaded beside its work until what it was told
/// to compute so far is done: then such tensors may be dropped. Returns at once.
///
/// # Errors
/// A candle error of the driver.
pub(super) fn release(device: &CudaDevice) -> Result<()> {
    with_uploader(device, |uploader| {
        uploader.prefetch.wait(&device.cuda_stream().record_event(None).w()?).w()
    })
}

thread_local! {
    /// By the number of the GPU. A model has one thread.
    static UPLOADERS: RefCell<HashMap<usize, Uploader>> = RefCell::default();
}

fn with_uploader<R>(
    device: &CudaDevice,
    action: impl FnOnce(&mut Uploader) -> Result<R>,
) -> Result<R> {
    UPLOADERS.with_borrow_mut(|uploaders| {
        let uploader = match uploaders.entry(device.cuda_stream().context().ordinal()) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(Uploader::new(device)?),
        };
        action(uploader)
    })
}

struct Uploader {
    /// The queue of what is uploaded beside the GPU's work.
    prefetch: Arc<CudaStream>,
    stages: Vec<Stage>,
    /// The stage to fill next.
    next: usize,
}

struct Stage {
    memory: PinnedHostSlice<u8>,
    /// Passed when the GPU has fetched what is in it.
    fetched: Option<CudaEvent>,
}

impl Uploader {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let stages = (0..STAGES).map(|_| {
            // SAFETY: the GPU is told to fetch no byte that was not written before.
            let memory = unsafe { context.alloc_pinned::<u8>(STAGE_BYTES) }.w()?;
            Ok(Stage { memory, fetched: None })
        });
        let stages = stages.collect::<Result<_>>()?;
        Ok(Self { prefetch: context.new_stream().w()?, stages, next: 0 })
    }

    fn upload<T: CudaDType + DeviceRepr>(
        &mut self,
        device: &CudaDevice,
        order: UploadOrder,
        bytes: &[u8],
    ) -> Result<CudaStorage> {
        let stream = match order {
            UploadOrder::InTurn => device.cuda_stream(),
            UploadOrder::Prefetched => self.prefetch.clone(),
        };
        // SAFETY: all of it is written below before anyone reads it. It is freed in
        // the order of this same stream.
        let made = unsafe { stream.alloc::<T>(bytes.len() / size_of::<T>()) };
        let made: CudaSlice<T> = made.w().inspect_err(|_| self.settle(device))?;
        let first = made.device_ptr(&stream).0;
        for (index, chunk) in bytes.chunks(STAGE_BYTES).enumerate() {
            let to = first + (index * STAGE_BYTES) as u64;
            self.send(chunk, to, &stream).inspect_err(|_| self.settle(device))?;
        }
        Ok(CudaStorage::wrap_cuda_slice(made, device.clone()))
    }

    /// Has `chunk` copied to the address `to`.
    fn send(&mut self, chunk: &[u8], to: u64, stream: &CudaStream) -> Result<()> {
        let stage = &mut self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        if let Some(fetched) = stage.fetched.take() {
            fetched.synchronize().w()?;
        }
        let memory = &mut stage.memory.as_mut_slice().w()?[..chunk.len()];
        memory
            .par_chunks_mut(SHARE_BYTES)
            .zip(chunk.par_chunks(SHARE_BYTES))
            .for_each(|(memory, bytes)| memory.copy_from_slice(bytes));
        // SAFETY: the stage is not written again before `fetched`; the destination is
        // as long as the chunk, and is freed in the order of this stream.
        unsafe { result::memcpy_htod_async(to, memory, stream.cu_stream()) }.w()?;
        stage.fetched = Some(stream.record_event(None).w()?);
        Ok(())
    }

    /// Waits for everything, before what failed is dropped: then nothing that is being
    /// copied to is given to others.
    fn settle(&self, device: &CudaDevice) {
        for stream in [&self.prefetch, &device.cuda_stream()] {
            if let Err(error) = stream.synchronize() {
                tracing::warn!(%error, "the card does not answer");
            }
        }
    }
}
