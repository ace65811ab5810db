//! Q4_K: of each 32 numbers a scale and a minimum are searched for that leave the least squared
//! error with 16 levels; then both are rounded to 6 bits, with a scale of their own for 256.

use half::f16;

use super::nearest;

/// The highest level, of 4 bits.
const LEVELS: f32 = 15.0;

/// The highest scale and minimum, of 6 bits.
const STEPS: f32 = 63.0;

/// How many ranges of levels are tried, and how far apart they are: numbers at the ends are cut
/// off, or a level is left unused, where that brings the others nearer.
const TRIES: u8 = 25;
const TRY_STEP: f32 = 0.125;

/// Level 0 stands for minus `minimum`, each further one for `scale` more. None is negative.
#[derive(Clone, Copy, Default)]
struct Range {
    scale: f32,
    minimum: f32,
}

/// The same in steps of 6 bits.
#[derive(Clone, Copy, Default)]
struct Steps {
    scale: f32,
    minimum: f32,
}

#[inline(always)]
pub(super) fn encode(numbers: &[f32; 256]) -> [u8; 144] {
    let (runs, _) = numbers.as_chunks::<32>();
    let mut ranges = [Range::default(); 8];
    for (run, range) in runs.iter().zip(&mut ranges) {
        *range = search(run);
    }
    let step_of = |largest: f32| f16::from_f32(largest / STEPS);
    let scale = step_of(ranges.iter().fold(0.0, |largest, range| largest.max(range.scale)));
    let minimum = step_of(ranges.iter().fold(0.0, |largest, range| largest.max(range.minimum)));
    let unit = Range { scale: scale.to_f32(), minimum: minimum.to_f32() };
    let mut steps = [Steps::default(); 8];
    let mut levels = [[0.0; 32]; 8];
    for (index, run) in runs.iter().enumerate() {
        steps[index] = round(run, ranges[index], unit);
        levels[index] = levels_of(run, in_units(steps[index], unit));
    }
    pack((scale, minimum), &steps, &levels)
}

/// The range of the least error that is found for `run`.
#[inline(always)]
fn search(run: &[f32; 32]) -> Range {
    let lowest = run.iter().fold(0.0_f32, |lowest, number| lowest.min(*number));
    let highest = run.iter().fold(lowest, |highest, number| highest.max(*number));
    let width = highest - lowest;
    let mut best = Range { scale: width / LEVELS, minimum: -lowest };
    if width <= 0.0 {
        return best;
    }
    let mut least = error_of(run, best);
    for index in 0..TRIES {
        // From 13.5 to 16.5 levels.
        let levels = LEVELS + TRY_STEP * (f32::from(index) - f32::from(TRIES / 2));
        let tried = fitted(run, &levels_of(run, Range { scale: width / levels, minimum: -lowest }));
        let error = error_of(run, tried);
        if error < least {
            (best, least) = (tried, error);
        }
    }
    best
}

/// The range that fits best where the numbers of `run` have these `levels`: least squares, and
/// where those ask for a minimum above nothing, the same without one.
#[inline(always)]
fn fitted(run: &[f32; 32], levels: &[f32; 32]) -> Range {
    let sum = sum_of(|index| levels[index]);
    let squares = sum_of(|index| levels[index] * levels[index]);
    let numbers = sum_of(|index| run[index]);
    let products = sum_of(|index| run[index] * levels[index]);
    let count = run.len() as f32;
    let determinant = count * squares - sum * sum;
    let scale = (count * products - sum * numbers) / determinant;
    let minimum = (sum * products - squares * numbers) / determinant;
    if minimum >= 0.0 && scale >= 0.0 && scale.is_finite() {
        return Range { scale, minimum };
    }
    Range { scale: (products / squares.max(1.0)).max(0.0), minimum: 0.0 }
}

/// `range` in steps of `unit`, the neighbours of each number tried, too: what one is rounded by
/// the other may make up for.
#[inline(always)]
fn round(run: &[f32; 32], range: Range, unit: Range) -> Steps {
    let step = |number: f32, unit: f32| if unit > 0.0 { nearest(number / unit) } else { 0.0 };
    let (scale, minimum) = (step(range.scale, unit.scale), step(range.minimum, unit.minimum));
    let mut best = Steps::default();
    let mut least = f32::INFINITY;
    for by_scale in [0.0, -1.0, 1.0] {
        for by_minimum in [0.0, -1.0, 1.0] {
            let tried = Steps {
                scale: (scale + by_scale).clamp(0.0, STEPS),
                minimum: (minimum + by_minimum).clamp(0.0, STEPS),
            };
            let error = error_of(run, in_units(tried, unit));
            if error < least {
                (best, least) = (tried, error);
            }
        }
    }
    best
}

#[inline(always)]
fn in_units(steps: Steps, unit: Range) -> Range {
    Range { scale: unit.scale * steps.scale, minimum: unit.minimum * steps.minimum }
}

/// The level next to each number.
#[inline(always)]
fn levels_of(run: &[f32; 32], range: Range) -> [f32; 32] {
    let inverse = if range.scale > 0.0 { 1.0 / range.scale } else { 0.0 };
    let mut levels = [0.0; 32];
    for (number, level) in run.iter().zip(&mut levels) {
        *level = nearest(((number + range.minimum) * inverse).clamp(0.0, LEVELS));
    }
    levels
}

/// The squared error that `range` leaves.
#[inline(always)]
fn error_of(run: &[f32; 32], range: Range) -> f32 {
    let levels = levels_of(run, range);
    sum_of(|index| {
        let error = range.scale * levels[index] - range.minimum - run[index];
        error * error
    })
}

/// The sum of what `value` says of 32 indices, in sixteen sums so that the additions can be
/// vectorised.
#[inline(always)]
fn sum_of(value: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum = value(index) + value(index + 16);
    }
    for half in [8, 4, 2, 1] {
        let (lower, upper) = sums.split_at_mut(half);
        for (sum, other) in lower.iter_mut().zip(upper) {
            *sum += *other;
        }
    }
    sums[0]
}

/// The block, whose layout `k_blocks` tells.
#[expect(clippy::cast_possible_truncation, reason = "levels are whole, up to 15; steps to 63")]
#[inline(always)]
fn pack(units: (f16, f16), steps: &[Steps; 8], levels: &[[f32; 32]; 8]) -> [u8; 144] {
    let mut block = [0; 144];
    block[..2].copy_from_slice(&units.0.to_le_bytes());
    block[2..4].copy_from_slice(&units.1.to_le_bytes());
    for index in 0..4 {
        let (first, second) = (steps[index], steps[index + 4]);
        let (scale, minimum) = (second.scale as u8, second.minimum as u8);
        block[4 + index] = first.scale as u8 | (scale & 48) << 2;
        block[8 + index] = first.minimum as u8 | (minimum & 48) << 2;
        block[12 + index] = scale & 15 | minimum << 4;
    }
    let (planes, _) = block[16..].as_chunks_mut::<32>();
    for (index, plane) in planes.iter_mut().enumerate() {
        let (low, high) = (&levels[2 * index], &levels[2 * index + 1]);
        for ((low, high), byte) in low.iter().zip(high).zip(plane) {
            *byte = *low as u8 | (*high as u8) << 4;
        }
    }
    block
}
