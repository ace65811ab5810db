//! Which file a LoRA's path means.

use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;

/// Names that libraries give their files, the likelier first.
const USUAL_NAMES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/// Endings of files that hold Python objects: what they do when they are read cannot
/// be told before.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// The safetensors file that `path` means: itself, or the one in that folder.
///
/// # Errors
/// [`CheckpointError::Malformed`] if a folder has none, or several, or the file is a
/// pickle.
pub(super) fn find(path: &Path) -> Result<PathBuf, CheckpointError> {
    let malformed = |path: &Path, reason| CheckpointError::Malformed {
        file: path.display().to_string(),
        reason,
    };
    if !path.is_dir() {
        return if path.exists() && is_pickle(path) {
            Err(malformed(path, pickled()))
        } else {
            Ok(path.to_owned())
        };
    }
    if let Some(usual) = USUAL_NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file())
    {
        return Ok(usual);
    }
    let files = entries(path)?;
    let safetensors: Vec<&PathBuf> = files.iter().filter(|file| has(file, "safetensors")).collect();
    match (safetensors.as_slice(), files.iter().find(|file| is_pickle(file))) {
        ([only], _) => Ok((*only).clone()),
        ([], Some(pickle)) => Err(malformed(pickle, pickled())),
        ([], None) => Err(malformed(path, format!("is a folder without {}", USUAL_NAMES[0]))),
        (several, _) => {
            let names: Vec<_> = several.iter().filter_map(|file| file.file_name()).collect();
            let names: Vec<_> = names.iter().take(10).map(|name| name.to_string_lossy()).collect();
            let reason = format!("is a folder of several files: name one of {}", names.join(", "));
            Err(malformed(path, reason))
        }
    }
}

fn pickled() -> String {
    "is a pickled file, which is not read: save the LoRA as safetensors".to_owned()
}

fn is_pickle(path: &Path) -> bool {
    PICKLES.iter().any(|ending| has(path, ending))
}

fn has(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(ending))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>().map_err(unreadable)?;
    paths.sort();
    Ok(paths)
}
