//! The threads that compute on a CPU: their number is settled once, before there are any.
//!
//! Our loops, products and scaled pictures run on rayon's pool. It would have as many
//! threads as [`std::thread::available_parallelism`] says, which minds the affinity mask and
//! the quota of a control group (v1 and v2). The tensor library has threads of its own, and
//! cuts products for as many as the machine has cores, whatever part of it is ours, unless
//! variables say otherwise: it can be told in no other way.

use std::num::NonZeroUsize;

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

/// By which the tensor library learns how many threads there are: for products, and for
/// what it does number by number.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Has everything compute with `wanted` threads, or as many as this process may use at a
/// time; returns how many that are. To be called first of all: while there is one thread.
///
/// # Errors
/// If the system gives no threads, or the pool has been started before.
pub fn start(wanted: Option<NonZeroUsize>) -> Result<usize, ThreadPoolBuildError> {
    let threads =
        wanted.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    for variable in VARIABLES {
        tell(variable, threads);
    }
    let name = |index| format!("compute-{index}");
    ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build_global()?;
    Ok(threads)
}

#[expect(unsafe_code, clippy::disallowed_methods, reason = "a library reads nothing else")]
fn tell(variable: &str, threads: usize) {
    // SAFETY: there is no other thread yet that could read the environment meanwhile.
    unsafe { std::env::set_var(variable, threads.to_string()) }
}
