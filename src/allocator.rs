//! The allocator of the program, which keeps freed memory while a picture is made and gives
//! it back at rest. glibc's keeps what large bodies took.
//!
//! A program that wants it names [`MiMalloc`] its global allocator, and calls
//! [`keep_freed_memory`] first of all.
#![expect(unsafe_code, reason = "calls of a C library")]

pub use mimalloc::MiMalloc;

/// How long freed memory is kept for who asks next, unless it is asked for back: a network
/// makes hundreds of large tensors a second, and each page that comes anew is cleared first.
const FREED_MEMORY_IS_KEPT_MS: std::ffi::c_long = 60_000;
/// mimalloc's number for that (`mi_option_purge_delay` of mimalloc.h), which its crate does
/// not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Has the allocator wait before it returns what is freed, unless the environment tells it
/// how long.
pub fn keep_freed_memory() {
    // SAFETY: it stores a number.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, FREED_MEMORY_IS_KEPT_MS) }
}

/// Has the allocator return what is freed now, and not some time after.
pub fn give_memory_back() {
    // SAFETY: it concerns memory that nobody holds, and may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
