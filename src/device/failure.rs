//! What a device's own error means for whoever goes on: by the names that the drivers give
//! their faults, for candle hands these on as text.

/// How a device has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFailure {
    /// It has too little free memory for this. It works on.
    OutOfMemory,
    /// It computes nothing more for this process.
    Fault,
}

/// Too little memory, as CUDA, cuBLAS and cuDNN say it.
const OUT_OF_MEMORY: [&str; 3] =
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"];

/// Errors after which, by the CUDA driver API's reference (`CUresult`), the process must be
/// ended and started anew, and those of a device that is gone.
const FAULTS: [&str; 16] = [
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
];

/// What `error` says of its device, if it is of one.
#[must_use]
pub fn failure_of(error: &candle_core::Error) -> Option<DeviceFailure> {
    let text = format!("{error:?}");
    let says = |names: &[&str]| names.iter().any(|name| text.contains(name));
    if says(&FAULTS) {
        Some(DeviceFailure::Fault)
    } else if says(&OUT_OF_MEMORY) {
        Some(DeviceFailure::OutOfMemory)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_error_is_known_by_its_name_however_it_is_wrapped() {
        let of = |text: &str| {
            let inner = std::io::Error::other(text.to_owned());
            failure_of(&candle_core::Error::Cuda(Box::new(inner)).bt())
        };

        let memory = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(of(memory), Some(DeviceFailure::OutOfMemory));
        let fault = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")";
        assert_eq!(of(fault), Some(DeviceFailure::Fault));
        assert_eq!(of("DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")"), None);
    }
}
