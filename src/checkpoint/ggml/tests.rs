//! Decoding against the `gguf` package of PyPI, by `tests/data/make_files.py`.

use safetensors::SafeTensors;

use super::*;

/// Blocks of random bytes for each type, and what they mean.
const GOLDENS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/files/ggml_blocks.safetensors");

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn each_type_is_decoded_to_the_bit() {
    let file = std::fs::read(GOLDENS).unwrap();
    let goldens = SafeTensors::deserialize(&file).unwrap();
    for kind in GgmlType::ALL {
        let blocks = goldens.tensor(&format!("{kind}.bytes")).unwrap();
        let expected = numbers(goldens.tensor(&format!("{kind}.values")).unwrap().data());
        let mut made = vec![f32::NAN; expected.len()];

        kind.decode(blocks.data(), &mut made);

        assert_eq!(kind.row_bytes(expected.len()), Some(blocks.data().len()), "{kind}");
        let differs = |(made, expected): (&f32, &f32)| made.to_bits() != expected.to_bits();
        let first = made.iter().zip(&expected).position(differs);
        assert_eq!(first, None, "{kind}");
    }
}

#[test]
fn every_half_is_widened_as_the_half_crate_does() {
    for bits in 0..=u16::MAX {
        let (made, expected) = (bytes::widened(bits), half::f16::from_bits(bits).to_f32());
        let same = made.to_bits() == expected.to_bits() || made.is_nan() && expected.is_nan();
        assert!(same, "{bits:#x}: {made} {expected}");
    }
}

#[test]
fn a_type_is_known_by_its_code() {
    for kind in GgmlType::ALL {
        assert_eq!(GgmlType::from_code(kind.code()), Some(kind));
    }
    assert_eq!((GgmlType::from_code(16), name_of_code(16)), (None, Some("IQ2_XXS")));
    assert_eq!((GgmlType::from_code(39), name_of_code(39)), (None, Some("MXFP4")));
    assert_eq!((GgmlType::from_code(u32::MAX), name_of_code(u32::MAX)), (None, None));
    assert_eq!((GgmlType::Bf16.name(), GgmlType::Iq4Xs.name()), ("BF16", "IQ4_XS"));
}

#[test]
fn a_row_is_whole_blocks_or_has_no_size() {
    assert_eq!(GgmlType::Q4K.row_bytes(512), Some(288));
    assert_eq!(GgmlType::Q4K.row_bytes(511), None);
    assert_eq!(GgmlType::Q8_0.row_bytes(0), Some(0));
    assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None);
}

#[test]
fn what_has_no_room_is_left_out() {
    for kind in GgmlType::ALL {
        let blocks = vec![0x55; 3 * kind.block_bytes() - 1];
        let mut made = vec![f32::NAN; 2 * kind.block_elements() + kind.block_elements() / 2];

        kind.decode(&blocks, &mut made);
        kind.decode(&[], &mut made);

        let written = made.iter().filter(|number| !number.is_nan()).count();
        assert_eq!(written, 2 * kind.block_elements(), "{kind}");
    }
}
