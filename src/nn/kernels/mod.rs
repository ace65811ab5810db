//! Steps in one pass: the same step as a loop over rows for a CPU, and as a
//! kernel for an NVIDIA GPU.
//!
//! An [`Operation`] says what it makes, makes it on a CPU ([`Operation::compute`]),
//! and says how its kernel is launched ([`Operation::launch`]). The kernels are the
//! `.cu` files here: C that nvcc compiles to PTX when the program is built with
//! feature `cuda`. The tests compile them with the C compiler and run them, from
//! the very same launches, against what the CPU makes; so kernels, launches and
//! layouts are tested without a GPU, and their speed is not.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
pub(super) mod emulation;
#[cfg(test)]
mod every;
#[cfg(test)]
pub(super) mod non_finite;

use std::marker::PhantomData;

use candle_core::{
    CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType,
};
use half::{bf16, f16};

/// Threads of a warp.
pub(super) const WARP: usize = 32;
/// Most threads that a block of ours has; `platform.h` says the same, so that each
/// finds its registers.
const MOST_THREADS: usize = 512;
/// Most blocks along a grid's first axis, of GPUs from compute capability 3.0 on.
const MOST_BLOCKS: usize = 0x7fff_ffff;
/// Shared memory of a block that need not be asked for, on every GPU.
const MOST_SHARED_BYTES: usize = 48 * 1024;
/// Bytes of a kernel's arguments, on every GPU.
const MOST_ARGUMENT_BYTES: usize = 4096;
/// Elements that a thread moves at once where rows allow it.
const PACK: usize = 4;

/// A format that elements are stored in; arithmetic is in 32 bits.
pub(super) trait Element: Stored {
    fn wide(self) -> f32;
    fn narrow(x: f32) -> Self;

    /// `x` as it is after being stored.
    #[inline(always)]
    fn rounded(x: f32) -> f32 {
        Self::narrow(x).wide()
    }
}

macro_rules! number {
    ($format:ty, $wide:expr, $narrow:expr) => {
        impl Element for $format {
            #[inline(always)]
            fn wide(self) -> f32 {
                $wide(self)
            }

            #[inline(always)]
            fn narrow(x: f32) -> Self {
                $narrow(x)
            }
        }
    };
}

number!(f32, std::convert::identity, std::convert::identity);
number!(bf16, Self::to_f32, Self::from_f32);
number!(f16, Self::to_f32, Self::from_f32);

/// `$made`, in which `$number` is the [`Element`] that tensors of `$dtype` consist of; an error
/// for `$what` if they consist of none.
macro_rules! in_format {
    ($dtype:expr, $what:literal, $number:ident => $made:expr) => {{
        let dtype = $dtype;
        if dtype == candle_core::DType::F32 {
            type $number = f32;
            $made
        } else if dtype == candle_core::DType::BF16 {
            type $number = half::bf16;
            $made
        } else if dtype == candle_core::DType::F16 {
            type $number = half::f16;
            $made
        } else {
            candle_core::bail!("{} knows no {dtype:?}", $what)
        }
    }};
}
pub(super) use in_format;

/// What tensors that are made consist of.
#[cfg(not(feature = "cuda"))]
pub(super) trait Stored: WithDType {}
#[cfg(feature = "cuda")]
pub(super) trait Stored: WithDType + cuda::OnCard {}

impl Stored for f32 {}
impl Stored for bf16 {}
impl Stored for f16 {}
impl Stored for u8 {}

/// Something that is made in one pass.
pub(super) trait Operation {
    /// What its kernel is told: a struct of C, as the `.cu` file declares it.
    type Call: Copy;

    /// What is made: the operation's format mostly, or bytes.
    type Made<N: Element>: Stored;

    /// Its name for messages.
    const NAME: &'static str;

    /// The tensor whose device decides.
    fn subject(&self) -> &Tensor;

    /// The format `N` that the kernel is compiled for: the subject's, mostly.
    fn format(&self) -> DType {
        self.subject().dtype()
    }

    /// The shape of what is made, which is contiguous: the subject's, mostly.
    fn shape(&self) -> Shape {
        self.subject().shape().clone()
    }

