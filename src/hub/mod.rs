//! Checkpoints from a Hugging Face hub, kept in the cache that Hugging Face's
//! own tools use.
//!
//! [`fetch_snapshot`] brings the files that a pipeline needs, and no others,
//! and returns the folder that they are in. What is there already is not
//! fetched again; a download that was cut goes on where it stopped. It blocks,
//! and is for plain threads: not for async code, and not while serving.
//! [`fetch_files`] and [`fetch_file`] do the same for files by their names.

mod cache;
mod download;
mod error;
mod file_id;
mod plan;
mod progress;
mod selection;
mod verify;

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use download::{Download, Patience};
use selection::{Selected, Wanted};

pub use error::{HubError, Lacking, Place};
pub use file_id::HubFile;
pub use plan::{Plan, PlanFault, plan_files, plan_shards};
pub use progress::Progress;
pub use selection::{Companions, FileNames, FilePattern, SelectionFault};

/// Where a hub is and how to speak to it.
#[derive(Clone, PartialEq)]
pub struct HubConfig {
    /// Base address of the hub (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of downloaded repositories (`HF_HUB_CACHE`, or `hub` under `HF_HOME`).
    pub cache: PathBuf,
    /// Access token (`HF_TOKEN`, or the token file).
    pub token: Option<String>,
    /// Never use the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl fmt::Debug for HubConfig {
    /// Tells whether there is a token, never which.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish()
    }
}

/// A repository's name on the hub: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// The name, as `owner/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for RepositoryId {
    type Err = HubError;

    /// Accepts two parts of letters, digits, `-`, `_` and `.`, which neither
    /// begin nor end with `-` or `.`, and have no `--` or `..`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |part: &str| {
            let at_the_edge = |character| matches!(character, '-' | '.');
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
                && !part.starts_with(at_the_edge)
                && !part.ends_with(at_the_edge)
                && !part.contains("--")
                && !part.contains("..")
        };
        match text.split_once('/') {
            Some((owner, name)) if is_name(owner) && is_name(name) => Ok(Self(text.to_owned())),
            _ => Err(HubError::InvalidRepository { text: text.to_owned() }),
        }
    }
}

/// Brings the files that a diffusers pipeline needs from `repository`, and
/// returns the folder that they are in, which holds a `model_index.json`.
///
/// `revision` is a commit, a tag or a branch; `main` if absent. All files come
/// from the one commit that it names at the start. Sizes are checked, and
/// sha256 sums where the hub knows them (all weights). Where the hub does not answer,
/// is out of order, lets nobody in, or is not a hub, what the cache holds is used if
/// it is complete.
///
/// # Errors
/// [`HubError`] says which repository, file or address, and what to do.
///
/// # Panics
/// If called from async code: it runs a runtime of its own.
pub fn fetch_snapshot(
    repository: &RepositoryId,
    revision: Option<&str>,
    config: &HubConfig,
    progress: Progress,
) -> Result<PathBuf, HubError> {
    let revision = checked_revision(revision.unwrap_or("main"))?;
    let cache = cache::Cache::new(&config.cache, repository);
    if config.offline {
        return cache.complete_snapshot(revision);
    }
    // A commit never changes: if all of it is here, there is nothing to ask.
    if is_commit(revision)
        && let Ok(folder) = cache.complete_snapshot(revision)
    {
        return Ok(folder);
    }
    let download = Download::new(repository, config, &cache, progress);
    or_cached(
        (repository, revision),
        || cache.complete_snapshot(revision),
        |patience| download.with_patience(patience).run(revision),
    )
}

/// Files of a repository that are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFiles {
    /// The folder of the repository's files.
    pub folder: PathBuf,
    /// Those that were asked for.
    pub files: Vec<PathBuf>,
    /// Those that go with them.
    pub companions: Vec<PathBuf>,
}

impl From<(PathBuf, Selected)> for FetchedFiles {
    fn from((folder, selected): (PathBuf, Selected)) -> Self {
        let paths = |names: Vec<String>| names.iter().map(|name| folder.join(name)).collect();
        Self { files: paths(selected.files), companions: paths(selected.companions), folder }
    }
}

