//! Who is told that a job has ended, how, and who is not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use diffuser_api::api::{KeyHash, Limits, NamedKey, Scope, Scopes};
use diffuser_api::config::{Config, Environment, Sources};
use diffuser_api::webhooks::{
    Courier, Delivery, Message, WebhookConfig, WebhookSecret, WebhookUrl,
};
use reqwest::multipart::Form;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::jobs::over;
use crate::support::scripted_model::Behaviour;
use crate::support::server::{Setup, TestServer, edit_form, error_of, json_of, within_patience};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a receiver got.
struct Received {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Received {
    fn header(&self, name: &str) -> String {
        self.headers[name].to_str().unwrap().to_owned()
    }

    /// The message, whose signature is held against its secret.
    fn verified(&self) -> Value {
        let secret: WebhookSecret = SECRET.parse().unwrap();
        let timestamp = self.header("webhook-timestamp").parse().unwrap();
        let signature = secret.sign(&self.header("webhook-id"), timestamp, &self.body);
        assert_eq!(self.header("webhook-signature"), signature);
        assert_eq!(self.header("content-type"), "application/json");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(timestamp) < 60, "{timestamp}");
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Somebody who is told, and answers as it is told to; then with 204.
struct Receiver {
    port: u16,
    received: mpsc::UnboundedReceiver<Received>,
}

#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<u16>>>,
    to: mpsc::UnboundedSender<Received>,
}

async fn answer(
    State(script): State<Script>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let received = Received { path: uri.path().to_owned(), headers, body };
    script.to.send(received).unwrap();
    let status = script.answers.lock().unwrap().pop_front().unwrap_or(204);
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::LOCATION, "/elsewhere")]).into_response()
}

impl Receiver {
    async fn start(answers: &[u16]) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    fn on(listener: TcpListener, answers: &[u16]) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (to, received) = mpsc::unbounded_channel();
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let router = Router::new().fallback(answer).with_state(Script { answers, to });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, received }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn next(&mut self) -> Received {
        within_patience(self.received.recv()).await.unwrap()
    }

    /// Nothing comes for a while.
    async fn stays_silent(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(2500), self.received.recv()).await;
        assert!(next.is_err(), "nobody else was to be told");
    }
}

/// Settings by which a receiver of this machine is told, soon and often.
fn local() -> WebhookConfig {
    WebhookConfig {
        secret: Some(SECRET.parse().unwrap()),
        allow_requests: true,
        allow_private: true,
        delays: vec![Duration::from_millis(50); 3],
        ..WebhookConfig::default()
    }
}

fn telling(url: &str) -> WebhookConfig {
    WebhookConfig { url: Some(WebhookUrl::parse(url, true).unwrap()), ..local() }
}

fn job_form() -> Form {
    edit_form().text("background", "true")
}

