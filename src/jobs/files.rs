//! Requests and results: files in a folder, or in memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::error::JobStoreError;

/// Where the files are. Nothing here is for the async runtime.
pub(super) enum Files {
    Memory(Mutex<HashMap<String, Bytes>>),
    Folder(PathBuf),
}

/// The end of names of files that are not whole.
pub(super) const UNFINISHED: &str = "part";

impl Files {
    /// Those of `folder`, which is made if it is not there.
    pub(super) fn in_folder(folder: PathBuf) -> Result<Self, JobStoreError> {
        fs::create_dir_all(&folder).map_err(of(&folder))?;
        Ok(Self::Folder(folder))
    }

    pub(super) fn in_memory() -> Self {
        Self::Memory(Mutex::default())
    }

    /// Writes a file whole: it is on the disk under its name when this returns.
    pub(super) fn write(&self, name: &str, content: &Bytes) -> Result<(), JobStoreError> {
        match self {
            Self::Memory(files) => {
                let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
                files.insert(name.to_owned(), content.clone());
                Ok(())
            }
            Self::Folder(folder) => {
                let path = folder.join(name);
                write_whole(&path, content).map_err(of(&path))
            }
        }
    }

    /// Where a file is, unless in memory.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Memory(_) => None,
            Self::Folder(folder) => Some(folder.join(name)),
        }
    }

    /// Gives a file that was written under a name of its own the name of a whole one.
    pub(super) fn complete(part: &Path, path: &Path) -> io::Result<()> {
        fs::rename(part, path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        // The name is in the folder, which has to be on the disk, too.
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        #[cfg(not(unix))]
        let _ = folder;
        Ok(())
    }

    pub(super) fn read(&self, name: &str) -> Result<Bytes, JobStoreError> {
        match self {
            Self::Memory(files) => {
                let files = files.lock().unwrap_or_else(PoisonError::into_inner);
                let found = files.get(name).cloned();
                found.ok_or_else(|| of(Path::new(name))(io::ErrorKind::NotFound.into()))
            }
            Self::Folder(folder) => {
                let path = folder.join(name);
                fs::read(&path).map(Bytes::from).map_err(of(&path))
            }
        }
    }

    /// Removes a file that nobody needs; if that fails, the next start sweeps it up.
    pub(super) fn remove(&self, name: &str) {
        match self {
            Self::Memory(files) => {
                files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            }
            Self::Folder(folder) => {
                if let Err(error) = fs::remove_file(folder.join(name))
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, "a file of a job was not removed");
                }
            }
        }
    }

    /// Removes the files that `is_known` does not name.
    pub(super) fn sweep(&self, is_known: impl Fn(&str) -> bool) -> Result<(), JobStoreError> {
        let Self::Folder(folder) = self else { return Ok(()) };
        for entry in fs::read_dir(folder).map_err(of(folder))? {
            let name = entry.map_err(of(folder))?.file_name();
            if let Some(name) = name.to_str().filter(|name| !is_known(name)) {
                self.remove(name);
            }
        }
        Ok(())
    }
}

fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension(UNFINISHED);
    let mut file = File::create(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    Files::complete(&part, path)
}

pub(super) fn of(path: &Path) -> impl Fn(io::Error) -> JobStoreError {
    let path = path.to_owned();
    move |error| JobStoreError::File { path: path.clone(), error }
}
