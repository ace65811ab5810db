//! Downloads, from a server on this machine that plays the hub: its list of
//! files, small files by itself, large ones by a redirect to another address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, RawQuery, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use diffuser_api::hub::{HubConfig, HubError, Progress, RepositoryId, fetch_snapshot};
use serde_json::json;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

const MODEL_INDEX: &str = r#"{
    "_class_name": "QwenImageEditPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"]
}"#;

const SHARDS: &str = r#"{"weight_map": {
    "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
    "b": "diffusion_pytorch_model-00002-of-00002.safetensors"
}}"#;

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// What the pipeline needs of [`repository_files`].
const NEEDED: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    VAE,
];

fn repository_files() -> BTreeMap<String, Bytes> {
    let shard = "transformer/diffusion_pytorch_model";
    [
        ("README.md", "# A model"),
        ("assets/picture.png", "not needed"),
        ("model_index.json", MODEL_INDEX),
        ("scheduler/scheduler_config.json", "{}"),
        ("tokenizer/merges.txt", "a b"),
        ("tokenizer/vocab.json", "{}"),
        ("transformer/config.json", "{\"a\": 1}"),
        (&format!("{shard}-00001-of-00002.safetensors"), "first"),
        (&format!("{shard}-00002-of-00002.safetensors"), "second"),
        (&format!("{shard}.fp16.safetensors"), "not needed"),
        (&format!("{shard}.safetensors.index.json"), SHARDS),
        ("vae/config.json", "{\"b\": 2}"),
        ("vae/diffusion_pytorch_model.bin", "not needed"),
        (VAE, "the weights of the VAE"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), Bytes::copy_from_slice(text.as_bytes())))
    .collect()
}

/// How the hub misbehaves.
#[derive(Default, Clone)]
struct Faults {
    /// The list of files answers with this status.
    list_status: Option<u16>,
    /// ... and this `x-error-code`.
    error_code: Option<&'static str>,
    /// This file answers with this status, for so many requests.
    file_status: Option<(&'static str, u16, usize)>,
    /// Bodies from this byte of a file on break off in the middle.
    cut_from: Option<usize>,
    /// This file's bodies are one byte short, and say so.
    short: Option<&'static str>,
    /// This file's bytes are not those announced.
    altered: Option<&'static str>,
    /// The list names neither sizes nor sums.
    bare_list: bool,
    /// The list of files is this instead, with status 200.
    list_body: Option<&'static str>,
    /// Every request is sent to a login page.
    login_page: bool,
    /// The list of files does not come.
    silent: bool,
}

struct Request {
    path: String,
    range: Option<String>,
    token: Option<String>,
}

struct Hub {
    revisions: BTreeMap<String, String>,
    files: BTreeMap<String, Bytes>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    content_address: SocketAddr,
}

struct FakeHub {
    hub: Arc<Hub>,
    address: SocketAddr,
    cache: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeHub {
    fn start() -> Self {
        Self::with(repository_files())
    }

    fn with(files: BTreeMap<String, Bytes>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bind = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() };
        let listener = runtime.block_on(bind());
        // Content has an address of its own, as on the real hub: hf-hub follows
        // redirects to another host by itself, with other headers.
        let content = runtime.block_on(bind());
        let address = listener.local_addr().unwrap();
        let hub = Arc::new(Hub {
            revisions: [("main", COMMIT), ("v1", COMMIT), (COMMIT, COMMIT), ("next", NEXT_COMMIT)]
                .map(|(name, commit)| (name.to_owned(), commit.to_owned()))
                .into(),
            files,
            faults: Mutex::default(),
            requests: Mutex::default(),
            content_address: content.local_addr().unwrap(),
        });
        let router = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
            .route("/{owner}/{name}/resolve/{revision}/{*file}", get(resolve))
            .route("/content/{*file}", get(content_of))
            .route("/login", get(async || axum::response::Html("<html>Sign in</html>")))
            .with_state(Arc::clone(&hub));
        for listener in [listener, content] {
            let router = router.clone();
            runtime.spawn(async move { axum::serve(listener, router).await });
        }
        Self { hub, address, cache: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: format!("http://{}", self.address),
            cache: self.cache.path().to_owned(),
            token: None,
            offline: false,
        }
    }

