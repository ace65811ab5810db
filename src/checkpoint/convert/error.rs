//! Why a component is not written.

use std::path::PathBuf;

use indicatif::BinaryBytes;

use super::super::CheckpointError;
use super::super::gguf::GgufWriteError;
use super::OutputFormat;

/// Each variant says which file or tensor, and what would do.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// What is to be converted cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is a file of that name.
    #[error("{} is there already: --force overwrites it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The name ends as those of another format do.
    #[error("{}: a {format} file is called *.{}", path.display(), format.ending())]
    Ending {
        /// The file.
        path: PathBuf,
        /// What is to be written.
        format: OutputFormat,
    },
    /// Another run is writing it.
    #[error("{} is being written by another run", path.display())]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// GGUF has other names and other tensors for this component.
    #[error(
        "{format} is GGUF, which is written of a transformer only: take bf16, f16, f32 or fp8 for the {component}"
    )]
    NoGguf {
        /// Its folder in the published layout.
        component: &'static str,
        /// What was asked for.
        format: OutputFormat,
    },
    /// The component has no matrices in blocks.
    #[error("the {component} has no matrices to write as {format}: take bf16, f16 or f32")]
    NothingToQuantize {
        /// Its folder in the published layout.
        component: &'static str,
        /// What was asked for.
        format: OutputFormat,
    },
    /// Blocks or some of their tensors are not there.
    #[error("the {component} is not whole: {reason}")]
    Incomplete {
        /// Its folder in the published layout.
        component: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A tensor that cannot be written.
    #[error("{name}: {reason}")]
    Tensor {
        /// What it is called.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The system refuses, for want of room for example.
    #[error("cannot write {}, which takes {}", path.display(), BinaryBytes(*bytes))]
    Write {
        /// The file.
        path: PathBuf,
        /// How large it will be.
        bytes: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tensor or a value that GGUF cannot hold.
    #[error("cannot write GGUF")]
    Gguf(#[source] GgufWriteError),
}
