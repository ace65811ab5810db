//! The handle, by a clock that a test turns.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use governor::clock::FakeRelativeClock;

use super::*;
use crate::api::cors::CorsOrigins;
use crate::api::peer::{PeerAddress, PeerLimits};
use crate::api::{BatchesConfig, MetricsAddress, Role};
use crate::jobs::{JobStoreLocation, JobsConfig};
use crate::pictures::{StoreConfig, StoreLocation, StoreOptions};
use crate::requests::DefaultResponseFormat;
use crate::webhooks::WebhookConfig;

/// Settings that limit and ask for nothing.
fn open() -> ApiConfig {
    let second = Duration::from_secs(1);
    ApiConfig {
        role: Role::default(),
        app_name: String::new(),
        app_version: String::new(),
        api_prefix: String::new(),
        max_upload_bytes: 1,
        request_memory_bytes: 1,
        memory_timeout: second,
        max_image_bytes: 1,
        max_image_pixels: 1,
        max_request_pixels: 1,
        max_parts: 1,
        peers: PeerLimits {
            header_timeout: second,
            idle_timeout: second,
            body_timeout: second,
            write_timeout: second,
            max_connections: 1,
            grace: second,
        },
        upload_timeout: second,
        request_timeout: None,
        api_keys: ApiKeys::default(),
        admin_keys: ApiKeys::default(),
        named_keys: Vec::new(),
        limits: Limits::default(),
        trusted_proxies: Vec::new(),
        cors_origins: CorsOrigins::Any,
        model_aliases: Vec::new(),
        response_format: DefaultResponseFormat::Base64,
        png_compression: Default::default(),
        loading_wait: second,
        metrics: MetricsAddress { host: String::new(), port: None },
        batches: BatchesConfig {
            max_file_bytes: 1,
            max_requests: 1,
            in_flight: 1,
            lifetime: second,
            window: BatchesConfig::WINDOW,
        },
        jobs: JobsConfig {
            location: JobStoreLocation::Memory,
            max_tries: 1,
            lifetime: second,
            capacity: 1,
            max_bytes: 1,
        },
        webhooks: WebhookConfig::default(),
        picture_store: StoreConfig {
            location: StoreLocation::Memory,
            options: StoreOptions::default(),
            signed_urls: false,
            lifetime: second,
            max_bytes: 1,
            timeout: second,
        },
        public_url: None,
        trust_forwarded_headers: false,
        write_prompts: false,
        playground: false,
        access_log: true,
    }
}

/// A key whose text is its name.
fn key(name: &str, scopes: &[Scope]) -> NamedKey {
    NamedKey {
        webhook: None,
        name: name.parse().unwrap(),
        hash: KeyHash::of(name),
        scopes: Scopes::of(scopes.iter().copied()),
        expires: None,
        models: None,
        limits: Limits::default(),
    }
}

fn two_a_minute(name: &str) -> NamedKey {
    let limits = Limits { requests_per_minute: NonZeroU32::new(2), ..Limits::default() };
    NamedKey { limits, ..key(name, &[Scope::Images]) }
}

fn with_keys(keys: &[NamedKey]) -> ApiConfig {
    ApiConfig { named_keys: keys.to_vec(), ..open() }
}

/// At noon of the first day of 1970.
fn access(config: &ApiConfig) -> (Access, FakeRelativeClock) {
    let (time, clock) = Time::fake(12 * 3600);
    (Access::at(time, config), clock)
}

fn request(key: Option<&str>, address: [u8; 4]) -> Request {
    let mut request = Request::new(Body::empty());
    if let Some(key) = key {
        request.headers_mut().insert("api-key", key.parse().unwrap());
    }
    request.extensions_mut().insert(PeerAddress(address.into()));
    request
}

/// How `access` decides on a request: the status and code of its refusal.
fn refusal(access: &Access, key: Option<&str>) -> Option<(u16, String)> {
    refusal_of(access, &request(key, [1, 2, 3, 4]))
}

fn refusal_of(access: &Access, request: &Request) -> Option<(u16, String)> {
    let error = access.decide(request).admitted.err()?;
    Some((error.status().as_u16(), error.body().error.code.unwrap_or_default()))
}

fn told(status: u16, code: &str) -> Option<(u16, String)> {
    Some((status, code.to_owned()))
}

#[test]
fn pictures_are_for_all_until_there_is_a_key_for_them() {
    let admins = ApiConfig { admin_keys: ApiKeys::new(vec!["root".to_owned()]), ..open() };
    let metrics = with_keys(&[key("prometheus", &[Scope::Metrics])]);
    for config in [open(), admins, metrics] {
        let (access, _clock) = access(&config);

        assert!(access.is_open() && !config.asks_for_keys());
        assert_eq!(refusal(&access, None), None);
        assert_eq!(refusal(&access, Some("anything")), None);
    }
    let unnamed = ApiConfig { api_keys: ApiKeys::new(vec!["ann".to_owned()]), ..open() };
    for config in [unnamed, with_keys(&[key("ann", &[Scope::Images])])] {
        let (access, _clock) = access(&config);

        assert!(!access.is_open() && config.asks_for_keys());
        assert_eq!(refusal(&access, Some("ann")), None);
        assert_eq!(refusal(&access, None), told(401, "invalid_api_key"));
        assert_eq!(refusal(&access, Some("anything")), told(401, "invalid_api_key"));
    }
}