async fn sent(server: &TestServer, form: Form) -> String {
    let response = server.edit(form).await;
    assert_eq!(response.status(), 202);
    response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_end_of_a_job_is_told_with_the_job_and_a_signature() {
    let mut receiver = Receiver::start(&[]).await;
    let script = vec![Behaviour::Tint, Behaviour::FindUnsuitable, Behaviour::EndlessStep];
    let webhooks = telling(&receiver.url("/hook"));
    let mut server = Setup { script, webhooks, ..Setup::default() }.start().await;

    for (status, event) in
        [("succeeded", "completed"), ("failed", "failed"), ("cancelled", "cancelled")]
    {
        let id = sent(&server, job_form()).await;
        server.next_request().await;
        if event == "cancelled" {
            server.request("DELETE", &format!("/v1/jobs/{id}")).send().await.unwrap();
        }
        let received = receiver.next().await;

        assert_eq!(received.path, "/hook");
        let message = received.verified();
        assert_eq!(received.header("webhook-id"), format!("msg_{id}_{event}"));
        assert_eq!(message["type"], format!("image.job.{event}"));
        assert_eq!(message["data"]["status"], status);
        let job = json_of(server.get(&format!("/v1/jobs/{id}")).send().await.unwrap()).await;
        assert_eq!(message["data"], job);
        let time = message["timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.len() == "2026-01-31T12:00:00.000Z".len(), "{time}");
    }
    json_of(server.edit(edit_form()).await).await;
    receiver.stays_silent().await;
}

#[tokio::test]
async fn a_message_that_is_not_taken_comes_again_under_its_name_and_then_no_more() {
    let mut receiver = Receiver::start(&[500, 429, 200]).await;
    let webhooks = telling(&receiver.url("/"));
    let server = Setup { webhooks, ..Setup::default() }.start().await;
    sent(&server, job_form()).await;

    let tries = [receiver.next().await, receiver.next().await, receiver.next().await];

    for again in &tries {
        again.verified();
        assert_eq!(again.header("webhook-id"), tries[0].header("webhook-id"));
        assert_eq!(again.body, tries[0].body);
    }
    receiver.stays_silent().await;
}

#[tokio::test]
async fn tries_end_and_a_receiver_that_has_gone_is_left_alone() {
    let mut receiver = Receiver::start(&[500; 9]).await;
    let webhooks = telling(&receiver.url("/"));
    let server = Setup { webhooks, ..Setup::default() }.start().await;
    sent(&server, job_form()).await;
    for _ in 0..4 {
        receiver.next().await;
    }
    receiver.stays_silent().await;

    let mut gone = Receiver::start(&[410]).await;
    sent(&server, job_form().text("webhook_url", gone.url("/"))).await;
    gone.next().await;
    gone.stays_silent().await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut receiver = Receiver::start(&[302, 307, 308, 301]).await;
    let webhooks = telling(&receiver.url("/hook"));
    let server = Setup { webhooks, ..Setup::default() }.start().await;
    sent(&server, job_form()).await;

    for _ in 0..4 {
        assert_eq!(receiver.next().await.path, "/hook");
    }
    receiver.stays_silent().await;
}

#[tokio::test]
async fn nothing_is_sent_into_a_private_network() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let message = Message { id: "msg_1".to_owned(), body: "{}".into() };
    let courier = |allow_private| {
        let config = WebhookConfig { allow_private, ..local() };
        Courier::new(&config).unwrap().unwrap()
    };
    for host in ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433"] {
        // As it may stand in the store, from other settings.
        let url = WebhookUrl::parse(&format!("https://{host}:{port}/"), true).unwrap();

        let delivery = courier(false).deliver(&url, &message).await;

        let Delivery::Failed(cause) = delivery else { panic!("{host}: {delivery:?}") };
        assert!(cause.contains("public"), "{host}: {cause}");
    }
    let plain = WebhookUrl::parse(&format!("http://localhost:{port}/"), true).unwrap();
    let delivery = courier(false).deliver(&plain, &message).await;
    assert!(
        matches!(&delivery, Delivery::Failed(cause) if cause.contains("https")),
        "{delivery:?}"
    );
    let silence = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(silence.is_err(), "no connection was made");

    let mut receiver = Receiver::on(listener, &[]);
    assert_eq!(courier(true).deliver(&plain, &message).await, Delivery::Taken);
    receiver.next().await;
}

#[tokio::test]
async fn what_was_not_told_is_told_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start(&[503]).await;
    let patient =
        WebhookConfig { delays: vec![Duration::from_secs(2); 3], ..telling(&receiver.url("/")) };
    let setup = over(folder.path(), Vec::new()).await;
    let mut server = Setup { webhooks: patient.clone(), ..setup }.start().await;
    let id = sent(&server, job_form()).await;
    let first = receiver.next().await;
    server.stop.take().unwrap().send(()).unwrap();
    within_patience(&mut server.serving).await.unwrap().unwrap();
    drop(server);
    assert!(receiver.received.try_recv().is_err(), "the second try is not due yet");

    // Where it goes was settled when the job came.
    let elsewhere = WebhookConfig { url: None, ..patient };
    let setup = over(folder.path(), Vec::new()).await;
    let _server = Setup { webhooks: elsewhere, ..setup }.start().await;
    let again = receiver.next().await;

    assert_eq!(again.header("webhook-id"), format!("msg_{id}_completed"));
    assert_eq!(again.verified(), first.verified());
    receiver.stays_silent().await;
}

