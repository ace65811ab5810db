//! Keys, if the settings name any.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::ApiConfig;
use super::error::ApiError;
use super::peer::PeerAddress;
use super::state::AppState;
use crate::service::Client;

/// The keys of which a client must have one; without any, nobody is asked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Whether a client must have one.
    pub(super) fn are_asked_for(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a request with these headers carries one of them.
    fn have_one_of(&self, headers: &HeaderMap) -> bool {
        given_keys(headers).any(|given| self.0.iter().any(|key| is_same(given, key)))
    }
}

impl std::fmt::Debug for ApiKeys {
    /// Prints how many there are, never the keys.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ApiKeys({})", self.0.len())
    }
}

/// Middleware: lets those through who have a key. Preflights have none by nature.
pub(super) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let keys = &state.config.api_keys;
    let is_preflight = request.method() == Method::OPTIONS;
    let headers = request.headers();
    let has_one = || keys.have_one_of(headers) || state.config.admin_keys.have_one_of(headers);
    if !keys.are_asked_for() || is_preflight || has_one() {
        return next.run(request).await;
    }
    ApiError::Unauthorised.into_response()
}

/// Refuses those who are no administrators. Without keys for them there are none: whoever
/// can reach the server could else have its models unloaded.
///
/// # Errors
/// [`ApiError::NotForAll`].
pub(super) fn require_administrator(
    headers: &HeaderMap,
    config: &ApiConfig,
) -> Result<(), ApiError> {
    if config.admin_keys.have_one_of(headers) {
        return Ok(());
    }
    Err(ApiError::NotForAll { there_are_keys: config.admin_keys.are_asked_for() })
}

/// Who asks: whoever has this key, or without keys whoever is at this address.
pub(super) fn client_of(request: &Request, config: &ApiConfig) -> Client {
    let key = given_keys(request.headers()).next();
    if let Some(key) = key.filter(|_| config.api_keys.are_asked_for()) {
        return Client::of(&key);
    }
    let forwarded = request.headers().get("x-forwarded-for").and_then(|value| value.to_str().ok());
    let nearest = forwarded.and_then(|addresses| addresses.rsplit(',').next());
    match nearest.filter(|_| config.trust_forwarded_headers) {
        Some(address) => Client::of(&address.trim()),
        None => Client::of(&request.extensions().get::<PeerAddress>()),
    }
}

/// What a request carries as keys: as a bearer, or in the header that clients of Azure send.
fn given_keys(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str());
    let bearer = authorization.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    [bearer, text("api-key")].into_iter().flatten()
}

/// Compares digests: how long that takes tells nothing about the key.
fn is_same(given: &str, key: &str) -> bool {
    Sha256::digest(given) == Sha256::digest(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_as_bearer_or_in_azures_header() {
        let keys = ApiKeys::new(vec!["secret".to_owned(), "other".to_owned()]);
        let has = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            keys.have_one_of(&headers)
        };

        assert!(has("authorization", "Bearer secret"));
        assert!(has("authorization", "bearer other"));
        assert!(has("api-key", "secret"));
        assert!(!has("authorization", "secret"));
        assert!(!has("authorization", "Bearer secre"));
        assert!(!has("authorization", "Basic secret"));
        assert!(!keys.have_one_of(&HeaderMap::new()));
    }
}
