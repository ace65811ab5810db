//! Blocks of 256 elements, in parts of 16 or 32 whose scales are levels, too.
//!
//! The bits of an element stand apart: so many planes of 32 bytes, of which each gives some bits
//! of 32 elements that follow each other. The fields of a block are in the order of ggml-common.h.

use super::bytes::{half_at, part};

/// Scale and minimum of the eight parts of 32 elements in [`q4`] and [`q5`].
struct Parts {
    scales: [f32; 8],
    minima: [f32; 8],
}

impl Parts {
    /// Twelve bytes hold eight scales and eight minima of 6 bits: the first four of each in the
    /// lower bits of the first eight bytes, whose upper bits belong to the others.
    #[inline(always)]
    fn of(scale: f32, minimum: f32, packed: &[u8; 12]) -> Self {
        let mut parts = Self { scales: [0.0; 8], minima: [0.0; 8] };
        for index in 0..4 {
            let (first, second, shared) = (packed[index], packed[index + 4], packed[index + 8]);
            let upper = |byte: u8| byte >> 2 & 48;
            parts.scales[index] = scale * f32::from(first & 63);
            parts.minima[index] = minimum * f32::from(second & 63);
            parts.scales[index + 4] = scale * f32::from(shared & 15 | upper(first));
            parts.minima[index + 4] = minimum * f32::from(shared >> 4 | upper(second));
        }
        parts
    }
}

#[inline(always)]
pub(super) fn q2(block: &[u8; 84], made: &mut [f32; 256]) {
    let packed = part::<0, 16, 84>(block);
    let (planes, _) = part::<16, 64, 84>(block).as_chunks::<32>();
    let (scale, minimum) = (half_at::<80, 84>(block), half_at::<82, 84>(block));
    let scales: [f32; 16] = std::array::from_fn(|at| scale * f32::from(packed[at] & 15));
    let minima: [f32; 16] = std::array::from_fn(|at| minimum * f32::from(packed[at] >> 4));
    for (run, made) in made.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (plane, shift) = (&planes[run / 4], 2 * (run % 4));
        for (index, made) in made.iter_mut().enumerate() {
            let at = 2 * run + index / 16;
            *made = scales[at] * f32::from(plane[index] >> shift & 3) - minima[at];
        }
    }
}

#[inline(always)]
pub(super) fn q3(block: &[u8; 110], made: &mut [f32; 256]) {
    let third = part::<0, 32, 110>(block);
    let (planes, _) = part::<32, 64, 110>(block).as_chunks::<32>();
    let scales = q3_scales(half_at::<108, 110>(block), part::<96, 12, 110>(block));
    for (run, made) in made.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (plane, shift) = (&planes[run / 4], 2 * (run % 4));
        for (index, made) in made.iter_mut().enumerate() {
            // The third bit set means that nothing is taken off.
            let level = (plane[index] >> shift & 3) | (third[index] >> run & 1) << 2;
            *made = scales[2 * run + index / 16] * f32::from(level as i8 - 4);
        }
    }
}

/// Sixteen scales of 6 bits: four of each in halves of the first eight bytes, two in quarters
/// of the last four.
#[inline(always)]
fn q3_scales(scale: f32, packed: &[u8; 12]) -> [f32; 16] {
    std::array::from_fn(|at| {
        let lower = packed[at % 8] >> (4 * (at / 8)) & 15;
        let upper = packed[8 + at % 4] >> (2 * (at / 4)) & 3;
        scale * f32::from((lower | upper << 4) as i8 - 32)
    })
}

#[inline(always)]
pub(super) fn q4(block: &[u8; 144], made: &mut [f32; 256]) {
    let (scale, minimum) = (half_at::<0, 144>(block), half_at::<2, 144>(block));
    let parts = Parts::of(scale, minimum, part::<4, 12, 144>(block));
    let (planes, _) = part::<16, 128, 144>(block).as_chunks::<32>();
    for (run, made) in made.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (plane, shift) = (&planes[run / 2], 4 * (run % 2));
        let (scale, minimum) = (parts.scales[run], parts.minima[run]);
        for (byte, made) in plane.iter().zip(made) {
            *made = scale * f32::from(byte >> shift & 15) - minimum;
        }
    }
}

#[inline(always)]
pub(super) fn q5(block: &[u8; 176], made: &mut [f32; 256]) {
    let (scale, minimum) = (half_at::<0, 176>(block), half_at::<2, 176>(block));
    let parts = Parts::of(scale, minimum, part::<4, 12, 176>(block));
    let fifth = part::<16, 32, 176>(block);
    let (planes, _) = part::<48, 128, 176>(block).as_chunks::<32>();
    for (run, made) in made.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (plane, shift) = (&planes[run / 2], 4 * (run % 2));
        let (scale, minimum) = (parts.scales[run], parts.minima[run]);
        for ((byte, fifth), made) in plane.iter().zip(fifth).zip(made) {
            let level = byte >> shift & 15 | (fifth >> run & 1) << 4;
            *made = scale * f32::from(level) - minimum;
        }
    }
}

#[inline(always)]
pub(super) fn q6(block: &[u8; 210], made: &mut [f32; 256]) {
    let (lower, _) = part::<0, 128, 210>(block).as_chunks::<32>();
    let (upper, _) = part::<128, 64, 210>(block).as_chunks::<32>();
    let levels = part::<192, 16, 210>(block);
    let scale = half_at::<208, 210>(block);
    let scales: [f32; 16] = std::array::from_fn(|at| scale * f32::from(levels[at] as i8));
    for (run, made) in made.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Of each half of the block: the lower halves of two planes, then their upper halves.
        let (half, quarter) = (run / 4, run % 4);
        let (plane, shift) = (&lower[2 * half + quarter % 2], 4 * (quarter / 2));
        for (index, made) in made.iter_mut().enumerate() {
            let upper = upper[half][index] >> (2 * quarter) & 3;
            let level = plane[index] >> shift & 15 | upper << 4;
            *made = scales[2 * run + index / 16] * f32::from(level as i8 - 32);
        }
    }
}
