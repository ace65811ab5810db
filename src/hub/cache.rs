//! The folder of downloaded repositories, in the layout of Hugging Face's own
//! tools: `models--OWNER--NAME/` with `refs/REVISION` (a commit's hash),
//! `snapshots/COMMIT/FILE` (links) and `blobs/ETAG` (content).

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::{CacheRepo, Repo, RepoType};

use super::error::Place;
use super::plan::{MODEL_INDEX, PlanFault, plan_files, plan_shards, text_of};
use super::selection::{FileNames, Listing, Selected, SelectionFault, Wanted};
use super::{HubError, RepositoryId, is_commit};

/// How deep files lie at most that are looked at.
const DEEPEST: usize = 8;

/// What the cache holds of one repository.
pub(super) struct Cache {
    root: PathBuf,
    repository: RepositoryId,
}

impl Cache {
    pub(super) fn new(root: &Path, repository: &RepositoryId) -> Self {
        Self { root: root.to_owned(), repository: repository.clone() }
    }

    /// The folder that the caches of all repositories are in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the files of `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.at(commit).pointer_path(commit)
    }

    /// Where content with this etag is kept.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.at("main").blob_path(etag)
    }

    /// Notes that `revision` is `commit`.
    pub(super) fn set_revision(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        self.at(revision).create_ref(commit).map_err(HubError::io(&self.root))
    }

    /// Forgets `file` of `commit`: its link, and the content if it is known.
    pub(super) fn discard(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        let content = std::fs::canonicalize(&link).ok();
        for path in [Some(link), content].into_iter().flatten() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(HubError::io(path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder of `revision`, if every file that its pipeline needs is there.
    pub(super) fn complete_snapshot(&self, revision: &str) -> Result<PathBuf, HubError> {
        let commit = self.commit_of(revision, MODEL_INDEX)?;
        let folder = self.snapshot(&commit);
        let faulty = |fault| match fault {
            PlanFault::Missing { file } | PlanFault::NoWeights { file, .. } => {
                self.not_cached(&file)
            }
            fault @ PlanFault::Malformed { .. } => {
                HubError::Repository { repository: self.repository.to_string(), fault }
            }
        };
        let read = |file: &str| {
            let bytes = std::fs::read(folder.join(file)).map_err(|_| self.not_cached(file))?;
            text_of(file, bytes).map_err(faulty)
        };

        let listing: BTreeSet<String> = files_below(&folder).into_keys().collect();
        if !listing.contains(MODEL_INDEX)
            && let Some(files) = FileNames::of_weights(listing.iter())
        {
            let (repository, place) = (self.repository.to_string(), Place::Cache);
            return Err(HubError::NoPipeline { repository, place, files });
        }
        let model_index = read(MODEL_INDEX)?;
        let plan = plan_files(&listing, &model_index).map_err(faulty)?;
        for index in &plan.indices {
            plan_shards(index, &read(index)?, &listing).map_err(faulty)?;
        }
        Ok(folder)
    }

    /// The folder of `revision`, and which of its files are wanted, if they are there.
    pub(super) fn selected(
        &self,
        revision: &str,
        wanted: &Wanted,
    ) -> Result<(PathBuf, Selected), HubError> {
        let folder = self.snapshot(&self.commit_of(revision, wanted.first())?);
        let selected = wanted.select(&files_below(&folder)).map_err(|fault| match fault {
            SelectionFault::NoMatch { pattern, .. } => self.not_cached(&pattern),
            fault @ SelectionFault::Split { .. } => {
                HubError::Selection { repository: self.repository.to_string(), fault }
            }
        })?;
        Ok((folder, selected))
    }

    /// Which commit `revision` was when `file` was last fetched.
    fn commit_of(&self, revision: &str, file: &str) -> Result<String, HubError> {
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        let path = self.root.join(self.folder_name()).join("refs").join(revision);
        let commit = std::fs::read_to_string(path).map_err(|_| self.not_cached(file))?;
        Ok(commit.trim().to_owned())
    }

    fn not_cached(&self, file: &str) -> HubError {
        HubError::NotCached {
            repository: self.repository.to_string(),
            file: file.to_owned(),
            cache: self.root.join(self.folder_name()).display().to_string(),
        }
    }

    fn folder_name(&self) -> String {
        Repo::model(self.repository.to_string()).folder_name()
    }

    fn at(&self, revision: &str) -> CacheRepo {
        hf_hub::Cache::new(self.root.clone()).repo(Repo::with_revision(
            self.repository.to_string(),
            RepoType::Model,
            revision.to_owned(),
        ))
    }
}

/// Every file below `folder`, by its path from there. Links to nothing are left out.
fn files_below(folder: &Path) -> Listing {
    let mut files = Listing::new();
    let mut folders = vec![(String::new(), folder.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        for (name, path) in entries(&folder) {
            match std::fs::metadata(&path) {
                Ok(file) if file.is_file() => {
                    files.insert(format!("{prefix}{name}"), Some(file.len()));
                }
                Ok(inner) if inner.is_dir() && prefix.matches('/').count() < DEEPEST => {
                    folders.push((format!("{prefix}{name}/"), path));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    files
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    // A folder that cannot be read holds nothing that could be used.
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}
