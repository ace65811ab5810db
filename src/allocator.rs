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

/// mimalloc's number for whether it takes memory for its arenas as a whole
/// (`mi_option_arena_eager_commit`): they are of a GiB and more.
const ARENA_EAGER_COMMIT: libmimalloc_sys::mi_option_t = 4;

/// Has the allocator wait before it returns what is freed, unless the environment tells it
/// how long. Under a limit of this process (`ulimit -d`) it takes no more than is used.
pub fn keep_freed_memory() {
    // SAFETY: it stores a number.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, FREED_MEMORY_IS_KEPT_MS) }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if is_data_limited(&limits) {
        // SAFETY: it stores a number.
        unsafe { libmimalloc_sys::mi_option_set_default(ARENA_EAGER_COMMIT, 0) }
    }
}

/// Whether `limits`, as the system tells them, bound the memory of this process.
fn is_data_limited(limits: &str) -> bool {
    let data = limits.lines().find_map(|line| line.strip_prefix("Max data size"));
    data.and_then(|line| line.split_whitespace().next()).is_some_and(|soft| soft != "unlimited")
}

/// Has the allocator return what is freed now, and not some time after.
pub fn give_memory_back() {
    // SAFETY: it concerns memory that nobody holds, and may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_data_is_read_from_what_the_system_tells() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max cpu time              100                  unlimited            seconds\n\
                 Max data size             {soft:20} unlimited            bytes\n"
            )
        };
        assert!(is_data_limited(&limits("12884901888")));
        assert!(!is_data_limited(&limits("unlimited")));
        assert!(!is_data_limited(""));
    }
}
