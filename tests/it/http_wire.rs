//! What goes over the connection and when, byte by byte.

use std::time::Duration;

use diffuser_api::api::{ApiConfig, ApiKeys};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::files;
use crate::support::scripted_model::{Behaviour, Event};
use crate::support::server::{Setup, TestServer, within_patience};

/// A picture as cameras make them.
const LARGE: usize = 50 << 20;

/// How soon an answer must come that needs no more than the headers: far below the
/// seconds for which a server might wait for the body.
const AT_ONCE: Duration = Duration::from_millis(900);

async fn server_with_key() -> TestServer {
    let adjust = |config: &mut ApiConfig| {
        config.api_keys = ApiKeys::new(vec!["s3cret".to_owned()]);
        config.max_upload_bytes = LARGE;
    };
    Setup { adjust, ..Setup::default() }.start().await
}

const FORM: &str = "content-type: multipart/form-data; boundary=b\r\n";
const TEXT: &str = "content-type: text/plain\r\n";
const KEY: &str = "authorization: Bearer s3cret\r\n";

/// A request's head; `lines` are whole header lines.
fn head(method_and_path: &str, length: usize, lines: &[&str]) -> String {
    let lines = lines.concat();
    format!("{method_and_path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{lines}\r\n")
}

/// Reads until the head of a final answer is there, with what came before it.
async fn read_head(connection: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        let read = within_patience(connection.read(&mut chunk)).await.unwrap();
        assert!(read > 0, "the connection ended: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Requests that are refused for what their head says: route, header lines, length, status.
type Refused = (&'static str, [&'static str; 2], usize, u16);

const REFUSED_BY_HEAD: [Refused; 10] = [
    ("POST /v1/images/edits", [FORM, ""], LARGE, 401),
    ("POST /v1/images/edits", [FORM, "authorization: Bearer wrong\r\n"], LARGE, 401),
    ("POST /openai/deployments/gpt-image-1/images/edits", [FORM, "api-key: no\r\n"], LARGE, 401),
    ("POST /openai/deployments/my-own/images/edits", [FORM, "api-key: s3cret\r\n"], LARGE, 404),
    ("POST /v1/chat/completions", [FORM, KEY], LARGE, 404),
    ("PUT /v1/images/edits", [FORM, KEY], LARGE, 405),
    ("POST /v1/images/generations", [FORM, KEY], LARGE, 501),
    ("POST /v1/images/edits", [TEXT, KEY], LARGE, 415),
    ("POST /v1/images/replay", [TEXT, KEY], LARGE, 415),
    ("POST /v1/images/edits", [FORM, KEY], LARGE + 1, 413),
];

fn is_status(head: &str, status: u16) -> bool {
    head.starts_with(&format!("HTTP/1.1 {status} "))
}

#[tokio::test]
async fn what_the_head_condemns_is_refused_before_the_body_is_asked_for() {
    let server = server_with_key().await;
    for (route, [first, second], length, status) in REFUSED_BY_HEAD {
        let head = head(route, length, &[first, second, "expect: 100-continue\r\n"]);
        let mut connection = server.connect().await;

        connection.write_all(head.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(AT_ONCE, read_head(&mut connection)).await;

        let answer = answer.unwrap_or_else(|_| panic!("{route} {status} came late"));
        assert!(is_status(&answer, status), "{route} {status}: {answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{route}: {answer}");
        let mut rest = Vec::new();
        let closing = tokio::time::timeout(AT_ONCE, connection.read_to_end(&mut rest)).await;
        closing.unwrap_or_else(|_| panic!("{route} {status} stays open")).unwrap();
        let answer = answer + &String::from_utf8_lossy(&rest);
        assert!(answer.ends_with('}') && answer.contains("\"error\""), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_reads_the_refusal_while_it_sends() {
    let server = server_with_key().await;
    for (route, lines, length, status) in REFUSED_BY_HEAD {
        let head = head(route, length, &lines);
        let mut connection = server.connect().await;

        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&[0; 100_000]).await.unwrap();
        let answer = tokio::time::timeout(AT_ONCE, read_head(&mut connection)).await;

        let answer = answer.unwrap_or_else(|_| panic!("{route} {status} came late"));
        assert!(is_status(&answer, status), "{route} {status}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_reads_only_after_sending_sees_the_refusal_too() {
    let server = server_with_key().await;
    for length in [1 << 20, 12 << 20, LARGE] {
        let mut connection = server.connect().await;
        let head = head("POST /v1/images/edits", length, &[FORM]);
        connection.write_all(head.as_bytes()).await.unwrap();

        // What does not fit is cut off; the answer was there before.
        let _ = connection.write_all(&vec![0; length]).await;
        let answer = read_head(&mut connection).await;

        assert!(is_status(&answer, 401), "{length}: {answer}");
    }
}

#[tokio::test]
async fn little_is_read_of_an_upload_that_was_refused() {
    let server = server_with_key().await;
    let mut connection = server.connect().await;
    let head = head("POST /v1/images/edits", 1 << 40, &[FORM]);
    connection.write_all(head.as_bytes()).await.unwrap();

    let mut sent = 0;
    while sent < (200 << 20) && connection.write_all(&[0; 1 << 16]).await.is_ok() {
        sent += 1 << 16;
    }

    // The server's limit and what the system holds on both sides.
    assert!(sent < (40 << 20), "{sent}");
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let server = server_with_key().await;
    let mut connection = server.connect().await;
    let head = head("POST /v1/images/edits", 300_000, &[FORM]);
    for _ in 0..3 {
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&[0; 300_000]).await.unwrap();

        let answer = read_head(&mut connection).await;

        assert!(is_status(&answer, 401), "{answer}");
        let length: usize = answer
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let have = answer.split_once("\r\n\r\n").unwrap().1.len();
        let mut rest = vec![0; length - have];
        within_patience(connection.read_exact(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_is_asked_for_where_it_is_wanted() {
    let server = server_with_key().await;
    let mut body = b"--b\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nred\r\n\
        --b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n"
        .to_vec();
    body.extend(files::png(64, 48));
    body.extend(b"\r\n--b--\r\n");
    let mut connection = server.connect().await;

    let head = head("POST /v1/images/edits", body.len(), &[FORM, KEY, "expect: 100-continue\r\n"]);
    connection.write_all(head.as_bytes()).await.unwrap();
    let interim = read_head(&mut connection).await;
    connection.write_all(&body).await.unwrap();
    let answer = read_head(&mut connection).await;

    assert!(is_status(&interim, 100), "{interim}");
    assert!(is_status(&answer, 200), "{answer}");
}

#[tokio::test]
async fn the_head_of_a_stream_comes_before_the_first_step() {
    let mut server = Setup::script([Behaviour::StepOnRelease; 2]).start().await;
    for partial_images in [0, 2] {
        let mut body = format!(
            "--b\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nred\r\n\
             --b\r\ncontent-disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n\
             --b\r\ncontent-disposition: form-data; name=\"partial_images\"\r\n\r\n{partial_images}\r\n\
             --b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n"
        )
        .into_bytes();
        body.extend(files::png(64, 48));
        body.extend(b"\r\n--b--\r\n");
        let mut connection = server.connect().await;

        let head = head("POST /v1/images/edits", body.len(), &[FORM]);
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&body).await.unwrap();
        // The model has begun and waits: no step is made, no event sent.
        assert!(matches!(server.next_event().await, Event::Started(_)));
        let answer = tokio::time::timeout(AT_ONCE, read_head(&mut connection)).await;

        let answer = answer.expect("the head should not wait for an event");
        assert!(is_status(&answer, 200), "{answer}");
        assert!(answer.contains("content-type: text/event-stream"), "{answer}");
        assert!(answer.contains("x-accel-buffering: no"), "{answer}");
        server.release(4);
        let mut rest = String::new();
        while !rest.contains("image_edit.completed") {
            let mut chunk = [0; 4096];
            let read = within_patience(connection.read(&mut chunk)).await.unwrap();
            rest.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
    }
}

#[tokio::test]
async fn the_head_of_a_stream_comes_while_others_are_served_first() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(crate::support::server::edit_form());
    assert!(matches!(server.next_event().await, Event::Started(_)));

    let request = server.post("/v1/images/edits");
    let request = request.multipart(crate::support::server::edit_form().text("stream", "true"));
    let waiting = tokio::time::timeout(AT_ONCE, request.send()).await;

    assert_eq!(waiting.expect("in the queue, too").unwrap().status(), 200);
    server.release(4);
    assert_eq!(within_patience(running).await.unwrap().status(), 200);
}
