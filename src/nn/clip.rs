//! Bounds that a NaN does not slip through: on an NVIDIA GPU the larger of NaN and a
//! number is the number.

use candle_core::{Result, Tensor};

/// `x` within `lower`…`upper`; infinities become those, a NaN stays one, as with
/// torch's `clamp`.
///
/// # Errors
/// A candle error, such as out of memory.
pub fn clip(x: &Tensor, lower: f64, upper: f64) -> Result<Tensor> {
    keep_nan(x, &x.clamp(lower, upper)?)
}

/// `bounded`, but `x` where that is NaN. A CPU's bounds keep it by themselves.
pub(super) fn keep_nan(x: &Tensor, bounded: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(bounded.clone());
    }
    x.ne(x)?.where_cond(x, bounded)
}
