//! Peers that connect and do not finish, and the end of the server in spite of them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::scripted_model::Behaviour;
use crate::support::server::{Setup, TestServer, edit_form, within_patience};

const SHORT: Duration = Duration::from_millis(150);
/// Of a request that names none.
const STEPS: usize = 4;
const LONG: Duration = Duration::from_secs(600);

/// The head of an upload of which more is announced than comes.
const UPLOAD: &[u8] = b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: \
    multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n--b\r\n";
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is waited for one peer only: the timeouts that are not under test are long.
fn patient(setup: Setup) -> Setup {
    Setup {
        adjust: |config| {
            config.upload_timeout = LONG;
            config.peers.header_timeout = LONG;
            config.peers.idle_timeout = LONG;
            config.peers.body_timeout = LONG;
            config.peers.write_timeout = LONG;
        },
        ..setup
    }
}

async fn connect(server: &TestServer, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// All that the server says until it closes the connection.
async fn said_until_closed(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    // A reset ends it as well.
    let _ = within_patience(stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_peer_that_does_not_finish_its_request_is_let_go() {
    let setup = Setup {
        adjust: |config| {
            config.peers.header_timeout = SHORT;
            config.peers.idle_timeout = SHORT;
            config.peers.body_timeout = SHORT;
        },
        ..Setup::default()
    };
    let server = setup.start().await;

    for beginning in
        [b"".as_slice(), b"GET /hea", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", HTTP2_PREFACE]
    {
        let said = said_until_closed(connect(&server, beginning).await).await;
        assert!(!said.contains("200 OK"), "{said}");
    }
    let said = said_until_closed(connect(&server, UPLOAD).await).await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    let said = said_until_closed(connect(&server, HEALTH).await).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
}

#[tokio::test]
async fn a_request_that_takes_longer_than_all_timeouts_is_answered() {
    let mut setup = Setup::script([Behaviour::StepOnRelease]);
    setup.adjust = |config| {
        config.peers.header_timeout = SHORT;
        config.peers.idle_timeout = SHORT;
        config.peers.body_timeout = SHORT;
        config.peers.write_timeout = SHORT;
    };
    let mut server = setup.start().await;

    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    tokio::time::sleep(3 * SHORT).await;
    server.release(100);

    assert_eq!(running.await.unwrap().status(), 200);
}

#[tokio::test]
async fn one_connection_too_many_takes_the_place_of_the_idlest() {
    let mut setup = patient(Setup::default());
    setup.adjust = |config| {
        config.peers.header_timeout = LONG;
        config.peers.max_connections = 3;
    };
    let server = setup.start().await;

    let oldest = connect(&server, b"").await;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(connect(&server, b"GET /hea").await);
    }
    let health = said_by_one_request(&server).await;

    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    assert_eq!(said_until_closed(oldest).await, "");
}

async fn said_by_one_request(server: &TestServer) -> String {
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    said_until_closed(connect(server, request).await).await
}

#[tokio::test]
async fn the_server_stops_whatever_peers_have_left_unfinished() {
    for beginning in [b"".as_slice(), b"GET / HTTP/1.1\r\nHo", HEALTH, HTTP2_PREFACE, b"PRI * HTTP"]
    {
        let mut server = patient(Setup::default()).start().await;
        let held = connect(&server, beginning).await;
        // It is served before the server is told to stop.
        tokio::time::sleep(SHORT).await;

        server.stop.take().unwrap().send(()).unwrap();

        within_patience(&mut server.serving).await.unwrap().unwrap();
        drop(held);
    }
}

#[tokio::test]
async fn a_stopping_server_finishes_what_runs_and_refuses_what_is_still_being_sent() {
    let mut server = patient(Setup::script([Behaviour::StepOnRelease])).start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form());
    let sending = connect(&server, UPLOAD).await;
    server.until(|status| status.waiting == 1).await;

    server.stop.take().unwrap().send(()).unwrap();
    let said = said_until_closed(sending).await;
    server.release(STEPS);

    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert_eq!(running.await.unwrap().status(), 200);
    assert_eq!(waiting.await.unwrap().status(), 503);
    within_patience(&mut server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_without_room_for_another_connection_hears_that_it_is_to_stop() {
    let mut setup = patient(Setup::default());
    setup.adjust = |config| {
        config.peers.body_timeout = LONG;
        config.peers.max_connections = 1;
    };
    let mut server = setup.start().await;
    let sending = connect(&server, UPLOAD).await;
    // Its request is under way: it is not the one that has been idle for longest.
    tokio::time::sleep(SHORT).await;
    // It waits for the first one's place.
    let waiting = connect(&server, HEALTH).await;
    tokio::time::sleep(SHORT).await;

    server.stop.take().unwrap().send(()).unwrap();

    let said = said_until_closed(sending).await;
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    within_patience(&mut server.serving).await.unwrap().unwrap();
    drop(waiting);
}

#[tokio::test]
async fn when_the_grace_is_over_the_server_stops_even_with_a_picture_unfinished() {
    let mut setup = Setup::script([Behaviour::StepOnRelease]);
    setup.adjust = |config| config.peers.grace = SHORT;
    let mut server = setup.start().await;
    let running = server.edit_in_background_or_cut(edit_form());
    server.next_request().await;

    server.stop.take().unwrap().send(()).unwrap();

    within_patience(&mut server.serving).await.unwrap().unwrap();
    assert!(running.await.unwrap().is_err());
}
