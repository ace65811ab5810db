//! The kernels of a CPU one by one, at the shapes of Qwen-Image's pictures of 512x512, and
//! torch beside each of them: milliseconds, the fastest of some, in turns.
//!
//! ```text
//! cargo bench --bench kernels                                  # ours alone
//! cargo bench --bench kernels -- --threads 1 --torch python    # with torch, by that Python
//! cargo bench --bench kernels -- --only attention              # kernels whose line has this word
//! ```
//!
//! `tools/bench/torch_kernels.py` reads the lines below and answers with torch's time.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, which stops where something is wrong"
)]

use std::io::{BufRead, BufReader, Lines, Write};
use std::num::NonZeroUsize;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use diffuser_api::allocator::{MiMalloc, keep_freed_memory};
use diffuser_api::checkpoint::{MatrixFormat, Weights};
use diffuser_api::nn::{AttentionMask, Conv2d, Linear, Padding, attention};
use diffuser_api::threads;

/// Of the runs of each kernel the fastest counts. There are at least so many, and as many
/// as this time has room for.
const FEWEST_RUNS: usize = 5;
const SECONDS: f64 = 1.5;
const TORCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/bench/torch_kernels.py");

/// Kind, format and numbers of each kernel:
/// product FORMAT tokens inputs outputs;
/// attention FORMAT heads key-heads tokens size all|causal;
/// convolution FORMAT inputs outputs side kernel stride.
const KERNELS: [&str; 27] = [
    "product float32 41 3584 18944",
    "product float32 122 3584 18944",
    "product bfloat16 122 3584 18944",
    "product float32 122 12288 3072",
    "product float32 256 3072 12288",
    "product float32 634 3072 3072",
    "product float32 2458 3072 3072",
    "product float32 2458 3072 12288",
    "product float32 2458 12288 3072",
    "product float32 1410 3584 18944",
    "product bfloat16 2458 3072 12288",
    "product bfloat16 2458 12288 3072",
    "product q8_0 2458 3072 12288",
    "product q8_0 2458 12288 3072",
    "attention float32 24 24 634 128 all",
    "attention float32 24 24 2458 128 all",
    "attention bfloat16 24 24 2458 128 all",
    "attention float32 28 4 1410 128 causal",
    "attention float32 16 16 1024 80 all",
    "attention float32 1 1 4096 384 all",
    "convolution float32 96 96 512 3 1",
    "convolution float32 192 192 256 3 1",
    "convolution float32 384 384 64 3 1",
    "convolution float32 384 192 128 1 1",
    "convolution float32 96 3 512 3 1",
    "convolution float32 96 96 512 3 2",
    "convolution bfloat16 192 192 256 3 1",
];

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    keep_freed_memory();
    let arguments = Arguments::parse();
    let count = threads::start(arguments.threads).unwrap();
    let mut torch = arguments.torch.map(|python| Torch::start(&python, count));
    println!("{count} threads");
    println!("| kernel | ours ms | GFLOP/s | torch ms | ratio |\n| --- | --- | --- | --- | --- |");
    for line in KERNELS.iter().filter(|line| line.contains(&arguments.only)) {
        let (ms, operations) = fastest(line).unwrap();
        let rate = operations / ms / 1e6;
        let theirs = torch.as_mut().map(|torch| torch.ask(line));
        let beside =
            theirs.map_or("| |".into(), |other| format!("{other:.1} | {:.2} |", ms / other));
        println!("| {line} | {ms:.1} | {rate:.0} | {beside}");
    }
}

#[derive(Default)]
struct Arguments {
    threads: Option<NonZeroUsize>,
    torch: Option<String>,
    only: String,
}

impl Arguments {
    fn parse() -> Self {
        let mut made = Self::default();
        let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(name) = given.next() {
            let value = given.next().unwrap();
            match name.as_str() {
                "--threads" => made.threads = Some(value.parse().unwrap()),
                "--torch" => made.torch = Some(value),
                "--only" => made.only = value,
                other => panic!("{other} is not known: --threads, --torch, --only"),
            }
        }
        made
    }
}

