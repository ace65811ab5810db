//! Layers that at least two components share, and the steps that are made in one
//! pass. Each layer is loaded from the place in the checkpoint that bears its name,
//! and states its shapes.
#![cfg_attr(
    not(any(feature = "cuda", test)),
    allow(dead_code, reason = "launches of kernels: used with a card, and in tests without one")
)]

mod activation;
mod attention;
mod check;
mod clip;
mod conv;
#[cfg(feature = "cuda")]
mod cublaslt;
mod few_rows;
#[cfg(feature = "flash-attn")]
mod flash;
#[cfg(any(feature = "flash-attn", test))]
mod flash_layout;
mod fp8;
pub mod fusion;
mod gemm;
mod guidance;
mod heads;
pub(crate) mod intermediate;
mod kernels;
mod linear;
mod low_rank;
mod modulation;
mod norm;
mod q8;
mod rows;
mod softmax;
pub mod trace;
mod unfold;
mod widened;

pub use activation::{gated_silu, gelu_erf, gelu_tanh, silu};
pub use attention::{AttentionMask, attention, merge_heads, split_heads};
pub use check::{Family, Sizes, StepCheck, UnknownName, WrongNumber, check};
pub use clip::clip;
pub use conv::{Band, Conv2d, Padding, RollingConv, WaitingRows};
pub use fp8::Fp8Sums;
pub use guidance::{CfgRescale, euler_step, guide};
pub use heads::{HeadStream, joint_heads};
pub use linear::{LayerInput, Linear};
pub use modulation::{Factors, gated_add, modulated_norm};
pub use norm::{After, LayerNorm, RmsNorm, channel_norm};
pub use q8::has_integer_products;
