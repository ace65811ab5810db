//! Why a checkpoint's files are not what they should be.

use std::path::PathBuf;

/// Each variant says which file, key or tensor.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file of the checkpoint is missing.
    #[error("checkpoint {checkpoint} has no {file}")]
    MissingFile {
        /// The checkpoint.
        checkpoint: String,
        /// Path inside it.
        file: String,
    },
    /// A component has no weights that can be read.
    #[error("{file}: {reason}")]
    NoWeights {
        /// The file that they would be in: its path inside the checkpoint.
        file: String,
        /// What is missing, what is there instead, and what to do.
        reason: String,
    },
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// Path inside the checkpoint.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Configuration values that this implementation does not honour.
    #[error("{file}: {}", faults.join("; "))]
    Config {
        /// Path inside the checkpoint.
        file: String,
        /// Each key with what is wrong.
        faults: Vec<String>,
    },
    /// Tensors that are missing, unexpected or misshapen.
    #[error("{component}: {}", faults.join("; "))]
    Weights {
        /// The component's folder.
        component: String,
        /// Each tensor with what is wrong.
        faults: Vec<String>,
    },
}