/// Torch's side, which answers a line with a line.
struct Torch {
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Torch {
    fn start(python: &str, threads: usize) -> Self {
        let mut child = Command::new(python)
            .args([TORCH, &threads.to_string(), &FEWEST_RUNS.to_string(), &SECONDS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut started = Self { questions, answers, _child: child };
        // Until it has loaded, it takes a core from ours.
        started.ask("product float32 1 1 1");
        started
    }

    fn ask(&mut self, line: &str) -> f64 {
        writeln!(self.questions, "{line}").unwrap();
        self.answers.next().unwrap().unwrap().parse().unwrap()
    }
}

/// Milliseconds of the kernel that `line` names, and its floating-point operations.
fn fastest(line: &str) -> Result<(f64, f64)> {
    let words: Vec<&str> = line.split(' ').collect();
    let numbers: Vec<usize> = words[2..].iter().filter_map(|word| word.parse().ok()).collect();
    let is_causal = words.last() == Some(&"causal");
    match (words[0], &numbers[..]) {
        ("product", &[tokens, inputs, outputs]) => product(words[1], tokens, inputs, outputs),
        ("attention", &[heads, key_heads, tokens, size]) => {
            attend(dtype(words[1]), [heads, key_heads], tokens, size, is_causal)
        }
        ("convolution", &[inputs, outputs, side, kernel, stride]) => {
            convolve(dtype(words[1]), [inputs, outputs], side, kernel, stride)
        }
        _ => panic!("{line}"),
    }
}

fn dtype(name: &str) -> DType {
    match name {
        "bfloat16" => DType::BF16,
        _ => DType::F32,
    }
}

fn product(format: &str, tokens: usize, inputs: usize, outputs: usize) -> Result<(f64, f64)> {
    let matrices = match format {
        "q8_0" => MatrixFormat::Q8_0,
        _ => MatrixFormat::AsComputed,
    };
    let weights = Weights::random("kernel", (dtype(format), &Device::Cpu)).with_matrices(matrices);
    let layer = Linear::load_quantizable_without_bias(&weights, inputs, outputs)?;
    let x = random((tokens, inputs), dtype(format))?;
    let operations = 2.0 * (tokens * inputs * outputs) as f64;
    Ok((timed(|| layer.forward(&x))?, operations))
}

fn attend(
    dtype: DType,
    [heads, key_heads]: [usize; 2],
    tokens: usize,
    size: usize,
    is_causal: bool,
) -> Result<(f64, f64)> {
    let q = random((1, heads, tokens, size), dtype)?;
    let [k, v] = [(); 2].map(|()| random((1, key_heads, tokens, size), dtype).unwrap());
    let mask = if is_causal { AttentionMask::Causal } else { AttentionMask::None };
    let pairs = tokens * tokens / (1 + usize::from(is_causal));
    Ok((timed(|| attention(&q, &k, &v, mask))?, 4.0 * (heads * size * pairs) as f64))
}

fn convolve(
    dtype: DType,
    [inputs, outputs]: [usize; 2],
    side: usize,
    kernel: usize,
    stride: usize,
) -> Result<(f64, f64)> {
    let weight = random((outputs, inputs, kernel, kernel), dtype)?;
    let padding = match stride {
        1 => Padding::Around(kernel / 2),
        _ => Padding::RightBottom,
    };
    let convolution = Conv2d::new(&weight, &random((outputs,), dtype)?, padding, stride)?;
    let x = random((1, inputs, side, side), dtype)?;
    let places = (side / stride).pow(2);
    let operations = 2.0 * (inputs * outputs * kernel.pow(2) * places) as f64;
    Ok((timed(|| convolution.forward(&x))?, operations))
}

fn random(shape: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)?.to_dtype(dtype)
}

fn timed(run: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let (mut best, mut count) = (f64::INFINITY, 0);
    let begun = Instant::now();
    while count < FEWEST_RUNS || begun.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        std::hint::black_box(run()?);
        best = best.min(1000.0 * start.elapsed().as_secs_f64());
        count += 1;
    }
    Ok(best)
}