/// Brings the files of `repository` that match one of `patterns`, and of what goes with them
/// what the same repository has: all as [`fetch_snapshot`] does, into the same cache. Each
/// pattern must match something.
///
/// # Errors
/// [`HubError`], as there.
///
/// # Panics
/// As there.
pub fn fetch_files(
    repository: &RepositoryId,
    revision: Option<&str>,
    patterns: &[FilePattern],
    companions: Companions,
    config: &HubConfig,
    progress: Progress,
) -> Result<FetchedFiles, HubError> {
    let revision = checked_revision(revision.unwrap_or("main"))?;
    let cache = cache::Cache::new(&config.cache, repository);
    let wanted = Wanted::Matching(patterns.to_vec(), companions);
    let cached = || cache.selected(revision, &wanted);
    if config.offline {
        return cached().map(FetchedFiles::from);
    }
    let download = Download::new(repository, config, &cache, progress);
    let fetched = or_cached((repository, revision), cached, |patience| {
        download.with_patience(patience).run_selected(revision, &wanted)
    });
    fetched.map(FetchedFiles::from)
}

/// Brings one file, unless it is here: who names a file wants it as it is, and the hub is not
/// asked for a later one.
///
/// # Errors
/// [`HubError`], as [`fetch_snapshot`] does.
///
/// # Panics
/// As there.
pub fn fetch_file(
    file: &HubFile,
    config: &HubConfig,
    progress: Progress,
) -> Result<FetchedFiles, HubError> {
    let HubFile { repository, revision, path } = file;
    let revision = checked_revision(revision.as_deref().unwrap_or("main"))?;
    let cache = cache::Cache::new(&config.cache, repository);
    let wanted = Wanted::File(path.clone());
    let cached = cache.selected(revision, &wanted);
    if cached.is_ok() || config.offline {
        return cached.map(FetchedFiles::from);
    }
    let download = Download::new(repository, config, &cache, progress);
    download.run_selected(revision, &wanted).map(FetchedFiles::from)
}

/// What `download` brings; where the hub gives nothing, what was there before, if it is
/// enough.
fn or_cached<T>(
    (repository, revision): (&RepositoryId, &str),
    cached: impl Fn() -> Result<T, HubError>,
    download: impl FnOnce(Patience) -> Result<T, HubError>,
) -> Result<T, HubError> {
    let is_cached = cached().is_ok();
    let patience = if is_cached { Patience::Short } else { Patience::Long };
    match download(patience) {
        Err(error) if is_cached && error.leaves_the_cache() => {
            let Ok(found) = cached() else {
                return Err(error);
            };
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            let cause = causes.last().map(ToString::to_string);
            tracing::warn!(
                %repository,
                revision,
                reason = %error,
                cause,
                "hub gave no files, so those of the last download are used"
            );
            Ok(found)
        }
        result => result,
    }
}

/// Refuses revisions that would mean something else in an address or a path.
fn checked_revision(revision: &str) -> Result<&str, HubError> {
    let is_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
    };
    if revision.split('/').all(is_part) {
        Ok(revision)
    } else {
        Err(HubError::InvalidRevision { text: revision.to_owned() })
    }
}

/// Whether `revision` is a full commit hash.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_an_owner_and_a_name() {
        for right in ["Qwen/Qwen-Image-Edit", "a/b", "a_b/c.d-2511"] {
            assert_eq!(right.parse::<RepositoryId>().unwrap().as_str(), right);
        }
        for wrong in [
            "", "Qwen", "a/b/c", "/a", "a/", "../a", "a/..", "a b/c", "a/b--c", "a/-b", "a/b.",
            "a/b?c", "C:/x/y",
        ] {
            assert!(wrong.parse::<RepositoryId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn revisions_are_commits_tags_and_branches_but_no_paths() {
        for right in ["main", "v1.0", "refs/pr/3", "feature/x", "0f1e2d3c"] {
            assert!(checked_revision(right).is_ok(), "{right}");
        }
        for wrong in ["", "..", "a/../b", "/main", "main/", "a b", "a?b", "a#b", "a%2Fb"] {
            assert!(checked_revision(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let config = HubConfig {
            endpoint: "http://127.0.0.1".to_owned(),
            cache: PathBuf::from("cache"),
            token: Some("hf_secret".to_owned()),
            offline: false,
        };

        let printed = format!("{config:?}");

        assert!(!printed.contains("hf_secret"), "{printed}");
        assert!(printed.contains("set"), "{printed}");
    }
}
