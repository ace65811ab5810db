//! A checkpoint that is put together: configuration files from one place, and weights from
//! files anywhere, in whatever layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::Snapshot;
use super::naming::Naming;

/// A checkpoint that is put together.
#[derive(Debug, Clone)]
pub struct FileSet {
    /// What it is called.
    pub name: String,
    /// Where its other files are: configurations, tokenizer, and the weights of components
    /// that have no file here.
    pub base: Snapshot,
    /// Texts in place of the base's, by their paths in the checkpoint.
    pub texts: BTreeMap<String, String>,
    /// Files of weights.
    pub files: Vec<ComponentFile>,
}

impl FileSet {
    /// Its files of weights and the base's, each once.
    pub(super) fn weight_files(&self) -> Vec<PathBuf> {
        let own = self.files.iter().map(|file| file.path.clone());
        let all: BTreeSet<PathBuf> = own.chain(self.base.weight_files()).collect();
        all.into_iter().collect()
    }
}

/// A file that holds weights of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentFile {
    /// The component's folder in the published layout.
    pub component: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Whose names its tensors have.
    pub naming: Naming,
    /// What its names start with; others in the file are of other components.
    pub prefix: String,
}
