//! Keys with names, limits, and what browsers are told: over HTTP.

use std::num::NonZeroU32;

use diffuser_api::api::{
    ApiConfig, ApiKeys, CorsOrigins, KeyHash, Limits, NamedKey, Scope, Scopes,
};
use diffuser_api::domain::{TaskKind, TaskKinds};
use diffuser_api::model::{DiffusionModel, ModelCard};
use diffuser_api::service::PooledModel;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::files;
use crate::support::scripted_model::{self, Behaviour, ScriptedModel};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, json_of, prompt_form, unloadable,
    within_patience,
};

/// A key for pictures whose text is its name.
fn key(name: &str, limits: Limits) -> NamedKey {
    NamedKey {
        webhook: None,
        name: name.parse().unwrap(),
        hash: KeyHash::of(name),
        scopes: Scopes::of([Scope::Images]),
        expires: None,
        models: None,
        limits,
    }
}

/// At most one of each.
fn one_each() -> Limits {
    let one = NonZeroU32::new(1);
    Limits { requests_per_minute: one, concurrent_requests: one, pictures_per_day: one }
}

fn two_a_minute() -> Limits {
    Limits { requests_per_minute: NonZeroU32::new(2), ..Limits::default() }
}

fn one_at_a_time() -> Limits {
    Limits { requests_per_minute: None, pictures_per_day: None, ..one_each() }
}

fn three_pictures() -> Limits {
    Limits { pictures_per_day: NonZeroU32::new(3), ..Limits::default() }
}

async fn start(adjust: fn(&mut ApiConfig)) -> TestServer {
    Setup { adjust, ..Setup::default() }.start().await
}

