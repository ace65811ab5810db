//! Blocks of 32 elements with one scale. The lower halves of 16 bytes are the first sixteen
//! elements, their upper halves the others.

use super::bytes::{half_at, part};

/// Half as many elements as a block has.
const HALF: usize = 16;

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], made: &mut [f32; 32]) {
    let scale = half_at::<0, 18>(block);
    let levels = four_bits(part::<2, HALF, 18>(block));
    for (level, made) in levels.iter().zip(made) {
        *made = scale * f32::from(*level as i8 - 8);
    }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], made: &mut [f32; 32]) {
    let (scale, minimum) = (half_at::<0, 20>(block), half_at::<2, 20>(block));
    let levels = four_bits(part::<4, HALF, 20>(block));
    for (level, made) in levels.iter().zip(made) {
        *made = scale * f32::from(*level) + minimum;
    }
}

#[inline(always)]
fn four_bits(nibbles: &[u8; HALF]) -> [u8; 32] {
    let mut levels = [0; 32];
    for (index, byte) in nibbles.iter().enumerate() {
        levels[index] = byte & 15;
        levels[index + HALF] = byte >> 4;
    }
    levels
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], made: &mut [f32; 32]) {
    let scale = half_at::<0, 22>(block);
    let levels = five_bits(*part::<2, 4, 22>(block), part::<6, HALF, 22>(block));
    for (level, made) in levels.iter().zip(made) {
        *made = scale * f32::from(*level as i8 - 16);
    }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], made: &mut [f32; 32]) {
    let (scale, minimum) = (half_at::<0, 24>(block), half_at::<2, 24>(block));
    let levels = five_bits(*part::<4, 4, 24>(block), part::<8, HALF, 24>(block));
    for (level, made) in levels.iter().zip(made) {
        *made = scale * f32::from(*level) + minimum;
    }
}

/// The levels of 5 bits: the fifth of each is a bit of `fifth`.
#[inline(always)]
fn five_bits(fifth: [u8; 4], nibbles: &[u8; HALF]) -> [u8; 32] {
    let fifth = u32::from_le_bytes(fifth);
    let mut levels = four_bits(nibbles);
    for (index, level) in levels.iter_mut().enumerate() {
        *level |= ((fifth >> index & 1) as u8) << 4;
    }
    levels
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], made: &mut [f32; 32]) {
    let scale = half_at::<0, 34>(block);
    // A copy: so that what is read cannot change with what is written.
    let levels = *part::<2, 32, 34>(block);
    for (level, made) in levels.iter().zip(made) {
        *made = f32::from(*level as i8) * scale;
    }
}
