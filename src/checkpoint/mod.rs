//! Checkpoints in the published Hugging Face layout: a folder with
//! `model_index.json` and one folder a component.
//!
//! [`Snapshot`] finds files, [`ConfigFile`] reads a `config.json` so that no
//! value in it is overlooked, [`Weights`] hands out tensors and keeps account of
//! those that are missing, unexpected or misshapen.

mod config_file;
mod error;
mod snapshot;
mod weights;

pub use config_file::ConfigFile;
pub use error::CheckpointError;
pub use snapshot::{EmbeddedCheckpoint, Snapshot};
pub use weights::Weights;
