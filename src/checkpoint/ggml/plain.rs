//! Types without blocks: an element is a number.

use super::bytes::widened;

/// 32 bits.
#[inline(always)]
pub(super) fn f32s(numbers: &[u8], made: &mut [f32]) {
    for (number, made) in numbers.as_chunks().0.iter().zip(made) {
        *made = f32::from_le_bytes(*number);
    }
}

/// 16 bits of IEEE 754.
#[inline(always)]
pub(super) fn f16s(numbers: &[u8], made: &mut [f32]) {
    for (number, made) in numbers.as_chunks().0.iter().zip(made) {
        *made = widened(u16::from_le_bytes(*number));
    }
}

/// The upper 16 of 32 bits.
#[inline(always)]
pub(super) fn bf16s(numbers: &[u8], made: &mut [f32]) {
    for (number, made) in numbers.as_chunks().0.iter().zip(made) {
        *made = f32::from_bits(u32::from(u16::from_le_bytes(*number)) << 16);
    }
}
