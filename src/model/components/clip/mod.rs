//! CLIP, as diffusion models have it: a text encoder and its tokenizer.

mod config;
pub mod text_encoder;
pub mod tokenizer;

pub use config::{Activation, EndToken, TextEncoderConfig};
