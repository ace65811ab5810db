//! Requests over a WebSocket.

use std::num::NonZeroU32;
use std::time::Duration;

use diffuser_api::api::{ApiConfig, ApiKeys, CorsOrigins, Limits};
use diffuser_api::model::ModelConfig;
use futures::{SinkExt, StreamExt};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::files::png;
use crate::support::scripted_model::{Behaviour, Event};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, image_bytes, json_of, pooled, within_patience,
};

/// What a client has open.
struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

type Opened = Result<(Client, http::HeaderMap), tungstenite::Error>;

async fn try_open(server: &TestServer, headers: &[(&'static str, &str)]) -> Opened {
    let url = format!("ws://{}/v1/realtime/images", server.address());
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    let opened = within_patience(tokio_tungstenite::connect_async(request)).await;
    opened.map(|(client, response)| (Client(client), response.headers().clone()))
}

/// A socket that has been greeted.
async fn open(server: &TestServer) -> Client {
    let (mut client, _) = try_open(server, &[]).await.unwrap();
    assert_eq!(client.hear().await["type"], "session.created");
    client
}

/// The status and the error of an opening that was refused.
async fn refused(server: &TestServer, headers: &[(&'static str, &str)]) -> (u16, Value) {
    let Err(tungstenite::Error::Http(response)) = try_open(server, headers).await else {
        panic!("it should have been refused");
    };
    let body: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
    (response.status().as_u16(), body["error"].clone())
}

impl Client {
    async fn say(&mut self, message: &Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn create(&mut self, id: &str, body: &Value) {
        let message = json!({"type": "image.create", "id": id, "endpoint": "edits", "body": body});
        self.say(&message).await;
    }

    /// What the server says next.
    async fn hear(&mut self) -> Value {
        loop {
            match within_patience(self.0.next()).await.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// All until a message of this type, and that.
    async fn hear_until(&mut self, kind: &str) -> Vec<Value> {
        let mut heard = vec![self.hear().await];
        while heard.last().unwrap()["type"] != kind {
            let last = heard.last().unwrap();
            assert_ne!(last["type"], "image.failed", "{last}");
            heard.push(self.hear().await);
        }
        heard
    }

    /// The first message of this type.
    async fn hear_of(&mut self, kind: &str) -> Value {
        self.hear_until(kind).await.pop().unwrap()
    }

    /// An error object, of a request or of a message.
    async fn hear_error(&mut self, kind: &str, id: Option<&str>, param: Option<&str>) -> Value {
        let heard = self.hear().await;
        assert_eq!((&heard["type"], heard["id"].as_str()), (&json!(kind), id), "{heard}");
        assert_eq!(heard["error"]["param"].as_str(), param, "{heard}");
        heard
    }

    /// The code with which the server closes.
    async fn closed(&mut self) -> u16 {
        within_patience(async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) => return code.into(),
                    Some(Ok(_)) => {}
                    other => panic!("no close frame: {other:?}"),
                }
            }
        })
        .await
    }
}

fn edit_body() -> Value {
    json!({"prompt": "make it red", "images": [{"image_url": data_url(&png(64, 48))}]})
}

fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_request_is_told_of_and_its_reply_is_that_of_http() {
    let model = pooled(&ModelConfig::of("tiny-random".to_owned()));
    let server = Setup::default().start_with(vec![model]).await;
    let body = with(
        edit_body(),
        &json!({"seed": 11, "num_inference_steps": 3, "size": "64x64", "strange": 1}),
    );
    let mut client = open(&server).await;

    client.create("a", &body).await;

    let heard = client.hear_until("image.completed").await;
    assert!(heard.iter().all(|message| message["id"] == "a"), "{heard:?}");
    assert_eq!((&heard[0]["type"], &heard[0]["position"]), (&json!("image.queued"), &json!(0)));
    let steps: Vec<u64> = heard.iter().filter_map(|message| message["step"].as_u64()).collect();
    assert!(steps.is_sorted() && !steps.is_empty(), "{heard:?}");
    let told = heard.iter().rfind(|message| message["type"] == "image.progress").unwrap();
    assert_eq!((&told["picture"], &told["pictures"]), (&json!(1), &json!(1)), "{told}");
    let mut reply = heard.last().unwrap()["response"].clone();
    let mut direct = json_of(server.edit_json(&body).await).await;
    assert_eq!(image_bytes(&reply, 0), image_bytes(&direct, 0));
    assert!(direct["created"].take().is_u64() && reply["created"].take().is_u64());
    assert_eq!(reply, direct);
    assert!(reply["warnings"][0].as_str().unwrap().contains("strange"), "{reply}");
}

#[tokio::test]
async fn unfinished_pictures_are_those_of_a_stream_and_of_several_pictures_each_has_its_own() {
    let server = Setup::default().start().await;
    let body = with(edit_body(), &json!({"seed": 3, "partial_images": 2}));
    let mut client = open(&server).await;

    client.create("a", &body).await;

    let heard = client.hear_until("image.completed").await;
    let shown: Vec<&Value> =
        heard.iter().filter(|message| message["type"] == "image.partial_image").collect();
    let streamed = with(body.clone(), &json!({"stream": true}));
    let events = server.edit_json(&streamed).await.text().await.unwrap();
    let events: Vec<Value> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!((shown.len(), events.len()), (2, 3));
    for (shown, event) in shown.iter().zip(&events) {
        for name in ["b64_json", "partial_image_index", "size", "seed", "output_format"] {
            assert_eq!(shown[name], event[name], "{name}");
        }
    }
    let reply = &heard.last().unwrap()["response"];
    assert_eq!(reply["data"][0]["b64_json"], events[2]["b64_json"]);

    client.create("b", &with(body, &json!({"n": 2}))).await;
    let heard = client.hear_until("image.completed").await;
    let shown = heard.iter().filter(|message| message["type"] == "image.partial_image");
    let shown: Vec<_> = shown.map(|it| (&it["seed"], &it["partial_image_index"])).collect();
    let (seeds, indices) = ([json!(3), json!(4)], [json!(0), json!(1)]);
    let all: Vec<_> =
        seeds.iter().flat_map(|seed| indices.iter().map(move |index| (seed, index))).collect();
    assert_eq!(shown, all, "each of two pictures, twice");
}

#[tokio::test]
async fn several_are_open_at_once_and_one_is_called_off_without_the_others() {
    let script = [Behaviour::EndlessStep, Behaviour::StepOnRelease, Behaviour::Tint];
    let mut server = Setup::script(script).start().await;
    let mut client = open(&server).await;
    client.create("runs", &edit_body()).await;
    server.next_request().await;
    client.hear_of("image.progress").await;
    for id in ["waits", "called off", "last"] {
        client.create(id, &edit_body()).await;
        client.hear_of("image.queued").await;
    }
    server.until(|status| status.waiting == 3).await;

    client.say(&json!({"type": "image.cancel", "id": "called off"})).await;
    assert_eq!(client.hear_of("image.cancelled").await["id"], "called off");
    server.until(|status| status.busy && status.waiting == 2).await;
    client.say(&json!({"type": "image.cancel", "id": "runs"})).await;
    assert_eq!(client.hear_of("image.cancelled").await["id"], "runs");
    assert!(matches!(server.next_event().await, Event::Cancelled));
    server.release(4);

    let ends = [client.hear_of("image.completed").await, client.hear_of("image.completed").await];
    let mut ids = [ends[0]["id"].as_str().unwrap(), ends[1]["id"].as_str().unwrap()];
    ids.sort_unstable();
    assert_eq!(ids, ["last", "waits"]);
    client.say(&json!({"type": "image.cancel", "id": "runs"})).await;
    client.hear_error("error", Some("runs"), Some("id")).await;
}

#[tokio::test]
async fn whoever_leaves_calls_off_what_runs_and_what_waits() {
    let mut server = Setup::script([Behaviour::EndlessStep; 3]).start().await;
    let mut client = open(&server).await;
    for id in ["runs", "waits", "waits, too"] {
        client.create(id, &edit_body()).await;
        client.hear_of("image.queued").await;
    }
    server.next_request().await;
    server.until(|status| status.waiting == 2).await;

    drop(client);

    assert!(matches!(server.next_event().await, Event::Cancelled));
    server.until(|status| !status.busy && status.waiting == 0).await;
}

#[tokio::test]
async fn errors_are_those_of_http_and_say_which_request_and_parameter_they_are_about() {
    let mut server = Setup::script([Behaviour::FindUnsuitable]).start().await;
    let mut client = open(&server).await;
    client.create("a", &json!({"prompt": "x"})).await;
    let failed = client.hear_error("image.failed", Some("a"), Some("image")).await;
    let direct = server.edit_json(&json!({"prompt": "x"})).await;
    assert_eq!(failed["status"], direct.status().as_u16());
    assert_eq!(failed["error"], direct.json::<Value>().await.unwrap()["error"]);
    client.create("b", &with(edit_body(), &json!({"size": "1x"}))).await;
    client.hear_error("image.failed", Some("b"), Some("size")).await;
    client.create("c", &with(edit_body(), &json!({"stream": "x"}))).await;
    client.hear_error("image.failed", Some("c"), Some("stream")).await;
    client.say(&json!({"type": "image.create", "id": "d", "endpoint": "edits", "body": 7})).await;
    client.hear_error("image.failed", Some("d"), None).await;
    assert!(server.is_model_untouched());
    client.create("e", &edit_body()).await;
    assert_eq!(client.hear().await["type"], "image.queued");
    let failed = loop {
        let heard = client.hear().await;
        if heard["type"] != "image.progress" {
            break heard;
        }
    };
    assert_eq!((&failed["status"], &failed["error"]["param"]), (&json!(400), &json!("prompt")));

    for (message, id, param) in [
        (json!({"type": "image.create"}), None, Some("id")),
        (json!({"type": "image.create", "id": 7}), None, Some("id")),
        (json!({"type": "image.create", "id": ""}), None, Some("id")),
        (json!({"id": "f"}), Some("f"), Some("type")),
        (json!({"type": "response.create", "id": "f"}), Some("f"), Some("type")),
        (json!({"type": "image.create", "id": "f"}), Some("f"), Some("endpoint")),
        (
            json!({"type": "image.create", "id": "f", "endpoint": "variations", "body": {}}),
            Some("f"),
            Some("endpoint"),
        ),
        (json!({"type": "image.create", "id": "f", "endpoint": "edits"}), Some("f"), Some("body")),
        (json!({"type": "image.cancel", "id": "f", "job": "x"}), Some("f"), Some("job")),
        (json!({"type": "job.follow", "id": "f", "job": "job_x"}), Some("f"), None),
        (json!({"type": "job.unfollow", "id": "f"}), Some("f"), Some("id")),
        (json!({"type": "image.cancel", "id": "f", "strange": 1}), None, None),
        (json!([]), None, None),
    ] {
        client.say(&message).await;
        client.hear_error("error", id, param).await;
    }
    client.0.send(Message::binary(b"x".as_slice())).await.unwrap();
    client.hear_error("error", None, None).await;
}

#[tokio::test]
async fn a_name_is_of_one_open_request_and_so_many_are_open_at_once() {
    let mut setup = Setup::script([Behaviour::EndlessStep]);
    setup.queue_capacity = 32;
    let server = setup.start().await;
    let mut client = open(&server).await;
    for id in 0..16 {
        client.create(&id.to_string(), &edit_body()).await;
        client.hear_of("image.queued").await;
    }

    client.create("3", &edit_body()).await;
    let refused = client.hear_of("error").await;
    assert_eq!((&refused["id"], &refused["error"]["param"]), (&json!("3"), &json!("id")));
    client.create("16", &edit_body()).await;
    let refused = client.hear_of("error").await;
    assert_eq!((&refused["id"], &refused["status"]), (&json!("16"), &json!(429)));

    client.say(&json!({"type": "image.cancel", "id": "3"})).await;
    client.hear_of("image.cancelled").await;
    client.create("3", &edit_body()).await;
    // Others, which wait, may be told of their new place first.
    loop {
        let heard = client.hear().await;
        assert_eq!(heard["type"], "image.queued", "{heard}");
        if heard["id"] == "3" {
            break;
        }
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_one_below_it_is_not() {
    let setup = Setup { max_upload_bytes: 400_000, ..Setup::default() };
    let server = setup.start().await;
    let mut client = open(&server).await;
    let padded = |length: usize| with(edit_body(), &json!({"strange": "x".repeat(length)}));
    client.create("a", &padded(380_000)).await;
    client.hear_of("image.completed").await;

    client.create("b", &padded(500_000)).await;

    assert_eq!(client.closed().await, 1009);
}

#[tokio::test]
async fn messages_take_their_memory_from_the_budget_of_all_requests() {
    let adjust = |config: &mut ApiConfig| {
        config.request_memory_bytes = 8 << 20;
        config.memory_timeout = Duration::from_millis(100);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let mut client = open(&server).await;
    let padded = |length: usize| with(edit_body(), &json!({"strange": "x".repeat(length)}));
    for id in ["a", "b", "c", "d"] {
        client.create(id, &padded(2 << 20)).await;
        client.hear_of("image.completed").await;
    }

    client.create("e", &padded(5 << 20)).await;

    assert_eq!(client.closed().await, 1013);
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn a_key_is_needed_where_others_need_one_and_pages_send_it_as_a_protocol() {
    let adjust = |config: &mut ApiConfig| config.api_keys = ApiKeys::new(vec!["secret".to_owned()]);
    let server = Setup { adjust, ..Setup::default() }.start().await;
    assert_eq!(refused(&server, &[]).await.0, 401);
    let wrong = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.other")];
    assert_eq!(refused(&server, &wrong).await.0, 401);

    let (mut client, _) = try_open(&server, &[("authorization", "Bearer secret")]).await.unwrap();
    assert_eq!(client.hear().await["type"], "session.created");
    let protocols = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.secret")];
    let (mut client, headers) = try_open(&server, &protocols).await.unwrap();

    assert_eq!(headers["sec-websocket-protocol"], "realtime");
    client.hear_of("session.created").await;
    client.create("a", &edit_body()).await;
    client.hear_of("image.completed").await;
    // A key that is taken back is not good for the next request, either.
    let (access, mut config) = server.access.clone();
    config.api_keys = ApiKeys::new(vec!["another".to_owned()]);
    access.reload(Ok::<_, std::io::Error>(config));
    client.create("b", &edit_body()).await;
    let failed = client.hear_error("image.failed", Some("b"), None).await;
    assert_eq!(failed["status"], 401);
    let job = "job_00000000000000000000000000000000";
    client.say(&json!({"type": "job.follow", "id": "c", "job": job})).await;
    let refused = client.hear_error("error", Some("c"), None).await;
    assert_eq!(refused["error"]["code"], "invalid_api_key", "{refused}");
}

#[tokio::test]
async fn each_message_counts_as_a_request() {
    let adjust = |config: &mut ApiConfig| {
        config.limits = Limits {
            requests_per_minute: NonZeroU32::new(6),
            concurrent_requests: NonZeroU32::new(1),
            pictures_per_day: NonZeroU32::new(2),
        };
    };
    let script = vec![Behaviour::StepOnRelease];
    let server = Setup { adjust, script, ..Setup::default() }.start().await;
    let mut client = open(&server).await;
    let failed = async |client: &mut Client, id: &str, body: &Value| {
        client.create(id, body).await;
        loop {
            let heard = client.hear().await;
            if heard["type"] == "image.failed" {
                assert_eq!((&heard["id"], &heard["status"]), (&json!(id), &json!(429)), "{heard}");
                return heard;
            }
        }
    };
    client.create("a", &edit_body()).await;
    client.hear_of("image.queued").await;
    let at_once = failed(&mut client, "b", &edit_body()).await;
    assert!(at_once["error"]["message"].as_str().unwrap().contains("at a time"), "{at_once}");
    server.release(4);
    client.hear_of("image.completed").await;

    let pair = with(edit_body(), &json!({"n": 2}));
    let spent = failed(&mut client, "c", &pair).await;
    assert_eq!(spent["error"]["code"], "insufficient_quota");
    client.create("d", &with(edit_body(), &json!({"size": "1x"}))).await;
    client.hear_error("image.failed", Some("d"), Some("size")).await;
    client.create("e", &edit_body()).await;
    client.hear_of("image.completed").await;
    let often = failed(&mut client, "f", &edit_body()).await;
    assert!(often["error"]["message"].as_str().unwrap().contains("a minute"), "{often}");
    assert!(often["retry_after_ms"].as_u64() > Some(0), "{often}");
}

#[tokio::test]
async fn pages_of_other_origins_open_none_unless_they_may_call() {
    let adjust = |config: &mut ApiConfig| {
        config.cors_origins = CorsOrigins::These(vec!["https://good.example".to_owned()]);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    for foreign in ["https://evil.example", "null", "http://good.example", "nonsense"] {
        let (status, error) = refused(&server, &[("origin", foreign)]).await;
        assert_eq!((status, &error["code"]), (403, &json!("not_allowed")), "{foreign}");
    }
    let own = format!("http://{}", server.address());
    for welcome in ["https://good.example", "https://GOOD.example", &own] {
        let (mut client, _) = try_open(&server, &[("origin", welcome)]).await.unwrap();
        client.hear_of("session.created").await;
    }
    open(&server).await;
    let anybody = TestServer::start().await;
    try_open(&anybody, &[("origin", "https://evil.example")]).await.unwrap();
}

#[tokio::test]
async fn what_opens_no_websocket_is_told_that_this_is_one() {
    let server = TestServer::start().await;

    let response = server.get("/v1/realtime/images").send().await.unwrap();

    assert_eq!(
        (response.status().as_u16(), &response.headers()["upgrade"]),
        (426, &"websocket".parse().unwrap())
    );
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "upgrade_required");
}

#[tokio::test]
async fn a_job_is_accepted_and_followed_also_after_one_has_left() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let mut client = open(&server).await;
    let body = with(edit_body(), &json!({"background": true, "seed": 7}));
    let named = json!({
        "type": "image.create", "id": "a", "endpoint": "edits", "body": body,
        "idempotency_key": "once",
    });
    client.say(&named).await;
    let accepted = client.hear_of("image.accepted").await;
    let job = accepted["job"]["id"].as_str().unwrap().to_owned();
    assert_eq!((&accepted["id"], &accepted["job"]["seeds"]), (&json!("a"), &json!([7])));
    server.next_request().await;
    client.say(&json!({"type": "job.follow", "id": "f", "job": job})).await;
    server.release(1);
    let mut last = 0;
    loop {
        let heard = client.hear_of("job.progress").await;
        assert!(heard["event"].as_u64().unwrap() > last, "{heard}");
        last = heard["event"].as_u64().unwrap();
        if heard["job"]["step"] == 1 {
            break;
        }
    }
    drop(client);

    let mut client = open(&server).await;
    client.say(&named).await;
    assert_eq!(client.hear_of("image.accepted").await["job"]["id"], job, "it is the same one");
    let follow = json!({"type": "job.follow", "id": "g", "job": job, "last_event": last});
    client.say(&follow).await;
    // What is the case already is not told again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.release(3);
    let heard = client.hear_until("job.completed").await;
    assert!(heard.iter().all(|it| it["event"].as_u64().unwrap() > last && it["id"] == "g"));
    assert_eq!(heard.last().unwrap()["job"]["status"], "succeeded");
    // The name is free again, and one who unfollows hears no more.
    client.say(&follow).await;
    client.hear_of("job.completed").await;
    let lone = json!({
        "type": "image.create", "id": "b", "endpoint": "edits", "body": edit_body(),
        "idempotency_key": "twice",
    });
    client.say(&lone).await;
    client.hear_error("image.failed", Some("b"), Some("idempotency_key")).await;
}

#[tokio::test]
async fn a_job_may_be_left_while_it_goes_on() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let mut client = open(&server).await;
    client.create("a", &with(edit_body(), &json!({"background": true}))).await;
    let accepted = client.hear_of("image.accepted").await;
    let job = &accepted["job"]["id"];
    server.next_request().await;
    client.say(&json!({"type": "job.follow", "id": "f", "job": job})).await;
    client.hear_of("job.progress").await;

    client.say(&json!({"type": "image.cancel", "id": "f"})).await;
    client.hear_of("error").await;
    client.say(&json!({"type": "job.unfollow", "id": "f"})).await;
    client.hear_of("job.unfollowed").await;
    server.release(4);

    client.create("b", &edit_body()).await;
    let heard = client.hear_until("image.completed").await;
    assert!(heard.iter().all(|message| message["id"] == "b"), "{heard:?}");
}

#[tokio::test]
async fn a_silent_peer_is_let_go_and_one_that_answers_pings_is_kept() {
    let adjust = |config: &mut ApiConfig| {
        config.peers.idle_timeout = Duration::from_millis(300);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let mut alive = open(&server).await;
    let mut silent = open(&server).await;
    let mut pings = 0;
    let until = tokio::time::Instant::now() + Duration::from_millis(900);
    while let Ok(heard) = tokio::time::timeout_at(until, alive.0.next()).await {
        pings += usize::from(matches!(heard, Some(Ok(Message::Ping(_)))));
    }

    assert!(pings >= 2, "{pings}");
    alive.create("a", &edit_body()).await;
    alive.hear_of("image.completed").await;
    assert_eq!(silent.closed().await, 1008);
}

#[tokio::test]
async fn at_the_end_what_runs_is_finished_what_waits_is_refused_and_then_it_is_closed() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let mut idle = open(&server).await;
    let mut client = open(&server).await;
    for id in ["runs", "waits"] {
        client.create(id, &edit_body()).await;
        client.hear_of("image.queued").await;
    }
    server.next_request().await;

    server.stop.take().unwrap().send(()).unwrap();

    assert_eq!(idle.closed().await, 1001);
    let refused = loop {
        let heard = client.hear().await;
        if heard["type"] == "image.failed" {
            break heard;
        }
    };
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!("waits"), &json!("shutting_down"))
    );
    server.release(4);
    assert_eq!(client.hear_of("image.completed").await["id"], "runs");
    assert_eq!(client.closed().await, 1001);
    drop((client, idle));
    within_patience(&mut server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_socket_is_a_connection_and_one_that_is_idle_makes_room() {
    let adjust = |config: &mut ApiConfig| config.peers.max_connections = 1;
    let mut server =
        Setup { adjust, script: vec![Behaviour::StepOnRelease], ..Setup::default() }.start().await;
    let mut client = open(&server).await;
    client.create("a", &edit_body()).await;
    server.next_request().await;
    let waiting = tokio::spawn(server.get("/health").send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "there is no room while something is open");

    server.release(4);

    client.hear_of("image.completed").await;
    assert_eq!(client.closed().await, 1001);
    assert_eq!(within_patience(waiting).await.unwrap().unwrap().status(), 200);
}
