//! Opens an NVIDIA GPU, or says what is missing.

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::cublas::result::CublasError;
use candle_core::cuda_backend::cudarc::curand::result::CurandError;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::cuda_backend::{CudaError, WrapErr};
use candle_core::{CudaDevice, Device, Error};

/// What the kernels were compiled for, ten times the compute capability, if the
/// build was told.
const COMPILED_FOR: Option<&str> = option_env!("COMPILED_FOR_COMPUTE_CAPABILITY");
/// Where the kernel module of the driver says its version.
const DRIVER_VERSION: &str = "/proc/driver/nvidia/version";

/// Opens GPU `number`, or says in one sentence why it cannot be.
pub(super) fn open(number: usize) -> Result<Device, String> {
    let cards = CudaContext::device_count().map_err(|error| reason_of(&error))?;
    if usize::try_from(cards).is_ok_and(|cards| number >= cards) {
        return Err(format!("there are {cards} cards here, counted from 0"));
    }
    let device = CudaDevice::new(number).map_err(|error| reason(&error))?;
    let facts = Facts::of(&device).map_err(|error| reason(&error))?;
    facts.expect_compiled_for(COMPILED_FOR)?;
    settle(&device);
    tracing::info!(
        device = number,
        card = facts.name,
        compute_capability = %format_args!("{}.{}", facts.capability.0, facts.capability.1),
        memory_gib = gibibytes(facts.total),
        free_gib = gibibytes(facts.free),
        "NVIDIA card"
    );
    Ok(Device::Cuda(device))
}

/// With one digit behind the point.
fn gibibytes(bytes: usize) -> f64 {
    (bytes as f64 / f64::from(1 << 30) * 10.0).round() / 10.0
}

/// What a GPU says of itself.
struct Facts {
    name: String,
    /// Major and minor number.
    capability: (i32, i32),
    /// Bytes.
    total: usize,
    free: usize,
}

impl Facts {
    fn of(device: &CudaDevice) -> candle_core::Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let (free, total) = context.mem_get_info().w()?;
        let capability = context.compute_capability().w()?;
        Ok(Self { name: context.name().w()?, capability, total, free })
    }

    /// Kernels compiled for 9.0 and later run on no other GPU; older ones on later
    /// GPUs, too.
    fn expect_compiled_for(&self, compiled_for: Option<&str>) -> Result<(), String> {
        let Some(Ok(compiled)) = compiled_for.map(str::parse::<i32>) else { return Ok(()) };
        let (major, minor) = self.capability;
        let own = 10 * major + minor;
        if own == compiled || (compiled < 90 && own > compiled) {
            return Ok(());
        }
        Err(format!(
            "this program was built for compute capability {}.{}, and {} has {major}.{minor}: build it \
             with CUDA_COMPUTE_CAP={own}",
            compiled / 10,
            compiled % 10,
            self.name
        ))
    }
}

/// Settings of candle's and the driver's that suit a program whose model belongs to
/// one thread.
#[expect(unsafe_code, reason = "the driver's interface, and a promise to candle")]
fn settle(device: &CudaDevice) {
    // SAFETY: events keep several streams from getting into each other's way. All of
    // a model's work is on the thread that owns it, and so on that thread's stream.
    unsafe { device.disable_event_tracking() };
    let keep_all = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let card = device.cuda_stream().context().cu_device();
    // SAFETY: the pool belongs to a GPU that is open, and the attribute is a u64,
    // which the driver only reads.
    let kept = unsafe {
        result::device::get_default_mem_pool(card).and_then(|pool| {
            let value = (&raw const keep_all).cast_mut().cast();
            result::mem_pool::set_attribute(pool, attribute, value)
        })
    };
    if let Err(error) = kept {
        // Slower, not wrong: freed memory goes back to the system at every wait.
        tracing::warn!(%error, "the card's memory pool keeps nothing");
    }
}

/// Bytes that are free on the GPU, those that candle's pool keeps not counted.
pub(super) fn free_memory_bytes(device: &CudaDevice) -> Option<usize> {
    Some(device.cuda_stream().context().mem_get_info().ok()?.0)
}

/// The memory of GPU `number`, which is open. Makes no stream.
pub(super) fn memory(number: usize) -> Option<super::DeviceMemory> {
    let (free_bytes, total_bytes) = CudaContext::new(number).ok()?.mem_get_info().ok()?;
    Some(super::DeviceMemory { free_bytes, total_bytes })
}

/// The most bytes that tensors have taken on the GPU at a time.
#[expect(unsafe_code, reason = "the driver's interface")]
pub(super) fn peak_memory_bytes(device: &CudaDevice) -> Option<usize> {
    let card = device.cuda_stream().context().cu_device();
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let mut bytes = 0_u64;
    // SAFETY: the pool belongs to a GPU that is open, and the attribute is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(card).ok()?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).ok()?;
    }
    usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

/// Why a GPU could not be opened.
fn reason(error: &Error) -> String {
    if let Error::WithBacktrace { inner, .. } = error {
        return reason(inner);
    }
    let Error::Cuda(cause) = error else {
        return super::first_line(error);
    };
    match cause.downcast_ref::<CudaError>() {
        Some(CudaError::Cuda(error)) => reason_of(error),
        Some(CudaError::Cublas(CublasError(status))) => missing("libcublas.so", status),
        Some(CudaError::Curand(CurandError(status))) => missing("libcurand.so", status),
        _ => super::first_line(error),
    }
}

fn missing(library: &str, status: &impl std::fmt::Debug) -> String {
    format!(
        "{library} of CUDA cannot be used ({status:?}): install it, or name its folder in \
         CUDA_LIB_DIR or LD_LIBRARY_PATH"
    )
}

/// Why the driver refuses. Numbers: `CUresult` of CUDA 13.
fn reason_of(error: &DriverError) -> String {
    let driver = std::fs::read_to_string(DRIVER_VERSION).ok();
    let driver = driver.as_deref().and_then(|text| text.lines().next());
    match (error.0 as u32, driver) {
        (100, None) => "there is no NVIDIA driver on this machine".to_owned(),
        (100, Some(driver)) => format!(
            "the NVIDIA driver shows no card, or its libcuda.so.1 cannot be found ({driver})"
        ),
        (2, _) => "the card's memory is taken by other programs".to_owned(),
        (35 | 803 | 804, Some(driver)) => {
            format!("the NVIDIA driver is too old for CUDA 13.0: 580 or later is wanted ({driver})")
        }
        (number, _) => format!("the NVIDIA driver refuses it: {error} ({number})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_the_kernels_were_not_compiled_for_is_refused() {
        let card = |capability| Facts { name: "a card".to_owned(), capability, total: 1, free: 1 };

        for (capability, compiled_for) in
            [((9, 0), Some("90")), ((8, 6), Some("80")), ((9, 0), Some("80")), ((7, 5), None)]
        {
            assert_eq!(card(capability).expect_compiled_for(compiled_for), Ok(()));
        }
        for (capability, compiled_for) in [((8, 6), "90"), ((10, 0), "90"), ((7, 5), "80")] {
            let refusal = card(capability).expect_compiled_for(Some(compiled_for)).unwrap_err();
            assert!(refusal.contains("CUDA_COMPUTE_CAP"), "{refusal}");
        }
    }
}
