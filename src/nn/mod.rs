//! Layers that at least two components share. Each is loaded from the place in
//! the checkpoint that bears its name, and states its shapes.

mod activation;
mod attention;
mod conv;
mod linear;
mod norm;
mod softmax;

pub use activation::{gelu_erf, gelu_tanh, silu};
pub use attention::{AttentionMask, attention, merge_heads, repeat_heads, split_heads};
pub use conv::{Conv2d, Padding};
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
