//! A server on this machine that plays the hub: its list of files, small files by itself,
//! large ones by a redirect to another address. It has the same files in every repository.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, RawQuery, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use diffuser_api::hub::HubConfig;
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// How the hub misbehaves.
#[derive(Default, Clone)]
pub(crate) struct Faults {
    /// The list of files answers with this status.
    pub(crate) list_status: Option<u16>,
    /// ... and this `x-error-code`.
    pub(crate) error_code: Option<&'static str>,
    /// This file answers with this status, for so many requests.
    pub(crate) file_status: Option<(&'static str, u16, usize)>,
    /// Bodies from this byte of a file on break off in the middle.
    pub(crate) cut_from: Option<usize>,
    /// This file's bodies are one byte short, and say so.
    pub(crate) short: Option<&'static str>,
    /// This file's bytes are not those announced.
    pub(crate) altered: Option<&'static str>,
    /// The list names neither sizes nor sums.
    pub(crate) bare_list: bool,
    /// The list of files is this instead, with status 200.
    pub(crate) list_body: Option<&'static str>,
    /// Every request is sent to a login page.
    pub(crate) login_page: bool,
    /// The list of files does not come.
    pub(crate) silent: bool,
}

pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

pub(crate) struct Hub {
    pub(crate) revisions: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<String, Bytes>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) content_address: SocketAddr,
}

pub(crate) struct FakeHub {
    pub(crate) hub: Arc<Hub>,
    pub(crate) address: SocketAddr,
    pub(crate) cache: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeHub {
    pub(crate) fn with(files: BTreeMap<String, Bytes>) -> Self {
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

    pub(crate) fn config(&self) -> HubConfig {
        HubConfig {
            endpoint: format!("http://{}", self.address),
            cache: self.cache.path().to_owned(),
            token: None,
            offline: false,
        }
    }

    pub(crate) fn offline(&self) -> HubConfig {
        HubConfig { offline: true, ..self.config() }
    }

    pub(crate) fn fail(&self, faults: Faults) {
        *self.hub.faults.lock().unwrap() = faults;
    }

    /// Names of the files asked for since the last call, each once, sorted.
    pub(crate) fn files_asked_for(&self) -> Vec<String> {
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

    /// Ranges of the large file `file` asked for since the last call.
    pub(crate) fn ranges_asked_for(&self, file: &str) -> Vec<String> {
        let requests = std::mem::take(&mut *self.hub.requests.lock().unwrap());
        requests
            .into_iter()
            .filter(|request| request.path == format!("/content/{file}"))
            .filter_map(|request| request.range)
            .filter(|range| range != "bytes=0-0")
            .collect()
    }
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
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
