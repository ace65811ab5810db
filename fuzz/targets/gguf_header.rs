//! The reader of GGUF headers: any bytes give a header whose tensors lie in them, or an error;
//! and in memory of their size.
#![no_main]

mod measured;

/// The program's modules, without the rest of it.
#[path = "../../src/checkpoint"]
mod checkpoint {
    #[allow(dead_code, unused_imports, reason = "the reader needs no more than the types' sizes")]
    pub mod ggml;
    #[allow(dead_code, unused_imports, reason = "read, not written")]
    pub mod gguf;
}

use checkpoint::gguf::GgufHeader;

/// Bytes held for each byte of the file. A dimension takes eight bytes in the file and in memory,
/// the least pair of metadata 13 in the file and about a hundred in memory.
const MULTIPLE: usize = 24;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let held = measured::peak(|| read(file));
    assert!(held <= MULTIPLE * file.len() + 4096, "{held} bytes held for {}", file.len());
});

fn read(file: &[u8]) {
    match GgufHeader::read(file) {
        Err(error) => drop(error.to_string()),
        Ok(header) => header.tensors.iter().for_each(|tensor| {
            let bytes = &file[tensor.range.clone()];
            let elements: usize = tensor.shape.iter().product();
            let blocks = elements / tensor.kind.block_elements();
            assert_eq!(bytes.len(), blocks * tensor.kind.block_bytes(), "{tensor:?}");
        }),
    }
}