#[test]
fn each_scope_opens_what_it_is_for() {
    let keys = [
        key("ann", &[Scope::Images]),
        key("root", &[Scope::Admin]),
        key("prometheus", &[Scope::Metrics]),
    ];
    let (access, _clock) = access(&with_keys(&keys));
    let of = |name: &str| request(Some(name), [1; 4]).headers().clone();
    let code = |refused: Result<(), ApiError>| refused.err().map(|error| error.status().as_u16());

    assert_eq!(refusal(&access, Some("root")), None);
    assert_eq!(refusal(&access, Some("prometheus")), told(403, "not_allowed"));
    assert_eq!(code(access.check_administrator(&of("root"))), None);
    for other in ["ann", "prometheus", "nobody"] {
        assert_eq!(code(access.check_administrator(&of(other))), Some(403), "{other}");
    }
    assert_eq!(code(access.check_metrics(&of("prometheus"))), None);
    assert_eq!(code(access.check_metrics(&of("ann"))), Some(403));
    assert_eq!(code(access.check_metrics(&of("nobody"))), Some(401));
    let (without, _clock) = self::access(&with_keys(&keys[..2]));
    assert_eq!(code(without.check_metrics(&of("nobody"))), None, "no key is for metrics");
}

#[test]
fn a_key_that_has_expired_opens_nothing_and_leaves_the_door_shut() {
    let expiring = NamedKey {
        expires: Some("1970-01-02".parse().unwrap()),
        ..key("ann", &[Scope::Admin, Scope::Metrics])
    };
    let (access, clock) = access(&with_keys(&[expiring]));
    let shown = request(Some("ann"), [1; 4]);
    let headers = shown.headers();
    assert_eq!(refusal(&access, Some("ann")), None);

    clock.advance(Duration::from_secs(12 * 3600));

    assert_eq!(refusal(&access, Some("ann")), told(401, "invalid_api_key"));
    assert_eq!(refusal(&access, None), told(401, "invalid_api_key"));
    for refused in [access.check_administrator(headers), access.check_metrics(headers)] {
        assert!(matches!(refused, Err(ApiError::ExpiredKey)), "{refused:?}");
    }
}

#[test]
fn keys_and_addresses_have_counts_of_their_own() {
    let limits = Limits { requests_per_minute: NonZeroU32::new(1), ..Limits::default() };
    let (by_address, _clock) = access(&ApiConfig { limits, ..open() });
    let from = |number| refusal_of(&by_address, &request(None, [1, 1, 1, number]));
    assert_eq!((from(1), from(2)), (None, None));
    assert_eq!(from(1), told(429, "rate_limit_exceeded"));

    let keys = with_keys(&[two_a_minute("ann"), two_a_minute("bob"), key("root", &[Scope::Admin])]);
    let (by_key, clock) = access(&ApiConfig { limits, ..keys });
    let ask = |key| refusal(&by_key, Some(key));
    assert_eq!((ask("ann"), ask("ann"), ask("bob")), (None, None, None));
    assert_eq!(ask("ann"), told(429, "rate_limit_exceeded"));
    assert_eq!(ask("bob"), None);
    assert_eq!((ask("root"), ask("root")), (None, None), "limits of addresses are not of keys");
    clock.advance(Duration::from_secs(30));
    assert_eq!(ask("ann"), None);
}

#[test]
fn a_key_that_is_refused_for_another_reason_counts_no_request() {
    let metrics = NamedKey { scopes: Scopes::of([Scope::Metrics]), ..two_a_minute("prometheus") };
    let (access, _clock) = access(&with_keys(&[two_a_minute("ann"), metrics]));

    for _ in 0..9 {
        assert_eq!(refusal(&access, Some("prometheus")), told(403, "not_allowed"));
    }
}

#[test]
fn a_reload_changes_the_keys_and_goes_on_counting_those_that_stay() {
    let (access, _clock) = access(&with_keys(&[two_a_minute("ann"), two_a_minute("bob")]));
    let clone = access.clone();
    for name in ["ann", "ann", "bob"] {
        assert_eq!(refusal(&access, Some(name)), None);
    }
    let rotated = NamedKey { hash: KeyHash::of("ann's second"), ..two_a_minute("ann") };

    access.reload(Ok::<_, std::fmt::Error>(with_keys(&[rotated, two_a_minute("eve")])));

    assert_eq!(refusal(&clone, Some("ann")), told(401, "invalid_api_key"));
    assert_eq!(refusal(&clone, Some("bob")), told(401, "invalid_api_key"));
    assert_eq!(refusal(&clone, Some("ann's second")), told(429, "rate_limit_exceeded"));
    assert_eq!(refusal(&clone, Some("eve")), None);
}

#[test]
fn faulty_settings_leave_the_keys_as_they_were() {
    let (access, _clock) = access(&with_keys(&[two_a_minute("ann")]));
    assert_eq!(refusal(&access, Some("ann")), None);

    access.reload(Err(std::fmt::Error));

    assert_eq!(refusal(&access, Some("ann")), None);
    assert_eq!(refusal(&access, Some("ann")), told(429, "rate_limit_exceeded"));
    assert_eq!(refusal(&access, None), told(401, "invalid_api_key"));
}

#[test]
fn what_a_named_key_says_wins_over_the_same_text_without_a_name() {
    let config = with_keys(&[two_a_minute("ann")]);
    let text = || ApiKeys::new(vec!["ann".to_owned()]);
    let (access, _clock) = access(&ApiConfig { api_keys: text(), admin_keys: text(), ..config });

    assert_eq!((refusal(&access, Some("ann")), refusal(&access, Some("ann"))), (None, None));
    assert_eq!(refusal(&access, Some("ann")), told(429, "rate_limit_exceeded"));
}
