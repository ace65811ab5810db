//! Runs the kernels on a CPU, compiled by the C compiler, for tests.
//!
//! Linux only, for its fibers (`ucontext.h`).
#![expect(unsafe_code, reason = "calls the kernels through the C interface")]

use std::collections::HashMap;
use std::ffi::{c_int, c_longlong, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use candle_core::{DType, Device, Result, Tensor, WithDType};
use half::{bf16, f16};
use libloading::{Library, Symbol};

use super::{Launch, Number, Operation};

type Kernel = unsafe extern "C" fn(*const c_void);
type Emulate = unsafe extern "C" fn(Kernel, *const c_void, c_longlong, c_int, c_int) -> c_int;

/// Numbers before and after what a kernel writes, which must stay as they are.
const MARGIN: usize = 64;

/// The kernels, for each number format and pack. An emulation keeps its state in
/// static variables: one launch at a time.
static LIBRARIES: LazyLock<HashMap<(&str, usize), Mutex<Library>>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let formats = ["BF16", "F16", "F32"].into_iter();
    formats
        .flat_map(|format| [(format, 1), (format, 4)])
        .map(|key| (key, Mutex::new(compile(key, folder.path()))))
        .collect()
});

fn compile((format, pack): (&str, usize), folder: &Path) -> Library {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/nn/kernels");
    let library = folder.join(format!("{format}_{pack}.so"));
    let status = Command::new("cc")
        .args(["-x", "c", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra"])
        // No fused multiply-add, so that both sides round alike.
        .args(["-ffp-contract=off", "-shared", "-fPIC"])
        .args([format!("-DNUMBER_{format}"), format!("-DPACK={pack}")])
        .arg("-o")
        .arg(&library)
        .arg(sources.join("all.cu"))
        .arg("-lm")
        .status()
        .expect("a C compiler is needed for the kernels' tests");
    assert!(status.success(), "the kernels do not compile as C");
    // SAFETY: made a moment ago, of functions without initialisers.
    unsafe { Library::new(&library) }.unwrap()
}

/// What the kernel of `operation` makes.
///
/// Panics if it hangs, writes outside its result, or is launched as no card could.
#[expect(clippy::wildcard_enum_match_arm, reason = "kernels know three formats")]
pub(in crate::nn) fn emulate<O: Operation>(operation: &O) -> Result<Tensor> {
    match operation.format() {
        DType::F32 => emulate_as::<f32, O>(operation, "F32"),
        DType::BF16 => emulate_as::<bf16, O>(operation, "BF16"),
        DType::F16 => emulate_as::<f16, O>(operation, "F16"),
        other => candle_core::bail!("no emulation of {other:?}"),
    }
}

fn emulate_as<N: Number, O: Operation>(operation: &O, format: &'static str) -> Result<Tensor> {
    let shape = operation.shape();
    // As a card would: the result begins at a multiple of 256 bytes.
    let whole = MARGIN + shape.elem_count() + MARGIN;
    let untouched = O::Made::<N>::from_f64(123.0);
    let mut buffer = vec![untouched; whole + 256];
    let start = MARGIN + buffer[MARGIN..].as_ptr().align_offset(256);
    let made = buffer[start..].as_mut_ptr() as u64;

    launch(&operation.launch(made)?, format);

    let end = start + shape.elem_count();
    let outside = buffer[..start].iter().chain(&buffer[end..]);
    assert!(outside.clone().all(|&number| number == untouched), "{} writes outside", O::NAME);
    Tensor::from_vec(buffer[start..end].to_vec(), shape, &Device::Cpu)
}

fn launch<Call>(launch: &Launch<Call>, format: &'static str) {
    let library =
        LIBRARIES[&(format, launch.pack)].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: both are functions of the kernels' sources of these types.
    let (kernel, emulate): (Symbol<Kernel>, Symbol<Emulate>) = unsafe {
        (library.get(launch.kernel.as_bytes()).unwrap(), library.get(b"emulate").unwrap())
    };
    let argument = (&raw const launch.call).cast::<c_void>();
    let shared_bytes = c_int::try_from(launch.shared * size_of::<f32>()).unwrap();
    let (blocks, threads) =
        (c_longlong::try_from(launch.blocks).unwrap(), c_int::try_from(launch.threads).unwrap());
    // SAFETY: the addresses in the call are of tensors that the caller holds and of
    // its buffer. Where a kernel strays from them, this test program may crash.
    let result = unsafe { emulate(*kernel, argument, blocks, threads, shared_bytes) };
    let fault =
        ["", "waits for ever", "cannot be launched", "overflows shared memory", "misaligned"];
    assert_eq!(result, 0, "{} {}", launch.kernel, fault[result as usize]);
}

/// `x` inside a larger storage of NaN: what is read beside it spoils the result.
pub(in crate::nn) fn in_nan(x: &Tensor) -> Tensor {
    let nan = Tensor::full(f32::NAN, 64, &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap();
    let count = x.elem_count();
    let flat = Tensor::cat(&[&nan, &x.flatten_all().unwrap(), &nan], 0).unwrap();
    flat.narrow(0, 64, count).unwrap().reshape(x.shape()).unwrap()
}

/// Numbers of mean 0 that repeat nowhere, in `dtype` and inside NaN.
pub(in crate::nn) fn numbers(shape: &[usize], seed: u32, dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let list: Vec<f32> = (0..count)
        .map(|_| {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32 - 0.5) * 4.0
        })
        .collect();
    in_nan(&Tensor::from_vec(list, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap())
}

/// The number formats, each with the difference that two orders of summing
/// numbers of about `size` may make: one unit in the last place of each format
/// where a sum falls near a rounding boundary, a few in 32 bits.
pub(in crate::nn) fn formats(size: f64) -> [(DType, f64); 3] {
    [(DType::F32, size * 2e-6), (DType::BF16, size / 128.0), (DType::F16, size / 1024.0)]
}

/// Fails unless `ours` and `theirs` have one shape and differ by `tolerance` at most.
#[track_caller]
pub(in crate::nn) fn assert_close(ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.dims(), theirs.dims());
    let list = |x: &Tensor| -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    for (index, (ours, theirs)) in list(ours).into_iter().zip(list(theirs)).enumerate() {
        let difference = f64::from((ours - theirs).abs());
        // Written so that NaN fails.
        assert!(difference <= tolerance, "number {index}: {ours} for {theirs}");
    }
}
