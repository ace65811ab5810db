//! Fetches a snapshot file by file.
//!
//! hf-hub does the transfers. Around it, this adds what it leaves out: one
//! commit for all files, retries, a limit on silence, and checks of size and
//! sha256 (hf-hub takes a body that ends early for the whole).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use hf_hub::api::tokio::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Repo, RepoType};
use indicatif::ProgressBar;
use serde::Deserialize;

use super::cache::Cache;
use super::error::{Lacking, Place};
use super::file_id::is_plain_path;
use super::plan::{MODEL_INDEX, PlanFault, plan_files, plan_shards, text_of};
use super::progress::{FileProgress, Progress};
use super::selection::{FileNames, Selected, Wanted};
use super::verify::{is_sha256, sha256_of};
use super::{HubConfig, HubError, RepositoryId, is_commit};

/// Tries for one request or file, as long as the error may pass.
const TRIES: u32 = 4;

/// The wait before the second try; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// A download that brings nothing for this long is given up and tried again.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// The same for the first question where the cache could do: who has all files
/// waits no longer than huggingface_hub does.
const IMPATIENT_SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// The longest beginning of an answer that is looked at to tell what it is, in bytes.
const LOOKED_AT_BYTES: usize = 256;

/// Connections for one file, each fetching 10 MB at a time.
const CONNECTIONS: usize = 4;

/// One download of one repository.
pub(super) struct Download<'a> {
    repository: &'a RepositoryId,
    config: &'a HubConfig,
    cache: &'a Cache,
    patience: Patience,
    bar: ProgressBar,
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until it is clear that none will come: nothing else would do.
    Long,
    /// Not for long at first: what was downloaded before would do.
    Short,
}

/// What the hub says of a repository at one revision.
#[derive(Debug, Deserialize)]
struct RepositoryInfo {
    sha: String,
    siblings: Vec<FileInfo>,
}

#[derive(Debug, Deserialize)]
struct FileInfo {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<LargeFileInfo>,
}

#[derive(Debug, Deserialize)]
struct LargeFileInfo {
    sha256: Option<String>,
}

/// The answer to the question for a repository's files.
struct Listing {
    status: u16,
    is_success: bool,
    /// The hub's own word for what went wrong.
    code: Option<String>,
    body: Vec<u8>,
}

/// One commit, and what the hub says of its files.
struct Snapshot {
    commit: String,
    files: BTreeMap<String, FileInfo>,
}

impl<'a> Download<'a> {
    pub(super) fn new(
        repository: &'a RepositoryId,
        config: &'a HubConfig,
        cache: &'a Cache,
        progress: Progress,
    ) -> Self {
        Self { repository, config, cache, patience: Patience::Long, bar: progress.bar() }
    }

    /// The same with other patience.
    pub(super) fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Fetches what the pipeline needs, and returns the folder it is in.
    pub(super) fn run(&self, revision: &str) -> Result<PathBuf, HubError> {
        let snapshot = self.snapshot(revision)?;
        let folder = self.cache.snapshot(&snapshot.commit);
        let read = |file: &str| {
            let path = folder.join(file);
            let bytes = std::fs::read(&path).map_err(HubError::io(path))?;
            text_of(file, bytes).map_err(|fault| self.faulty(fault))
        };

        if !snapshot.files.contains_key(MODEL_INDEX)
            && let Some(files) = FileNames::of_weights(snapshot.files.keys())
        {
            let (repository, place) = (self.repository.to_string(), Place::Hub);
            return Err(HubError::NoPipeline { repository, place, files });
        }
        self.fetch_all(&snapshot, &[MODEL_INDEX.to_owned()])?;
        let listing: BTreeSet<String> = snapshot.files.keys().cloned().collect();
        let plan = plan_files(&listing, &read(MODEL_INDEX)?).map_err(|fault| self.faulty(fault))?;
        self.fetch_all(&snapshot, &plan.files[1..])?;
        let mut shards = Vec::new();
        for index in &plan.indices {
            let named = plan_shards(index, &read(index)?, &listing);
            shards.extend(named.map_err(|fault| self.faulty(fault))?);
        }
        self.fetch_all(&snapshot, &shards)?;

        self.cache.set_revision(revision, &snapshot.commit)?;
        self.bar.finish_and_clear();
        Ok(folder)
    }

