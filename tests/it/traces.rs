//! Traces and logs of the program: what a collector gets of a request, and what standard
//! error says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use reqwest::multipart::Form;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::files;
use crate::support::server::{client, file_part, json_of, within_patience};

/// Words that stand nowhere else.
const PROMPT: &str = "paint the zeppelin mauve";
const KEY: &str = "sesame-4711";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// What was sent to a collector.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Bytes>>>);

impl Collected {
    /// A collector, and its address.
    async fn listen() -> (Self, String) {
        let collected = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(collect));
        let router = router.with_state(collected.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collected, address)
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let bodies = self.0.lock().unwrap();
        bodies.iter().map(|body| ExportTraceServiceRequest::decode(body.clone()).unwrap()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// The span of a request that says so of itself.
    fn root(&self, request_id: &str) -> Span {
        let roots = self.spans().into_iter();
        let mut roots = roots.filter(|span| text(&span.attributes, "request_id") == request_id);
        roots.next().expect(request_id)
    }

    fn children(&self, parent: &Span) -> Vec<Span> {
        let is_child = |span: &Span| span.parent_span_id == parent.span_id;
        self.spans().into_iter().filter(is_child).collect()
    }

    fn has_bytes(&self, text: &str) -> bool {
        let has = |body: &Bytes| body.windows(text.len()).any(|part| part == text.as_bytes());
        self.0.lock().unwrap().iter().any(has)
    }
}

async fn collect(State(collected): State<Collected>, body: Bytes) {
    collected.0.lock().unwrap().push(body);
}

fn value(attributes: &[KeyValue], name: &str) -> Option<Attribute> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref().and_then(|AnyValue { value }| value.clone())
}

/// An attribute that is a text; empty if there is none.
fn text(attributes: &[KeyValue], name: &str) -> String {
    let Some(Attribute::StringValue(text)) = value(attributes, name) else { return String::new() };
    text
}

/// An attribute that is a whole number.
fn number(attributes: &[KeyValue], name: &str) -> Option<i64> {
    let Some(Attribute::IntValue(number)) = value(attributes, name) else { return None };
    Some(number)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The program, serving.
struct Program {
    process: Child,
    address: String,
    log: JoinHandle<Vec<String>>,
}

impl Program {
    /// Starts it with `variables`; its model is loaded when it is first asked for.
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["--model", "tiny-random", "--port", "0"])
            .env("DIFFUSER_PRELOAD", "false")
            .env("NO_PROXY", "127.0.0.1")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (tell, told) = std::sync::mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            for line in lines.by_ref().map_while(Result::ok) {
                let listening = line.split_once("listening; open http://");
                if let Some((address, _)) = listening.and_then(|(_, rest)| rest.split_once('/')) {
                    tell.send(address.to_owned()).unwrap();
                }
                log.push(line);
            }
            log
        });
        let address = told.recv().expect("the program should have begun to listen");
        Self { process, address, log }
    }

    fn edits(&self, request_id: &str) -> RequestBuilder {
        let request = client().post(format!("http://{}/v1/images/edits", self.address));
        request.bearer_auth(KEY).header("x-request-id", request_id)
    }

    async fn edit(&self, request_id: &str, headers: &[(&str, &str)]) -> Response {
        let request = self.edits(request_id).multipart(form());
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        within_patience(request.send()).await.unwrap()
    }

    /// Stops it; gives what it logged. It has to end well.
    fn stop(mut self) -> Vec<String> {
        let process = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
        self.log.join().unwrap()
    }
}

fn form() -> Form {
    form_of("2")
}

/// A form for so many pictures.
fn form_of(count: &'static str) -> Form {
    let form = Form::new().text("prompt", PROMPT).text("size", "64x64").text("n", count);
    let form = form.text("num_inference_steps", "3").text("negative_prompt", PROMPT);
    form.part("image", file_part(files::png(64, 48)))
}

