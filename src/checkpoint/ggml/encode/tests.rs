//! What is encoded, decoded again.

use super::*;

/// Numbers spread as weights are: sums of twelve evenly spread ones, with a sign.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| 0.02 * ((0..12).map(|_| next()).sum::<f32>() - 6.0)).collect()
}

fn again(kind: GgmlType, numbers: &[f32]) -> Vec<f32> {
    let mut blocks = vec![0; kind.row_bytes(numbers.len()).unwrap()];
    kind.encode(numbers, &mut blocks).unwrap();
    let mut made = vec![f32::NAN; numbers.len()];
    kind.decode(&blocks, &mut made);
    made
}

/// The root of the mean squared error, as a part of the numbers' own.
fn error(numbers: &[f32], made: &[f32]) -> f64 {
    let square = |number: f32| f64::from(number * number);
    let errors: f64 = numbers.iter().zip(made).map(|(number, made)| square(number - made)).sum();
    (errors / numbers.iter().map(|number| square(*number)).sum::<f64>()).sqrt()
}

/// 16 even levels from the lowest number of 32, or 0, to the highest, nothing rounded.
fn from_lowest_to_highest(numbers: &[f32]) -> Vec<f32> {
    let run = |run: &[f32; 32]| {
        let lowest = run.iter().fold(0.0_f32, |lowest, number| lowest.min(*number));
        let highest = run.iter().fold(0.0_f32, |highest, number| highest.max(*number));
        let scale = (highest - lowest) / 15.0;
        run.map(|number| lowest + scale * ((number - lowest) / scale).round())
    };
    numbers.as_chunks().0.iter().flat_map(run).collect()
}

#[test]
fn searched_ranges_err_less_than_those_from_lowest_to_highest() {
    let numbers = weights(256 * 64);

    let simple = error(&numbers, &from_lowest_to_highest(&numbers));
    let searched = error(&numbers, &again(GgmlType::Q4K, &numbers));

    assert!(searched < 0.9 * simple, "{searched} {simple}");
    assert!(searched < 0.075, "{searched}");
}

#[test]
fn eight_bits_err_by_half_a_level() {
    let numbers = weights(32 * 64);

    let made = again(GgmlType::Q8_0, &numbers);

    for (run, made) in numbers.as_chunks::<32>().0.iter().zip(made.as_chunks::<32>().0) {
        let largest = run.iter().fold(0.0_f32, |largest, number| largest.max(number.abs()));
        for (number, made) in run.iter().zip(made) {
            // Half a level, and the scale's rounding to 11 bits.
            let bound = largest * (0.5 / 127.0 + 1.0 / 2048.0) * 1.001;
            assert!((number - made).abs() <= bound, "{number} {made}");
        }
    }
}

#[test]
fn what_has_levels_is_encoded_as_it_is() {
    let level = |index: usize| (index * 7 % 16) as f32;
    let even: Vec<f32> = (0..256).map(|index| 0.25 * level(index) - 1.0).collect();
    let made = again(GgmlType::Q4K, &even);
    assert!(error(&even, &made) < 2e-3, "{}", error(&even, &made));
    // The highest of 63 steps of 2⁻⁴ each, and no minimum: nothing is rounded.
    let exact: Vec<f32> = (0..256).map(|index| 63.0 / 16.0 * level(index)).collect();
    assert_eq!(again(GgmlType::Q4K, &exact), exact);
    for kind in [GgmlType::Q4K, GgmlType::Q8_0] {
        assert_eq!(again(kind, &[0.0; 256]), [0.0; 256], "{kind}");
        let positive = error(&[0.5; 256], &again(kind, &[0.5; 256]));
        let negative = error(&[-0.5; 256], &again(kind, &[-0.5; 256]));
        assert!(positive < 1e-3 && negative < 1e-3, "{kind}: {positive} {negative}");
    }
}

#[test]
fn what_is_no_number_spoils_its_own_block_only() {
    for kind in [GgmlType::Q4K, GgmlType::Q8_0] {
        let mut numbers = weights(512);
        numbers[3] = f32::NAN;
        numbers[4] = f32::INFINITY;
        let made = again(kind, &numbers);
        assert!(error(&numbers[256..], &made[256..]) < 0.1, "{kind}");
    }
}

#[test]
fn halves_of_levels_are_rounded_away_from_zero() {
    let mut numbers = [0.0; 32];
    numbers[..5].copy_from_slice(&[127.0, 0.5, 1.5, -0.5, -2.5]);
    assert_eq!(again(GgmlType::Q8_0, &numbers)[..5], [127.0, 1.0, 2.0, -1.0, -3.0]);
}

#[test]
fn plain_types_are_rounded_and_others_refused() {
    let numbers = [1.0, -2.5, 1.0 + 1.0 / 4096.0, 65504.0];
    assert_eq!(again(GgmlType::F32, &numbers), numbers);
    assert_eq!(again(GgmlType::F16, &numbers), [1.0, -2.5, 1.0, 65504.0]);
    assert_eq!(again(GgmlType::Bf16, &numbers), [1.0, -2.5, 1.0, 65536.0]);
    for kind in GgmlType::ALL {
        let written = ["F32", "F16", "BF16", "Q8_0", "Q4_K"].contains(&kind.name());
        assert_eq!(kind.encode(&[], &mut []).is_ok(), written, "{kind}");
    }
}
