//! Safetensors files as `checkpoint/tensor_files.rs` opens them: any bytes give tensors that lie
//! in them, or a message of what the file is.
#![no_main]

/// The program's modules, without the rest of it.
#[path = "../../src/checkpoint"]
mod checkpoint {
    #[allow(dead_code, reason = "for what it says, not for what made it")]
    mod content;
    #[allow(dead_code, reason = "for what it says, not for what made it")]
    mod error;
    use error::CheckpointError;

    /// What is said of a file, as a text and as weights.
    pub fn said_of(file: &[u8]) -> Option<String> {
        let said = content::text("config.json", file.to_vec()).err();
        drop(said.map(|error| error.to_string()));
        content::of_weights(file)
    }
}

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let header = SafeTensors::deserialize(file).and_then(|_| SafeTensors::read_metadata(file));
    let Ok((header_bytes, header)) = header else {
        drop(checkpoint::said_of(file));
        return;
    };
    for (name, info) in header.tensors() {
        let (begin, end) = info.data_offsets;
        let data = &file[8 + header_bytes + begin..8 + header_bytes + end];
        let view = TensorView::new(info.dtype, info.shape.clone(), data);
        assert!(view.is_ok(), "{name}: {view:?}");
    }
});
