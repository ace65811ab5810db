//! Runs the kernels on a CPU, compiled by the C compiler, for tests.
//!
//! Linux only, for its fibers (`ucontext.h`).
#![expect(unsafe_code, reason = "calls the kernels through the C interface")]

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{c_int, c_longlong, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use candle_core::{DType, Device, Result, Tensor, WithDType};
use half::{bf16, f16};
use libloading::{Library, Symbol};

use super::{Element, Launch, Operation};

type Kernel = unsafe extern "C" fn(*const c_void);
type Emulate = unsafe extern "C" fn(Kernel, *const c_void, *const EmulatedLaunch) -> c_int;
type Line = unsafe extern "C" fn() -> c_int;

/// Elements before and after what a kernel writes, which must stay as they are.
const MARGIN: usize = 64;
/// What the C compiler checks. Overflow of what has no sign is defined.
const CHECKS: &str = "-fsanitize=signed-integer-overflow,integer-divide-by-zero,shift,bounds";

/// As `emulation.h` declares it.
#[repr(C)]
struct EmulatedLaunch {
    blocks: c_longlong,
    first: c_longlong,
    end: c_longlong,
    threads: c_int,
    shared_bytes: c_int,
    ranges: *const Range,
    range_count: c_int,
}

/// Memory that a kernel may touch; as `emulation.h` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u64,
    end: u64,
    writable: c_int,
}

/// The kernels, for each dtype and pack. An emulation keeps its state in
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
    let [object, library] = ["o", "so"].map(|end| folder.join(format!("{format}_{pack}.{end}")));
    let mut compiler = Command::new("cc");
    compiler
        .args(["-x", "c", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-c", "-fPIC"])
        // No fused multiply-add, so that both sides round alike.
        .args(["-ffp-contract=off", CHECKS])
        .args([format!("-DNUMBER_{format}"), format!("-DPACK={pack}")])
        .arg("-o")
        .arg(&object)
        .arg(sources.join("all.cu"));
    // Linked apart: the checks call emulation.h, not the compiler's own library.
    let mut linker = Command::new("cc");
    linker.arg("-shared").arg("-o").arg(&library).arg(&object).arg("-lm");
    for command in [&mut compiler, &mut linker] {
        let status = command.status().expect("a C compiler is needed for the kernels' tests");
        assert!(status.success(), "the kernels do not compile as C");
    }
    // SAFETY: made a moment ago, of functions without initialisers.
    unsafe { Library::new(&library) }.unwrap()
}

/// What makes steps in one pass, in a test's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nn) enum Maker {
    /// A CPU's loops.
    Loops,
    /// The kernels.
    Kernels,
    /// The first, a middle one and the last two blocks of each kernel: the rest stays
    /// zero, and takes no memory.
    Ends,
}

thread_local! {
    static MAKER: Cell<Maker> = const { Cell::new(Maker::Loops) };
    static LAUNCHED: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
    static RANGES: RefCell<Vec<Range>> = const { RefCell::new(Vec::new()) };
}

/// What `work` makes, and the kernels that were launched for it.
pub(in crate::nn) fn made_by<R>(
    maker: Maker,
    work: impl FnOnce() -> R,
) -> (R, BTreeSet<&'static str>) {
    let before = MAKER.replace(maker);
    LAUNCHED.take();
    let made = work();
    MAKER.set(before);
    (made, LAUNCHED.take())
}

/// What an operation makes, where loops are not to make it.
pub(super) fn instead_of_loop<O: Operation>(operation: &O) -> Option<Result<Tensor>> {
    (MAKER.get() != Maker::Loops).then(|| emulate(operation))
}

/// Notes that a launch is going to be told of the tensor at `address`.
pub(super) fn note_address(address: u64, x: &Tensor) {
    let dims = x.dims().iter().zip(x.stride());
    let last: usize = dims.map(|(dim, stride)| dim.saturating_sub(1) * stride).sum();
    let numbers = if x.elem_count() == 0 { 0 } else { last + 1 };
    let bytes = (numbers * x.dtype().size_in_bytes()) as u64;
    RANGES.with_borrow_mut(|ranges| {
        ranges.push(Range { first: address, end: address + bytes, writable: 0 });
    });
}

/// What the kernel of `operation` makes.
///
/// Panics if it hangs, touches what is not its own, computes with what does not fit a
/// number, or is launched as no GPU could.
pub(in crate::nn) fn emulate<O: Operation>(operation: &O) -> Result<Tensor> {
    match (operation.format(), MAKER.get()) {
        (DType::F32, Maker::Ends) => emulate_ends::<f32, O>(operation, "F32"),
        (DType::BF16, Maker::Ends) => emulate_ends::<bf16, O>(operation, "BF16"),
        (DType::F16, Maker::Ends) => emulate_ends::<f16, O>(operation, "F16"),
        (DType::F32, _) => emulate_as::<f32, O>(operation, "F32"),
        (DType::BF16, _) => emulate_as::<bf16, O>(operation, "BF16"),
        (DType::F16, _) => emulate_as::<f16, O>(operation, "F16"),
        (other, _) => candle_core::bail!("no emulation of {other:?}"),
    }
}

