//! The page on which people play with the models: the files of `web/`, as they stand there,
//! compiled in.
//!
//! The page is at `/` for browsers, and at `/playground`. What it loads lies in a folder that is
//! named after the contents of all files, and may be kept for ever; modules find each other
//! there by relative addresses. All of it works behind a path of a proxy, too.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::Embed;
use sha2::{Digest, Sha256};

/// Where the page is.
pub(super) const PATH: &str = "/playground";

/// What the page may load: files of this server, and pictures that it made itself. Nothing of it
/// stands in the page, and no text becomes a part of it.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'",
);

/// Where the page has the folder of its files, and where the list of its modules.
const FOLDER_MARK: &str = "@assets@";
const MODULES_MARK: &str = "<!-- modules -->";
/// Digits of the name of that folder.
const VERSION_DIGITS: usize = 16;

#[derive(Embed)]
#[folder = "web/"]
struct Sources;

/// The page and its files. Clones share them.
#[derive(Clone)]
pub(super) struct Playground(Arc<Files>);

struct Files {
    /// The name of the folder, which stands for its contents.
    version: String,
    page: File,
    by_name: HashMap<String, File>,
}

/// A file in both of the ways in which it is sent.
struct File {
    media_type: &'static str,
    plain: Bytes,
    gzipped: Bytes,
}

impl Playground {
    /// Reads and compresses the files.
    pub(super) fn new() -> Self {
        let sources: BTreeMap<String, Bytes> = Sources::iter()
            .filter_map(|name| {
                let file = Sources::get(&name)?;
                media_type(&name)?;
                Some((name.into_owned(), Bytes::from(file.data.into_owned())))
            })
            .collect();
        let version = version_of(&sources);
        let page = sources.get("index.html").map(Bytes::as_ref).unwrap_or_default();
        let page = page_of(&String::from_utf8_lossy(page), &version, sources.keys());
        let page = File::new("text/html; charset=utf-8", page.into());
        let files = sources.into_iter().filter(|(name, _)| name != "index.html");
        let by_name = files.filter_map(|(name, bytes)| {
            let file = File::new(media_type(&name)?, bytes);
            Some((name, file))
        });
        Self(Arc::new(Files { version, page, by_name: by_name.collect() }))
    }

    /// Its routes, but for `/`.
    pub(super) fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        let (page, files) = (self.clone(), self.clone());
        Router::new()
            .route(PATH, get(|headers: HeaderMap| async move { page.page(&headers) }))
            .route(&format!("{PATH}/"), get(|| async { Redirect::permanent("../playground") }))
            .route(
                &format!("{PATH}/{{version}}/{{*file}}"),
                get(
                    |Path((version, name)): Path<(String, String)>, headers: HeaderMap| async move {
                        files.file(&version, &name, &headers)
                    },
                ),
            )
    }

    /// The page; that it is the same as before, if the client has it.
    pub(super) fn page(&self, headers: &HeaderMap) -> Response {
        let tag = format!("W/\"{}\"", self.0.version);
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_known = known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag));
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.0.page.response(headers)
        };
        let own = [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::VARY, HeaderValue::from_static("accept, accept-encoding")),
        ];
        response.headers_mut().extend(own);
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }

    fn file(&self, version: &str, name: &str, headers: &HeaderMap) -> Response {
        let file = self.0.by_name.get(name).filter(|_| version == self.0.version);
        let Some(file) = file else { return StatusCode::NOT_FOUND.into_response() };
        let mut response = file.response(headers);
        let own = [
            (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            (header::VARY, "accept-encoding"),
        ];
        let own = own.map(|(name, value)| (name, HeaderValue::from_static(value)));
        response.headers_mut().extend::<[(HeaderName, HeaderValue); 2]>(own);
        response
    }
}

impl File {
    fn new(media_type: &'static str, plain: Bytes) -> Self {
        let gzipped = gzipped(&plain);
        Self { media_type, plain, gzipped }
    }

    fn response(&self, headers: &HeaderMap) -> Response {
        let media_type = (header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        if takes_gzip(headers) {
            let encoding = (header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return ([media_type, encoding], self.gzipped.clone()).into_response();
        }
        ([media_type], self.plain.clone()).into_response()
    }
}

/// Whether a client would rather have the page than JSON: one that names HTML, as browsers do,
/// and does not like JSON better.
pub(super) fn is_wished_for(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter();
    let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let weight_of = |wanted: &str| {
        let ranges = texts.iter().flat_map(|text| text.split(','));
        let weights = ranges.filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next()?.eq_ignore_ascii_case(wanted);
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            is_it.then(|| weight.unwrap_or(1.0))
        });
        weights.fold(0.0_f32, f32::max)
    };
    let html = weight_of("text/html");
    html > 0.0 && html >= weight_of("application/json")
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let mut codings = values.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_refused = |part: &str| part.replace(' ', "").trim_end_matches(['0', '.']) == "q=";
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip")) && !parts.any(is_refused)
    })
}

/// The page with the addresses of its files. Modules are fetched all at once, but for the
/// languages, of which one is used.
fn page_of<'a>(source: &str, version: &str, names: impl Iterator<Item = &'a String>) -> String {
    let folder = format!("{}/{version}", PATH.trim_start_matches('/'));
    let modules = names.filter(|name| name.starts_with("js/") && !name.ends_with("early.js"));
    let links =
        modules.map(|name| format!("<link rel=\"modulepreload\" href=\"{folder}/{name}\">"));
    let links = links.collect::<Vec<_>>().join("\n    ");
    source.replace(MODULES_MARK, &links).replace(FOLDER_MARK, &folder)
}

/// The first digits of a SHA-256 of all names and contents.
fn version_of(sources: &BTreeMap<String, Bytes>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in sources {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(Sha256::digest(bytes));
    }
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..VERSION_DIGITS].to_owned()
}

/// What a file is, by its name; nothing for those that are not served.
fn media_type(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "html" => Some("text/html; charset=utf-8"),
        "js" => Some("text/javascript; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        _ => None,
    }
}

/// `bytes`, smaller. Writing into memory does not fail; if it did, clients would see that what
/// they get is no gzip.
fn gzipped(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wished(accept: &'static str) -> bool {
        is_wished_for(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn browsers_wish_for_the_page_and_programs_for_json() {
        assert!(wished("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(wished("text/html;q=0.5, application/json;q=0.4"));
        for other in ["*/*", "application/json", "text/html;q=0.4, application/json", ""] {
            assert!(!wished(other), "{other}");
        }
        assert!(!is_wished_for(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        let takes = |coding| {
            let value = HeaderValue::from_static(coding);
            takes_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, value)]))
        };
        assert!(takes("gzip, deflate, br") && takes("br, GZIP;q=0.1"));
        assert!(!takes("br") && !takes("gzip;q=0") && !takes("gzip; q=0.0, br"));
    }

    #[test]
    fn another_content_has_another_folder() {
        let of = |name: &str, text: &'static str| {
            version_of(&BTreeMap::from([(name.to_owned(), Bytes::from(text))]))
        };
        assert_eq!(of("a.js", "x"), of("a.js", "x"));
        assert_ne!(of("a.js", "x"), of("a.js", "y"));
        assert_ne!(of("a.js", "x"), of("b.js", "x"));
    }
}
