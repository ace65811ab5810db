//! Pictures that are stored: in a folder, beyond a restart, and where a store fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diffuser_api::pictures::{PictureStore, StoreConfig};
use reqwest::header::{ACCEPT, IF_NONE_MATCH, IF_RANGE, RANGE};
use reqwest::multipart::Form;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::support::faulty_store::{Fault, FaultyStore};
use crate::support::files::{decode, png};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, image_bytes, json_of,
    within_patience,
};

/// The settings of a store that is a folder.
fn in_folder(folder: &Path) -> StoreConfig {
    StoreConfig {
        location: format!("file://{}", folder.display()).parse().unwrap(),
        options: Default::default(),
        signed_urls: false,
        lifetime: Duration::from_secs(60),
        max_bytes: 1 << 20,
        timeout: Duration::from_secs(20),
    }
}

async fn server_of(store: PictureStore) -> TestServer {
    Setup { store: Some(store), ..Setup::default() }.start().await
}

async fn server_over(config: &StoreConfig) -> TestServer {
    server_of(PictureStore::open(config).unwrap()).await
}

/// A server whose store fails when told to.
async fn faulty_server() -> (TestServer, FaultyStore) {
    let store = FaultyStore::default();
    let timeout = Duration::from_millis(200);
    let config = StoreConfig { timeout, ..in_folder(Path::new("/unused")) };
    let pictures = PictureStore::over(Arc::new(store.clone()), &config);
    (server_of(pictures).await, store)
}

/// The path of an address.
fn path_of(url: &str) -> String {
    format!("/{}", url.splitn(4, '/').nth(3).unwrap())
}

fn by_url() -> Form {
    edit_form().text("response_format", "url")
}

async fn path_by_url(server: &TestServer) -> String {
    let reply = json_of(server.edit(by_url()).await).await;
    assert_eq!(reply["data"][0].get("b64_json"), None);
    path_of(reply["data"][0]["url"].as_str().unwrap())
}

async fn get(server: &TestServer, path: &str) -> Response {
    server.get(path).send().await.unwrap()
}

/// The last event of a stream.
async fn last_event(response: Response) -> Value {
    let events = response.text().await.unwrap();
    let last = events.lines().rfind(|line| line.starts_with("data:")).unwrap();
    serde_json::from_str(last.trim_start_matches("data:")).unwrap()
}

#[tokio::test]
async fn a_picture_in_a_folder_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = in_folder(folder.path());
    let first = server_over(&config).await;
    let path = path_by_url(&first).await;
    let file = get(&first, &path).await.bytes().await.unwrap();
    drop(first);

    let second = server_over(&config).await;
    let response = get(&second, &path).await;

    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "image/png");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("content-length"), file.len().to_string());
    let caching = header("cache-control");
    let left = caching.strip_prefix("private, max-age=").unwrap().split(',').next().unwrap();
    assert!(left.parse::<u64>().unwrap() <= 60, "{caching}");
    assert_eq!(response.bytes().await.unwrap(), file);
    assert_eq!(decode(&file).width(), 64);
}

#[tokio::test]
async fn pictures_are_sent_in_parts_and_not_again() {
    let folder = tempfile::tempdir().unwrap();
    for server in [TestServer::start().await, server_over(&in_folder(folder.path())).await] {
        let path = path_by_url(&server).await;
        let whole = get(&server, &path).await;
        let tag = whole.headers()["etag"].clone();
        let file = whole.bytes().await.unwrap();

        let head = server.request("HEAD", &path).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], file.len().to_string());
        assert_eq!(head.headers()["etag"], tag);

        let again = server.get(&path).header(IF_NONE_MATCH, &tag).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);

        let part = server.get(&path).header(RANGE, "bytes=8-15").send().await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers()["content-range"], format!("bytes 8-15/{}", file.len()));
        assert_eq!(part.bytes().await.unwrap(), file[8..16]);

        let beyond = server.get(&path).header(RANGE, "bytes=99999999-").send().await.unwrap();
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);

        let of_another = server.get(&path).header(RANGE, "bytes=8-15").header(IF_RANGE, "\"x\"");
        assert_eq!(of_another.send().await.unwrap().bytes().await.unwrap(), file);
    }
}

#[tokio::test]
async fn nothing_else_of_the_disk_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("pictures");
    let server = server_over(&in_folder(&inside)).await;
    for place in [folder.path(), &inside] {
        std::fs::write(place.join("secret.png"), png(8, 8)).unwrap();
    }
    for name in ["secret.png", "..%2Fsecret.png", "%2e%2e%2fsecret.png", "..%5Csecret.png", "%00"] {
        let response = get(&server, &format!("/v1/images/files/{name}")).await;

        error_of(response, 404, None).await;
    }
}

