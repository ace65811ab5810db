//! Where the files of a model may lie: together, or where ComfyUI keeps each kind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::model::file_source::LocalFile;

/// ComfyUI's folders of weights, the older names too.
const COMFY_FOLDERS: [&str; 6] =
    ["checkpoints", "diffusion_models", "unet", "text_encoders", "clip", "vae"];
/// Folders that hold those.
const COMFY_ROOTS: [&str; 2] = ["models", "split_files"];
/// Folders in which repositories of GGUF files keep what goes with them.
const COMPANIONS: [&str; 4] = ["VAE", "mmproj", "text_encoder", "vae"];

/// Files of weights in the folder `path` and where ComfyUI has them below it.
pub(super) fn inside(path: &Path) -> Vec<PathBuf> {
    let roots = COMFY_ROOTS.iter().map(|root| path.join(root));
    let roots = [path.to_owned()].into_iter().chain(roots);
    let below = |root: PathBuf| {
        let names = COMFY_FOLDERS.iter().chain(&COMPANIONS);
        let mut folders: Vec<PathBuf> = names.map(|name| root.join(name)).collect();
        folders.push(root);
        folders
    };
    files(roots.flat_map(below))
}

/// Files of weights that may go with `files`: those beside them and in the repositories that
/// they are of; each once, and none of `files`.
pub(super) fn around(files: &[&LocalFile]) -> Vec<PathBuf> {
    let own = files.iter().map(|file| canonical(&file.path));
    let mut seen: BTreeSet<PathBuf> = own.collect();
    let mut around: Vec<PathBuf> = files.iter().flat_map(|file| beside(&file.path)).collect();
    let repositories = files.iter().filter_map(|file| file.repository.as_deref());
    around.extend(repositories.flat_map(inside));
    around.retain(|path| seen.insert(canonical(path)));
    around
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Files of weights that may go with the file `path`.
pub(super) fn beside(path: &Path) -> Vec<PathBuf> {
    let own = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let own = own.unwrap_or(Path::new("."));
    let companions = COMPANIONS.iter().map(|name| own.join(name));
    let mut folders: Vec<PathBuf> = [own.to_owned()].into_iter().chain(companions).collect();
    let is_comfy = own.file_name().is_some_and(|name| COMFY_FOLDERS.iter().any(|one| name == *one));
    if let Some(root) = own.parent().filter(|_| is_comfy) {
        folders.extend(COMFY_FOLDERS.iter().map(|name| root.join(name)));
    }
    let mut found = files(folders.into_iter());
    found.retain(|other| other != path);
    found
}

/// The files of weights right in `folders`, each once.
fn files(folders: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let entries = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    let paths = entries.flatten().map(|entry| entry.path());
    let is_weights = |path: &PathBuf| has_ending_of_weights(path) && path.is_file();
    let mut found: Vec<PathBuf> = paths.filter(is_weights).collect();
    // On some systems names differ by case alone for one folder.
    found.sort_by_key(|path| canonical(path));
    found.dedup_by_key(|path| canonical(path));
    found
}

/// Whether the file's name ends as those of weights do.
pub(super) fn has_ending_of_weights(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| ["safetensors", "sft", "gguf"].contains(&ending.as_str()))
}
