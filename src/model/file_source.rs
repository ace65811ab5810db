//! Where a file of a model is: on this machine, or on the hub, from which it is fetched.

use std::path::PathBuf;
use std::str::FromStr;

use super::{FileChoices, LoadError};
use crate::hub::{HubConfig, HubError, HubFile, Progress, fetch_file};

/// Where a file of a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// On this machine.
    Path(PathBuf),
    /// On the hub.
    Hub(HubFile),
}

/// How a [`FileSource`] is written.
pub const FILE_SOURCES: &str = "a path, or hf:OWNER/NAME/FILE, perhaps with @REVISION after NAME";

impl From<PathBuf> for FileSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl FromStr for FileSource {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if HubFile::is_meant_by(text) {
            return text.parse().map(Self::Hub);
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

/// A file that is here.
#[derive(Debug, Clone)]
pub(super) struct LocalFile {
    pub(super) path: PathBuf,
    /// The folder of its repository's files, if it is from the hub.
    pub(super) repository: Option<PathBuf>,
}

/// The files that the settings name, all of them here.
#[derive(Debug, Default)]
pub(super) struct LocalFiles {
    pub(super) transformer: Option<LocalFile>,
    pub(super) text_encoder: Option<LocalFile>,
    pub(super) mmproj: Option<LocalFile>,
    pub(super) vae: Option<LocalFile>,
}

impl FileSource {
    /// The file, fetched if need be; `setting` named it.
    pub(super) fn local(
        &self,
        setting: &'static str,
        hub: &HubConfig,
    ) -> Result<LocalFile, LoadError> {
        let file = match self {
            Self::Path(path) => return Ok(LocalFile { path: path.clone(), repository: None }),
            Self::Hub(file) => file,
        };
        let failed = |source| LoadError::HubFile { setting, source: Box::new(source) };
        let fetched = fetch_file(file, hub, Progress::for_terminal()).map_err(failed)?;
        let path = fetched.folder.join(&file.path);
        Ok(LocalFile { path, repository: Some(fetched.folder) })
    }
}

impl FileChoices {
    /// The files that are named, fetched if need be.
    pub(super) fn local(&self, hub: &HubConfig) -> Result<LocalFiles, LoadError> {
        let local = |file: &Option<FileSource>, setting| {
            file.as_ref().map(|file| file.local(setting, hub)).transpose()
        };
        Ok(LocalFiles {
            transformer: local(&self.transformer, "model.files.transformer")?,
            text_encoder: local(&self.text_encoder, "model.files.text_encoder")?,
            mmproj: local(&self.mmproj, "model.files.mmproj")?,
            vae: local(&self.vae, "model.files.vae")?,
        })
    }
}
