//! The LoRAs that requests may name: what lies in one folder, looked at anew each time.
//!
//! A name is a safetensors file without its ending, or a folder with one such file. It is
//! looked up in the folder's list and never made into a path, so none leads out of it. A
//! file must be replaced by renaming: one that changes while it is read is not safe.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use candle_core::{DType, Device};

use super::ModelError;
use super::cache::{ContentCache, ContentHash};
use crate::checkpoint::{ActiveAdapters, Adapters, CheckpointError, Lora, LoraLayers};
use crate::domain::{RequestLora, RequestLoras};

/// Bytes of matrices that are kept for requests that name the same file again: two or
/// three of the largest that are published.
pub(super) const KEPT_BYTES: usize = 2 << 30;
/// How many names a refusal lists.
const LISTED_NAMES: usize = 20;

/// The LoRAs that requests to a model may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraNames {
    /// What lies in a folder, at any time.
    Folder(PathBuf),
    /// These, which are somewhere else.
    Listed(Vec<String>),
}

impl LoraNames {
    /// The names, sorted. May look into a folder.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        match self {
            Self::Folder(folder) => files_by_name(folder).into_keys().collect(),
            Self::Listed(names) => names.clone(),
        }
    }

    /// Looks up the names of `loras` among `known`, without opening a file: so that a request
    /// need not wait for its turn to hear of a wrong one.
    ///
    /// # Errors
    /// [`ModelError::Unsuitable`] on `loras`, as the model itself refuses them.
    pub fn check(known: Option<&Self>, loras: &RequestLoras) -> Result<(), ModelError> {
        if loras.is_empty() {
            return Ok(());
        }
        let known = known.ok_or_else(no_folder)?.all();
        let mut named = loras.as_slice().iter().map(RequestLora::name);
        match named.find(|name| !known.iter().any(|known| known == name)) {
            Some(name) => Err(unknown(name, known.iter())),
            None => Ok(()),
        }
    }
}

/// The folder of a model, and those of its files that were used last.
pub(super) struct LoraFolder {
    folder: Option<PathBuf>,
    /// The model's thread is its only user.
    kept: RefCell<ContentCache<Arc<LoraLayers>>>,
}

impl LoraFolder {
    /// Of `folder`; without one, every LoRA is refused.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, kept: RefCell::new(ContentCache::new(KEPT_BYTES)) }
    }

    /// Has `loras` change the layers of `adapters`, which compute in `kind`, until what is
    /// returned is dropped; `None` if nothing is to change. Those of strength 0 are held
    /// against the layers all the same.
    ///
    /// # Errors
    /// [`ModelError::Unsuitable`] on `loras`: there is none of that name, or it does not fit.
    pub(super) fn activate(
        &self,
        loras: &RequestLoras,
        adapters: &Arc<Adapters>,
        kind: (DType, &Device),
    ) -> Result<Option<ActiveAdapters>, ModelError> {
        if loras.is_empty() {
            return Ok(None);
        }
        let files = files_in(self.folder.as_deref())?;
        let mut taken = Vec::new();
        let mut key = String::new();
        for lora in loras.as_slice() {
            let (name, scale) = (lora.name(), lora.scale());
            let path = path_of(lora, &files)?;
            let (layers, stamp) = self.layers((name, path), adapters, kind)?;
            if scale.abs() > 0.0 {
                taken.push((layers, scale));
                key += &format!("{stamp} at {:x}\n", scale.to_bits());
            }
        }
        Ok((!taken.is_empty()).then(|| adapters.activate(&taken, &key)))
    }

    /// The matrices of the file `path`, and what tells its content from any other.
    fn layers(
        &self,
        (name, path): (&str, &Path),
        adapters: &Adapters,
        (dtype, device): (DType, &Device),
    ) -> Result<(Arc<LoraLayers>, String), ModelError> {
        let refused = |error| refusal(name, &error);
        let file = Lora::file_of(path).map_err(refused)?;
        let stamp = stamp(&file);
        let key = ContentHash::of("lora").bytes(stamp.as_bytes()).finish();
        if let Some(layers) = self.kept.borrow_mut().get(&key) {
            return Ok((layers, stamp));
        }
        let lora = Lora::open(&file, 1.0).map_err(refused)?;
        self.kept.borrow_mut().make_room(lora.bytes_in(dtype));
        let layers = lora.layers(&adapters.layers(), (dtype, device))?;
        let layers = layers.map_err(|reason| unsuitable(format!("LoRA '{name}' {reason}.")))?;
        let (layers, bytes) = (Arc::new(layers), lora.bytes_in(dtype));
        tracing::info!(file = lora.file(), modules = lora.len(), bytes, "read a LoRA");
        self.kept.borrow_mut().insert(key, layers.clone(), bytes);
        Ok((layers, stamp))
    }
}

fn files_in(folder: Option<&Path>) -> Result<BTreeMap<String, PathBuf>, ModelError> {
    Ok(files_by_name(folder.ok_or_else(no_folder)?))
}

fn no_folder() -> ModelError {
    unsuitable("This server has no folder of LoRAs.")
}

fn path_of<'a>(
    lora: &RequestLora,
    files: &'a BTreeMap<String, PathBuf>,
) -> Result<&'a Path, ModelError> {
    let path = files.get(lora.name()).map(PathBuf::as_path);
    path.ok_or_else(|| unknown(lora.name(), files.keys()))
}

/// What lies in `folder`: paths by the names that requests use.
fn files_by_name(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "the folder of LoRAs");
            return BTreeMap::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // A file of the same name goes before a folder.
    paths.sort_by_cached_key(|path| (path.is_file(), path.clone()));
    paths.into_iter().filter_map(|path| Some((name_of(&path)?, path))).collect()
}