#[tokio::test]
async fn a_picture_is_gone_after_its_time_and_so_is_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let lifetime = Duration::from_secs(1);
    let server = server_over(&StoreConfig { lifetime, ..in_folder(folder.path()) }).await;
    let path = path_by_url(&server).await;

    within_patience(async {
        while std::fs::read_dir(folder.path()).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    error_of(get(&server, &path).await, 404, None).await;
}

#[tokio::test]
async fn a_folder_has_a_bound_as_memory_has() {
    let folder = tempfile::tempdir().unwrap();
    let server = server_over(&in_folder(folder.path())).await;
    let path = path_by_url(&server).await;
    let bytes = get(&server, &path).await.bytes().await.unwrap().len();
    drop(server);
    let bound = |max_bytes| StoreConfig { max_bytes, ..in_folder(folder.path()) };

    let server = server_over(&bound(bytes + bytes / 2)).await;
    let later = path_by_url(&server).await;

    error_of(get(&server, &path).await, 404, None).await;
    assert_eq!(get(&server, &later).await.status(), 200);
    let server = server_over(&bound(bytes / 2)).await;
    error_of(server.edit(by_url()).await, 400, Some("response_format")).await;
    let reply = json_of(server.edit(edit_form().text("store", "true")).await).await;
    assert!(reply["warnings"][0].as_str().unwrap().contains("larger"), "{reply}");
}

#[tokio::test]
async fn store_keeps_what_the_reply_has_and_gives_its_address() {
    let folder = tempfile::tempdir().unwrap();
    for server in [TestServer::start().await, server_over(&in_folder(folder.path())).await] {
        let store = || edit_form().text("store", "true");

        let reply = json_of(server.edit(store().text("n", "2")).await).await;
        for index in [0, 1] {
            let url = reply["data"][index]["url"].as_str().unwrap();
            let stored = get(&server, &path_of(url)).await.bytes().await.unwrap();
            assert_eq!(stored, image_bytes(&reply, index));
        }

        let sent = server.post("/v1/images/edits").header(ACCEPT, "image/webp").multipart(store());
        let sent = sent.send().await.unwrap();
        let url = sent.headers()["x-diffuser-url"].to_str().unwrap().to_owned();
        assert!(url.ends_with(".webp"), "{url}");
        let file = sent.bytes().await.unwrap();
        assert_eq!(get(&server, &path_of(&url)).await.bytes().await.unwrap(), file);

        let event = last_event(server.edit(store().text("stream", "true")).await).await;
        assert_eq!(event["type"], "image_edit.completed");
        let stored = get(&server, &path_of(event["url"].as_str().unwrap())).await;
        assert_eq!(decode(&stored.bytes().await.unwrap()).width(), 64);

        let form = Form::new().text("prompt", "make it red").text("store", "true");
        let form =
            form.part("image", file_part(png(64, 48))).part("picture", file_part(file.into()));
        let replayed = server.post("/v1/images/replay").multipart(form).send().await.unwrap();
        assert!(json_of(replayed).await["data"][0]["url"].is_string());

        let images = json!([{"image_url": data_url(&png(64, 48))}]);
        let plain = json!({"prompt": "x", "images": images, "store": false});
        let reply = json_of(server.edit_json(&plain).await).await;
        assert_eq!(reply["data"][0].get("url"), None);
    }
}

#[tokio::test]
async fn who_wants_an_address_of_a_store_that_fails_is_told_to_come_back() {
    let (server, store) = faulty_server().await;
    let path = path_by_url(&server).await;
    for (fault, said) in [
        (Fault::IsFull, "is full"),
        (Fault::Fails, "not available"),
        (Fault::NeverAnswers, "not available"),
    ] {
        store.set(Some(fault));

        let response = server.edit(by_url()).await;

        assert_eq!(response.headers()["retry-after"], "10");
        let error = error_of(response, 503, None).await;
        assert_eq!(error["code"], "storage_unavailable");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
        assert_eq!(error_of(get(&server, &path).await, 503, None).await["code"], error["code"]);
    }
    store.set(None);

    assert_eq!(get(&server, &path).await.status(), 200);
    assert_eq!(get(&server, &path_by_url(&server).await).await.status(), 200);
    assert_eq!(store.names().await.len(), 2);
}

#[tokio::test]
async fn a_picture_that_is_made_comes_though_it_cannot_be_stored() {
    let (server, store) = faulty_server().await;
    for (fault, said) in [
        (Fault::IsFull, "the storage is full"),
        (Fault::Fails, "not available"),
        (Fault::NeverAnswers, "not available"),
    ] {
        store.set(Some(fault));
        let form = || edit_form().text("store", "true");

        let reply = json_of(server.edit(form()).await).await;
        assert_eq!(decode(&image_bytes(&reply, 0)).width(), 64);
        assert_eq!(reply["data"][0].get("url"), None);
        let warning = reply["warnings"][0].as_str().unwrap();
        assert!(warning.contains("'store'") && warning.contains(said), "{warning}");

        let sent = server.post("/v1/images/edits").header(ACCEPT, "image/png").multipart(form());
        let sent = sent.send().await.unwrap();
        assert_eq!((sent.status(), sent.headers().get("x-diffuser-url")), (StatusCode::OK, None));
        let warnings = sent.headers()["x-diffuser-warnings"].to_str().unwrap();
        assert!(warnings.contains(said), "{warnings}");

        let event = last_event(server.edit(form().text("stream", "true")).await).await;
        assert!(event["b64_json"].is_string() && event.get("url").is_none());
        assert!(event["warnings"][0].as_str().unwrap().contains(said), "{event}");
    }
}
