//! How fast a device multiplies: a layer of a model's own width and formats, timed.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use crate::checkpoint::{MatrixFormat, Weights};
use crate::nn::Linear;

/// Operations of a picture from which on a product is timed: what takes an everyday
/// processor some seconds.
const TIMED_FROM: f64 = 2e12;
/// A product that takes so long is timed well enough.
const TIMED_S: f64 = 0.05;
/// How often each product is timed: the machine may be busy.
const TIMES: usize = 2;
/// Rows of the first product that is timed.
const FIRST_ROWS: usize = 64;

/// The products that take most of a model's time.
pub(in crate::model) struct TypicalProduct<'a> {
    /// Inputs and outputs of their layers.
    pub width: usize,
    /// Rows, at most.
    pub rows: usize,
    pub matrices: MatrixFormat,
    pub dtype: DType,
    pub device: &'a Device,
}

impl TypicalProduct<'_> {
    /// How long `operations` take, in seconds; `None` where that is next to nothing, or cannot
    /// be told.
    pub(in crate::model) fn seconds_of(&self, operations: f64) -> Option<f64> {
        let is_worth_it = operations >= TIMED_FROM;
        let speed = is_worth_it.then(|| self.operations_a_second().ok()).flatten()?;
        Some(operations / speed)
    }

    /// Floating-point operations a second: with as many rows as there are, or as many as are
    /// soon multiplied.
    fn operations_a_second(&self) -> Result<f64> {
        let Self { width, rows: most, .. } = *self;
        let weights = Weights::random("estimate", (self.dtype, self.device));
        let weights = weights.with_matrices(self.matrices);
        let layer = Linear::load_quantizable_without_bias(&weights, width, width)?;
        let mut rows = FIRST_ROWS.min(most);
        // What is set up once is not timed.
        self.time(&layer, rows)?;
        loop {
            let seconds = self.time(&layer, rows)?;
            if seconds >= TIMED_S || rows >= most {
                return Ok(2.0 * (rows * width * width) as f64 / seconds.max(f64::MIN_POSITIVE));
            }
            rows = (2 * rows).min(most);
        }
    }

    /// Seconds of a product with so many rows.
    fn time(&self, layer: &Linear, rows: usize) -> Result<f64> {
        let x = Tensor::ones((rows, self.width), self.dtype, self.device)?;
        self.device.synchronize()?;
        let mut least = f64::INFINITY;
        for _ in 0..TIMES {
            let started = Instant::now();
            layer.forward(&x)?;
            self.device.synchronize()?;
            least = least.min(started.elapsed().as_secs_f64());
        }
        Ok(least)
    }
}

/// That a GPU would be faster than this processor, for people.
pub(in crate::model) fn gpu_advice() -> &'static str {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        "a GPU"
    } else {
        "a GPU, with a build for it (--features cuda)"
    }
}
