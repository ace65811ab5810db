//! What families of models share: networks, tokenizers, schedules, noise, and what watches
//! over them. A family's own parts lie in its folder.

pub mod autoencoder_kl;
pub mod clip;
pub(super) mod finite;
pub mod flow_match;
pub(super) mod keys;
pub(crate) mod latents;
pub(super) mod layers;
pub mod noise;
pub(super) mod operations;
pub(super) mod speed;
pub(super) mod tokenizer_files;
pub(super) mod watched;
