//! Single elements in e4m3, and the powers of two that scale them.

pub(super) use crate::checkpoint::from_e4m3;

/// The code of the number nearest to `x`, ties to even; ±448 for what is beyond, NaN
/// for what is not finite.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "seven bits and a sign")]
pub(super) fn to_e4m3(x: f32) -> u8 {
    /// The smallest number with all its digits: 2⁻⁶.
    const SMALLEST_NORMAL: u32 = 0x3c80_0000;
    /// Adding it leaves a float no bits behind the point: 1.5 · 2²³.
    const ROUNDER: f32 = 12_582_912.0;
    let sign = x.to_bits() >> 24 & 0x80;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let small = (f32::from_bits(magnitude) * 512.0 + ROUNDER).to_bits() & 0xf;
    let nearest = (magnitude.wrapping_add(0x7_ffff + (magnitude >> 20 & 1)) >> 20)
        .wrapping_sub(120 << 3)
        .min(0x7e);
    let finite = if magnitude < SMALLEST_NORMAL { small } else { nearest };
    let code = if magnitude < f32::INFINITY.to_bits() { finite } else { 0x7f };
    (sign | code) as u8
}

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
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn every_number_of_the_format_is_its_own_nearest() {
        for code in 0..=u8::MAX {
            if code & 0x7f != 0x7f {
                assert_eq!(to_e4m3(from_e4m3(code)), code);
            }
        }
        assert!(from_e4m3(0x7f).is_nan() && from_e4m3(0xff).is_nan());
        assert_eq!([0x7e, 0x01, 0x08, 0x38].map(from_e4m3), [448.0, 1.0 / 512.0, 1.0 / 64.0, 1.0]);
    }

    #[test]
    fn numbers_round_as_another_implementation_rounds_them() {
        // Every 16-bit pattern of a float up to 448: ties and all binades.
        let numbers: Vec<f32> = (0..=u16::MAX)
            .map(|bits| f32::from_bits(u32::from(bits) << 16))
            .filter(|x| x.abs() <= 448.0)
            .collect();
        let theirs = Tensor::new(numbers.as_slice(), &Device::Cpu).unwrap();
        let theirs = theirs.to_dtype(DType::F8E4M3).unwrap().to_dtype(DType::F32).unwrap();

        for (x, theirs) in numbers.into_iter().zip(theirs.to_vec1::<f32>().unwrap()) {
            assert_eq!(from_e4m3(to_e4m3(x)), theirs, "{x}");
        }
    }

    #[test]
    fn what_is_beyond_is_the_largest_and_what_is_no_number_stays_none() {
        assert_eq!([465.0, 1e30, -1e30].map(|x| from_e4m3(to_e4m3(x))), [448.0, 448.0, -448.0]);
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(from_e4m3(to_e4m3(x)).is_nan(), "{x}");
        }
    }

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
