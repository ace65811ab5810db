//! Pictures cut into bands of rows, so that what is as large as they are, times dozens of
//! channels, is in memory only in part.

use candle_core::{DType, Result, Tensor};

use crate::model::qwen_image::config::VaeConfig;
use crate::nn::Band;

/// Bytes of the largest tensor that a band becomes. About four are there at a time.
const LARGEST_BYTES: usize = 128 << 20;

/// Rows of latents that a band is of, for a picture of (batch, latent width).
pub(super) fn latent_rows(
    config: &VaeConfig,
    dtype: DType,
    (batch, width): (usize, usize),
) -> usize {
    let row = batch * width * widest_numbers(config) * dtype.size_in_bytes();
    (LARGEST_BYTES / row.max(1)).max(1)
}

/// Numbers that a pixel of latents is at the widest place of the network.
fn widest_numbers(config: &VaeConfig) -> usize {
    let factor = config.spatial_factor();
    let numbers = |(stage, multiple): (usize, &usize)| {
        let side = factor >> stage;
        side * side * multiple * config.base_dim
    };
    config.dim_mult.iter().enumerate().map(numbers).max().unwrap_or(1)
}

/// The picture `x` in bands of `rows`, the last of which may be lower.
pub(super) fn bands(x: Tensor, rows: usize) -> impl Iterator<Item = Result<Band>> {
    let height = x.dim(2).unwrap_or(0);
    let rows = rows.max(1);
    (0..height).step_by(rows).map(move |first| {
        let count = rows.min(height - first);
        let band = x.narrow(2, first, count)?.contiguous()?;
        Ok(Band { rows: Some(band), is_last: first + count == height })
    })
}

/// All rows that `network` makes of `bands`.
pub(super) fn joined(
    bands: impl Iterator<Item = Result<Band>>,
    mut network: impl FnMut(Band) -> Result<Band>,
) -> Result<Tensor> {
    let mut made = Vec::new();
    for band in bands {
        made.extend(network(band?)?.rows);
    }
    Tensor::cat(&made, 2)
}
