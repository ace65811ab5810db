//! Loops over the elements of a row, compiled for the processor's vectors.

use super::kernels::Element;
pub(super) use crate::checkpoint::vectorised;

/// Elements that are summed side by side, so that the additions can be vectorised.
pub(super) const LANES: usize = 16;

/// The sum of `value` over a row.
#[inline(always)]
pub(super) fn sum_of<N: Element>(row: &[N], value: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for lanes in whole {
        for (number, sum) in lanes.iter().zip(&mut sums) {
            *sum += value(number.wide());
        }
    }
    for (number, sum) in rest.iter().zip(&mut sums) {
        *sum += value(number.wide());
    }
    sums.iter().sum()
}
