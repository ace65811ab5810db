//! Loops over the elements of a row, compiled for the processor's vectors.

use super::kernels::Element;

/// Elements that are summed side by side, so that the additions can be vectorised.
pub(super) const LANES: usize = 16;

/// Runs `work` as it is compiled for the processor at hand. What it calls must be
/// inlined into it (`inline(always)`).
#[inline(always)]
pub(super) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Work<F> {
        type Output = R;

        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }

    pulp::Arch::new().dispatch(Work(work))
}

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
