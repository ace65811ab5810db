//! The numbers of a stored tensor in another encoding, some rows at a time.

use rayon::prelude::*;

use super::super::ggml::NotEncoded;
use super::super::tensor_files::Stored;
use super::super::{to_e4m3, vectorised};
use super::ConvertError;
use super::format::Encoding;
use super::plan::Planned;

/// Elements that are in memory at a time, unless one row has more.
const ELEMENTS_AT_A_TIME: usize = 1 << 22;

/// The largest number of e4m3.
const LARGEST_E4M3: f32 = 448.0;

/// Hands the elements of `stored` to `each`, whole rows of so many at a time. Rows are told
/// with how many elements they have.
pub(super) fn each_rows(
    stored: Stored,
    mut each: impl FnMut(&[f32], usize) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let (rows, width) = stored.rows_and_width();
    if width == 0 {
        return Ok(());
    }
    let at_a_time = (ELEMENTS_AT_A_TIME / width).clamp(1, rows.max(1));
    let mut numbers = vec![0.0_f32; at_a_time * width];
    for first in (0..rows).step_by(at_a_time) {
        let count = at_a_time.min(rows - first);
        let made = &mut numbers[..count * width];
        made.par_chunks_exact_mut(width).enumerate().for_each(|(row, made)| {
            stored.decode(first + row..first + row + 1, made);
        });
        each(made, width)?;
    }
    Ok(())
}

/// The largest magnitude among the elements of `stored`, which must all be numbers.
///
/// # Errors
/// [`ConvertError::Tensor`] if one is none.
pub(super) fn largest_of(stored: Stored, planned: &Planned) -> Result<f32, ConvertError> {
    let mut largest = 0.0_f32;
    each_rows(stored, |numbers, _| {
        largest = largest.max(checked_largest(numbers, planned)?);
        Ok(())
    })?;
    Ok(largest)
}

/// What e4m3 is multiplied by, so that `largest` is its largest.
pub(super) fn scale_for(largest: f32) -> f32 {
    if largest == 0.0 { 1.0 } else { (largest / LARGEST_E4M3).max(f32::MIN_POSITIVE) }
}

/// The bytes of `numbers`, which are rows of `width` elements, in the encoding that is
/// planned; e4m3 is scaled by `scale`.
///
/// # Errors
/// [`ConvertError::Tensor`] if one of them is no number, or is too large.
pub(super) fn encode(
    numbers: &[f32],
    (width, scale): (usize, f32),
    planned: &Planned,
    made: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    checked_largest(numbers, planned)?;
    let rows = numbers.len() / width.max(1);
    let row_bytes = planned.encoding.bytes_of(&[width]).unwrap_or(0);
    made.resize(rows * row_bytes, 0);
    let rows =
        made.par_chunks_exact_mut(row_bytes.max(1)).zip(numbers.par_chunks_exact(width.max(1)));
    let encode_row = |(made, numbers): (&mut [u8], &[f32])| match planned.encoding {
        Encoding::Fp8 => {
            vectorised(
                #[inline(always)]
                || fp8(numbers, scale, made),
            );
            Ok(())
        }
        Encoding::Ggml(kind) => vectorised(
            #[inline(always)]
            || kind.encode(numbers, made),
        ),
    };
    rows.map(encode_row).collect::<Result<(), NotEncoded>>().map_err(|error| ConvertError::Tensor {
        name: planned.name.clone(),
        reason: error.to_string(),
    })
}

#[inline(always)]
fn fp8(numbers: &[f32], scale: f32, made: &mut [u8]) {
    for (number, made) in numbers.iter().zip(made) {
        *made = to_e4m3(number / scale);
    }
}

/// The largest magnitude, if the encoding that is planned has it.
fn checked_largest(numbers: &[f32], planned: &Planned) -> Result<f32, ConvertError> {
    let largest = numbers.par_chunks(1 << 16).map(largest_in).reduce(|| 0.0, f32::max);
    if largest <= planned.encoding.largest() {
        return Ok(largest);
    }
    let reason = match largest.is_finite() {
        true => format!(
            "has the number {largest}, which {} cannot hold: take bf16 or f32",
            planned.encoding
        ),
        false => "has elements that are no finite numbers".to_owned(),
    };
    Err(ConvertError::Tensor { name: planned.name.clone(), reason })
}

/// The largest magnitude; infinity, if one is no number.
fn largest_in(numbers: &[f32]) -> f32 {
    let magnitude = |number: &f32| if number.is_nan() { f32::INFINITY } else { number.abs() };
    numbers.iter().map(magnitude).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::super::super::from_e4m3;
    use super::super::super::ggml::GgmlType;
    use super::*;

    fn planned(encoding: Encoding) -> Planned {
        Planned { name: "a".to_owned(), shape: vec![2, 4], encoding, bytes: 8 }
    }

    fn fault(encoding: Encoding, number: f32) -> Option<String> {
        let mut numbers = [0.5; 8];
        numbers[6] = number;
        let made = encode(&numbers, (4, 1.0), &planned(encoding), &mut Vec::new());
        made.err().map(|error| error.to_string())
    }

    #[test]
    fn numbers_that_a_format_has_not_are_refused_by_the_tensors_name() {
        let f16 = Encoding::Ggml(GgmlType::F16);

        assert_eq!(fault(f16, -65504.0), None);
        let said = fault(f16, -1e5).unwrap();
        assert_eq!(said, "a: has the number 100000, which F16 cannot hold: take bf16 or f32");
        assert_eq!(fault(Encoding::Ggml(GgmlType::Bf16), 1e38), None);
        for number in [f32::NAN, f32::NEG_INFINITY] {
            for encoding in [f16, Encoding::Ggml(GgmlType::F32), Encoding::Fp8] {
                let said = fault(encoding, number).unwrap();
                assert!(said.contains("no finite numbers"), "{said}");
            }
        }
    }

    #[test]
    fn the_largest_of_a_matrix_becomes_the_largest_of_e4m3() {
        let numbers = [0.0, 3.5, -7.0, 1.0, 0.5, -0.25, 2.0, 0.01];
        let scale = scale_for(7.0);
        let mut made = Vec::new();

        encode(&numbers, (4, scale), &planned(Encoding::Fp8), &mut made).unwrap();

        assert_eq!(made[2], 0xfe);
        for (number, code) in numbers.into_iter().zip(made) {
            // Half of the last of four digits.
            let error = (from_e4m3(code) * scale - number).abs();
            assert!(error <= number.abs() / 16.0 + scale / 1024.0, "{number}: {error}");
        }
        assert_eq!(scale_for(0.0), 1.0);
        assert!(scale_for(1e-44) > 0.0);
    }
}
