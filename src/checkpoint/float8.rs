//! Floats of 8 bits: their numbers, and the nearest code of a number.

/// The number of a code of e4m3 (Micikevicius et al., "FP8 Formats for Deep Learning",
/// arXiv:2209.05433). Without branches, so that rows of them become vectors.
#[inline(always)]
pub(crate) fn from_e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let small = magnitude as f32 / 512.0;
    let normal = f32::from_bits((magnitude + (120 << 3)) << 20);
    let finite = if magnitude < 8 { small } else { normal };
    let number = if magnitude == 0x7f { f32::NAN } else { finite };
    f32::from_bits(number.to_bits() | u32::from(code & 0x80) << 24)
}

/// The number of a code of e5m2, which are the upper halves of 16-bit floats.
#[inline(always)]
pub(super) fn from_e5m2(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let small = magnitude as f32 / 65_536.0;
    let normal = f32::from_bits((magnitude + (112 << 2)) << 21);
    let finite = if magnitude < 4 { small } else { normal };
    let beyond = if magnitude == 0x7c { f32::INFINITY } else { f32::NAN };
    let number = if magnitude < 0x7c { finite } else { beyond };
    f32::from_bits(number.to_bits() | u32::from(code & 0x80) << 24)
}

/// The code of the number nearest to `x`, ties to even; ±448 for what is beyond, NaN
/// for what is not finite.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "seven bits and a sign")]
pub(crate) fn to_e4m3(x: f32) -> u8 {
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use half::f16;

    use super::*;

    #[test]
    fn codes_of_8_bits_are_the_numbers_of_the_wider_formats_that_hold_them() {
        for code in 0..=u8::MAX {
            let wide = f16::from_le_bytes([0, code]).to_f32();
            let made = from_e5m2(code);
            assert!(made == wide || made.is_nan() && wide.is_nan(), "{code}: {made} {wide}");
        }
        // The largest, one, the smallest, and what is no number.
        let known = [(0x7e, 448.0), (0x38, 1.0), (0x01, 1.0 / 512.0), (0xb8, -1.0)];
        known.into_iter().for_each(|(code, number)| assert_eq!(from_e4m3(code), number));
        assert!(from_e4m3(0x7f).is_nan() && from_e4m3(0xff).is_nan());
    }

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
}