    /// Makes it on a CPU.
    fn compute<N: Element>(&self, made: &mut [Self::Made<N>]) -> Result<()>;

    /// How the kernel is launched that makes it at the address `made`.
    fn launch(&self, made: u64) -> Result<Launch<Self::Call>>;
}

/// A launch of a kernel, wherever it may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<Call> {
    /// The kernel's name.
    pub(super) kernel: &'static str,
    pub(super) blocks: usize,
    /// Threads of a block: whole warps.
    pub(super) threads: usize,
    /// Floats of shared memory of a block.
    pub(super) shared: usize,
    pub(super) call: Call,
    /// Which compilation of the kernels: elements that a thread moves at once.
    pub(super) pack: usize,
}

impl<Call> Launch<Call> {
    /// Refuses what no GPU would start, in words that name the kernel. The limits are
    /// those of compute capability 8.0 and 9.0, which are the same.
    pub(super) fn expect_launchable(&self) -> Result<()> {
        let Self { kernel, blocks, threads, .. } = self;
        let shared = self.shared * size_of::<f32>();
        let fits = (1..=MOST_BLOCKS).contains(blocks)
            && (1..=MOST_THREADS).contains(threads)
            && threads.is_multiple_of(WARP)
            && shared <= MOST_SHARED_BYTES
            && size_of::<Call>() <= MOST_ARGUMENT_BYTES;
        if fits {
            return Ok(());
        }
        candle_core::bail!(
            "{kernel} cannot start {blocks} blocks of {threads} threads with {shared} bytes each"
        )
    }
}

/// A length as kernels take it: short enough for their loops to step past its end.
pub(super) fn length(x: usize) -> Result<i32> {
    const PAST_THE_END: usize = MOST_THREADS * PACK;
    match i32::try_from(x + PAST_THE_END) {
        Ok(_) => i32::try_from(x).map_err(candle_core::Error::wrap),
        Err(_) => candle_core::bail!("{x} is more than kernels count in 32 bits"),
    }
}

/// The widest moves that `addresses` and `lengths` (in elements of `dtype`) allow.
/// A null address allows all.
pub(super) fn pack_of(dtype: DType, addresses: &[u64], lengths: &[usize]) -> usize {
    let bytes = (PACK * dtype.size_in_bytes()) as u64;
    let aligned = addresses.iter().all(|address| address.is_multiple_of(bytes));
    if aligned && lengths.iter().all(|length| length.is_multiple_of(PACK)) { PACK } else { 1 }
}

/// Threads of the block that takes a row of `width` elements: a few packs each.
pub(super) fn threads_for_row(width: usize, pack: usize) -> usize {
    width.div_ceil(4 * pack).next_multiple_of(WARP).clamp(WARP, MOST_THREADS)
}

/// A vector for each entry of a batch, as kernels take it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors {
    pub(super) first: u64,
    /// Elements between two of them; none where all entries share one.
    pub(super) stride: i64,
}

impl Vectors {
    /// `x`: (batch or 1, 1, width), the last dimension without gaps.
    pub(super) fn of(x: &Tensor) -> Result<Self> {
        let stride = vector_stride(x)?;
        Ok(Self { first: address(x)?, stride: stride as i64 })
    }
}

/// Elements between the vectors of two batch entries; 0 if there is but one.
pub(super) fn vector_stride(x: &Tensor) -> Result<usize> {
    let (batch, ones, width) = x.dims3()?;
    if ones != 1 || (width > 1 && x.stride()[2] != 1) {
        candle_core::bail!(
            "vectors are wanted as (batch, 1, width) without gaps: {:?}",
            x.layout()
        );
    }
    Ok(if batch == 1 { 0 } else { x.stride()[0] })
}

/// Refuses a tensor that is not contiguous, or not of the subject's format and place.
pub(super) fn expect_alike(subject: &Tensor, others: &[&Tensor]) -> Result<()> {
    for other in others {
        if !other.device().same_device(subject.device()) || other.dtype() != subject.dtype() {
            candle_core::bail!(
                "tensors of one device and number format are wanted, not {:?} on {:?} with {:?} on {:?}",
                other.dtype(),
                other.device().location(),
                subject.dtype(),
                subject.device().location()
            );
        }
    }
    Ok(())
}

