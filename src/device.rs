//! Picks the device and the dtype, and says why it cannot.

#[cfg(feature = "cuda")]
mod cuda;
mod failure;

use std::str::FromStr;

use candle_core::{DType, Device, DeviceLocation};

pub use failure::{DeviceFailure, failure_of};

use crate::domain::UnknownChoice;

/// Where a model shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first NVIDIA GPU, else Apple's GPU, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// Dtype that a model shall compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtypeChoice {
    /// bfloat16 on a GPU, float32 on a CPU.
    Auto,
    /// 32-bit floats.
    Float32,
    /// 16-bit floats with the range of 32-bit ones.
    Bfloat16,
    /// 16-bit floats.
    Float16,
    /// As `Auto`, and the layers of the transformer's blocks multiply 8-bit floats.
    Fp8,
    /// As `Auto`, and the matrices of the transformer's blocks are kept in 8-bit floats.
    Fp8Weights,
    /// As `Float32`, on a CPU, and the matrices of the transformer's blocks and of the text
    /// encoder are kept, and multiplied, in 8-bit integers.
    Q8_0,
}

impl DeviceChoice {
    /// The ways to write one.
    pub const CHOICES: &str = "auto, cpu, cuda, cuda:N or metal";

    /// The device that this build will most likely open for it, without opening one: what
    /// is on the same device shares a thread.
    #[must_use]
    pub fn likely(self) -> Self {
        match self {
            Self::Auto if cfg!(feature = "cuda") => Self::Cuda(0),
            Self::Auto if cfg!(feature = "metal") => Self::Metal,
            Self::Auto => Self::Cpu,
            other @ (Self::Cpu | Self::Cuda(_) | Self::Metal) => other,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = UnknownChoice;

    /// Reads `auto`, `cpu`, `cuda` (the first GPU), `cuda:N`, or `metal`, which
    /// torch calls `mps`; in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = UnknownChoice { expected: Self::CHOICES };
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" | "mps" => Ok(Self::Metal),
            other => {
                let number = other.strip_prefix("cuda:").ok_or(unknown.clone())?;
                number.parse().map(Self::Cuda).map_err(|_| unknown)
            }
        }
    }
}

impl DtypeChoice {
    /// The ways to write one.
    pub const CHOICES: &str = "auto, float32, bfloat16, float16, fp8, fp8-weights or q8_0";
}

impl FromStr for DtypeChoice {
    type Err = UnknownChoice;

    /// Reads torch's names and their short forms, in any case of letters.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("torch.").unwrap_or(&lower) {
            "auto" => Ok(Self::Auto),
            "float32" | "fp32" | "f32" | "float" => Ok(Self::Float32),
            "bfloat16" | "bf16" => Ok(Self::Bfloat16),
            "float16" | "fp16" | "f16" | "half" => Ok(Self::Float16),
            "fp8" | "float8_e4m3fn" => Ok(Self::Fp8),
            "fp8-weights" => Ok(Self::Fp8Weights),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(UnknownChoice { expected: Self::CHOICES }),
        }
    }
}

/// No such device in this build or on this machine.
#[derive(Debug, thiserror::Error)]
#[error("device '{device}': {reason}")]
pub struct DeviceError {
    /// What was asked for.
    pub device: String,
    /// Why there is none, and what to do.
    pub reason: String,
}

/// Opens the device that `choice` names.
///
/// Only [`DeviceChoice::Auto`] may end up on another kind of device than asked for.
///
/// # Errors
/// [`DeviceError`] if this build or this machine has no such device.
pub fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => open_cuda(number),
        DeviceChoice::Metal => open_metal(),
        DeviceChoice::Auto => Ok(open_cuda(0)
            .inspect_err(tell_of_a_build_for_cards)
            .or_else(|_| open_metal())
            .unwrap_or(Device::Cpu)),
    }
}

/// Whoever built for NVIDIA GPUs wants to know why none is used.
fn tell_of_a_build_for_cards(error: &DeviceError) {
    if cfg!(feature = "cuda") {
        tracing::warn!(reason = error.reason, "no NVIDIA card is used");
    }
}

fn open_cuda(number: usize) -> Result<Device, DeviceError> {
    #[cfg(feature = "cuda")]
    let opened = cuda::open(number);
    #[cfg(not(feature = "cuda"))]
    let opened =
        Err("this program was built without CUDA: build it with `--features cuda`, or use \
                      device 'cpu' or 'auto'"
            .to_owned());
    opened.map_err(|reason| DeviceError { device: format!("cuda:{number}"), reason })
}

fn open_metal() -> Result<Device, DeviceError> {
    let refused = |reason| DeviceError { device: "metal".to_owned(), reason };
    if !candle_core::utils::metal_is_available() {
        return Err(refused(
            "this program was built without Metal: build it with `--features metal` on a Mac, or \
             use device 'cpu' or 'auto'"
                .to_owned(),
        ));
    }
    Device::new_metal(0)
        .map_err(|error| refused(format!("cannot be opened: {}", first_line(&error))))
}