    fn offline(&self) -> HubConfig {
        HubConfig { offline: true, ..self.config() }
    }

    fn fail(&self, faults: Faults) {
        *self.hub.faults.lock().unwrap() = faults;
    }

    fn fetch(&self) -> Result<std::path::PathBuf, HubError> {
        fetch(&self.config(), None)
    }

    /// Names of the files asked for since the last call, each once, sorted.
    fn files_asked_for(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.hub.requests.lock().unwrap());
        let mut files: Vec<String> = requests
            .iter()
            .filter_map(|request| Some(request.path.split_once("/resolve/")?.1))
            .filter_map(|rest| Some(rest.split_once('/')?.1.to_owned()))
            .collect();
        files.sort();
        files.dedup();
        files
    }

    /// Ranges of the VAE's weights asked for since the last call.
    fn ranges_asked_for(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.hub.requests.lock().unwrap());
        requests
            .into_iter()
            .filter(|request| request.path == format!("/content/{VAE}"))
            .filter_map(|request| request.range)
            .filter(|range| range != "bytes=0-0")
            .collect()
    }
}

fn fetch(config: &HubConfig, revision: Option<&str>) -> Result<std::path::PathBuf, HubError> {
    let repository: RepositoryId = "owner/model".parse().unwrap();
    fetch_snapshot(&repository, revision, config, Progress::Log)
}

type SharedHub = State<Arc<Hub>>;

impl Hub {
    fn note(&self, uri: &Uri, headers: &HeaderMap) {
        let text = |name| Some(headers.get(name)?.to_str().unwrap().to_owned());
        self.requests.lock().unwrap().push(Request {
            path: uri.path().to_owned(),
            range: text(header::RANGE),
            token: text(header::AUTHORIZATION),
        });
    }

    fn faults(&self) -> Faults {
        self.faults.lock().unwrap().clone()
    }
}

async fn list(
    State(hub): SharedHub,
    UrlPath((_, _, revision)): UrlPath<(String, String, String)>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    hub.note(&uri, &headers);
    let faults = hub.faults();
    if faults.silent {
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
    if faults.login_page {
        return (StatusCode::FOUND, [(header::LOCATION, "/login")]).into_response();
    }
    if let Some(body) = faults.list_body {
        return ([(header::CONTENT_TYPE, "text/html")], body).into_response();
    }
    if let Some(status) = faults.list_status {
        let code = faults.error_code.unwrap_or("None");
        let status = StatusCode::from_u16(status).unwrap();
        return (status, [("x-error-code", code)]).into_response();
    }
    let Some(commit) = hub.revisions.get(&revision) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    };
    let full = query.as_deref() == Some("blobs=true") && !faults.bare_list;
    let describe = |(name, content): (&String, &Bytes)| match (full, is_large(name)) {
        (false, _) => json!({"rfilename": name}),
        (true, false) => json!({"rfilename": name, "size": content.len()}),
        (true, true) => json!({
            "rfilename": name,
            "size": content.len(),
            "lfs": {"sha256": sha256(content), "size": content.len(), "pointerSize": 134},
        }),
    };
    let siblings: Vec<_> = hub.files.iter().map(describe).collect();
    axum::Json(json!({"sha": commit, "siblings": siblings})).into_response()
}