/// Refuses a tensor with gaps.
pub(super) fn expect_contiguous(name: &'static str, x: &Tensor) -> Result<()> {
    if x.is_contiguous() {
        return Ok(());
    }
    candle_core::bail!("{name} must be contiguous: {:?}", x.layout())
}

/// The address of a tensor's first number, on its device.
///
/// It stays right as long as the tensor lives; whoever uses it keeps the tensor.
pub(super) fn address(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let offset = (layout.start_offset() * x.dtype().size_in_bytes()) as u64;
    let first = match &*storage {
        Storage::Cpu(CpuStorage::F32(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::BF16(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::F16(numbers)) => numbers.as_ptr() as u64,
        Storage::Cpu(CpuStorage::U8(bytes)) => bytes.as_ptr() as u64,
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::address(storage)?,
        _ => candle_core::bail!("no kernel reads {:?} on {:?}", x.dtype(), x.device()),
    };
    #[cfg(test)]
    emulation::note_address(first + offset, x);
    Ok(first + offset)
}

/// As [`address`]; null for nothing.
pub(super) fn address_or_null(x: Option<&Tensor>) -> Result<u64> {
    x.map_or(Ok(0), address)
}

/// The elements of a CPU tensor from its first one on.
pub(super) struct Elements<'a, N> {
    storage: StorageRef<'a>,
    start: usize,
    format: PhantomData<N>,
}

impl<'a, N: Stored> Elements<'a, N> {
    /// # Errors
    /// If the tensor is elsewhere or in another format.
    pub(super) fn of(x: &'a Tensor) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(numbers) = &*storage else {
            candle_core::bail!("a tensor on a CPU is wanted, not on {:?}", x.device());
        };
        numbers.as_slice::<N>()?;
        Ok(Self { start: layout.start_offset(), storage, format: PhantomData })
    }

    /// Everything from the tensor's first number to the end of its storage.
    pub(super) fn all(&self) -> &[N] {
        match &*self.storage {
            Storage::Cpu(numbers) => numbers.as_slice::<N>().map_or(&[], |all| &all[self.start..]),
            Storage::Cuda(_) | Storage::Metal(_) => &[],
        }
    }
}

/// Makes what `operation` says.
///
/// # Errors
/// A candle error if its tensors do not fit, or out of memory.
pub(super) fn run<O: Operation>(operation: &O) -> Result<Tensor> {
    #[cfg(test)]
    if let Some(made) = emulation::instead_of_loop(operation) {
        return made;
    }
    operation.subject().apply_op1_no_bwd(&Run(operation))
}

/// An operation as candle takes it.
struct Run<'a, O>(&'a O);

impl<O: Operation> Run<'_, O> {
    fn on_cpu<N: Element>(&self) -> Result<(CpuStorage, Shape)> {
        let shape = self.0.shape();
        let mut made = vec![O::Made::<N>::from_f64(0.0); shape.elem_count()];
        if !made.is_empty() {
            self.0.compute::<N>(&mut made)?;
        }
        Ok((O::Made::<N>::to_cpu_storage_owned(made), shape))
    }
}

impl<O: Operation> CustomOp1 for Run<'_, O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "kernels know three formats")]
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.0.format() {
            DType::F32 => self.on_cpu::<f32>(),
            DType::BF16 => self.on_cpu::<bf16>(),
            DType::F16 => self.on_cpu::<f16>(),
            other => candle_core::bail!("{} knows no {other:?}", O::NAME),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((cuda::make(self.0, &storage.device)?, self.0.shape()))
    }
}

/// x + bias; `x`: (…, width), `bias`: (width).
pub(super) fn add_bias(x: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x),
    }
}

/// Refuses a bias that is not `width` elements like those of `x`.
pub(super) fn expect_bias(x: &Tensor, bias: Option<&Tensor>, width: usize) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.dims() != [width] || !bias.is_contiguous() {
        candle_core::bail!("a bias of {width} numbers is wanted, not {:?}", bias.layout());
    }
    expect_alike(x, &[bias])
}