#[tokio::test]
async fn a_request_says_who_is_told_where_that_is_allowed_and_it_is_a_job() {
    let refused = async |webhooks: WebhookConfig, form: Form, says: &str| {
        let server = Setup { webhooks, ..Setup::default() }.start().await;
        let error = error_of(server.edit(form).await, 400, Some("webhook_url")).await;
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    let named = |url: &str| job_form().text("webhook_url", url.to_owned());
    let strict = || WebhookConfig { allow_private: false, ..local() };
    let forbidding = WebhookConfig { allow_requests: false, ..local() };
    refused(forbidding, named("https://example.org/"), "webhook.allow_requests").await;
    refused(WebhookConfig::default(), named("https://example.org/"), "allow_requests").await;
    let now = edit_form().text("webhook_url", "https://example.org/");
    refused(local(), now, "background").await;
    refused(strict(), named("http://example.org/"), "https://").await;
    refused(strict(), named("https://10.0.0.1/"), "public").await;
    refused(strict(), named("nonsense"), "address").await;

    let (mut default, mut own) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
    let webhooks = telling(&default.url("/"));
    let server = Setup { webhooks, ..Setup::default() }.start().await;
    sent(&server, named(&own.url("/own"))).await;
    assert_eq!(own.next().await.path, "/own");
    sent(&server, job_form()).await;
    default.next().await;
    default.stays_silent().await;

    let repeated = async |url: &str| {
        let request = server.post("/v1/images/edits").header("idempotency-key", "a");
        request.multipart(named(&own.url(url))).send().await.unwrap().status()
    };
    assert_eq!([repeated("/a").await, repeated("/a").await, repeated("/b").await], [202, 202, 422]);
}

#[tokio::test]
async fn a_key_has_its_own() {
    let (mut default, mut own) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
    let webhooks = telling(&default.url("/"));
    let server = Setup { webhooks, ..Setup::default() }.start().await;
    let key = |name: &str, webhook: Option<String>| NamedKey {
        name: name.parse().unwrap(),
        hash: KeyHash::of(name),
        scopes: Scopes::of([Scope::Images]),
        expires: None,
        models: None,
        limits: Limits::default(),
        webhook: webhook.map(|url| WebhookUrl::parse(&url, true).unwrap()),
    };
    let (access, mut config) = server.access.clone();
    config.named_keys = vec![key("ann", Some(own.url("/ann"))), key("bob", None)];
    access.reload(Ok::<_, std::io::Error>(config));
    let send = async |who: &str| {
        let request = server.post("/v1/images/edits").bearer_auth(who).multipart(job_form());
        assert_eq!(request.send().await.unwrap().status(), 202);
    };

    send("ann").await;
    assert_eq!(own.next().await.path, "/ann");
    send("bob").await;
    assert_eq!(default.next().await.path, "/");
    own.stays_silent().await;
}

#[tokio::test]
async fn the_page_has_the_parameter_where_it_is_allowed() {
    for (webhooks, is_there) in [(local(), true), (WebhookConfig::default(), false)] {
        let server = Setup { webhooks, ..Setup::default() }.start().await;
        let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
        let fields = &document["components"]["schemas"]["EditJson"]["properties"];
        assert_eq!(fields["webhook_url"] != json!(null), is_there);
        assert!(document["paths"]["/v1/realtime/images"]["get"].is_object());
    }
}

/// The settings of some variables, or all that is wrong with them.
fn configured(variables: &[(&str, &str)]) -> Result<Config, String> {
    let environment = Environment::from_iter(variables.iter().copied());
    let sources = Sources { environment, ..Sources::default() };
    Config::load(&sources).map_err(|error| error.to_string())
}

#[test]
fn settings_that_would_tell_nobody_or_somebody_private_are_faulty() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let hash = KeyHash::of("ann").to_string();
    let key = |url: &str| {
        let text =
            format!("[[key]]\nname = \"ann\"\nsha256 = \"{hash}\"\nwebhook_url = \"{url}\"\n");
        std::fs::write(&file, text).unwrap();
        ("DIFFUSER_KEYS_FILE", file.to_str().unwrap())
    };
    let secret = ("DIFFUSER_WEBHOOK_SECRET", SECRET);
    let public = ("DIFFUSER_WEBHOOK_URL", "https://example.org/token");
    let private = ("DIFFUSER_WEBHOOK_URL", "http://127.0.0.1/token");
    let allowed = ("DIFFUSER_WEBHOOK_ALLOW_PRIVATE", "true");
    let requests = ("DIFFUSER_WEBHOOK_ALLOW_REQUESTS", "true");

    let config = configured(&[secret, public]).unwrap();
    assert_eq!(config.api.webhooks.url.unwrap().as_str(), public.1);
    configured(&[secret, private, allowed]).unwrap();
    configured(&[secret, key("https://example.org/token")]).unwrap();
    for (variables, fault) in [
        (vec![public], "webhook.secret"),
        (vec![requests], "webhook.secret"),
        (vec![secret, private], "webhook.url"),
        (vec![public, ("DIFFUSER_WEBHOOK_SECRET", "whsec_token")], "webhook.secret"),
        (vec![key("https://example.org/token")], "webhook.secret"),
    ] {
        let faults = configured(&variables).unwrap_err();
        assert!(faults.starts_with("faulty setting: ") && faults.contains(fault), "{faults}");
        assert!(!faults.contains("token"), "{faults}");
    }
    for wrong in ["http://example.org/token", "https://10.0.0.1/token", "token"] {
        let faults = configured(&[secret, key(wrong)]).unwrap_err();
        assert!(faults.contains("keys.key[ann].webhook_url"), "{faults}");
        assert!(!faults.contains("token"), "{faults}");
    }
}
