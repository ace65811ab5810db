//! What was measured, as it is written to JSON.

use serde::Serialize;

use crate::model::benchmark::PassTokens;
use crate::nn::trace::{OperationTime, Trace};

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchmarkReport {
    /// Where it ran, such as `cpu` or `cuda:0`.
    pub device: String,
    /// In which dtype.
    pub dtype: String,
    /// Threads that compute on a CPU.
    pub threads: usize,
    /// Bytes of the weights that stay on the device.
    pub weight_bytes: usize,
    /// Bytes that this process had once the weights were there, if that can be told.
    pub loaded_bytes: Option<usize>,
    /// Seconds until all weights were there.
    pub load_s: f64,
    /// How large a pass is.
    #[serde(flatten)]
    pub tokens: PassTokens,
    /// What a large product of matrices reaches on this device, in TFLOP/s, if that
    /// was measured.
    pub ceiling_tflops: Option<f64>,
    /// The most memory that this process has had, in bytes, if that can be told.
    pub peak_bytes: Option<usize>,
    /// Every repetition.
    pub runs: Vec<Run>,
    /// What each operation took in the traced picture; they add up to the whole.
    pub operations: Vec<OperationTime>,
    /// That picture's spans.
    #[serde(skip)]
    pub trace: Option<Trace>,
}

/// One picture.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Seconds from the request to the picture.
    pub total_s: f64,
    /// Processor seconds of all threads: steadier than seconds on a busy machine.
    pub total_cpu_s: f64,
    /// Its stages in order; all steps are one.
    pub stages: Vec<Stage>,
    /// Seconds of each step.
    pub steps_s: Vec<f64>,
}

/// A stage of a picture.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// What is done.
    pub name: &'static str,
    /// Seconds.
    pub seconds: f64,
    /// Processor seconds of all threads.
    pub cpu_s: f64,
    /// Tera floating-point operations of its products, by arithmetic.
    pub tflop: f64,
    /// The most memory that this process had during it, in bytes, if that can be told.
    pub peak_bytes: Option<usize>,
}
