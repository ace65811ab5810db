//! Why files could not be fetched.

use std::fmt;
use std::path::PathBuf;

use hf_hub::api::tokio::ApiError;

use super::plan::PlanFault;
use super::selection::{FileNames, SelectionFault};

/// What a hub does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacking {
    /// The repository, as far as who asks may know.
    Repository,
    /// The commit, tag or branch of a repository that it has.
    Revision,
}

/// Where files of a repository are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the hub.
    Hub,
    /// Among those that were fetched, while the network may not be used.
    Cache,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => Ok(()),
            Self::Cache => formatter.write_str(" in the cache (HF_HUB_OFFLINE is set)"),
        }
    }
}

/// Why files could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not a repository's name.
    #[error("'{text}' is no repository: expected owner/name, such as Qwen/Qwen-Image-Edit")]
    InvalidRepository {
        /// What was given.
        text: String,
    },
    /// Not the name of a commit, tag or branch.
    #[error("'{text}' is no revision: expected a commit, a tag or a branch, such as main")]
    InvalidRevision {
        /// What was given.
        text: String,
    },
    /// Not the name of a file on the hub.
    #[error(
        "'{text}' is no file on the hub: expected hf:OWNER/NAME/PATH or \
         hf:OWNER/NAME@REVISION/PATH, such as \
         hf:unsloth/Qwen-Image-Edit-2511-GGUF/qwen-image-edit-2511-Q4_K_M.gguf"
    )]
    InvalidFile {
        /// What was given.
        text: String,
    },
    /// Not a pattern of file names.
    #[error("'{text}' is no pattern of file names: {reason}")]
    InvalidPattern {
        /// What was given.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The hub has no such repository, or shows it only to its members.
    #[error(
        "{endpoint} has no repository {repository} with revision '{revision}'; \
         if it is private, set HF_TOKEN to a token that may read it"
    )]
    NotFound {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// Which of the two.
        lacking: Lacking,
    },
    /// The hub wants to know who asks, or does not let them in (401, 403).
    #[error("access to {repository} was denied ({status}): {advice}")]
    Denied {
        /// The repository.
        repository: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// Another answer than the file.
    #[error("{url} answered with status {status}: {advice}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// No answer, or one that broke off.
    #[error("cannot fetch {url}; what has been fetched is kept, and the next try goes on there")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that is not one of a hub.
    #[error(
        "{url} does not answer as a hub does: {reason}; check the network's login page or proxy, \
         and HF_ENDPOINT if it is set"
    )]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The network may not be used, and the cache lacks a file.
    #[error("HF_HUB_OFFLINE is set, and {file} of {repository} is not in {cache}")]
    NotCached {
        /// The repository.
        repository: String,
        /// The first file that is missing.
        file: String,
        /// The cache's folder.
        cache: String,
    },
    /// The repository is not a diffusers pipeline, or lacks a part of it.
    #[error("{repository}: {fault}")]
    Repository {
        /// The repository.
        repository: String,
        /// What it lacks.
        fault: PlanFault,
    },
    /// The repository has files of weights, but is no diffusers pipeline.
    #[error(
        "{repository} has no model_index.json{place}, but files of weights: {files}; give one as \
         hf:{repository}/FILE, or fetch it with `diffuser-api pull {repository} --file FILE`"
    )]
    NoPipeline {
        /// The repository.
        repository: String,
        /// Where it has none.
        place: Place,
        /// The files.
        files: FileNames,
    },
    /// The repository does not have what was asked for.
    #[error("{repository}: {fault}")]
    Selection {
        /// The repository.
        repository: String,
        /// Why not.
        fault: SelectionFault,
    },
    /// Fewer or more bytes than the hub announced. They were thrown away.
    #[error("{file} has {actual} bytes where the hub announced {expected}; fetch it again")]
    WrongSize {
        /// The file.
        file: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        actual: u64,
    },
    /// Other bytes than those that the hub announced. They were thrown away.
    #[error("{file} has sha256 {actual} where the hub announced {expected}; fetch it again")]
    WrongChecksum {
        /// The file.
        file: String,
        /// Sum announced, in hexadecimal.
        expected: String,
        /// Sum of what was received.
        actual: String,
    },
    /// Another process is writing the same file.
    #[error("another download holds {path}; wait for it to end")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether the same request might succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::InvalidRepository { .. }
            | Self::InvalidRevision { .. }
            | Self::InvalidFile { .. }
            | Self::InvalidPattern { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Protocol { .. }
            | Self::NotCached { .. }
            | Self::Repository { .. }
            | Self::NoPipeline { .. }
            | Self::Selection { .. }
            | Self::WrongSize { .. }
            | Self::WrongChecksum { .. }
            | Self::Locked { .. }
            | Self::Io { .. } => false,
        }
    }

    /// Whether files of an earlier download do instead: all that may come of the
    /// network, of the hub's state or of a token. A revision that the hub does not
    /// have is a mistake in what was asked.
    ///
    /// As huggingface_hub 2.4 does (`_get_metadata_or_catch_error`).
    pub(super) fn leaves_the_cache(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::Denied { .. }
            | Self::Protocol { .. }
            | Self::WrongSize { .. }
            | Self::WrongChecksum { .. } => true,
            Self::NotFound { lacking, .. } => *lacking == Lacking::Repository,
            Self::InvalidRepository { .. }
            | Self::InvalidRevision { .. }
            | Self::InvalidFile { .. }
            | Self::InvalidPattern { .. }
            | Self::NotCached { .. }
            | Self::Repository { .. }
            | Self::NoPipeline { .. }
            | Self::Selection { .. }
            | Self::Locked { .. }
            | Self::Io { .. } => false,
        }
    }

    /// An answer to `url` that is no file, and is not about who asks.
    pub(super) fn status(url: &str, status: u16) -> Self {
        let advice = match status {
            429 => "it was asked too often from here: try again later, or set HF_TOKEN",
            500.. => "it is out of order: try again later",
            _ => "check HF_ENDPOINT, if it is set, and the way there",
        };
        Self::Status { url: url.to_owned(), status, advice }
    }

    /// An error of the file system at `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// What went wrong with the request to `url`, but for HTTP statuses.
    pub(super) fn of_api(error: ApiError, url: &str, cache: PathBuf) -> Self {
        let url = url.to_owned();
        let protocol = |url, error: ApiError| Self::Protocol { url, reason: error.to_string() };
        match error {
            // The address may be a signed one, after redirects: not for logs.
            ApiError::RequestError(error) => {
                Self::Unreachable { url, source: Box::new(error.without_url()) }
            }
            ApiError::IoError(source) => Self::Io { path: cache, source },
            ApiError::LockAcquisition(path) => Self::Locked { path },
            ApiError::TooManyRetries(error) => Self::of_api(*error, &url, cache),
            error @ (ApiError::MissingHeader(_)
            | ApiError::InvalidHeader(_)
            | ApiError::InvalidHeaderValue(_)
            | ApiError::ToStr(_)
            | ApiError::ParseIntError(_)
            | ApiError::TryAcquireError(_)
            | ApiError::AcquireError(_)
            | ApiError::Join(_)) => protocol(url, error),
        }
    }
}
