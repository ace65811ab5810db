//! The files of one checkpoint, on disk or inside the program.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_set::{ComponentFile, FileSet};
use super::{CheckpointError, ConfigFile};

/// Bytes that a file other than weights may have: some times the largest published, a
/// `tokenizer.json` of 11 MB.
const LARGEST_TEXT_BYTES: u64 = 64 << 20;

/// A checkpoint compiled into the program.
#[derive(Debug)]
pub struct EmbeddedCheckpoint {
    /// The name that asks for it.
    pub name: &'static str,
    /// Paths inside the checkpoint, with their content.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// Where a checkpoint's files are.
#[derive(Debug, Clone)]
pub enum Snapshot {
    /// A folder.
    Directory(PathBuf),
    /// Inside the program.
    Embedded(&'static EmbeddedCheckpoint),
    /// Texts that were put together at run time, by their paths in the checkpoint:
    /// a checkpoint without weights.
    Texts(BTreeMap<String, String>),
    /// Put together from several places.
    Set(Arc<FileSet>),
}

impl Snapshot {
    /// The folder's path or the embedded name, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Directory(directory) => directory.display().to_string(),
            Self::Embedded(checkpoint) => checkpoint.name.to_owned(),
            Self::Texts(_) => "a checkpoint without weights".to_owned(),
            Self::Set(set) => set.name.clone(),
        }
    }

    /// Whether `file` (a path inside the checkpoint) exists.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(file).is_file(),
            Self::Embedded(checkpoint) => checkpoint.files.iter().any(|(path, _)| *path == file),
            Self::Texts(texts) => texts.contains_key(file),
            Self::Set(set) => set.texts.contains_key(file) || set.base.has(file),
        }
    }

    /// Bytes of all safetensors files in the folders of components.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        if let Self::Embedded(checkpoint) = self {
            let files = checkpoint.files.iter().filter(|(path, _)| is_safetensors(path));
            return files.map(|(_, bytes)| bytes.len()).sum();
        }
        // Files in a hub's cache are links.
        let files = self.weight_files().into_iter().filter_map(|path| std::fs::metadata(path).ok());
        let bytes = files.map(|file| usize::try_from(file.len()).unwrap_or(usize::MAX));
        bytes.fold(0, usize::saturating_add)
    }

    /// The files of weights that lie on disk, each once.
    #[must_use]
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match self {
            Self::Directory(directory) => {
                let entries =
                    |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
                let folders = entries(directory).map(|entry| entry.path());
                let files = folders.flat_map(|folder| entries(&folder).collect::<Vec<_>>());
                let files =
                    files.filter(|file| is_safetensors(&file.file_name().to_string_lossy()));
                files.map(|file| file.path()).collect()
            }
            Self::Embedded(_) | Self::Texts(_) => Vec::new(),
            Self::Set(set) => set.weight_files(),
        }
    }

    /// Whether there are weights in the folder of `component`.
    #[must_use]
    pub fn has_weights(&self, component: &str) -> bool {
        let is_weights = |name: &String| name.ends_with(".safetensors");
        !self.files_of(component).is_empty() || self.names_in(component).iter().any(is_weights)
    }

    /// The names of the files right in `folder`.
    pub(super) fn names_in(&self, folder: &str) -> Vec<String> {
        let inner = |path: &str| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.contains('/')).then(|| name.to_owned())
        };
        match self {
            Self::Directory(directory) => std::fs::read_dir(directory.join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.path().is_file())
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Self::Embedded(checkpoint) => {
                checkpoint.files.iter().filter_map(|(path, _)| inner(path)).collect()
            }
            Self::Texts(texts) => texts.keys().filter_map(|path| inner(path)).collect(),
            Self::Set(set) => set.base.names_in(folder),
        }
    }

    /// Where `file` lies, if it lies on disk.
    pub(super) fn path(&self, file: &str) -> Option<PathBuf> {
        match self {
            Self::Directory(directory) => Some(directory.join(file)),
            Self::Set(set) if !set.texts.contains_key(file) => set.base.path(file),
            Self::Embedded(_) | Self::Texts(_) | Self::Set(_) => None,
        }
    }

    /// The files that were put in the place of the weights of `component`, if any.
    pub(super) fn files_of(&self, component: &str) -> Vec<ComponentFile> {
        let Self::Set(set) = self else { return Vec::new() };
        set.files.iter().filter(|file| file.component == component).cloned().collect()
    }

    /// The content of `file`, which are not weights.
    ///
    /// # Errors
    /// [`CheckpointError::MissingFile`], [`CheckpointError::Unreadable`], or
    /// [`CheckpointError::Malformed`] if it is larger than such files are.
    pub fn bytes(&self, file: &str) -> Result<Cow<'static, [u8]>, CheckpointError> {
        match self {
            Self::Directory(directory) => self.read(directory, file).map(Cow::Owned),
            Self::Embedded(checkpoint) => checkpoint
                .files
                .iter()
                .find(|(path, _)| *path == file)
                .map(|(_, content)| Cow::Borrowed(*content))
                .ok_or_else(|| self.missing(file)),
            Self::Texts(texts) => texts
                .get(file)
                .map(|text| Cow::Owned(text.clone().into_bytes()))
                .ok_or_else(|| self.missing(file)),
            Self::Set(set) => match set.texts.get(file) {
                Some(text) => Ok(Cow::Owned(text.clone().into_bytes())),
                None => set.base.bytes(file),
            },
        }
    }

    fn read(&self, directory: &Path, file: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = directory.join(file);
        if !path.is_file() {
            return Err(self.missing(file));
        }
        // No more than that is read even of a file that grows.
        let mut bytes = Vec::new();
        let limit = LARGEST_TEXT_BYTES + 1;
        let read = std::fs::File::open(&path)
            .and_then(|opened| opened.take(limit).read_to_end(&mut bytes));
        match read {
            Ok(count) if count as u64 == limit => Err(CheckpointError::Malformed {
                file: file.to_owned(),
                reason: format!("is larger than {LARGEST_TEXT_BYTES} bytes: fetch it again"),
            }),
            Ok(_) => Ok(bytes),
            Err(source) => Err(CheckpointError::Unreadable { path, source }),
        }
    }

    /// The content of `file` as text.
    ///
    /// # Errors
    /// As [`Snapshot::bytes`] and [`super::text`].
    pub fn text(&self, file: &str) -> Result<String, CheckpointError> {
        super::text(file, self.bytes(file)?.into_owned())
    }

    /// The JSON object in `file`, to be read key by key.
    ///
    /// # Errors
    /// As [`Snapshot::text`], or [`CheckpointError::Malformed`] if it is no JSON object.
    pub fn config(&self, file: &str) -> Result<ConfigFile, CheckpointError> {
        ConfigFile::parse(file, &self.text(file)?)
    }

    pub(super) fn missing(&self, file: &str) -> CheckpointError {
        CheckpointError::MissingFile { checkpoint: self.name(), file: file.to_owned() }
    }
}

fn is_safetensors(path: &str) -> bool {
    path.ends_with(".safetensors")
}