fn emulate_as<N: Element, O: Operation>(operation: &O, format: &'static str) -> Result<Tensor> {
    let shape = operation.shape();
    // As a GPU would: the result begins at a multiple of 256 bytes.
    let whole = MARGIN + shape.elem_count() + MARGIN;
    let untouched = O::Made::<N>::from_f64(123.0);
    let mut buffer = vec![untouched; whole + 256];
    let start = MARGIN + buffer[MARGIN..].as_ptr().align_offset(256);
    let end = start + shape.elem_count();
    if start < end {
        launch(operation, format, &mut buffer[start..end], |blocks| vec![(0, blocks)])?;
    }

    let outside = buffer[..start].iter().chain(&buffer[end..]);
    assert!(outside.clone().all(|&number| number == untouched), "{} writes outside", O::NAME);
    Tensor::from_vec(buffer[start..end].to_vec(), shape, &Device::Cpu)
}

fn emulate_ends<N: Element, O: Operation>(operation: &O, format: &'static str) -> Result<Tensor> {
    let shape = operation.shape();
    let mut made = zeros::<O::Made<N>>(shape.elem_count());
    let ends = |blocks: c_longlong| {
        vec![(0, 1), (blocks / 2, blocks / 2 + 1), ((blocks - 2).max(0), blocks)]
    };
    launch(operation, format, &mut made, ends)?;
    Tensor::from_vec(made, shape, &Device::Cpu)
}

/// Runs those of the blocks of an operation that `parts` names, into `made`.
fn launch<O: Operation, M>(
    operation: &O,
    format: &'static str,
    made: &mut [M],
    parts: impl FnOnce(c_longlong) -> Vec<(c_longlong, c_longlong)>,
) -> Result<()> {
    RANGES.take();
    let bytes = made.as_mut_ptr_range();
    let (first, end) = (bytes.start as u64, bytes.end as u64);
    let launch = operation.launch(first)?;
    launch.expect_launchable()?;
    let mut ranges = RANGES.take();
    ranges.push(Range { first, end, writable: 1 });
    LAUNCHED.with_borrow_mut(|launched| launched.insert(launch.kernel));
    let blocks = c_longlong::try_from(launch.blocks).unwrap();
    for (first, end) in parts(blocks) {
        run(&launch, format, (first, end), &ranges);
    }
    Ok(())
}

fn run<Call>(
    launch: &Launch<Call>,
    format: &'static str,
    (first, end): (c_longlong, c_longlong),
    ranges: &[Range],
) {
    let library =
        LIBRARIES[&(format, launch.pack)].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: all are functions of the kernels' sources of these types.
    let (kernel, emulate, line): (Symbol<Kernel>, Symbol<Emulate>, Symbol<Line>) = unsafe {
        (
            library.get(launch.kernel.as_bytes()).unwrap(),
            library.get(b"emulate").unwrap(),
            library.get(b"emulated_line").unwrap(),
        )
    };
    let emulated = EmulatedLaunch {
        blocks: c_longlong::try_from(launch.blocks).unwrap(),
        first,
        end,
        threads: c_int::try_from(launch.threads).unwrap(),
        shared_bytes: c_int::try_from(launch.shared * size_of::<f32>()).unwrap(),
        ranges: ranges.as_ptr(),
        range_count: c_int::try_from(ranges.len()).unwrap(),
    };
    let argument = (&raw const launch.call).cast::<c_void>();
    // SAFETY: the addresses in the call are of tensors that the caller holds and of
    // its buffer; the emulation stops a kernel that strays from them.
    let (fault, line) = unsafe { (emulate(*kernel, argument, &raw const emulated), line()) };
    let faults = [
        "",
        "waits for ever",
        "cannot be launched",
        "overflows shared memory",
        "misaligned",
        "reads outside its tensors",
        "writes outside its tensors",
        "computes with what does not fit its type",
        "waits at two barriers",
    ];
    assert_eq!(fault, 0, "{} {}, line {line}", launch.kernel, faults[fault as usize]);
}

/// Elements that take memory only once they are touched, if there are many.
pub(super) fn zeros<T: WithDType>(count: usize) -> Vec<T> {
    let layout = Layout::array::<T>(count).unwrap();
    assert!(layout.size() > 0);
    // SAFETY: as a vector of `count` elements would be; all bytes zero are elements.
    unsafe {
        let first = std::alloc::alloc_zeroed(layout).cast::<T>();
        assert!(!first.is_null(), "no room for {count} numbers");
        Vec::from_raw_parts(first, count, count)
    }
}

/// `x` inside a larger storage of NaN: what is read beside it spoils the result.
pub(in crate::nn) fn in_nan(x: &Tensor) -> Tensor {
    let nan = Tensor::full(f32::NAN, 64, &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap();
    let count = x.elem_count();
    let flat = Tensor::cat(&[&nan, &x.flatten_all().unwrap(), &nan], 0).unwrap();
    flat.narrow(0, 64, count).unwrap().reshape(x.shape()).unwrap()
}

/// Elements of mean 0 that repeat nowhere, in `dtype` and inside NaN.
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

/// The dtypes, each with the difference that two orders of summing
/// elements of about `size` may make: one unit in the last place of each format
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
