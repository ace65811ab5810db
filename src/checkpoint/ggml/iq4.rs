//! Levels that are not evenly spaced: closer together where weights are many.

use super::bytes::{half_at, part};

/// The levels that 4 bits name. Source: `kvalues` of `IQ4_NL` in the `gguf` package.
const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

#[inline(always)]
pub(super) fn nl(block: &[u8; 18], made: &mut [f32; 32]) {
    run(half_at::<0, 18>(block), part::<2, 16, 18>(block), made);
}

#[inline(always)]
pub(super) fn xs(block: &[u8; 136], made: &mut [f32; 256]) {
    let scale = half_at::<0, 136>(block);
    let upper = u16::from_le_bytes(*part::<2, 2, 136>(block));
    let lower = u32::from_le_bytes(*part::<4, 4, 136>(block));
    let (nibbles, _) = part::<8, 128, 136>(block).as_chunks::<16>();
    let runs = nibbles.iter().zip(made.as_chunks_mut().0);
    for (index, (nibbles, made)) in runs.enumerate() {
        let lower = (lower >> (4 * index) & 15) as i8;
        let upper = (upper >> (2 * index) & 3) as i8;
        run(scale * f32::from((lower | upper << 4) - 32), nibbles, made);
    }
}

/// 32 elements of one scale: the lower halves of the bytes, then the upper ones.
#[inline(always)]
fn run(scale: f32, nibbles: &[u8; 16], made: &mut [f32; 32]) {
    for (index, byte) in nibbles.iter().enumerate() {
        made[index] = scale * LEVELS[usize::from(byte & 15)];
        made[index + 16] = scale * LEVELS[usize::from(byte >> 4)];
    }
}