    /// Fetches what is `wanted`, and returns the folder that it is in.
    pub(super) fn run_selected(
        &self,
        revision: &str,
        wanted: &Wanted,
    ) -> Result<(PathBuf, Selected), HubError> {
        let snapshot = self.snapshot(revision)?;
        let listing = snapshot.files.iter().map(|(path, file)| (path.clone(), file.size));
        let selected = wanted.select(&listing.collect()).map_err(|fault| HubError::Selection {
            repository: self.repository.to_string(),
            fault,
        })?;
        self.fetch_all(&snapshot, &[&selected.files[..], &selected.companions].concat())?;
        self.cache.set_revision(revision, &snapshot.commit)?;
        self.bar.finish_and_clear();
        Ok((self.cache.snapshot(&snapshot.commit), selected))
    }

    /// Asks the hub which commit `revision` is, and which files it has.
    fn snapshot(&self, revision: &str) -> Result<Snapshot, HubError> {
        let (tries, silence_limit) = match self.patience {
            Patience::Long => (TRIES, SILENCE_LIMIT),
            Patience::Short => (1, IMPATIENT_SILENCE_LIMIT),
        };
        let url =
            format!("{}/api/models/{}/revision/{revision}", self.config.endpoint, self.repository);
        let info = self.retrying(tries, async |api: &Api| {
            // With their sizes and sums; a mirror that knows neither is fine.
            let request = self.at(api, revision).info_request().query(&[("blobs", "true")]);
            let answer = async {
                let response = request.send().await?;
                let code = response.headers().get("x-error-code");
                let code = code.and_then(|code| code.to_str().ok()).map(str::to_owned);
                let status = response.status();
                let body = response.bytes().await?.to_vec();
                Ok(Listing { status: status.as_u16(), is_success: status.is_success(), code, body })
            };
            let no_answer = |error| HubError::of_api(error, &url, self.cache.root().to_owned());
            let answer = within_silence_limit(silence_limit, || 0, answer).await;
            let listing = answer.ok_or_else(|| silent(&url, silence_limit))?.map_err(no_answer)?;
            self.info(revision, &url, &listing)
        })?;
        if !is_commit(&info.sha) {
            return Err(HubError::Protocol {
                url: self.config.endpoint.clone(),
                reason: format!("'{}' is no commit", info.sha),
            });
        }
        // Names become paths here and addresses there.
        let files = info.siblings.into_iter().filter(|file| is_plain_path(&file.rfilename));
        Ok(Snapshot {
            commit: info.sha,
            files: files.map(|file| (file.rfilename.clone(), file)).collect(),
        })
    }

    /// What an answer to the first question says.
    fn info(
        &self,
        revision: &str,
        url: &str,
        listing: &Listing,
    ) -> Result<RepositoryInfo, HubError> {
        match (listing.status, listing.code.as_deref()) {
            (_, Some("RevisionNotFound")) => Err(self.not_found(revision, Lacking::Revision)),
            (404, _) | (_, Some("RepoNotFound")) => {
                Err(self.not_found(revision, Lacking::Repository))
            }
            (status, _) if !listing.is_success => Err(self.refused(status, url)),
            _ => serde_json::from_slice(&listing.body).map_err(|error| HubError::Protocol {
                url: url.to_owned(),
                reason: kind_of_answer(&listing.body, &error),
            }),
        }
    }

    fn fetch_all(&self, snapshot: &Snapshot, files: &[String]) -> Result<(), HubError> {
        let mut infos = Vec::new();
        for file in files {
            let missing = || self.faulty(PlanFault::Missing { file: file.clone() });
            infos.push(snapshot.files.get(file).ok_or_else(missing)?);
        }
        let total = infos.iter().filter_map(|info| info.size).sum();
        self.bar.inc_length(total);
        for info in infos {
            self.fetch(&snapshot.commit, info)?;
        }
        Ok(())
    }

    /// Fetches one file and checks it, unless it is there already.
    fn fetch(&self, commit: &str, info: &FileInfo) -> Result<(), HubError> {
        let file = &info.rfilename;
        let path = self.cache.snapshot(commit).join(file);
        if let Ok(present) = std::fs::metadata(&path)
            && info.size.is_none_or(|size| size == present.len())
        {
            self.bar.inc(present.len());
            return Ok(());
        }
        if self.bar.is_hidden() {
            tracing::info!(repository = %self.repository, file, bytes = info.size, "downloading");
        }
        let before = self.bar.position();
        // A link to content that is gone, or is of another size, is in the way.
        self.cache.discard(commit, file)?;
        let announced = self.retrying(TRIES, async |api: &Api| {
            self.bar.set_position(before);
            let repository = self.at(api, commit);
            let announced = self.announced(api, &repository, commit, file).await?;
            if !self.link_present_content(&announced, &path) {
                self.transfer(&repository, commit, file, &announced).await?;
            }
            Ok(announced)
        })?;
        self.check(commit, info, &announced)
    }

