//! Q8_0: the largest of 32 numbers is level 127 or -127. Equal to ggml's reference.

use half::f16;

#[expect(clippy::cast_possible_truncation, reason = "levels are whole, up to 127")]
#[inline(always)]
pub(super) fn encode(numbers: &[f32; 32]) -> [u8; 34] {
    let largest = numbers.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
    let scale = largest / 127.0;
    // Of the scale before it is rounded to 16 bits, as in the reference.
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 34];
    let [low, high, levels @ ..] = &mut block;
    [*low, *high] = f16::from_f32(scale).to_le_bytes();
    for (number, level) in numbers.iter().zip(levels) {
        *level = away_from_zero(number * inverse) as i8 as u8;
    }
    block
}

/// The whole number next to `number`, of two the one that is larger without its sign, as C's
/// `roundf` says; without a call to it.
#[expect(clippy::cast_possible_truncation, reason = "a fraction is what is to be cut off")]
#[inline(always)]
fn away_from_zero(number: f32) -> f32 {
    let whole = number as i32 as f32;
    let rest = number - whole;
    whole + if rest >= 0.5 { 1.0 } else { 0.0 } - if rest <= -0.5 { 1.0 } else { 0.0 }
}
