//! The text in a picture file, as `imaging/provenance.rs` reads and writes it: any bytes give
//! a text or none, and nothing but the text is held; and what is written into a file that had
//! none is read from it. Of writing, nothing is claimed but that: into a PNG that begins with
//! its header, and with no bound on memory, for only files that the program made are written to.
#![no_main]

mod measured;

/// The program's modules, without the rest of it.
#[path = "../../src/imaging"]
mod imaging {
    pub mod provenance;
}

use imaging::provenance;

const TEXT: &str = "{\"seed\": 7}";

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let mut text = None;
    let held = measured::peak(|| text = provenance::read(file));
    assert!(held <= file.len() + 1024, "{held} bytes held for {}", file.len());
    let Ok(written) = provenance::attach(file.to_vec(), TEXT, "a program") else { return };
    if file.starts_with(PNG_SIGNATURE) && file.get(12..16) != Some(b"IHDR") {
        return;
    }
    let read = provenance::read(&written);
    assert!(text.is_some() || read.as_deref() == Some(TEXT), "{read:?}");
});