fn sampled() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_within_its_callers_trace_and_has_one_for_each_stage() {
    let (collected, endpoint) = Collected::listen().await;
    let program = Program::start(&[
        ("DIFFUSER_TRACES_ENDPOINT", &endpoint),
        ("DIFFUSER_API_KEYS", KEY),
        ("DIFFUSER_APP_NAME", "Zeppelins"),
    ]);
    let trace = [("traceparent", sampled()), ("tracestate", "vendor=opaque".to_owned())];
    let trace = trace.each_ref().map(|(name, value)| (*name, value.as_str()));
    let response = program.edit("one", &trace).await;
    assert!(!response.headers().contains_key("traceparent"));
    json_of(response).await;
    let streamed = form_of("1").text("stream", "true");
    let streamed = program.edits("two").multipart(streamed.text("partial_images", "1")).send();
    let events = within_patience(within_patience(streamed).await.unwrap().text()).await.unwrap();
    assert!(!events.is_empty());
    assert_eq!(
        client().get(format!("http://{}/health", program.address)).send().await.unwrap().status(),
        200
    );

    program.stop();

    let root = collected.root("one");
    assert_eq!(root.name, "POST /v1/images/edits");
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!((root.kind(), root.trace_state.as_str()), (SpanKind::Server, "vendor=opaque"));
    let texts = ["http.request.method", "http.route", "model", "operation", "size"];
    let texts = texts.map(|name| text(&root.attributes, name));
    assert_eq!(texts, ["POST", "/v1/images/edits", "tiny-random", "edit", "64x64"]);
    let numbers = ["http.response.status_code", "steps", "n"];
    let numbers = numbers.map(|name| number(&root.attributes, name));
    assert_eq!(numbers, [200, 3, 2].map(Some));
    let stages = collected.children(&root);
    let names: BTreeSet<&str> = stages.iter().map(|span| span.name.as_str()).collect();
    let expected = [
        "read_body",
        "decode",
        "queue",
        "load_model",
        "encoding_prompts",
        "encoding_latents",
        "denoising",
        "decoding",
        "encode",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    for stage in &stages {
        assert_eq!(hex(&stage.trace_id), TRACE, "{}", stage.name);
        let is_within = root.start_time_unix_nano <= stage.start_time_unix_nano
            && stage.start_time_unix_nano <= stage.end_time_unix_nano
            && stage.end_time_unix_nano <= root.end_time_unix_nano;
        assert!(is_within, "{stage:?} in {root:?}");
    }
    let steps = stages.iter().filter(|stage| stage.name == "denoising").map(|stage| &stage.events);
    let steps: usize = steps.map(Vec::len).sum();
    assert!(steps >= 3, "{steps}");
    let names: Vec<String> =
        collected.children(&collected.root("two")).into_iter().map(|span| span.name).collect();
    assert!(names.contains(&"denoising".to_owned()), "{names:?}");
    assert!(names.contains(&"encode".to_owned()), "{names:?}");
    // Nothing else is a trace of its own: no probe, and nothing of what sends the traces.
    let roots = collected
        .spans()
        .into_iter()
        .filter(|span| span.name.contains('/') || span.parent_span_id.is_empty());
    assert_eq!(roots.count(), 2);
    for secret in [PROMPT, KEY] {
        assert!(!collected.has_bytes(secret), "{secret}");
    }
    let resource = collected.requests()[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), "Zeppelins");
    assert_eq!(text(&resource.attributes, "service.version"), env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_none_leaves_only_what_callers_trace() {
    let (collected, endpoint) = Collected::listen().await;
    let program = Program::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("DIFFUSER_TRACES_SAMPLE_RATIO", "0"),
    ]);
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    json_of(program.edit("undecided", &[]).await).await;
    json_of(program.edit("against", &[("traceparent", &unsampled)]).await).await;
    json_of(program.edit("faulty", &[("traceparent", "00-0-0-01")]).await).await;
    json_of(program.edit("for", &[("traceparent", &sampled())]).await).await;

    program.stop();

    let ids: BTreeSet<String> =
        collected.spans().iter().map(|span| text(&span.attributes, "request_id")).collect();
    assert_eq!(ids, BTreeSet::from([String::new(), "for".to_owned()]), "stages have none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_silent_keeps_no_answer_back_and_no_end() {
    // Nobody accepts what is sent to the one, and nobody listens at the other.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // The port stays taken, so that no other test's server comes to be there.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let [silent_at, closed_at] = [silent.local_addr(), closed.local_addr()]
        .map(|address| format!("http://{}", address.unwrap()));
    for endpoint in [silent_at, closed_at] {
        let program = Program::start(&[("DIFFUSER_TRACES_ENDPOINT", &endpoint)]);
        for _ in 0..3 {
            json_of(program.edit("answered", &[]).await).await;
        }

        let log = program.stop();

        let answered = log.iter().filter(|line| line.contains("request answered"));
        assert_eq!(answered.count(), 3, "{log:#?}");
        let told = log.iter().filter(|line| line.contains("traces") && line.contains("WARN"));
        assert!((1..=2).contains(&told.count()), "{log:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_json_have_the_ids_of_their_request_also_those_of_the_models_thread() {
    let (_collected, endpoint) = Collected::listen().await;
    let program = Program::start(&[
        ("DIFFUSER_LOG_FORMAT", "json"),
        ("DIFFUSER_TRACES_ENDPOINT", &endpoint),
        ("DIFFUSER_LOG_FILTER", "debug"),
    ]);
    json_of(program.edit("one", &[("traceparent", &sampled())]).await).await;
    let late = program.edit("two", &[("x-request-timeout-ms", "1")]).await;
    assert_eq!(late.status(), 504);

    let log = program.stop();

    let lines: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
    let of = |message: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["message"] == message).collect()
    };
    let loaded = of("loaded");
    assert_eq!(loaded.len(), 1, "{lines:#?}");
    assert_eq!((&loaded[0]["request_id"], &loaded[0]["trace_id"]), (&"one".into(), &TRACE.into()));
    assert_eq!(loaded[0]["span_id"].as_str().map(str::len), Some(16));
    let answered: BTreeMap<&str, u64> = of("request answered")
        .into_iter()
        .map(|line| (line["request_id"].as_str().unwrap(), line["status"].as_u64().unwrap()))
        .collect();
    assert_eq!(answered, BTreeMap::from([("one", 200), ("two", 504)]), "{lines:#?}");
    assert!(!log.iter().any(|line| line.contains(PROMPT)), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_access_log_failures_are_logged_and_nothing_else_of_requests() {
    let program = Program::start(&[("DIFFUSER_LOG_ACCESS", "false")]);
    json_of(program.edit("well", &[]).await).await;
    let refused = program.edits("refused").multipart(Form::new().text("prompt", PROMPT)).send();
    assert_eq!(refused.await.unwrap().status(), 400);
    assert_eq!(program.edit("late", &[("x-request-timeout-ms", "1")]).await.status(), 504);

    let log = program.stop();

    let lines: Vec<&String> = log.iter().filter(|line| line.contains("status=")).collect();
    assert_eq!(lines.len(), 1, "{log:#?}");
    assert!(
        lines[0].contains("request{id=\"late\"}") && lines[0].contains("status=504"),
        "{log:#?}"
    );
    let loaded = log.iter().find(|line| line.contains(": loaded ")).unwrap();
    assert!(loaded.contains("request{id=\"well\"}"), "other lines stay: {loaded}");
    assert!(!log.iter().any(|line| line.contains(PROMPT) || line.contains("stage{")), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_server_is_one_of_its_span() {
    let (collected, endpoint) = Collected::listen().await;
    let program = Program::start(&[("DIFFUSER_TRACES_ENDPOINT", &endpoint)]);
    assert_eq!(program.edit("late", &[("x-request-timeout-ms", "1")]).await.status(), 504);
    let refused = program.edits("refused").multipart(Form::new().text("prompt", PROMPT)).send();
    assert_eq!(refused.await.unwrap().status(), 400);

    program.stop();

    let (late, refused) = (collected.root("late"), collected.root("refused"));
    let code = |span: &Span| span.status.clone().unwrap_or_default().code();
    assert_eq!((code(&late), code(&refused)), (StatusCode::Error, StatusCode::Unset));
    let kinds = [&late, &refused].map(|span| text(&span.attributes, "error.type"));
    assert!(kinds.iter().all(|kind| !kind.is_empty()), "{kinds:?}");
}
