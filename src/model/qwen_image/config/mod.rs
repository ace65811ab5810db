//! The configuration files of the components, held against what is implemented.
//!
//! Accounted for is every key that the reference's classes read, and keys of their
//! relatives that would change what is computed; libraries add others when they save
//! a pipeline again.
//!
//! Sources: the published `config.json` files, and diffusers 0.42.1 and
//! transformers 5.23 for what each key does.

mod processor;
mod text_encoder;
mod transformer;
mod vae;

pub use processor::ProcessorConfig;
pub use text_encoder::{TextConfig, TextEncoderConfig, VisionConfig};
pub use transformer::TransformerConfig;
pub use vae::VaeConfig;

/// What `numbers` add up to, if that is a number.
fn sum_of(numbers: [usize; 3]) -> Option<usize> {
    numbers.iter().try_fold(0, |sum: usize, number| sum.checked_add(*number))
}
