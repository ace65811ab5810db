//! Which pages of other origins may call, and what they may read.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::origin::Origin;
use super::{ApiConfig, access, reply, request_log};

/// The pages that may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// Those of any origin.
    Any,
    /// Those of these, written as browsers do: scheme, host and port, in lower case.
    These(Vec<String>),
}

/// How long browsers remember what a page may send: the longest that any does.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(86_400);

/// Also a public page may call whose browser is in this network; errors can be read by it,
/// too. Headers are mirrored, for `*` does not cover `Authorization`. Answers every OPTIONS,
/// also a plain one.
pub(super) fn layer(origins: &CorsOrigins) -> CorsLayer {
    let origins = match origins {
        CorsOrigins::Any => AllowOrigin::from(Any),
        CorsOrigins::These(origins) => {
            let values = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
            AllowOrigin::list(values)
        }
    };
    let retry_headers = ["retry-after-ms", "x-should-retry"].map(HeaderName::from_static);
    let [retry_after_ms, should_retry] = retry_headers;
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE, Method::OPTIONS])
        .allow_headers(AllowHeaders::mirror_request())
        .allow_private_network(true)
        .max_age(PREFLIGHT_MAX_AGE)
        .expose_headers(
            [request_log::REQUEST_ID, header::RETRY_AFTER, retry_after_ms, should_retry]
                .into_iter()
                .chain(access::HEADERS)
                .chain(reply::HEADERS.map(HeaderName::from_static))
                .collect::<Vec<_>>(),
        )
}

/// Whether the page may call that a request comes from. A browser asks for no leave before it
/// opens a WebSocket, and lets the page read whatever comes: here the server has to look.
pub(super) fn may_call(headers: &HeaderMap, config: &ApiConfig) -> bool {
    let Some(page) = headers.get(header::ORIGIN) else { return true };
    let CorsOrigins::These(origins) = &config.cors_origins else { return true };
    let page = page.to_str().unwrap_or_default().to_ascii_lowercase();
    let own = Origin::of(headers, config);
    let host = |origin: &str| origin.split_once("://").map(|(_, host)| host.to_owned());
    origins.contains(&page) || host(&page).is_some_and(|page| host(own.as_str()) == Some(page))
}

/// Takes the other headers of the layer from answers to pages that may not call.
pub(super) async fn keep_from_strangers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_METHODS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderName::from_static("access-control-allow-private-network"),
        ] {
            headers.remove(name);
        }
    }
    response
}