/// The first line of an error's text: candle may append a backtrace.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The dtype that `choice` means to compute in on `device`.
#[must_use]
pub fn dtype(choice: DtypeChoice, device: &Device) -> DType {
    match choice {
        DtypeChoice::Float32 | DtypeChoice::Q8_0 => DType::F32,
        DtypeChoice::Bfloat16 => DType::BF16,
        DtypeChoice::Float16 => DType::F16,
        DtypeChoice::Auto | DtypeChoice::Fp8 | DtypeChoice::Fp8Weights if device.is_cpu() => {
            DType::F32
        }
        DtypeChoice::Auto | DtypeChoice::Fp8 | DtypeChoice::Fp8Weights => DType::BF16,
    }
}

/// Bytes of memory that are free on `device`, if that can be told.
#[must_use]
pub fn free_memory_bytes(device: &Device) -> Option<usize> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::free_memory_bytes(device);
    }
    if !device.is_cpu() {
        return None;
    }
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    // A container may have less than the machine.
    let in_container = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = in_container.unwrap_or(u64::MAX).min(system.available_memory());
    usize::try_from(free).ok().filter(|bytes| *bytes > 0)
}

/// The most bytes of memory that this process has had on `device`, if that can be
/// told.
#[must_use]
pub fn peak_memory_bytes(device: &Device) -> Option<usize> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::peak_memory_bytes(device);
    }
    if !device.is_cpu() {
        return None;
    }
    told_by_system("VmHWM:")
}

/// Bytes of memory that this process has on `device` now, if that can be told.
#[must_use]
pub fn held_memory_bytes(device: &Device) -> Option<usize> {
    if device.is_cpu() { told_by_system("VmRSS:") } else { None }
}

/// Has [`peak_memory_bytes`] begin anew with what the process has now. Says whether
/// this system can.
pub fn forget_peak_memory(device: &Device) -> bool {
    device.is_cpu() && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes of what Linux calls `name`; other systems have no such file.
fn told_by_system(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024)
}

/// Processor seconds that all threads of this process have taken.
#[must_use]
pub fn process_cpu_s() -> Option<f64> {
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[process]), false);
    let milliseconds = system.process(process)?.accumulated_cpu_time();
    Some(milliseconds as f64 / 1000.0)
}

/// The device's name for people and logs: `cpu`, `cuda:0`, `metal`.
#[must_use]
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".to_owned(),
    }
}

/// The dtype's name as torch spells it, such as `bfloat16`.
#[must_use]
pub fn dtype_name(dtype: DType) -> &'static str {
    let names = [(DType::F32, "float32"), (DType::BF16, "bfloat16"), (DType::F16, "float16")];
    names.iter().find(|(known, _)| *known == dtype).map_or(dtype.as_str(), |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_torch_names_them() {
        for (text, device) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal", DeviceChoice::Metal),
            ("mps", DeviceChoice::Metal),
        ] {
            assert_eq!(text.parse(), Ok(device), "{text}");
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", " cpu"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn dtypes_have_long_and_short_names() {
        for (text, dtype) in [
            ("auto", DtypeChoice::Auto),
            ("float32", DtypeChoice::Float32),
            ("fp32", DtypeChoice::Float32),
            ("f32", DtypeChoice::Float32),
            ("torch.bfloat16", DtypeChoice::Bfloat16),
            ("BF16", DtypeChoice::Bfloat16),
            ("float16", DtypeChoice::Float16),
            ("fp16", DtypeChoice::Float16),
            ("f16", DtypeChoice::Float16),
            ("fp8", DtypeChoice::Fp8),
            ("FP8-weights", DtypeChoice::Fp8Weights),
            ("Q8_0", DtypeChoice::Q8_0),
        ] {
            assert_eq!(text.parse(), Ok(dtype), "{text}");
        }
        assert!("float64".parse::<DtypeChoice>().is_err());
    }

    #[test]
    fn auto_means_float32_on_a_cpu_and_words_are_kept() {
        assert_eq!(dtype(DtypeChoice::Auto, &Device::Cpu), DType::F32);
        assert_eq!(dtype(DtypeChoice::Bfloat16, &Device::Cpu), DType::BF16);
        assert_eq!(dtype_name(DType::F16), "float16");
        assert_eq!(device_name(&Device::Cpu), "cpu");
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn without_a_driver_a_card_is_refused_and_auto_means_the_cpu() {
        if std::path::Path::new("/proc/driver/nvidia/version").exists() {
            return; // this machine has a driver
        }

        let error = open(DeviceChoice::Cuda(0)).unwrap_err().to_string();

        assert!(error.contains("cuda:0") && error.contains("no NVIDIA driver"), "{error}");
        assert!(open(DeviceChoice::Auto).unwrap().is_cpu());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_card_that_this_build_cannot_use_is_refused_with_advice() {
        let error = open(DeviceChoice::Cuda(1)).unwrap_err().to_string();

        assert!(error.contains("cuda:1") && error.contains("--features cuda"), "{error}");
    }
}
