//! What headers say, and what is refused. Files are written here by hand, byte for byte.

use super::*;
use crate::checkpoint::ggml::GgmlType;

/// A file in the making.
#[derive(Clone)]
struct File {
    version: u32,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn pair(key: &str, code: u32, value: &[u8]) -> Vec<u8> {
    [&string(key.as_bytes())[..], &code.to_le_bytes(), value].concat()
}

fn array(element: u32, length: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &length.to_le_bytes(), elements].concat()
}

/// `sides` as the file has them: the width first.
fn tensor(name: &str, sides: &[u64], code: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name.as_bytes());
    bytes.extend(u32::try_from(sides.len()).unwrap().to_le_bytes());
    sides.iter().for_each(|side| bytes.extend(side.to_le_bytes()));
    bytes.extend(code.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl File {
    fn new() -> Self {
        Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    fn pair(mut self, key: &str, code: u32, value: &[u8]) -> Self {
        self.pairs.push(pair(key, code, value));
        self
    }

    fn tensor(mut self, name: &str, sides: &[u64], code: u32, offset: u64) -> Self {
        self.tensors.push(tensor(name, sides, code, offset));
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    /// With tensors at multiples of 32.
    fn bytes(&self) -> Vec<u8> {
        let counts = (self.tensors.len() as u64, self.pairs.len() as u64);
        let mut bytes = self.start(counts);
        bytes.extend(self.pairs.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn start(&self, (tensors, pairs): (u64, u64)) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(pairs.to_le_bytes());
        bytes
    }

    fn fault(&self) -> GgufError {
        GgufHeader::read(&self.bytes()).unwrap_err()
    }
}

#[test]
fn tensors_are_told_rows_first_and_where_they_lie() {
    let file = File::new()
        .tensor("a.weight", &[256, 3], GgmlType::Q4K.code(), 0)
        .tensor("a.bias", &[3], GgmlType::F32.code(), 448)
        .tensor("marker", &[0], GgmlType::F32.code(), 480)
        .tensor("number", &[], GgmlType::Bf16.code(), 480)
        .data(482);
    let bytes = file.bytes();
    let start = bytes.len() - 482;

    let header = GgufHeader::read(&bytes).unwrap();

    let told: Vec<_> = header
        .tensors
        .iter()
        .map(|tensor| {
            (
                tensor.name.as_str(),
                tensor.kind,
                tensor.shape.clone(),
                tensor.range.start - start,
                tensor.range.len(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("a.weight", GgmlType::Q4K, vec![3, 256], 0, 3 * 144),
            ("a.bias", GgmlType::F32, vec![3], 448, 12),
            ("marker", GgmlType::F32, vec![0], 480, 0),
            ("number", GgmlType::Bf16, vec![], 480, 2),
        ]
    );
}

#[test]
fn metadata_of_each_type_is_told_and_long_values_are_passed_over() {
    let words = [string(b"one"), string(&[b'x'; 5000])].concat();
    let file = File::new()
        .pair("u8", 0, &[255])
        .pair("i8", 1, &[255])
        .pair("i16", 3, &(-3_i16).to_le_bytes())
        .pair("u64", 10, &u64::MAX.to_le_bytes())
        .pair("i64", 11, &i64::MIN.to_le_bytes())
        .pair("f32", 6, &1.5_f32.to_le_bytes())
        .pair("f64", 12, &(-2.5_f64).to_le_bytes())
        .pair("bool", 7, &[1])
        .pair("general.architecture", 8, &string(b"qwen_image"))
        .pair("template", 8, &string(&[b'x'; 1025]))
        .pair("shape", 9, &array(5, 2, &[1, 0, 0, 0, 254, 255, 255, 255]))
        .pair("mean", 9, &array(6, 1, &0.5_f32.to_le_bytes()))
        .pair("kinds", 9, &array(5, 17, &[0; 68]))
        .pair("tokens", 9, &array(8, 2, &words))
        .pair("last", 4, &[7, 0, 0, 0]);

    let header = GgufHeader::read(&file.bytes()).unwrap();

    let value = |key: &str| header.metadata[key].clone();
    assert_eq!(value("u8"), GgufValue::Integer(255));
    assert_eq!(value("i8"), GgufValue::Integer(-1));
    assert_eq!(value("i16"), GgufValue::Integer(-3));
    assert_eq!(value("u64"), GgufValue::Integer(u64::MAX.into()));
    assert_eq!(value("i64"), GgufValue::Integer(i64::MIN.into()));
    assert_eq!((value("f32"), value("f64")), (GgufValue::Float(1.5), GgufValue::Float(-2.5)));
    assert_eq!(value("bool"), GgufValue::Bool(true));
    assert_eq!(header.text("general.architecture"), Some("qwen_image"));
    assert_eq!(value("template"), GgufValue::LongText { bytes: 1025 });
    assert_eq!(value("shape"), GgufValue::Integers(vec![1, -2]));
    assert_eq!(value("mean"), GgufValue::Floats(vec![0.5]));
    assert_eq!(value("kinds"), GgufValue::Array { element: GgufValueType::I32, length: 17 });
    assert_eq!(value("tokens"), GgufValue::Array { element: GgufValueType::Text, length: 2 });
    assert_eq!((header.integer("last"), header.integer("bool")), (Some(7), None));
}

#[test]
fn a_file_cut_anywhere_is_not_whole() {
    let file = File::new()
        .pair("general.architecture", 8, &string(b"qwen_image"))
        .pair("tokens", 9, &array(8, 2, &[string(b"a"), string(b"b")].concat()))
        .pair("kinds", 9, &array(4, 20, &[0; 80]))
        .tensor("a", &[32, 2], GgmlType::Q8_0.code(), 0)
        .data(68);
    let bytes = file.bytes();

    assert!(GgufHeader::read(&bytes).is_ok());

    for length in 4..bytes.len() {
        let fault = GgufHeader::read(&bytes[..length]).unwrap_err();
        assert!(fault.to_string().contains("it is not whole"), "{length}: {fault}");
    }
    for length in 0..4 {
        assert_eq!(GgufHeader::read(&bytes[..length]), Err(GgufError::NotGguf));
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    assert_eq!(GgufHeader::read(b"PK\x03\x04......"), Err(GgufError::NotGguf));
    for (version, expected) in [
        (1, GgufError::Version { version: 1 }),
        (4, GgufError::Version { version: 4 }),
        (3_u32.swap_bytes(), GgufError::BigEndian),
    ] {
        assert_eq!(File { version, ..File::new() }.fault(), expected);
    }
    assert_eq!(GgufHeader::read(&File { version: 2, ..File::new() }.bytes()).unwrap().version, 2);
}

#[test]
fn claims_that_no_file_can_keep_are_refused_before_they_are_believed() {
    let start = |tensors, pairs| GgufHeader::read(&File::new().start((tensors, pairs)));
    let (tensors, pairs) = (1_000_000_000, u64::MAX);
    let too_many = |what, claimed| Err(GgufError::TooMany { what, claimed, most: 1 << 16 });
    assert_eq!(start(tensors, 0), too_many("tensors", tensors));
    assert_eq!(start(0, pairs), too_many("metadata pairs", pairs));
    let cut = GgufError::Truncated { what: "a tensor's name", length: 24 };
    assert_eq!(start(1 << 16, 0), Err(cut));

    // Strings of 2⁶³ bytes and more, arrays whose bytes are no number.
    for length in [1_u64 << 63, u64::MAX] {
        let fault = File::new().pair("a", 8, &length.to_le_bytes()).fault();
        assert!(matches!(fault, GgufError::Truncated { what: "a metadata value", .. }), "{fault}");
        for element in [0, 6, 8, 12] {
            let fault = File::new().pair("a", 9, &array(element, length, &[])).fault();
            assert!(matches!(fault, GgufError::Truncated { .. }), "{fault}");
        }
    }
}

#[test]
fn names_and_keys_that_are_none_are_refused() {
    let mut file = File::new();
    file.pairs.push([&string(b"\xff")[..], &0_u32.to_le_bytes(), &[0]].concat());
    assert_eq!(file.fault(), GgufError::NotText { what: "a metadata key", at: 32 });

    let long = |length| File::new().tensor(&"n".repeat(length), &[0], 0, 0);
    assert!(GgufHeader::read(&long(512).bytes()).is_ok());
    assert!(matches!(long(513).fault(), GgufError::TooLong { length: 513, most: 512, .. }));

    let twice = File::new().pair("a", 0, &[1]).pair("a", 0, &[2]);
    assert_eq!(twice.fault(), GgufError::DuplicateKey { key: "a".to_owned() });
    let twice = File::new().tensor("a", &[0], 0, 0).tensor("a", &[0], 0, 0);
    assert_eq!(twice.fault(), GgufError::DuplicateTensor { name: "a".to_owned() });
}

#[test]
fn arrays_of_arrays_and_unknown_values_are_refused() {
    let nested = File::new().pair("a", 9, &array(9, 1, &array(0, 1, &[0])));
    assert_eq!(nested.fault(), GgufError::NestedArray { key: "a".to_owned() });
    let key = || "a".to_owned();
    assert_eq!(
        File::new().pair("a", 13, &[]).fault(),
        GgufError::ValueType { key: key(), code: 13 }
    );
    let of_unknown = File::new().pair("a", 9, &array(99, 0, &[]));
    assert_eq!(of_unknown.fault(), GgufError::ValueType { key: key(), code: 99 });
}

#[test]
fn the_alignment_is_a_power_of_two_that_offsets_keep_to() {
    let aligned = |alignment: u32, offset| {
        let file = File::new().pair("general.alignment", 4, &alignment.to_le_bytes());
        file.tensor("a", &[1], 0, offset).data(128)
    };
    let header = GgufHeader::read(&aligned(8, 8).bytes()).unwrap();
    assert_eq!((header.alignment, header.tensors[0].range.start % 8), (8, 0));
    assert!(matches!(
        aligned(64, 32).fault(),
        GgufError::Unaligned { offset: 32, alignment: 64, .. }
    ));
    for unusable in [0, 12, 3] {
        assert!(matches!(aligned(unusable, 0).fault(), GgufError::Alignment { .. }));
    }
    let text = File::new().pair("general.alignment", 8, &string(b"32"));
    assert_eq!(
        text.fault().to_string(),
        "has general.alignment \"32\", which is no power of two of 32 bits"
    );
    // As far as a file goes, and further.
    let far = aligned(1 << 31, 0);
    assert!(matches!(far.fault(), GgufError::OutOfFile { .. }));
}

#[test]
fn shapes_that_have_no_size_are_refused() {
    let shaped =
        |sides: &[u64], kind: GgmlType| File::new().tensor("a", sides, kind.code(), 0).fault();
    for sides in [&[u64::MAX, 2][..], &[1 << 32, 1 << 32], &[1 << 62, 1, 1], &[u64::MAX]] {
        let fault = shaped(sides, GgmlType::F32);
        assert!(matches!(fault, GgufError::TooLarge { .. }), "{sides:?}: {fault}");
    }
    // The bytes would be a number, the elements are none.
    assert!(matches!(shaped(&[1 << 40, 1 << 24], GgmlType::Q2K), GgufError::TooLarge { .. }));
    let fault = shaped(&[33, 2], GgmlType::Q4_0);
    assert_eq!(fault.to_string(), "has tensor \"a\" whose rows of 33 are no whole blocks of Q4_0");
    assert!(matches!(shaped(&[], GgmlType::Q4_0), GgufError::PartialBlock { width: 1, .. }));
    assert!(matches!(shaped(&[1; 9], GgmlType::F32), GgufError::Dimensions { dimensions: 9, .. }));
}

#[test]
fn tensors_outside_the_file_or_in_each_other_are_refused() {
    let placed = |offset| File::new().tensor("a", &[8], 0, offset).data(64).fault();
    assert!(matches!(placed(64), GgufError::OutOfFile { end: Some(_), .. }));
    assert!(matches!(placed(u64::MAX - 31), GgufError::OutOfFile { end: None, .. }));

    let shared = |offset| {
        let file = File::new().tensor("b", &[16], 0, offset).tensor("a", &[9], 0, 0);
        GgufHeader::read(&file.data(128).bytes())
    };
    assert!(shared(64).is_ok());
    let (first, second) = ("a".to_owned(), "b".to_owned());
    assert_eq!(shared(32), Err(GgufError::Overlap { first, second }));

    // By one byte.
    let touching = |offset| {
        let file = File::new().pair("general.alignment", 4, &[1, 0, 0, 0]);
        let file = file.tensor("a", &[1], 0, 0).tensor("b", &[1], 0, offset).data(64);
        GgufHeader::read(&file.bytes())
    };
    assert!(touching(4).is_ok());
    assert!(matches!(touching(3), Err(GgufError::Overlap { .. })));
}

#[test]
fn types_that_are_not_read_are_named() {
    let said = |code| File::new().tensor("a.weight", &[256], code, 0).fault().to_string();
    assert_eq!(said(16), "has tensor \"a.weight\" of type 16 (IQ2_XXS), which is not read");
    assert_eq!(said(39), "has tensor \"a.weight\" of type 39 (MXFP4), which is not read");
    assert_eq!(said(999), "has tensor \"a.weight\" of type 999 (unknown), which is not read");
}
