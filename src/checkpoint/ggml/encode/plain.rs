//! Types without blocks, rounded to the nearest number that they have.

use half::{bf16, f16};

#[inline(always)]
pub(super) fn f32s(numbers: &[f32], made: &mut [u8]) {
    for (number, made) in numbers.iter().zip(made.as_chunks_mut().0) {
        *made = number.to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn f16s(numbers: &[f32], made: &mut [u8]) {
    for (number, made) in numbers.iter().zip(made.as_chunks_mut().0) {
        *made = f16::from_f32(*number).to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn bf16s(numbers: &[f32], made: &mut [u8]) {
    for (number, made) in numbers.iter().zip(made.as_chunks_mut().0) {
        *made = bf16::from_f32(*number).to_le_bytes();
    }
}