/// The name of the LoRA at `path`, if it is one and can be named.
fn name_of(path: &Path) -> Option<String> {
    let is_safetensors =
        || path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
    let name = if path.is_dir() {
        Lora::file_of(path).ok()?;
        path.file_name()?
    } else if path.is_file() && is_safetensors() {
        path.file_stem()?
    } else {
        return None;
    };
    let name = name.to_str()?;
    RequestLora::check_name(name).ok()?;
    Some(name.to_owned())
}

/// Tells the content of `file`, and of the configuration beside it, from any other that
/// was there.
fn stamp(file: &Path) -> String {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some((metadata.len(), modified.as_nanos()))
    };
    let configuration = Lora::configuration_beside(file);
    format!("{} {:?} {:?}", file.display(), of(file), of(&configuration))
}

fn unsuitable(reason: impl Into<String>) -> ModelError {
    ModelError::Unsuitable { field: "loras", reason: reason.into() }
}

fn unknown<'a>(name: &str, names: impl ExactSizeIterator<Item = &'a String>) -> ModelError {
    let count = names.len();
    let known: Vec<&str> = names.take(LISTED_NAMES).map(String::as_str).collect();
    let more = count - known.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let known = match known.as_slice() {
        [] => "no LoRA".to_owned(),
        _ => format!("{}{more}", known.join(", ")),
    };
    unsuitable(format!("There is no LoRA '{name}'; this server has {known}."))
}

/// Why the file cannot be used, without the way to it on this server.
fn refusal(name: &str, error: &CheckpointError) -> ModelError {
    tracing::warn!(lora = name, error = error as &dyn std::error::Error, "a LoRA is refused");
    let sentence = match error {
        CheckpointError::Malformed { file, reason } => {
            let file = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
            format!("LoRA '{name}' cannot be used: {file} {reason}.")
        }
        CheckpointError::Unreadable { .. } | CheckpointError::MissingFile { .. } => {
            format!("LoRA '{name}' cannot be read.")
        }
        CheckpointError::NoWeights { .. }
        | CheckpointError::Config { .. }
        | CheckpointError::Weights { .. } => format!("LoRA '{name}' cannot be used."),
    };
    unsuitable(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn names_in(folder: &Path) -> Vec<String> {
        LoraNames::Folder(folder.to_owned()).all()
    }

    #[test]
    fn names_are_those_of_files_and_of_folders_with_one_and_new_ones_are_seen() {
        let folder = folder_of(&[
            "b.v1.safetensors",
            "A.SafeTensors",
            ".hidden.safetensors",
            "notes.txt",
            "pickle.pt",
            "peft/adapter_model.safetensors",
            "peft/adapter_config.json",
            "several/1.safetensors",
            "several/2.safetensors",
            "empty/readme.md",
            ".git/x.safetensors",
        ]);
        assert_eq!(names_in(folder.path()), ["A", "b.v1", "peft"]);

        std::fs::write(folder.path().join("new.safetensors"), "").unwrap();
        assert_eq!(names_in(folder.path()), ["A", "b.v1", "new", "peft"]);
        assert!(names_in(&folder.path().join("not-there")).is_empty());
    }

    #[test]
    fn a_file_goes_before_a_folder_of_its_name() {
        let folder = folder_of(&["x/y.safetensors", "x.safetensors", "z/y.safetensors"]);

        let files = files_by_name(folder.path());

        assert_eq!(files["x"], folder.path().join("x.safetensors"));
        assert_eq!(files["z"], folder.path().join("z"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_some_of_those_that_are_known() {
        let files: Vec<String> =
            (0..23).map(|number| format!("l{number:02}.safetensors")).collect();
        let folder = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());

        let sentence = unknown("x", files_by_name(folder.path()).keys()).to_string();

        assert!(sentence.contains("'x'") && sentence.contains("l00, l01"), "{sentence}");
        assert!(sentence.ends_with("l19 and 3 more."), "{sentence}");
        let none = unknown("x", [].iter()).to_string();
        assert_eq!(none, "There is no LoRA 'x'; this server has no LoRA.");
    }

    #[test]
    fn names_can_be_looked_up_before_a_model_is_asked() {
        let folder = folder_of(&["a.safetensors", "b/x.safetensors"]);
        let check = |names: &[&str], known: Option<&LoraNames>| {
            let loras = names.iter().map(|name| RequestLora::new(*name, 1.0).unwrap());
            LoraNames::check(known, &RequestLoras::new(loras.collect()).unwrap())
        };
        let here = LoraNames::Folder(folder.path().to_owned());
        let elsewhere = LoraNames::Listed(here.all());

        for known in [here, elsewhere] {
            assert!(check(&["a", "b", "a"], Some(&known)).is_ok());
            let refused = check(&["a", "c"], Some(&known)).unwrap_err();
            assert!(matches!(refused, ModelError::Unsuitable { field: "loras", .. }));
            assert!(refused.to_string().contains("'c'; this server has a, b."), "{refused}");
        }
        assert!(check(&["a"], None).unwrap_err().to_string().contains("no folder"));
        assert!(check(&[], None).is_ok());
    }

    #[test]
    fn what_is_changed_in_a_file_or_beside_it_is_another_content() {
        let folder = folder_of(&["x/adapter_model.safetensors"]);
        let at = |name: &str| folder.path().join("x").join(name);
        let file = at("adapter_model.safetensors");
        let stamps = [
            stamp(&file),
            {
                std::fs::write(at("adapter_config.json"), "{}").unwrap();
                stamp(&file)
            },
            {
                std::fs::write(&file, "longer").unwrap();
                stamp(&file)
            },
        ];

        assert_eq!(stamp(&file), stamps[2]);
        assert!(stamps[0] != stamps[1] && stamps[1] != stamps[2], "{stamps:?}");
    }
}
