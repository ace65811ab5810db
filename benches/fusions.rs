//! What each fusion brings on this machine's CPU: the step in one pass against the
//! composition of candle's operations, in turns, in one run.
//!
//! ```text
//! cargo bench --bench fusions              # float32
//! cargo bench --bench fusions -- bf16 1024 # 16-bit numbers, 1024 image tokens
//! ```
//!
//! Switching off is for good, so the program runs itself: a child without fusions
//! answers each question with the milliseconds it took.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, which stops where something is wrong"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use diffuser_api::allocator::{MiMalloc, keep_freed_memory};
use diffuser_api::nn::fusion::{Fusion, disable};
use diffuser_api::nn::{self, After, CfgRescale, Factors, HeadStream, LayerNorm, RmsNorm};

/// Width, heads and feed-forward width of Qwen-Image's transformer.
const WIDTH: usize = 3072;
const HEADS: usize = 24;
const INNER: usize = 4 * WIDTH;
const TEXT_TOKENS: usize = 64;
/// Runs of each step, of which the fastest counts.
const RUNS: usize = 7;
const CHILD: &str = "--without-fusions";

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    keep_freed_memory();
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let dtype = if arguments.iter().any(|a| a == "bf16") { DType::BF16 } else { DType::F32 };
    let tokens = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(1024);
    let steps = Steps::new(dtype, tokens).unwrap();
    if arguments.iter().any(|argument| argument == CHILD) {
        disable(&Fusion::ALL);
        for line in std::io::stdin().lines() {
            println!("{}", steps.fastest(line.unwrap().parse().unwrap()).unwrap());
        }
        return;
    }
    compare(&steps, &arguments);
}

fn compare(steps: &Steps, arguments: &[String]) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .arg(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut questions = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    println!(
        "| step, {:?}, {} tokens | composed ms | fused ms | ratio |",
        steps.dtype, steps.tokens
    );
    println!("| --- | --- | --- | --- |");
    for (index, name) in Steps::NAMES.iter().enumerate() {
        writeln!(questions, "{index}").unwrap();
        let composed: f64 = answers.next().unwrap().unwrap().parse().unwrap();
        let fused = steps.fastest(index).unwrap();
        println!("| {name} | {composed:.2} | {fused:.2} | {:.2} |", composed / fused);
    }
    drop(questions);
    child.wait().unwrap();
}

/// What the steps work on.
struct Steps {
    dtype: DType,
    tokens: usize,
    tokens_of_image: Tensor,
    tokens_of_text: Tensor,
    factors: Tensor,
    bias: Tensor,
    wide: Tensor,
    wide_bias: Tensor,
    latents: Tensor,
    picture: Tensor,
    scale: Tensor,
    norm: LayerNorm,
    head_norm: RmsNorm,
    row_norm: RmsNorm,
    angles: [Tensor; 2],
}

impl Steps {
    const NAMES: [&str; 9] = [
        "layer norm, modulated",
        "bias, gate, sum",
        "bias, norm, turn, heads",
        "bias, GELU",
        "SiLU, gated",
        "guidance, length kept",
        "Euler step",
        "channel norm, SiLU (96 × 256²)",
        "RMS norm",
    ];

    fn new(dtype: DType, tokens: usize) -> Result<Self> {
        let random =
            |shape: &[usize]| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
        let angles = |tokens| Tensor::randn(0_f32, 1.0, (tokens, WIDTH / HEADS / 2), &Device::Cpu);
        Ok(Self {
            dtype,
            tokens,
            tokens_of_image: random(&[1, tokens, WIDTH])?,
            tokens_of_text: random(&[1, TEXT_TOKENS, WIDTH])?,
            factors: random(&[1, 1, WIDTH])?,
            bias: random(&[WIDTH])?,
            wide: random(&[1, tokens, INNER])?,
            wide_bias: random(&[INNER])?,
            latents: random(&[1, tokens, 64])?,
            picture: random(&[1, 96, 256, 256])?,
            scale: random(&[1, 96, 1, 1])?,
            norm: LayerNorm::new(WIDTH, 1e-6, dtype, &Device::Cpu)?,
            head_norm: RmsNorm::new(random(&[WIDTH / HEADS])?, 1e-6),
            row_norm: RmsNorm::new(random(&[WIDTH])?, 1e-6),
            angles: [angles(tokens)?, angles(TEXT_TOKENS)?],
        })
    }

    /// Milliseconds of step `index`.
    fn fastest(&self, index: usize) -> Result<f64> {
        let mut fastest = f64::INFINITY;
        for _ in 0..RUNS {
            let start = Instant::now();
            self.run(index)?;
            fastest = fastest.min(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(fastest)
    }

    fn run(&self, index: usize) -> Result<Tensor> {
        let (x, factors) = (&self.tokens_of_image, Factors::of_all(&self.factors));
        let stream = |x, angles| HeadStream {
            x,
            bias: Some(&self.bias),
            norm: Some(&self.head_norm),
            rotation: Some((angles, angles)),
        };
        match index {
            0 => nn::modulated_norm(x, &self.norm, factors, factors),
            1 => nn::gated_add(x, x, Some(&self.bias), factors),
            2 => nn::joint_heads(
                stream(&self.tokens_of_text, &self.angles[1]),
                stream(x, &self.angles[0]),
                HEADS,
            ),
            3 => nn::gelu_tanh(&self.wide, Some(&self.wide_bias)),
            4 => nn::gated_silu(&self.wide, &self.wide),
            5 => nn::guide(&self.latents, &(&self.latents * 0.5)?, 4.0, CfgRescale::OfConditional),
            6 => nn::euler_step(&self.latents, &self.latents, -0.1),
            7 => nn::channel_norm(&self.picture, &self.scale, After::Silu),
            _ => self.row_norm.forward(x),
        }
    }
}
