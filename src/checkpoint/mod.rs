//! Checkpoints in the published Hugging Face layout: a folder with
//! `model_index.json` and one folder a component.
//!
//! [`Snapshot`] finds files, [`WeightFiles`] says which of them are a component's
//! weights, [`ConfigFile`] reads a `config.json` so that no value in it is
//! overlooked, [`Weights`] hands out tensors and keeps account of those that are
//! missing, unexpected or misshapen; [`Lora`] changes them while they are taken, or the layers
//! made of them while they compute ([`Adapters`]). [`Conversion`] writes a component in another
//! format.

mod config_file;
mod content;
mod convert;
mod device_matrix;
mod error;
mod file_set;
mod float8;
pub mod ggml;
pub mod gguf;
mod listing;
mod lora;
mod mapped;
mod naming;
mod read_speed;
mod rotation;
mod scales;
mod snapshot;
mod storage;
mod tensor_files;
#[cfg(feature = "cuda")]
mod upload;
mod vectorised;
mod weight_files;
mod weights;

pub use config_file::{ConfigFile, LARGEST_WIDTH, MOST_LAYERS};
pub use content::text;
pub use convert::{
    ComponentLayout, Conversion, ConvertError, OutputFormat, Progress, UnknownFormat, Written,
};
pub use device_matrix::DeviceMatrix;
pub use error::CheckpointError;
pub use file_set::{ComponentFile, FileSet};
pub(crate) use float8::{from_e4m3, to_e4m3};
pub use listing::{FileFormat, FileListing};
pub use lora::{ActiveAdapters, AdapterSlot, Adapters, Lora, LoraLayers, LowRank};
pub use mapped::{MappedElements, MappedMatrix, QuantizedRows};
pub use naming::Naming;
pub use read_speed::ReadSpeed;
pub use snapshot::{EmbeddedCheckpoint, Snapshot};
pub(crate) use vectorised::vectorised;
pub use weight_files::{WeightFile, WeightFiles, is_file_name, shards};
pub use weights::{CheckedTensors, MatrixFormat, Weights};
