//! What is written is read again.

use super::super::GgufHeader;
use super::*;

fn planned(name: &str, kind: GgmlType, shape: &[usize]) -> PlannedTensor {
    PlannedTensor { name: name.to_owned(), kind, shape: shape.to_vec() }
}

#[test]
fn what_is_written_piece_by_piece_is_read_again() {
    let metadata = [
        ("general.architecture", GgufValue::Text("qwen_image".to_owned())),
        ("general.quantization_version", GgufValue::Integer(2)),
        ("negative", GgufValue::Integer(-5)),
        ("large", GgufValue::Integer(1 << 40)),
        ("far below", GgufValue::Integer(-(1 << 40))),
        ("half", GgufValue::Float(0.5)),
        ("yes", GgufValue::Bool(true)),
        ("shape", GgufValue::Integers(vec![3, 4])),
        ("mean", GgufValue::Floats(vec![0.25, 0.5])),
    ];
    let tensors = [
        planned("empty", GgmlType::F32, &[0]),
        planned("a", GgmlType::Q8_0, &[3, 32]),
        planned("marker", GgmlType::F32, &[0]),
        planned("b", GgmlType::Bf16, &[]),
    ];
    let bytes: Vec<u8> = (0..102).collect();

    let mut writer = GgufWriter::start(Vec::new(), &metadata, &tensors).unwrap();
    writer.append("a", &bytes[..50]).unwrap();
    writer.append("a", &bytes[50..]).unwrap();
    writer.append("b", &[7, 8]).unwrap();
    let file = writer.finish().unwrap();

    let header = GgufHeader::read(&file).unwrap();
    assert_eq!(header.metadata.len(), metadata.len());
    for (key, value) in metadata {
        assert_eq!(header.metadata[key], value, "{key}");
    }
    let read = header.tensors.iter();
    let read = read.map(|tensor| planned(&tensor.name, tensor.kind, &tensor.shape));
    assert_eq!(read.collect::<Vec<_>>(), tensors);
    assert_eq!(file[header.tensors[1].range.clone()], bytes);
    assert_eq!(file[header.tensors[3].range.clone()], [7, 8]);
}

#[test]
fn bytes_come_in_order_and_all_of_them() {
    let tensors = [planned("a", GgmlType::F32, &[2]), planned("b", GgmlType::F32, &[1])];
    let start = || GgufWriter::start(Vec::new(), &[], &tensors).unwrap();

    let said = start().append("b", &[0]).unwrap_err().to_string();
    assert_eq!(said, "tensor \"b\" is given where a is expected");
    let said = start().append("a", &[0; 9]).unwrap_err().to_string();
    assert_eq!(said, "tensor \"a\" is given more bytes than the 8 that it has");
    let mut writer = start();
    writer.append("a", &[0; 5]).unwrap();
    assert!(matches!(
        writer.append("a", &[0; 4]),
        Err(GgufWriteError::TooManyBytes { bytes: 8, .. })
    ));
    let mut writer = start();
    writer.append("a", &[0; 8]).unwrap();
    writer.append("b", &[0; 3]).unwrap();
    let said = writer.finish().unwrap_err().to_string();
    assert_eq!(said, "tensor \"b\" lacks 1 bytes");
}

#[test]
fn what_cannot_be_written_is_refused_at_the_start() {
    for shape in [&[2, 33][..], &[usize::MAX, 32], &[]] {
        let tensors = [planned("a", GgmlType::Q8_0, shape)];
        let fault = GgufWriter::start(Vec::new(), &[], &tensors).unwrap_err();
        assert!(matches!(fault, GgufWriteError::Shape { .. }), "{shape:?}: {fault}");
    }
    let values = [
        ("a", GgufValue::LongText { bytes: 2000 }),
        ("a", GgufValue::Array { element: GgufValueType::Text, length: 3 }),
        ("a", GgufValue::Integer(i128::MAX)),
        ("general.alignment", GgufValue::Integer(64)),
    ];
    for value in values {
        let fault = GgufWriter::start(Vec::new(), &[value], &[]).unwrap_err();
        assert!(matches!(fault, GgufWriteError::Metadata { .. }), "{fault}");
    }
}