    /// What the hub announces of the content of `file`.
    async fn announced(
        &self,
        api: &Api,
        repository: &ApiRepo,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, HubError> {
        let url = repository.url(file);
        let answer = within_silence_limit(SILENCE_LIMIT, || 0, api.metadata(&url)).await;
        let announced = answer
            .ok_or_else(|| silent(&url, SILENCE_LIMIT))?
            .map_err(|error| self.failed(error, &url, file))?;
        // The etag becomes a file's name, and the commit a folder's.
        let etag = announced.etag();
        let strong = etag.strip_prefix("W/").unwrap_or(etag);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_name = !strong.is_empty() && strong.bytes().all(is_plain);
        let reason = if !is_name {
            format!("'{etag}' is no etag of a file")
        } else if announced.commit_hash() != commit {
            format!("it is of commit {}", announced.commit_hash())
        } else {
            return Ok(announced);
        };
        Err(HubError::Protocol { url, reason })
    }

    /// Uses content that another revision brought before. It is checked like
    /// any other afterwards.
    fn link_present_content(&self, announced: &Metadata, path: &std::path::Path) -> bool {
        let blob = self.cache.blob(announced.etag());
        let is_whole =
            std::fs::metadata(&blob).is_ok_and(|content| content.len() == size_of(announced));
        is_whole && link(&blob, path).is_ok()
    }

    async fn transfer(
        &self,
        repository: &ApiRepo,
        commit: &str,
        file: &str,
        announced: &Metadata,
    ) -> Result<(), HubError> {
        let url = repository.url(file);
        let progress = FileProgress::new(&self.bar);
        let work = repository.download_with_progress(file, progress.clone());
        within_silence_limit(SILENCE_LIMIT, || progress.bytes(), work)
            .await
            .ok_or_else(|| silent(&url, SILENCE_LIMIT))?
            .map_err(|error| self.failed(error, &url, file))?;
        let (expected, actual) = (size_of(announced), progress.bytes());
        if expected != actual {
            self.cache.discard(commit, file)?;
            return Err(HubError::WrongSize { file: file.to_owned(), expected, actual });
        }
        Ok(())
    }

    /// Checks the file on disk against all that the hub says of it.
    fn check(&self, commit: &str, info: &FileInfo, announced: &Metadata) -> Result<(), HubError> {
        let file = &info.rfilename;
        let path = self.cache.snapshot(commit).join(file);
        let actual = std::fs::metadata(&path).map_err(HubError::io(&path))?.len();
        let expected = info.size.unwrap_or_else(|| size_of(announced));
        if expected != actual {
            self.cache.discard(commit, file)?;
            return Err(HubError::WrongSize { file: file.clone(), expected, actual });
        }

        let listed = info.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref());
        let etag = Some(announced.etag()).filter(|etag| is_sha256(etag));
        let Some(expected) = listed.or(etag) else {
            return Ok(());
        };
        self.bar.set_message(format!("checking {file}"));
        let actual = sha256_of(&path).map_err(HubError::io(&path))?;
        if !expected.eq_ignore_ascii_case(&actual) {
            self.cache.discard(commit, file)?;
            return Err(HubError::WrongChecksum {
                file: file.clone(),
                expected: expected.to_owned(),
                actual,
            });
        }
        Ok(())
    }