async fn resolve(
    State(hub): SharedHub,
    UrlPath((_, _, commit, file)): UrlPath<(String, String, String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    hub.note(&uri, &headers);
    if let Some((name, status, times)) = &mut hub.faults.lock().unwrap().file_status
        && *name == file
        && *times > 0
    {
        *times -= 1;
        return StatusCode::from_u16(*status).unwrap().into_response();
    }
    let Some(content) = hub.files.get(&file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = if is_large(&file) {
        let location = format!("http://{}/content/{file}", hub.content_address);
        (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
    } else {
        ranged(&hub.faults(), &file, content, &headers).await
    };
    let etag = if is_large(&file) {
        sha256(content)
    } else {
        // The real hub names git's sha1, which has this length.
        sha256(content)[..40].to_owned()
    };
    let name = if is_large(&file) { "x-linked-etag" } else { "etag" };
    let own = response.headers_mut();
    own.insert(name, format!("\"{etag}\"").parse().unwrap());
    own.insert("x-repo-commit", commit.parse().unwrap());
    response
}

async fn content_of(
    State(hub): SharedHub,
    UrlPath(file): UrlPath<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    hub.note(&uri, &headers);
    ranged(&hub.faults(), &file, &hub.files[&file], &headers).await
}

/// The bytes that the `Range` header asks for, or what the faults make of them.
async fn ranged(
    faults: &Faults,
    file: &str,
    content: &Bytes,
    headers: &HeaderMap,
) -> Response<Body> {
    let range = headers[header::RANGE].to_str().unwrap();
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse::<usize>().unwrap().min(content.len() - 1);
    let is_probe = range == "bytes=0-0";
    let mut bytes = content.slice(start..=end);
    if faults.altered == Some(file) {
        bytes = bytes.iter().map(|byte| byte ^ 1).collect();
    }
    if faults.short == Some(file) && !is_probe {
        bytes = bytes.slice(..bytes.len() - 1);
    }
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{}", content.len()));
    if faults.cut_from.is_some_and(|cut| start >= cut) && !is_probe {
        // The parts before the cut shall be through by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let half = bytes.slice(..bytes.len() / 2);
        let broken = std::io::Error::other("cut");
        let body = Body::from_stream(futures::stream::iter([Ok(half), Err(broken)]));
        let length = bytes.len();
        return response.header(header::CONTENT_LENGTH, length).body(body).unwrap();
    }
    response.body(Body::from(bytes)).unwrap()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn files_in(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(files_in(&path).iter().map(|inner| format!("{name}/{inner}")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

#[test]
fn a_download_brings_the_files_that_a_pipeline_needs_and_no_others() {
    let hub = FakeHub::start();

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
    assert_eq!(hub.files_asked_for(), NEEDED);
    for file in NEEDED {
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), hub.hub.files[*file]);
    }
    assert!(folder.ends_with(format!("models--owner--model/snapshots/{COMMIT}")));
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let hub = FakeHub::start();
    let first = hub.fetch().unwrap();
    hub.files_asked_for();

    let second = hub.fetch().unwrap();

    assert_eq!(first, second);
    assert_eq!(hub.files_asked_for(), Vec::<String>::new());
}

#[test]
fn a_file_of_the_wrong_length_is_fetched_again() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    hub.files_asked_for();
    std::fs::write(folder.join(VAE), "half").unwrap();

    hub.fetch().unwrap();

    assert_eq!(hub.files_asked_for(), [VAE]);
    assert_eq!(std::fs::read(folder.join(VAE)).unwrap(), hub.hub.files[VAE]);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let mut files = repository_files();
    let large: Bytes = (0..25_000_000_u32).map(|index| index.to_le_bytes()[1]).collect();
    files.insert(VAE.to_owned(), large.clone());
    let hub = FakeHub::with(files);
    hub.fail(Faults { cut_from: Some(20_000_000), ..Faults::default() });
    let error = hub.fetch().unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(VAE), "{error}");
    let asked = hub.ranges_asked_for();
    assert!(asked.contains(&"bytes=0-9999999".to_owned()), "{asked:?}");

    hub.fail(Faults::default());
    let folder = hub.fetch().unwrap();

    assert_eq!(hub.ranges_asked_for(), ["bytes=20000000-25000000"]);
    assert_eq!(std::fs::read(folder.join(VAE)).unwrap(), large);
}

#[test]
fn a_server_that_recovers_is_waited_for() {
    let hub = FakeHub::start();
    hub.fail(Faults { file_status: Some(("vae/config.json", 500, 2)), ..Faults::default() });

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
}

#[test]
fn statuses_are_told_apart() {
    let hub = FakeHub::start();
    let failing = |status, error_code| {
        hub.fail(Faults { list_status: Some(status), error_code, ..Faults::default() });
        hub.fetch().unwrap_err()
    };

    let missing = failing(404, Some("RepoNotFound"));
    assert!(matches!(missing, HubError::NotFound { .. }), "{missing:?}");
    assert!(missing.to_string().contains("owner/model"), "{missing}");
    // So the real hub answers unknown_keys who ask for what is not there.
    let hidden = failing(401, Some("RepoNotFound"));
    assert!(matches!(hidden, HubError::NotFound { .. }), "{hidden:?}");
    let unknown = failing(401, None);
    assert!(matches!(unknown, HubError::Denied { status: 401, .. }), "{unknown:?}");
    let gated = failing(403, Some("GatedRepo"));
    assert!(matches!(gated, HubError::Denied { status: 403, .. }), "{gated:?}");
    assert!(gated.to_string().contains("set HF_TOKEN"), "{gated}");
    let broken = failing(500, None);
    assert!(matches!(broken, HubError::Status { status: 500, .. }), "{broken:?}");
    assert!(broken.to_string().contains("/api/models/owner/model"), "{broken}");
}

#[test]
fn a_refused_file_is_an_error_and_never_content() {
    let hub = FakeHub::start();
    for (status, tries) in [(403, 1), (404, 1), (500, 4)] {
        hub.files_asked_for();
        hub.fail(Faults { file_status: Some((VAE, status, usize::MAX)), ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        let requests = hub.hub.requests.lock().unwrap();
        let asked = requests.iter().filter(|request| request.path.ends_with(VAE));
        assert_eq!(asked.count(), tries, "{error}");
        drop(requests);
        let is_told = matches!(
            (status, &error),
            (403, HubError::Denied { status: 403, .. })
                | (404, HubError::Repository { .. })
                | (500, HubError::Status { status: 500, .. })
        );
        assert!(is_told, "{error:?}");
        assert!(hub.offline_lacks(VAE));
    }
}

impl FakeHub {
    /// Whether the cache says that it lacks `file`.
    fn offline_lacks(&self, file: &str) -> bool {
        // The name is noted at the end of a download, so the commit is asked for.
        match fetch(&self.offline(), Some(COMMIT)) {
            Err(HubError::NotCached { file: lacking, .. }) => lacking == file,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_token_is_sent_if_there_is_one() {
    let hub = FakeHub::start();
    let with_token = HubConfig { token: Some("hf_secret".to_owned()), ..hub.config() };

    fetch(&with_token, None).unwrap();

    let requests = std::mem::take(&mut *hub.hub.requests.lock().unwrap());
    let to_the_hub = |request: &&Request| !request.path.starts_with("/content/");
    for request in requests.iter().filter(to_the_hub) {
        assert_eq!(request.token.as_deref(), Some("Bearer hf_secret"), "{}", request.path);
    }
    std::fs::remove_dir_all(hub.cache.path()).unwrap();
    hub.fetch().unwrap();
    let requests = hub.hub.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.token.is_none()));
}

#[test]
fn a_token_that_is_refused_is_told_apart_from_none() {
    let hub = FakeHub::start();
    hub.fail(Faults { list_status: Some(401), ..Faults::default() });
    let with_token = HubConfig { token: Some("hf_secret".to_owned()), ..hub.config() };

    let message = fetch(&with_token, None).unwrap_err().to_string();

    assert!(message.contains("not a valid one"), "{message}");
    assert!(!message.contains("hf_secret"), "{message}");
}

#[test]
fn offline_the_cache_is_used_and_nobody_is_asked() {
    let hub = FakeHub::start();
    let online = hub.fetch().unwrap();
    hub.hub.requests.lock().unwrap().clear();

    let offline = fetch(&hub.offline(), None).unwrap();

    assert_eq!(online, offline);
    assert!(hub.hub.requests.lock().unwrap().is_empty());
}

#[test]
fn offline_the_first_missing_file_is_named() {
    let hub = FakeHub::start();
    let message = fetch(&hub.offline(), None).unwrap_err().to_string();
    assert!(message.contains("model_index.json"), "{message}");
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");

    let folder = hub.fetch().unwrap();
    let shard = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
    std::fs::remove_file(folder.join(shard)).unwrap();

    let message = fetch(&hub.offline(), None).unwrap_err().to_string();
    assert!(message.contains(shard), "{message}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_replaced_by_a_whole_cache_only() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    let unreachable = HubConfig {
        // Nobody listens on the port of the discard service.
        endpoint: "http://127.0.0.1:9".to_owned(),
        ..hub.config()
    };

    assert_eq!(fetch(&unreachable, None).unwrap(), folder);

    std::fs::remove_file(folder.join(VAE)).unwrap();
    let error = fetch(&unreachable, None).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("http://127.0.0.1:9/"), "{error}");
}

/// Everything that may come in place of the list of files.
fn refusals() -> Vec<Faults> {
    let status = |list_status, error_code| Faults {
        list_status: Some(list_status),
        error_code,
        ..Faults::default()
    };
    let body = |body| Faults { list_body: Some(body), ..Faults::default() };
    vec![
        status(401, None),
        status(401, Some("RepoNotFound")),
        status(403, Some("GatedRepo")),
        status(404, None),
        status(407, None),
        status(429, None),
        status(500, None),
        status(503, None),
        body("<!DOCTYPE html><html>Welcome to the hotel</html>"),
        body("{}"),
        body("[]"),
        body(r#"{"sha": "main", "siblings": []}"#),
        Faults { login_page: true, ..Faults::default() },
    ]
}

#[test]
fn a_hub_that_refuses_is_replaced_by_a_whole_cache_only() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    for faults in refusals() {
        let what = format!("{:?} {:?}", faults.list_status, faults.list_body);
        hub.fail(faults);
        hub.files_asked_for();

        assert_eq!(hub.fetch().unwrap(), folder, "{what}");
        assert!(hub.files_asked_for().is_empty(), "{what}");
    }

    std::fs::remove_file(folder.join(VAE)).unwrap();
    for faults in refusals().into_iter().filter(|faults| faults.list_status < Some(429)) {
        hub.fail(faults);
        hub.fetch().unwrap_err();
    }
}

#[test]
fn a_hub_that_says_nothing_is_not_waited_for_long_where_the_cache_is_whole() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    hub.fail(Faults { silent: true, ..Faults::default() });
    let start = std::time::Instant::now();

    assert_eq!(hub.fetch().unwrap(), folder);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn new_files_that_are_refused_leave_those_of_the_last_download() {
    let hub = FakeHub::start();
    let folder = hub.fetch().unwrap();
    // Upstream goes on: the same branch, another commit, whose files are gated.
    let mut moved = repository_files();
    moved.insert("vae/config.json".to_owned(), Bytes::from_static(b"{\"b\": 3}"));
    let next = FakeHub::with(moved);
    next.fail(Faults {
        file_status: Some(("vae/config.json", 403, usize::MAX)),
        ..Faults::default()
    });
    let config = HubConfig { endpoint: next.config().endpoint, ..hub.config() };
    let listed_as_next = folder.parent().unwrap().join(NEXT_COMMIT);
    std::fs::rename(&folder, &listed_as_next).unwrap();
    let refs = folder.parent().unwrap().parent().unwrap().join("refs/main");
    std::fs::write(refs, NEXT_COMMIT).unwrap();

    assert_eq!(fetch(&config, None).unwrap(), listed_as_next);
}

#[test]
fn a_revision_that_the_hub_does_not_have_is_a_mistake_even_if_it_was_here() {
    let hub = FakeHub::start();
    hub.fetch().unwrap();
    hub.fail(Faults {
        list_status: Some(404),
        error_code: Some("RevisionNotFound"),
        ..Faults::default()
    });

    let error = hub.fetch().unwrap_err();

    assert!(matches!(error, HubError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_refusal_says_what_to_do() {
    let hub = FakeHub::start();
    let said = |faults| {
        hub.fail(faults);
        hub.fetch().unwrap_err().to_string()
    };
    let status = |status| Faults { list_status: Some(status), ..Faults::default() };

    assert!(said(status(429)).contains("429") && said(status(429)).contains("later"));
    assert!(said(status(503)).contains("503") && said(status(503)).contains("later"));
    assert!(said(status(401)).contains("401") && said(status(401)).contains("HF_TOKEN"));
    let page = said(Faults { login_page: true, ..Faults::default() });
    assert!(page.contains("login page"), "{page}");
}

#[test]
fn a_pinned_revision_is_the_one_that_is_fetched() {
    let hub = FakeHub::start();

    let folder = fetch(&hub.config(), Some("next")).unwrap();

    assert!(folder.ends_with(NEXT_COMMIT));
    let requests = std::mem::take(&mut *hub.hub.requests.lock().unwrap());
    assert!(requests[0].path.ends_with("/revision/next"));
    let of_hub = requests[1..].iter().filter(|request| request.path.contains("/resolve/"));
    for request in of_hub {
        // By commit, so that a branch that moves meanwhile mixes nothing.
        assert!(request.path.contains(NEXT_COMMIT), "{}", request.path);
    }
    let unknown = fetch(&hub.config(), Some("v9")).unwrap_err();
    assert!(unknown.to_string().contains("'v9'"), "{unknown}");
}

#[test]
fn a_pinned_commit_that_is_here_needs_no_hub() {
    let hub = FakeHub::start();
    let first = fetch(&hub.config(), Some(COMMIT)).unwrap();
    hub.hub.requests.lock().unwrap().clear();

    let second = fetch(&hub.config(), Some(COMMIT)).unwrap();

    assert_eq!(first, second);
    assert!(hub.hub.requests.lock().unwrap().is_empty());
}

#[test]
#[cfg(unix)]
fn content_that_two_revisions_share_is_fetched_once() {
    let hub = FakeHub::start();
    let first = hub.fetch().unwrap();
    assert!(!hub.ranges_asked_for().is_empty());

    let second = fetch(&hub.config(), Some("next")).unwrap();

    assert_ne!(first, second);
    assert_eq!(hub.ranges_asked_for(), Vec::<String>::new());
    assert_eq!(files_in(&second), NEEDED);
    assert_eq!(std::fs::read(second.join(VAE)).unwrap(), hub.hub.files[VAE]);
}

#[test]
fn wrong_bytes_are_refused_and_thrown_away() {
    for bare_list in [false, true] {
        let hub = FakeHub::start();
        hub.fail(Faults { altered: Some(VAE), bare_list, ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        assert!(matches!(&error, HubError::WrongChecksum { file, .. } if file == VAE), "{error:?}");
        assert!(hub.offline_lacks(VAE));
        hub.fail(Faults::default());
        hub.fetch().unwrap();
    }
}

#[test]
fn a_body_that_ends_early_is_refused_even_if_it_says_so() {
    for file in [VAE, "tokenizer/merges.txt"] {
        let hub = FakeHub::start();
        hub.fail(Faults { short: Some(file), ..Faults::default() });

        let error = hub.fetch().unwrap_err();

        assert!(matches!(&error, HubError::WrongSize { file: it, .. } if it == file), "{error:?}");
        hub.fail(Faults::default());
        let folder = hub.fetch().unwrap();
        assert_eq!(std::fs::read(folder.join(file)).unwrap(), hub.hub.files[file]);
    }
}

#[test]
fn a_mirror_that_knows_no_sizes_will_do() {
    let hub = FakeHub::start();
    hub.fail(Faults { bare_list: true, ..Faults::default() });

    let folder = hub.fetch().unwrap();

    assert_eq!(files_in(&folder), NEEDED);
}

#[test]
fn a_repository_without_a_part_of_its_pipeline_is_refused_before_the_weights() {
    let mut files = repository_files();
    files.remove("vae/config.json");
    let hub = FakeHub::with(files);

    let message = hub.fetch().unwrap_err().to_string();

    assert!(message.contains("there is no vae/config.json"), "{message}");
    assert_eq!(hub.files_asked_for(), ["model_index.json"]);
}

#[test]
fn a_repository_that_is_no_pipeline_says_so() {
    let mut files = repository_files();
    files.remove("model_index.json");
    let hub = FakeHub::with(files);

    let message = hub.fetch().unwrap_err().to_string();

    assert_eq!(message, "owner/model: there is no model_index.json");
}

#[test]
fn pull_prints_the_folder_and_nothing_else() {
    let hub = FakeHub::start();
    let pull = |model| {
        std::process::Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["pull", model])
            .env("HF_ENDPOINT", hub.config().endpoint)
            .env("HF_HUB_CACHE", hub.cache.path())
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap()
    };

    let done = pull("owner/model");

    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{printed}");
    let folder = fetch(&hub.offline(), None).unwrap();
    assert_eq!(printed, format!("{}\n", folder.display()));

    let refused = pull("no-owner");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(refused.stdout.is_empty());
    assert_eq!(
        message,
        "diffuser-api: 'no-owner' is no repository: \
         expected owner/name, such as Qwen/Qwen-Image-Edit\n"
    );
}
