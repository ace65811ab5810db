//! Single elements in e4m3, and the powers of two that scale them.

pub(super) use crate::checkpoint::{from_e4m3, to_e4m3};

/// The least exponent whose power of two times 448 is at least `largest`, which is
/// not negative.
#[inline(always)]
pub(super) fn exponent_for(largest: f32) -> i32 {
    let bits = largest.to_bits();
    // 448 = 1.75 · 2⁸
    let above = i32::from(bits & 0x7f_ffff > 0x60_0000);
    ((bits >> 23) as i32 - 127 - 8 + above).clamp(-126, 120)
}

/// 2 to the `exponent`, which is from -126 to 127.
#[inline(always)]
pub(super) fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_the_least_power_of_two_that_keeps_the_largest() {
        for largest in [448.0, 449.0, 1.0, 1.75, 1.76, 3e-5, 7e20] {
            let scale = power_of_two(exponent_for(largest));

            assert!(largest / scale <= 448.0 && largest / scale > 224.0, "{largest}: {scale}");
        }
        for extreme in [0.0, 1e-44, f32::MAX, f32::INFINITY] {
            let scale = power_of_two(exponent_for(extreme));

            assert!(scale > 0.0 && scale.is_finite() && (1.0 / scale).is_finite(), "{extreme}");
        }
    }
}
