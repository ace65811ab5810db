//! The way of a request past its key and its limits, and what its answer says of them.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::rates::{RequestRate, Running, TooFast};
use super::{Access, ApiError, Key, Permit, Scope};
use crate::api::guarded_body::GuardedBody;
use crate::api::peer::PeerAddress;
use crate::api::request_log::{Afterwards, Outcome};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// What the answers of limited clients say of their rate: OpenAI's names.
pub(crate) const HEADERS: [HeaderName; 3] = [LIMIT, REMAINING, RESET];

/// The name of the key that a request came with; in its response's extensions.
#[derive(Debug, Clone)]
pub(crate) struct UsedKey(pub(crate) Arc<str>);

/// A request that was let in, or not.
pub(super) struct Decision {
    pub(super) admitted: Result<(Arc<Permit>, Running), ApiError>,
    rate: Option<RequestRate>,
    key: Option<UsedKey>,
}

/// What became of a request that came by a connection that was admitted before.
pub(in crate::api) struct Readmission {
    pub(in crate::api) admitted: Result<(Arc<Permit>, Running), ApiError>,
    pub(in crate::api) key: Option<UsedKey>,
}

/// Middleware: lets those through who have a key and keep to their limits. Preflights have
/// no key by nature.
pub(crate) async fn admit(
    State(access): State<Access>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    let Decision { admitted, rate, key } = access.decide(&request);
    let mut response = match admitted {
        Err(refusal) => refusal.into_response(),
        Ok((permit, running)) => {
            request.extensions_mut().insert(Arc::clone(&permit));
            let response = next.run(request).await;
            held(response, permit, running)
        }
    };
    if let Some(rate) = rate {
        tell(response.headers_mut(), rate);
    }
    if let Some(key) = key {
        response.extensions_mut().insert(key);
    }
    response
}

impl Access {
    pub(super) fn decide(&self, request: &Request) -> Decision {
        self.counted(self.permit(request))
    }

    /// A further request of whoever has the permit `before`, by the keys and limits that are
    /// in force now; it is under way as long as what comes with its permit.
    pub(in crate::api) fn admit_again(&self, before: &Permit) -> Readmission {
        let Decision { admitted, key, .. } = self.counted(self.renewed(before));
        Readmission { admitted, key }
    }

    fn renewed(&self, before: &Permit) -> Result<Permit, ApiError> {
        let rules = self.rules();
        let Some(key) = before.key() else {
            if rules.ask_for(Scope::Images) {
                return Err(ApiError::Unauthorised);
            }
            return Ok(before.of_same_address(rules.limits));
        };
        let is_same =
            |other: &&Arc<Key>| other.hash == key.hash && other.scopes.contain(Scope::Images);
        let key = rules.keys.iter().rev().find(is_same).ok_or(ApiError::Unauthorised)?;
        self.check_expiry(key)?;
        Ok(Permit::of_key(key))
    }

    /// Counts a request.
    fn counted(&self, permit: Result<Permit, ApiError>) -> Decision {
        let permit = match permit {
            Ok(permit) => Arc::new(permit),
            Err(refusal) => return Decision { admitted: Err(refusal), rate: None, key: None },
        };
        let key = permit.key_name().map(|name| UsedKey(name.into()));
        let limits = permit.limits();
        let rate = limits.requests_per_minute.map(|limit| permit.account().take_request(limit));
        let rate = match rate.transpose() {
            Ok(rate) => rate,
            Err(TooFast { rate, wait }) => {
                let refusal = ApiError::RateLimited { limit: rate.limit.get(), wait };
                return Decision { admitted: Err(refusal), rate: Some(rate), key };
            }
        };
        let running = permit.account().begin(limits.concurrent_requests);
        let limit = limits.concurrent_requests.map_or(0, NonZeroU32::get);
        let admitted = running.ok_or(ApiError::TooManyAtOnce { limit });
        Decision { admitted: admitted.map(|running| (permit, running)), rate, key }
    }

    /// Who asks, and what they may; counts nothing.
    fn permit(&self, request: &Request) -> Result<Permit, ApiError> {
        let rules = self.rules();
        let is_asked_for = rules.ask_for(Scope::Images);
        match rules.key_for(request.headers(), Scope::Images) {
            Some(key) if key.scopes.contain(Scope::Images) => {
                self.check_expiry(key)?;
                return Ok(Permit::of_key(key));
            }
            Some(_) if is_asked_for => {
                return Err(ApiError::MissingScope { scope: Scope::Images.name() });
            }
            None if is_asked_for => return Err(ApiError::Unauthorised),
            Some(_) | None => {}
        }
        let peer = request.extensions().get::<PeerAddress>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |PeerAddress(address)| *address);
        let address = rules.proxies.client(request.headers(), peer);
        // Of clients that nothing is counted of, nothing is remembered.
        let account = if rules.limits.are_any() {
            self.0.ledger.account(address)
        } else {
            super::Account::new(self.0.time.clone())
        };
        Ok(Permit::of_address(address, account, rules.limits))
    }
}

/// Writes how many requests are left.
fn tell(headers: &mut HeaderMap, rate: RequestRate) {
    headers.insert(LIMIT, HeaderValue::from(rate.limit.get()));
    headers.insert(REMAINING, HeaderValue::from(rate.remaining));
    // Digits and letters are always a value.
    if let Ok(reset) = HeaderValue::from_str(&written(rate.reset_after)) {
        headers.insert(RESET, reset);
    }
}

/// A time as OpenAI's servers write it, which is Go's way: `120ms`, `1s`, `6m0s`, `1h2m3.5s`.
fn written(time: Duration) -> String {
    let ms = time.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = format!(".{ms:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        (_, _) => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

/// `response`, whose request is under way until its body has been taken. Pictures that were
/// not made are given back; those of a client that left are not.
fn held(response: Response, permit: Arc<Permit>, running: Running) -> Response {
    if response.status().is_client_error() || response.status().is_server_error() {
        permit.give_back();
    }
    let afterwards = response.extensions().get::<Afterwards>();
    let outcome = afterwards.map(|Afterwards(outcome)| Arc::clone(outcome));
    let held = Held { outcome, permit, _running: running };
    response.map(|body| Body::new(GuardedBody { body, _guard: held }))
}

/// A request under way, and how its stream ended, if it has one.
struct Held {
    outcome: Option<Arc<OnceLock<Outcome>>>,
    permit: Arc<Permit>,
    _running: Running,
}

impl Drop for Held {
    fn drop(&mut self) {
        let outcome = self.outcome.as_ref().and_then(|outcome| outcome.get());
        if let Some(Outcome::Failed(..)) = outcome {
            self.permit.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_does() {
        for (ms, expected) in [
            (0, "0s"),
            (120, "120ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (20_000, "20s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (86_400, "1m26.4s"),
            (3_723_500, "1h2m3.5s"),
        ] {
            assert_eq!(written(Duration::from_millis(ms)), expected);
        }
    }
}