async fn send(request: RequestBuilder) -> Response {
    within_patience(request.send()).await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn named_keys_open_the_endpoints_and_an_expired_one_says_so() {
    let server = start(|config| {
        let expires = Some("2001-01-01".parse().unwrap());
        let old = NamedKey { expires, ..key("old", Limits::default()) };
        config.named_keys = vec![key("ann", Limits::default()), old];
    })
    .await;
    let models = |key: &'static str| server.get("/v1/models").bearer_auth(key);

    json_of(send(models("ann")).await).await;
    for (wrong, word) in [("old", "expired"), ("eve", "Incorrect")] {
        let response = send(models(wrong)).await;
        assert_eq!(header(&response, "www-authenticate"), Some("Bearer"));
        let error = error_of(response, 401, None).await;
        assert_eq!(error["code"], "invalid_api_key");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_key_for_something_else_is_403_and_administrators_may_all() {
    let server = start(|config| {
        let scoped =
            |name, scope| NamedKey { scopes: Scopes::of([scope]), ..key(name, Limits::default()) };
        config.named_keys = vec![scoped("root", Scope::Admin), scoped("metrics", Scope::Metrics)];
    })
    .await;

    let response = send(server.get("/v1/models").bearer_auth("metrics")).await;
    let error = error_of(response, 403, None).await;
    assert!(error["message"].as_str().unwrap().contains("'images'"), "{error}");
    let load = "/v1/models/test/scripted-edit/load";
    json_of(send(server.get("/v1/models").bearer_auth("root")).await).await;
    json_of(send(server.post(load).bearer_auth("root")).await).await;
}

#[tokio::test]
async fn answers_of_a_limited_key_tell_its_rate_and_the_next_is_told_to_wait() {
    let server = start(|config| config.named_keys = vec![key("ann", two_a_minute())]).await;
    let ask = || server.get("/v1/models").bearer_auth("ann").header("origin", "http://page.test");

    for remaining in ["1", "0"] {
        let response = send(ask()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(header(&response, "x-ratelimit-remaining-requests"), Some(remaining));
        let reset = header(&response, "x-ratelimit-reset-requests").unwrap();
        assert_eq!(reset, if remaining == "1" { "30s" } else { "1m0s" });
        let exposed = header(&response, "access-control-expose-headers").unwrap();
        assert!(exposed.contains("x-ratelimit-remaining-requests"), "{exposed}");
    }
    let response = send(ask()).await;
    let number = |name| header(&response, name).unwrap().parse::<u64>().unwrap();
    let (seconds, ms) = (number("retry-after"), number("retry-after-ms"));
    assert!((1..=30).contains(&seconds) && ms.div_ceil(1000) == seconds, "{seconds} s, {ms} ms");
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), Some("0"));
    let error = error_of(response, 429, None).await;
    assert_eq!(error["code"], "rate_limit_exceeded");
    assert_eq!(error["type"], "requests");
    // Nobody else's answers say so, nor do those that need no key.
    for open in ["/health", "/"] {
        let response = send(server.get(open).bearer_auth("ann")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit-requests"), None);
    }
}

#[tokio::test]
async fn keys_and_rates_are_looked_at_before_the_body_is_asked_for() {
    let server = start(|config| {
        let none_left = Limits { pictures_per_day: None, concurrent_requests: None, ..one_each() };
        config.named_keys = vec![key("ann", none_left)];
    })
    .await;
    json_of(send(server.get("/v1/models").bearer_auth("ann")).await).await;

    for (key, status) in [("eve", "401"), ("ann", "429")] {
        let mut connection = server.connect().await;
        let head = format!(
            "POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: 1000000\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        within_patience(connection.read_exact(&mut answer)).await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("HTTP/1.1 {status}"));
    }
}

#[tokio::test]
async fn so_many_requests_at_a_time_until_one_is_answered() {
    let setup = Setup::script([Behaviour::StepOnRelease]);
    let adjust: fn(&mut ApiConfig) = |config| {
        config.named_keys = vec![key("ann", one_at_a_time()), key("bob", Limits::default())];
    };
    let mut server = Setup { adjust, ..setup }.start().await;
    let edit =
        |key: &'static str| server.post("/v1/images/edits").bearer_auth(key).multipart(edit_form());

    let first = tokio::spawn(edit("ann").send());
    let second = edit("ann");
    let models = server.get("/v1/models").bearer_auth("bob");
    server.next_request().await;
    let response = send(second).await;
    assert_eq!(header(&response, "retry-after"), Some("1"));
    let error = error_of(response, 429, None).await;
    assert_eq!(error["code"], "rate_limit_exceeded");
    json_of(send(models).await).await;
    server.release(4);

    json_of(within_patience(first).await.unwrap().unwrap()).await;
    json_of(send(server.get("/v1/models").bearer_auth("ann")).await).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_no_place_any_more() {
    let setup = Setup::script([Behaviour::UntilCancelled]);
    let adjust: fn(&mut ApiConfig) = |config| config.named_keys = vec![key("ann", one_at_a_time())];
    let mut server = Setup { adjust, ..setup }.start().await;

    let leaving = server.post("/v1/images/edits").bearer_auth("ann").multipart(edit_form());
    let leaving = tokio::spawn(leaving.send());
    server.next_request().await;
    leaving.abort();

    server.until(|status| !status.busy).await;
    json_of(send(server.get("/v1/models").bearer_auth("ann")).await).await;
}

/// Asks for `n` pictures.
async fn edit(server: &TestServer, n: u32) -> Response {
    let form = edit_form().text("n", n.to_string());
    send(server.post("/v1/images/edits").bearer_auth("ann").multipart(form)).await
}

#[tokio::test]
async fn pictures_of_a_day_are_counted_and_those_not_made_are_given_back() {
    let setup = Setup::script([Behaviour::Fail, Behaviour::Panic]);
    let adjust: fn(&mut ApiConfig) =
        |config| config.named_keys = vec![key("ann", three_pictures())];
    let mut server = Setup { adjust, ..setup }.start().await;

    for _ in 0..2 {
        error_of(edit(&server, 3).await, 500, None).await;
    }
    json_of(edit(&server, 2).await).await;
    while !server.is_model_untouched() {}
    let response = edit(&server, 2).await;
    assert_eq!(header(&response, "x-should-retry"), Some("false"));
    let wait: u64 = header(&response, "retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&wait), "{wait}");
    let error = error_of(response, 429, None).await;
    assert_eq!((&error["code"], &error["type"]), (&json!("insufficient_quota"), &error["code"]));
    assert!(error["message"].as_str().unwrap().contains("1 of today's"), "{error}");
    assert!(server.is_model_untouched());
    json_of(edit(&server, 1).await).await;
    // Now that none is left, that is told before anything is read.
    let no_form = server.post("/v1/images/edits").bearer_auth("ann").body("neither form nor JSON");
    error_of(send(no_form).await, 429, None).await;
}

#[tokio::test]
async fn pictures_of_a_stream_that_fails_are_given_back() {
    let setup = Setup::script([Behaviour::Fail]);
    let adjust: fn(&mut ApiConfig) = |config| {
        let limits = Limits { concurrent_requests: None, requests_per_minute: None, ..one_each() };
        config.named_keys = vec![key("ann", limits)];
    };
    let server = Setup { adjust, ..setup }.start().await;
    let streamed = async || {
        let form = edit_form().text("stream", "true");
        let request = server.post("/v1/images/edits").bearer_auth("ann").multipart(form);
        let response = send(request).await;
        (response.status().as_u16(), within_patience(response.text()).await.unwrap())
    };

    let (failed, made, refused) = (streamed().await, streamed().await, streamed().await);

    assert!(failed.0 == 200 && failed.1.contains("event: error"), "{failed:?}");
    assert!(made.0 == 200 && made.1.contains("completed"), "{}", made.0);
    assert_eq!(refused.0, 429);
}

#[tokio::test]
async fn without_keys_clients_are_limited_by_address_behind_trusted_proxies_only() {
    let limit: fn(&mut ApiConfig) = |config| {
        config.limits = Limits { requests_per_minute: NonZeroU32::new(1), ..Limits::default() };
    };
    let from = async |server: &TestServer, address: &str| {
        let request = server.get("/v1/models").header("x-forwarded-for", address);
        send(request).await.status().as_u16()
    };

    let direct = start(limit).await;
    assert_eq!((from(&direct, "1.1.1.1").await, from(&direct, "2.2.2.2").await), (200, 429));
    let behind = start(|config| {
        config.limits = Limits { requests_per_minute: NonZeroU32::new(1), ..Limits::default() };
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    assert_eq!((from(&behind, "1.1.1.1").await, from(&behind, "2.2.2.2").await), (200, 200));
    assert_eq!(from(&behind, "3.3.3.3, 1.1.1.1").await, 429);
    // A key that nobody asks for makes no other client of anybody.
    let with_key = direct.get("/v1/models").bearer_auth("sk-none");
    assert_eq!(send(with_key).await.status(), 429);
}

/// A scripted model of this name.
fn model(id: &str, tasks: &[TaskKind]) -> PooledModel {
    let card =
        ModelCard { id: id.to_owned(), tasks: TaskKinds::of(tasks), ..scripted_model::card() };
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    let (_, releases) = std::sync::mpsc::channel();
    let script = Default::default();
    let loaded = scripted_model::loaded();
    let model = ScriptedModel { card: card.clone(), loaded, script, events, releases };
    let model = std::sync::Mutex::new(Some(model));
    let load =
        move |_| Ok(Box::new(model.lock().unwrap().take().unwrap()) as Box<dyn DiffusionModel>);
    PooledModel { load: Box::new(load), ..unloadable(card) }
}

async fn two_models(adjust: fn(&mut ApiConfig)) -> TestServer {
    let models = vec![
        model("house/first", &[TaskKind::Edit]),
        model("house/second", &[TaskKind::Edit, TaskKind::TextToImage]),
    ];
    Setup { adjust, ..Setup::default() }.start_with(models).await
}

#[tokio::test]
async fn a_key_sees_and_uses_its_models_only() {
    let server = two_models(|config| {
        let of = |name, models: &[&str]| NamedKey {
            models: Some(models.iter().map(|&model| model.to_owned()).collect()),
            ..key(name, Limits::default())
        };
        config.named_keys = vec![of("second", &["house/sec*"]), of("none", &["other/*"])];
    })
    .await;
    let as_second = |request: RequestBuilder| send(request.bearer_auth("second"));
    let edit = |model: Option<&str>| {
        let form =
            model.iter().fold(edit_form(), |form, model| form.text("model", (*model).to_owned()));
        server.post("/v1/images/edits").multipart(form)
    };

    let listed = json_of(as_second(server.get("/v1/models")).await).await;
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"house/second") && !ids.contains(&"house/first"), "{ids:?}");
    json_of(as_second(server.get("/v1/models/second")).await).await;
    for withheld in [
        server.get("/v1/models/house/first"),
        edit(Some("first")),
        server.post("/openai/deployments/first/images/edits").multipart(edit_form()),
    ] {
        let error = error_of(as_second(withheld).await, 403, Some("model")).await;
        assert_eq!(error["code"], "model_not_found");
        assert!(error["message"].as_str().unwrap().contains("first"), "{error}");
    }
    error_of(as_second(edit(Some("gpt-4o"))).await, 404, Some("model")).await;
    // Where no model is named, or any, it is one that the key may use.
    for model in [None, Some("gpt-image-1")] {
        let recipe = json_of(as_second(edit(model)).await).await;
        assert!(recipe["data"][0]["b64_json"].is_string());
    }
    let nothing = send(server.get("/v1/models").bearer_auth("none")).await;
    assert_eq!(json_of(nothing).await["data"], json!([]));
    error_of(send(edit(None).bearer_auth("none")).await, 403, Some("model")).await;
}

#[tokio::test]
async fn keys_that_are_read_anew_are_in_force_at_once() {
    let server = start(|config| config.named_keys = vec![key("ann", two_a_minute())]).await;
    let status =
        async |key: &str| send(server.get("/v1/models").bearer_auth(key)).await.status().as_u16();
    assert_eq!((status("ann").await, status("bob").await), (200, 401));
    let (access, mut config) = server.access.clone();

    config.named_keys = vec![key("ann", two_a_minute()), key("bob", Limits::default())];
    access.reload(Ok::<_, std::io::Error>(config));

    assert_eq!((status("ann").await, status("ann").await, status("bob").await), (200, 429, 200));
    access.reload(Err(std::io::Error::other("faulty")));
    assert_eq!((status("bob").await, status("eve").await), (200, 401));
}

#[tokio::test]
async fn the_pixels_of_all_pictures_of_a_request_are_limited() {
    let server = start(|config| config.max_request_pixels = 64 * 48 * 2).await;
    let pictures = |count: usize| {
        (0..count).fold(prompt_form(), |form, _| form.part("image", file_part(files::png(64, 48))))
    };

    json_of(server.edit(pictures(2)).await).await;
    let error = error_of(server.edit(pictures(3)).await, 400, Some("image")).await;
    assert_eq!(error["code"], "invalid_value");
    assert!(error["message"].as_str().unwrap().contains("6144 pixels together"), "{error}");
    let urls: Vec<Value> =
        (0..3).map(|_| json!({"image_url": data_url(&files::png(64, 48))})).collect();
    let body = json!({"prompt": "p", "images": urls});
    error_of(server.edit_json(&body).await, 400, Some("images")).await;
}

#[tokio::test]
async fn the_fields_of_a_request_are_limited_as_the_settings_say() {
    let server = start(|config| config.max_parts = 3).await;
    let form = |more: usize| (0..more).fold(edit_form(), |form, i| form.text(format!("x{i}"), "1"));

    json_of(server.edit(form(1)).await).await;
    for response in [
        server.edit(form(2)).await,
        server.edit_json(&json!({"a": 1, "b": 2, "c": 3, "d": 4})).await,
    ] {
        let error = error_of(response, 400, None).await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("3 fields") && message.contains("server.max_parts"), "{message}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_call_as_the_settings_say() {
    let named = start(|config| {
        config.cors_origins = CorsOrigins::These(vec!["https://page.test".to_owned()]);
    })
    .await;
    let closed = start(|config| config.cors_origins = CorsOrigins::These(Vec::new())).await;
    let answers = async |server: &TestServer, origin: &str| {
        let preflight = server
            .request("OPTIONS", "/v1/images/edits")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
            .header("access-control-request-private-network", "true");
        [
            send(preflight.header("origin", origin)).await,
            send(server.get("/v1/models").header("origin", origin)).await,
        ]
    };

    for response in answers(&named, "https://page.test").await {
        assert_eq!(header(&response, "access-control-allow-origin"), Some("https://page.test"));
    }
    for (server, origin) in [
        (&named, "https://other.test"),
        (&named, "http://page.test"),
        (&closed, "https://page.test"),
    ] {
        for response in answers(server, origin).await {
            assert_eq!(response.status(), 200);
            let names = response.headers().keys();
            let told: Vec<_> =
                names.filter(|name| name.as_str().starts_with("access-control")).collect();
            assert!(told.is_empty(), "{origin}: {told:?}");
        }
    }
}

#[tokio::test]
async fn pages_say_what_they_may_do_and_answers_that_they_are_what_they_say() {
    let server = start(|config| config.api_keys = ApiKeys::new(vec!["k".to_owned()])).await;

    let page = send(server.get("/docs/")).await;
    let policy = header(&page, "content-security-policy").unwrap();
    for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!policy.contains("script-src 'self' 'unsafe"), "{policy}");
    assert_eq!(header(&page, "referrer-policy"), Some("no-referrer"));
    for path in ["/docs/", "/docs/swagger-ui.css", "/openapi.json", "/health", "/v1/models", "/no"]
    {
        let response = send(server.get(path)).await;
        assert_eq!(header(&response, "x-content-type-options"), Some("nosniff"), "{path}");
    }
    assert_eq!(header(&send(server.get("/health")).await, "content-security-policy"), None);
}
