//! Keys, if the settings name any.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::state::AppState;

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
    if !keys.are_asked_for() || is_preflight || has_key(request.headers(), &keys.0) {
        return next.run(request).await;
    }
    ApiError::Unauthorised.into_response()
}

/// Whether the request carries one of `keys`: as a bearer, or in the header that
/// clients of Azure send.
fn has_key(headers: &HeaderMap, keys: &[String]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str());
    let bearer = authorization.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let given = [bearer, text("api-key")];
    given.into_iter().flatten().any(|given| keys.iter().any(|key| is_same(given, key)))
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
        let keys = ["secret".to_owned(), "other".to_owned()];
        let has = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            has_key(&headers, &keys)
        };

        assert!(has("authorization", "Bearer secret"));
        assert!(has("authorization", "bearer other"));
        assert!(has("api-key", "secret"));
        assert!(!has("authorization", "secret"));
        assert!(!has("authorization", "Bearer secre"));
        assert!(!has("authorization", "Basic secret"));
        assert!(!has_key(&HeaderMap::new(), &keys));
    }
}
