//! The ways in which clients write the addresses of OpenAI's endpoints.
//!
//! The router has every endpoint once, behind the configured prefix. Clients of
//! Azure write `/openai/…`, `/openai/v1/…` and `…/deployments/NAME/…`, where the
//! deployment names the model; others have a slash too many. [`Addresses`] brings
//! all of them to the router's one path, before it looks.

use axum::extract::{Request, State};
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

use super::access::Permit;
use super::error::ApiError;
use super::state::AppState;

/// The deployment in the address of a request: the model that is asked for. In the
/// request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deployment(pub(super) String);

/// Where Azure has OpenAI's endpoints, whatever the configured prefix is.
const AZURE_MOUNTS: [&[&str]; 2] = [&["openai"], &["openai", "v1"]];

/// The places at which the endpoints can be found.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    /// The configured prefix, as `/v1` or as nothing.
    prefix: String,
}

impl Addresses {
    /// `prefix`: the router's own, as `/v1` or as nothing.
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// Gives `request` the path by which the router knows what it asks for, and its
    /// [`Deployment`]. Leaves alone what is none of OpenAI's endpoints.
    pub(super) fn rewrite(&self, mut request: Request) -> Request {
        let Some((path, deployment)) = self.resolve(request.uri().path()) else {
            return request;
        };
        let path_and_query = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        // Of segments of a path that was one: it is one again.
        if let Ok(path_and_query) = path_and_query.parse::<PathAndQuery>() {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
        if let Some(deployment) = deployment {
            request.extensions_mut().insert(deployment);
        }
        request
    }

    /// The router's path for `path`, and the deployment in it.
    fn resolve(&self, path: &str) -> Option<(String, Option<Deployment>)> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let prefix: Vec<&str> =
            self.prefix.split('/').filter(|segment| !segment.is_empty()).collect();
        let mounts = std::iter::once(prefix.as_slice()).chain(AZURE_MOUNTS);
        let found = mounts.filter_map(|mount| segments.strip_prefix(mount)).find_map(endpoint);
        let (endpoint, deployment) = found?;
        Some((format!("{}/{}", self.prefix, endpoint.join("/")), deployment))
    }
}

/// What is asked for behind one of the mounts: the endpoint, and the deployment if
/// one is named. A name may have slashes in it, as models of a hub do.
fn endpoint<'a>(behind: &'a [&'a str]) -> Option<(&'a [&'a str], Option<Deployment>)> {
    match behind {
        ["images" | "models" | "jobs" | "files" | "batches" | "realtime", ..] => {
            Some((behind, None))
        }
        ["deployments", name @ .., "images", _] if !name.is_empty() => {
            let name = name.join("/");
            let name = percent_decode_str(&name).decode_utf8_lossy().into_owned();
            Some((&behind[behind.len() - 2..], Some(Deployment(name))))
        }
        _ => None,
    }
}

/// Middleware: refuses deployments that are no name of the loaded model.
pub(super) async fn require_known_deployment(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match check_deployment(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn check_deployment(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let Some(Deployment(name)) = request.extensions().get::<Deployment>() else {
        return Ok(());
    };
    let models = Permit::of(request)?.models(&state.requests.models);
    models.named(name, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(prefix: &str, path: &str) -> Option<(String, Option<String>)> {
        let found = Addresses::new(prefix.to_owned()).resolve(path)?;
        Some((found.0, found.1.map(|Deployment(name)| name)))
    }

    #[test]
    fn every_way_leads_to_the_path_behind_the_prefix() {
        for (path, expected, deployment) in [
            ("/v1/images/edits", "/v1/images/edits", None),
            ("/openai/images/edits", "/v1/images/edits", None),
            ("/openai/v1/models/a%2Fb", "/v1/models/a%2Fb", None),
            ("//v1//images/edits/", "/v1/images/edits", None),
            ("/openai/deployments/x/images/edits", "/v1/images/edits", Some("x")),
            ("/openai/deployments/a%2Fb/images/edits", "/v1/images/edits", Some("a/b")),
            ("/openai/deployments/a/b/images/edits", "/v1/images/edits", Some("a/b")),
            ("/openai/deployments/images/images/edits", "/v1/images/edits", Some("images")),
            ("/v1/deployments/%E2%82%AC/images/edits", "/v1/images/edits", Some("€")),
        ] {
            let expected = (expected.to_owned(), deployment.map(str::to_owned));
            assert_eq!(resolved("/v1", path), Some(expected), "{path}");
        }
        let without_prefix = Some(("/images/edits".to_owned(), None));
        assert_eq!(resolved("", "/images/edits"), without_prefix);
        assert_eq!(resolved("", "/openai/images/edits"), without_prefix);
    }

    #[test]
    fn what_is_no_endpoint_of_openai_stays_as_it_is() {
        for path in [
            "/",
            "/docs/",
            "//docs",
            "/health",
            "/images/edits",
            "/v1/v1/images/edits",
            "/v1/openai/images/edits",
            "/openai/deployments/images/edits",
            "/openai/deployments/x/chat/completions",
        ] {
            assert_eq!(resolved("/v1", path), None, "{path}");
        }
    }
}
