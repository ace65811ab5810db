//! Forms as `api/multipart.rs` reads them: any bytes give fields or an error, the same in
//! whatever pieces they arrive, and in memory of a small multiple of their size.
#![no_main]

mod fields;
mod measured;

mod requests {
    pub(crate) use crate::fields::{Fields, RawValue};
}

#[path = "../../src/service"]
mod service {
    #[allow(dead_code, reason = "a share is taken, not given back in parts")]
    mod memory;
    pub use memory::{MemoryShare, RequestMemory};
}

/// The program's modules, without the rest of it.
#[path = "../../src/api"]
mod api {
    use std::time::Duration;

    use axum::body::{Body, Bytes};

    use crate::requests::Fields;
    use crate::service::RequestMemory;

    mod error {
        /// What the two readers may say.
        #[derive(Debug)]
        #[allow(dead_code, reason = "whatever it is, it is an error")]
        pub(super) enum ApiError {
            Malformed(String),
            BodyTooLarge { max_upload_bytes: usize },
            Memory(String),
        }

        impl<E: std::error::Error> From<E> for ApiError {
            fn from(error: E) -> Self {
                Self::Memory(error.to_string())
            }
        }
    }
    #[allow(dead_code, reason = "a form is read chunk by chunk")]
    mod incoming;
    mod multipart;

    const MAX_BYTES: usize = 1 << 20;
    const MAX_PARTS: usize = 256;

    /// Reads a form whose boundary is `b`, in pieces of so many bytes.
    pub(crate) async fn read_in_pieces(form: &[u8], size: usize) -> Option<Fields> {
        let pieces: Vec<_> = form.chunks(size).map(Bytes::copy_from_slice).map(Ok::<_, String>).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let memory = RequestMemory::new(4 * MAX_BYTES, Duration::from_secs(1)).share();
        let mut incoming =
            incoming::Incoming::begin(body, None, MAX_BYTES, 1, memory).await.ok()?;
        multipart::read(&mut incoming, "b", MAX_PARTS).await.ok()
    }
}

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// Bytes held for each byte of the form, which is held once in pieces and once in fields
/// that may have grown to twice their size; a field takes more than its shortest part does.
const MULTIPLE: usize = 16;
const OVERHEAD: usize = 64 << 10;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&size, form)) = input.split_first() else { return };
    LazyLock::force(&RUNTIME);
    let mut whole = None;
    let held = measured::peak(|| whole = read(form, form.len().max(1)));
    assert!(held <= MULTIPLE * form.len() + OVERHEAD, "{held} bytes held for {}", form.len());
    assert_eq!(whole, read(form, usize::from(size).max(1)));
});

fn read(form: &[u8], size: usize) -> Option<fields::Fields> {
    RUNTIME.block_on(api::read_in_pieces(form, size))
}
