//! Picture files as `imaging/codec` reads them: any bytes give a picture within the limits or
//! an error, and reading takes no more memory than `bytes_to_decode` says, which is what a
//! request takes from the budget of all.
#![no_main]

mod measured;

#[path = "../../src/domain/mod.rs"]
#[allow(dead_code, unused_imports, reason = "pictures alone are made")]
mod domain;

/// The program's modules, without the rest of it.
#[path = "../../src/imaging"]
mod imaging {
    #[allow(dead_code, unused_imports, reason = "read, not written")]
    pub mod codec;
}

use std::sync::Once;

use imaging::codec::{self, DecodeLimits};

const LIMITS: DecodeLimits =
    DecodeLimits { max_bytes: 1 << 20, max_side: 1 << 12, max_pixels: 1 << 18 };

/// What errors and the like take.
const OVERHEAD: usize = 16 << 10;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    static HOOK: Once = Once::new();
    // A decoder's panic fails one picture, by design: only what is not caught is a fault.
    HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let expected = codec::bytes_to_decode(file, LIMITS);
    let mut decoded = None;
    let held = measured::peak(|| decoded = Some(codec::decode(file, LIMITS)));
    match (expected, decoded) {
        (Ok(bytes), _) if held > bytes + OVERHEAD => fail(&format!("{held} bytes held, {bytes} expected")),
        (Err(error), Some(Ok(_))) => fail(&format!("decoded, in spite of {error}")),
        (_, Some(Ok(decoded))) => {
            let (width, height) = (decoded.picture.width(), decoded.picture.height());
            if width * height > LIMITS.max_pixels {
                fail(&format!("{width}x{height}"));
            }
        }
        _ => {}
    }
});

/// The hook says nothing of panics.
fn fail(what: &str) {
    eprintln!("{what}");
    std::process::abort();
}