    /// Does `work` up to `tries` times, while its error may pass.
    ///
    /// Each try has a runtime of its own: its end stops the transfers that
    /// hf-hub leaves running when one of them fails.
    fn retrying<T>(
        &self,
        tries: u32,
        work: impl AsyncFn(&Api) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut wait = Duration::ZERO;
        let mut remaining = tries;
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(HubError::io(self.cache.root()))?;
            let api = self.api()?;
            let result = runtime.block_on(async {
                tokio::time::sleep(wait).await;
                work(&api).await
            });
            remaining -= 1;
            match result {
                Err(error) if error.is_transient() && remaining > 0 => {
                    tracing::debug!(%error, remaining, "trying again");
                    wait = (wait * 2).max(FIRST_WAIT);
                }
                result => return result,
            }
        }
    }

    fn api(&self) -> Result<Api, HubError> {
        ApiBuilder::from_cache(hf_hub::Cache::new(self.cache.root().to_owned()))
            .with_endpoint(self.config.endpoint.clone())
            .with_token(self.config.token.clone())
            .with_max_files(CONNECTIONS)
            .with_user_agent(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| {
                HubError::of_api(error, &self.config.endpoint, self.cache.root().to_owned())
            })
    }

    fn at(&self, api: &Api, revision: &str) -> ApiRepo {
        api.repo(Repo::with_revision(
            self.repository.to_string(),
            RepoType::Model,
            revision.to_owned(),
        ))
    }

    /// What went wrong with the request for `file`.
    fn failed(&self, error: ApiError, url: &str, file: &str) -> HubError {
        let status = if let ApiError::RequestError(request) = &error {
            request.status().map(|status| status.as_u16())
        } else {
            None
        };
        match status {
            Some(404) => self.faulty(PlanFault::Missing { file: file.to_owned() }),
            Some(status) => self.refused(status, url),
            None => HubError::of_api(error, url, self.cache.root().to_owned()),
        }
    }

    fn refused(&self, status: u16, url: &str) -> HubError {
        let advice = match (status, &self.config.token) {
            (401 | 403, None) => {
                "if the repository is gated, accept its terms on its page; then set HF_TOKEN to a \
                 token that may read it"
            }
            (401, Some(_)) => "the token (HF_TOKEN, or the token file) is not a valid one",
            (403, Some(_)) => {
                "the token's owner may not read it; if the repository is gated, accept its terms \
                 on its page"
            }
            _ => return HubError::status(url, status),
        };
        HubError::Denied { repository: self.repository.to_string(), status, advice }
    }

    fn not_found(&self, revision: &str, lacking: Lacking) -> HubError {
        HubError::NotFound {
            endpoint: self.config.endpoint.clone(),
            repository: self.repository.to_string(),
            revision: revision.to_owned(),
            lacking,
        }
    }

    fn faulty(&self, fault: PlanFault) -> HubError {
        HubError::Repository { repository: self.repository.to_string(), fault }
    }
}

/// Waits for `work`, or gives it up (`None`) when `progress` stands still for
/// `limit`.
async fn within_silence_limit<T>(
    limit: Duration,
    progress: impl Fn() -> u64,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Option<Result<T, ApiError>> {
    let mut work = pin!(work);
    let mut before = progress();
    loop {
        if let Ok(result) = tokio::time::timeout(limit, &mut work).await {
            return Some(result);
        }
        let now = progress();
        if now == before {
            return None;
        }
        before = now;
    }
}

/// What an answer is that is not a hub's list of files.
fn kind_of_answer(body: &[u8], error: &serde_json::Error) -> String {
    let start = body[..body.len().min(LOOKED_AT_BYTES)].trim_ascii_start();
    if start.starts_with(b"<") {
        return "it answers with a page, as a login page, a proxy or a firewall does".to_owned();
    }
    format!("its list of files is not one ({error})")
}

fn silent(url: &str, limit: Duration) -> HubError {
    let seconds = limit.as_secs();
    HubError::Unreachable {
        url: url.to_owned(),
        source: format!("nothing came for {seconds} seconds").into(),
    }
}

fn size_of(announced: &Metadata) -> u64 {
    announced.size() as u64
}

/// Makes `path` a link to `content`, relative, so that the cache can be moved.
#[cfg(unix)]
fn link(content: &std::path::Path, path: &std::path::Path) -> std::io::Result<()> {
    use std::io::{Error, ErrorKind};

    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    // Both lie below the repository's folder, `content` in its `blobs`.
    let repository = content.parent().and_then(|blobs| blobs.parent());
    let depth = repository
        .and_then(|repository| folder.strip_prefix(repository).ok())
        .ok_or_else(|| Error::from(ErrorKind::InvalidInput))?
        .components()
        .count();
    let name = content.file_name().ok_or(ErrorKind::InvalidInput)?;
    let target = PathBuf::from("../".repeat(depth)).join("blobs").join(name);
    std::os::unix::fs::symlink(target, path)
}

/// Links need privileges elsewhere: the file is fetched again instead.
#[cfg(not(unix))]
fn link(_content: &std::path::Path, _path: &std::path::Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
