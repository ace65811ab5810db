//! Files and batches: from the upload to the last line of the output, over the end of the
//! process, too.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diffuser_api::api::{ApiConfig, KeyHash, Limits, NamedKey, Scope, Scopes};
use diffuser_api::jobs::{EmbeddedStore, JobStoreError, JobStoreLocation, JobsConfig};
use reqwest::Response;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::files::png;
use crate::support::scripted_model::Behaviour;
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, image_bytes, json_of, within_patience,
};

const EDITS: &str = "/v1/images/edits";

/// The body of an edit, whose picture the scripted model tints by its seed.
fn edit(seed: u64) -> Value {
    let images = json!([{"image_url": data_url(&png(64, 48))}]);
    json!({"prompt": "make it red", "images": images, "seed": seed})
}

fn line(custom_id: &str, body: &Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": EDITS, "body": body});
    format!("{line}\n")
}

/// So many edits, called by their seeds.
fn edits(count: u64) -> String {
    (0..count).map(|seed| line(&seed.to_string(), &edit(seed))).collect()
}

fn upload_form(content: impl Into<Vec<u8>>) -> Form {
    let file = Part::bytes(content.into()).file_name("in.jsonl");
    Form::new().text("purpose", "batch").part("file", file)
}

async fn send(server: &TestServer, form: Form) -> Response {
    within_patience(server.post("/v1/files").multipart(form).send()).await.unwrap()
}

async fn uploaded(server: &TestServer, content: impl Into<Vec<u8>>) -> Value {
    json_of(send(server, upload_form(content)).await).await
}

fn id_of(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("{object}")).to_owned()
}

fn order_for(file: &str) -> Value {
    json!({"input_file_id": file, "endpoint": EDITS, "completion_window": "24h"})
}

async fn post(server: &TestServer, path: &str, body: &Value) -> Response {
    within_patience(server.post(path).json(body).send()).await.unwrap()
}

async fn get(server: &TestServer, path: &str) -> Response {
    within_patience(server.get(path).send()).await.unwrap()
}

/// A batch of the requests in `content`.
async fn begun(server: &TestServer, content: impl Into<Vec<u8>>) -> String {
    let file = id_of(&uploaded(server, content).await);
    id_of(&json_of(post(server, "/v1/batches", &order_for(&file)).await).await)
}

async fn batch(server: &TestServer, id: &str) -> Value {
    json_of(get(server, &format!("/v1/batches/{id}")).await).await
}

async fn until(server: &TestServer, id: &str, is_reached: impl Fn(&Value) -> bool) -> Value {
    within_patience(async {
        loop {
            let batch = batch(server, id).await;
            if is_reached(&batch) {
                return batch;
            }
            let is_over = ["completed", "failed", "expired", "cancelled"]
                .contains(&batch["status"].as_str().unwrap());
            assert!(!is_over, "{batch}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

async fn until_status(server: &TestServer, id: &str, status: &str) -> Value {
    until(server, id, |batch| batch["status"] == status).await
}

/// The lines of a file of a batch, none of which has two of one name.
async fn lines_of(server: &TestServer, file: &Value) -> BTreeMap<String, Value> {
    let Some(file) = file.as_str() else { return BTreeMap::new() };
    let response = get(server, &format!("/v1/files/{file}/content")).await;
    let text = response.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = lines.len();
    let by_name =
        lines.into_iter().map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line));
    let by_name: BTreeMap<_, _> = by_name.collect();
    assert_eq!(by_name.len(), count, "a line each");
    by_name
}

/// What the picture of a line is, by its seed.
fn seed_of(line: &Value) -> u64 {
    assert_eq!(line["response"]["status_code"], 200, "{line}");
    line["response"]["body"]["data"][0]["seed"].as_u64().unwrap()
}

fn names(lines: &BTreeMap<String, Value>) -> Vec<&str> {
    lines.keys().map(String::as_str).collect()
}

async fn over_within(folder: &Path, max_bytes: u64) -> Arc<EmbeddedStore> {
    let config = JobsConfig {
        location: JobStoreLocation::within(folder),
        // One and the same line may be under way each time that a test ends the server.
        max_tries: 100,
        lifetime: Duration::from_secs(3600),
        capacity: 100,
        max_bytes,
    };
    within_patience(async {
        loop {
            match EmbeddedStore::open(&config) {
                Err(JobStoreError::InUse { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => return Arc::new(opened.unwrap()),
            }
        }
    })
    .await
}

/// A server with batches in `folder`, which the one before it may be about to leave.
async fn over(folder: &Path, script: Vec<Behaviour>) -> Setup {
    let jobs = over_within(folder, 1 << 30).await;
    Setup { script, jobs: Some(jobs), ..Setup::default() }
}

#[tokio::test]
async fn each_request_has_a_line_in_the_output_or_among_the_errors() {
    let folder = tempfile::tempdir().unwrap();
    let server = over(folder.path(), Vec::new()).await.start().await;
    let content = [
        line("a", &edit(7)),
        "\n".to_owned(),
        line("bad", &json!({"prompt": "x", "images": edit(1)["images"], "size": "1x"})),
        line("b", &edit(8)),
    ]
    .concat();
    let file = uploaded(&server, content.clone()).await;
    assert_eq!(file["object"], "file");
    assert_eq!((&file["purpose"], &file["filename"]), (&json!("batch"), &json!("in.jsonl")));
    assert_eq!((&file["bytes"], &file["status"]), (&json!(content.len()), &json!("processed")));
    let lifetime = file["expires_at"].as_u64().unwrap() - file["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 2_592_000);
    let mut order = order_for(&id_of(&file));
    order["metadata"] = json!({"of": "a test"});
    let created = json_of(post(&server, "/v1/batches", &order).await).await;
    assert_eq!((&created["object"], &created["status"]), (&json!("batch"), &json!("validating")));
    assert_eq!(created["request_counts"], json!({"total": 0, "completed": 0, "failed": 0}));

    let ended = until_status(&server, &id_of(&created), "completed").await;

    assert_eq!(ended["request_counts"], json!({"total": 3, "completed": 2, "failed": 1}));
    assert_eq!(ended["metadata"], json!({"of": "a test"}));
    assert_eq!((&ended["endpoint"], &ended["completion_window"]), (&json!(EDITS), &json!("24h")));
    let at = |name: &str| ended[name].as_u64().unwrap_or_else(|| panic!("{name}: {ended}"));
    assert!(
        at("created_at") <= at("in_progress_at") && at("in_progress_at") <= at("finalizing_at")
    );
    assert!(at("finalizing_at") <= at("completed_at"));
    assert_eq!(at("expires_at"), at("created_at") + 86_400);
    assert_eq!((&ended["failed_at"], &ended["cancelled_at"]), (&Value::Null, &Value::Null));
    let output = lines_of(&server, &ended["output_file_id"]).await;
    assert_eq!(names(&output), ["a", "b"]);
    assert_eq!((seed_of(&output["a"]), seed_of(&output["b"])), (7, 8));
    assert_eq!(output["a"]["error"], Value::Null);
    let direct = json_of(server.edit_json(&edit(7)).await).await;
    assert_eq!(image_bytes(&output["a"]["response"]["body"], 0), image_bytes(&direct, 0));
    let errors = lines_of(&server, &ended["error_file_id"]).await;
    assert_eq!(names(&errors), ["bad"]);
    assert_eq!(errors["bad"]["response"]["status_code"], 400);
    assert_eq!(errors["bad"]["response"]["body"]["error"]["param"], "size");
    let files = json_of(get(&server, "/v1/files").await).await;
    assert_eq!(files["data"].as_array().unwrap().len(), 3);
    assert_eq!(files["data"][2]["id"], file["id"], "the latest first");
    // What its jobs made is in the output, and nowhere else.
    assert_eq!(json_of(get(&server, "/v1/jobs").await).await["data"], json!([]));
    let left = std::fs::read_dir(folder.path().join("jobs.files")).unwrap().count();
    assert_eq!(left, 0, "no job is left");
}

#[tokio::test]
async fn what_a_model_fails_at_is_among_the_errors_with_its_status() {
    let server = Setup::script([Behaviour::Fail]).start().await;

    let id = begun(&server, edits(2)).await;

    let ended = until_status(&server, &id, "completed").await;
    assert_eq!(ended["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));
    let errors = lines_of(&server, &ended["error_file_id"]).await;
    let failed = errors.values().next().unwrap();
    assert_eq!(failed["response"]["status_code"], 500);
    assert_eq!(failed["response"]["body"]["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_file_with_something_wrong_makes_nothing_and_each_line_is_named() {
    let adjust = |config: &mut ApiConfig| config.batches.max_requests = 5;
    let mut server = Setup { adjust, ..Setup::default() }.start().await;
    let wrong_url = line("c", &edit(1)).replace(EDITS, "/v1/images/generations");
    let content = [
        line("a", &edit(1)),
        "{nonsense\n".to_owned(),
        line("a", &edit(2)),
        wrong_url,
        line("e", &edit(1)).replace("POST", "PUT"),
    ];

    let id = begun(&server, content.concat()).await;
    let failed = until_status(&server, &id, "failed").await;

    assert_eq!(failed["errors"]["object"], "list");
    let faults = failed["errors"]["data"].as_array().unwrap();
    let told: Vec<_> = faults
        .iter()
        .map(|fault| {
            assert!(!fault["message"].as_str().unwrap().is_empty());
            (fault["line"].as_u64(), fault["code"].as_str().unwrap(), fault["param"].as_str())
        })
        .collect();
    let expected = [
        (Some(2), "invalid_json_line", None),
        (Some(3), "duplicate_custom_id", Some("custom_id")),
        (Some(4), "invalid_url", Some("url")),
        (Some(5), "invalid_method", Some("method")),
    ];
    assert_eq!(told, expected);
    assert!(failed["failed_at"].is_u64() && failed["output_file_id"].is_null());
    for (content, code) in [("\n \n".to_owned(), "empty_file"), (edits(6), "too_many_tasks")] {
        let id = begun(&server, content).await;
        let failed = until_status(&server, &id, "failed").await;
        assert_eq!(failed["errors"]["data"][0]["code"], code);
        assert_eq!(failed["errors"]["data"][0]["line"], Value::Null);
    }
    assert!(server.is_model_untouched());
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_refused_by_name() {
    let adjust = |config: &mut ApiConfig| config.batches.max_file_bytes = 10_000;
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let part = || Part::bytes(b"x".to_vec()).file_name("in.jsonl");
    let forms = [
        (Form::new().part("file", part()), "purpose"),
        (Form::new().text("purpose", "fine-tune").part("file", part()), "purpose"),
        (Form::new().text("purpose", "batch"), "file"),
        (upload_form("x").part("file", part()), "file"),
        (upload_form("x").text("expires_after[anchor]", "created_at"), "expires_after[seconds]"),
        (upload_form("x").text("expires_after[seconds]", "3600"), "expires_after[anchor]"),
        (
            upload_form("x")
                .text("expires_after[anchor]", "created_at")
                .text("expires_after[seconds]", "60"),
            "expires_after[seconds]",
        ),
    ];
    for (form, param) in forms {
        error_of(send(&server, form).await, 400, Some(param)).await;
    }
    let error = error_of(send(&server, upload_form("x").text("strange", "1")).await, 400, None);
    assert!(error.await["message"].as_str().unwrap().contains("strange"));
    for length in [10_001, 200_000] {
        let large = upload_form(vec![b'x'; length]);
        assert_eq!(
            error_of(send(&server, large).await, 413, None).await["code"],
            "request_too_large"
        );
    }
    let not_a_form = post(&server, "/v1/files", &json!({"purpose": "batch"})).await;
    error_of(not_a_form, 415, None).await;
    assert_eq!(json_of(get(&server, "/v1/files").await).await["data"], json!([]));

    let file = id_of(&uploaded(&server, "x").await);
    let order = order_for(&file);
    for (name, value) in [
        ("input_file_id", json!("file-00000000000070008000000000000000")),
        ("input_file_id", json!("x")),
        ("input_file_id", Value::Null),
        ("endpoint", json!("/v1/chat/completions")),
        ("endpoint", Value::Null),
        ("completion_window", json!("48h")),
        ("metadata", json!({"a": 1})),
        ("metadata", json!("a")),
        ("output_expires_after", json!(7)),
        ("output_expires_after.seconds", json!({"anchor": "created_at", "seconds": 1})),
        ("output_expires_after.anchor", json!({"anchor": "now", "seconds": 3600})),
    ] {
        let mut order = order.clone();
        order[name.split('.').next().unwrap()] = value;
        error_of(post(&server, "/v1/batches", &order).await, 400, Some(name)).await;
    }
    let mut strange = order.clone();
    strange["strange"] = json!(1);
    error_of(post(&server, "/v1/batches", &strange).await, 400, None).await;
    // The scripted model edits, and makes nothing from words.
    let mut other = order;
    other["endpoint"] = json!("/v1/images/generations");
    error_of(post(&server, "/v1/batches", &other).await, 501, None).await;
    assert_eq!(json_of(get(&server, "/v1/batches").await).await["data"], json!([]));
}

#[tokio::test]
async fn a_batch_that_is_called_off_keeps_what_is_done() {
    let adjust = |config: &mut ApiConfig| config.batches.in_flight = 1;
    let script = vec![Behaviour::Tint, Behaviour::EndlessStep];
    let mut server = Setup { script, adjust, ..Setup::default() }.start().await;
    let id = begun(&server, edits(20)).await;
    server.next_request().await;
    server.next_request().await;
    until(&server, &id, |batch| batch["request_counts"]["completed"] == 1).await;

    let cancelled = post(&server, &format!("/v1/batches/{id}/cancel"), &json!({})).await;

    let status = json_of(cancelled).await["status"].clone();
    assert!(["cancelling", "cancelled"].contains(&status.as_str().unwrap()), "{status}");
    let ended = until_status(&server, &id, "cancelled").await;
    assert_eq!(ended["request_counts"], json!({"total": 20, "completed": 1, "failed": 19}));
    assert!(ended["cancelling_at"].is_u64() && ended["cancelled_at"].is_u64());
    let output = lines_of(&server, &ended["output_file_id"]).await;
    assert_eq!(names(&output), ["0"]);
    let errors = lines_of(&server, &ended["error_file_id"]).await;
    assert_eq!(errors.len(), 19);
    for line in errors.values() {
        assert_eq!(line["error"]["code"], "batch_cancelled");
        assert_eq!(line["response"], Value::Null);
    }
    // What ran was stopped.
    server.until(|status| !status.busy && status.waiting == 0).await;
    let again = post(&server, &format!("/v1/batches/{id}/cancel"), &json!({})).await;
    assert_eq!(json_of(again).await["status"], "cancelled");
    let done = begun(&server, edits(1)).await;
    until_status(&server, &done, "completed").await;
    let late = post(&server, &format!("/v1/batches/{done}/cancel"), &json!({})).await;
    assert_eq!(late.headers()["x-should-retry"], "false");
    error_of(late, 409, None).await;
}

#[tokio::test]
async fn what_is_not_done_in_time_is_expired() {
    let adjust = |config: &mut ApiConfig| {
        config.batches.in_flight = 1;
        config.batches.window = Duration::from_millis(1500);
    };
    let script = vec![Behaviour::Tint, Behaviour::EndlessStep];
    let server = Setup { script, adjust, ..Setup::default() }.start().await;

    let id = begun(&server, edits(5)).await;

    let ended = until_status(&server, &id, "expired").await;
    assert_eq!(ended["request_counts"], json!({"total": 5, "completed": 1, "failed": 4}));
    assert!(ended["expired_at"].is_u64());
    assert_eq!(names(&lines_of(&server, &ended["output_file_id"]).await), ["0"]);
    let errors = lines_of(&server, &ended["error_file_id"]).await;
    assert_eq!(names(&errors), ["1", "2", "3", "4"]);
    assert!(errors.values().all(|line| line["error"]["code"] == "batch_expired"), "{errors:?}");
    server.until(|status| !status.busy && status.waiting == 0).await;
}

#[tokio::test]
async fn each_request_has_one_line_whenever_the_server_ends() {
    const REQUESTS: u64 = 12;
    let folder = tempfile::tempdir().unwrap();
    let server = over(folder.path(), vec![Behaviour::StepOnRelease; 100]).await.start().await;
    let id = begun(&server, edits(REQUESTS)).await;
    until_status(&server, &id, "in_progress").await;
    server.release(4 * 2 + 1);
    until(&server, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1)).await;
    let mut server = server;
    // In the middle of a line, several times, without a word.
    for round in 0..3 {
        server.serving.abort();
        let worker = server.worker.take();
        drop(server);
        drop(worker);
        server = over(folder.path(), vec![Behaviour::StepOnRelease; 100]).await.start().await;
        server.release(4 + round);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.release(4 * 100);

    let ended = until_status(&server, &id, "completed").await;

    let counts = json!({"total": REQUESTS, "completed": REQUESTS, "failed": 0});
    assert_eq!(ended["request_counts"], counts);
    let output = lines_of(&server, &ended["output_file_id"]).await;
    assert_eq!(output.len() as u64, REQUESTS);
    for (name, line) in &output {
        assert_eq!(seed_of(line).to_string(), *name);
    }
    assert!(ended["error_file_id"].is_null());
}

fn key(name: &str, pictures: Option<u32>) -> NamedKey {
    NamedKey {
        name: name.parse().unwrap(),
        hash: KeyHash::of(name),
        scopes: Scopes::of([Scope::Images]),
        expires: None,
        models: None,
        limits: Limits {
            pictures_per_day: pictures.and_then(std::num::NonZeroU32::new),
            ..Limits::default()
        },
        webhook: None,
    }
}

#[tokio::test]
async fn everybody_sees_ones_own_and_pictures_count() {
    let adjust = |config: &mut ApiConfig| {
        config.named_keys = vec![key("ann", Some(2)), key("bob", None)];
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let ask = async |who: &str, method: &str, path: &str| {
        within_patience(server.request(method, path).bearer_auth(who).send()).await.unwrap()
    };
    let upload = server.post("/v1/files").bearer_auth("ann").multipart(upload_form(edits(3)));
    let file = id_of(&json_of(within_patience(upload.send()).await.unwrap()).await);
    let order = server.post("/v1/batches").bearer_auth("ann").json(&order_for(&file));
    let id = id_of(&json_of(within_patience(order.send()).await.unwrap()).await);
    let seen = within_patience(async {
        loop {
            let seen = json_of(ask("ann", "GET", &format!("/v1/batches/{id}")).await).await;
            if seen["request_counts"]["completed"] == 2 {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(seen["status"], "in_progress", "the third waits for tomorrow");

    for (method, path) in [
        ("GET", format!("/v1/files/{file}")),
        ("GET", format!("/v1/files/{file}/content")),
        ("DELETE", format!("/v1/files/{file}")),
        ("GET", format!("/v1/batches/{id}")),
        ("POST", format!("/v1/batches/{id}/cancel")),
    ] {
        error_of(ask("bob", method, &path).await, 404, None).await;
    }
    for path in ["/v1/files", "/v1/batches"] {
        assert_eq!(json_of(ask("bob", "GET", path).await).await["data"], json!([]));
        error_of(get(&server, path).await, 401, None).await;
    }
    let theirs = server.post("/v1/batches").bearer_auth("bob").json(&order_for(&file));
    error_of(theirs.send().await.unwrap(), 400, Some("input_file_id")).await;
    let in_use = ask("ann", "DELETE", &format!("/v1/files/{file}")).await;
    assert_eq!(error_of(in_use, 409, None).await["code"], "file_in_use");

    json_of(ask("ann", "POST", &format!("/v1/batches/{id}/cancel")).await).await;
    within_patience(async {
        while json_of(ask("ann", "GET", &format!("/v1/batches/{id}")).await).await["status"]
            != "cancelled"
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let gone = json_of(ask("ann", "DELETE", &format!("/v1/files/{file}")).await).await;
    assert_eq!(gone, json!({"id": file, "object": "file", "deleted": true}));
    error_of(ask("ann", "GET", &format!("/v1/files/{file}")).await, 404, None).await;
}

#[tokio::test]
async fn files_and_batches_come_page_by_page_and_files_as_they_were_sent() {
    let server = TestServer::start().await;
    let content = b"{nonsense\r\n\xff\xfe and more";
    let form = upload_form(*content)
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "3600");
    let file = json_of(send(&server, form).await).await;
    let lifetime = file["expires_at"].as_u64().unwrap() - file["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 3600);
    let id = id_of(&file);
    assert_eq!(json_of(get(&server, &format!("/v1/files/{id}")).await).await, file);
    let back = get(&server, &format!("/v1/files/{id}/content")).await;
    assert_eq!(back.headers()["content-length"], content.len().to_string());
    assert_eq!(back.bytes().await.unwrap(), content[..]);
    let mut batches = Vec::new();
    for _ in 0..3 {
        let created = json_of(post(&server, "/v1/batches", &order_for(&id)).await).await;
        batches.push(id_of(&created));
        until_status(&server, &batches[batches.len() - 1], "failed").await;
        uploaded(&server, "x").await;
    }

    let page = json_of(get(&server, "/v1/batches?limit=2").await).await;
    assert_eq!(
        (&page["data"][0]["id"], &page["last_id"]),
        (&json!(batches[2]), &json!(batches[1]))
    );
    assert_eq!(page["has_more"], true);
    let after = format!("/v1/batches?limit=2&after={}", batches[1]);
    let rest = json_of(get(&server, &after).await).await;
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!(batches[0]), &json!(false)));
    let first = json_of(get(&server, "/v1/files?order=asc&limit=1").await).await;
    assert_eq!((&first["data"][0]["id"], &first["has_more"]), (&json!(id), &json!(true)));
    let after = json_of(get(&server, &format!("/v1/files?order=asc&after={id}")).await).await;
    assert_eq!(after["data"].as_array().unwrap().len(), 3);
    for (purpose, count) in [("batch", 4), ("batch_output", 0), ("fine-tune", 0)] {
        let list = json_of(get(&server, &format!("/v1/files?purpose={purpose}")).await).await;
        assert_eq!(list["data"].as_array().unwrap().len(), count, "{purpose}");
    }
    for (path, param) in [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?after=x", "after"),
        ("/v1/files?order=up", "order"),
        ("/v1/batches?limit=101", "limit"),
        ("/v1/batches?after=x", "after"),
    ] {
        error_of(get(&server, path).await, 400, Some(param)).await;
    }
    for path in ["/v1/files/x", "/v1/files/x/content", "/v1/batches/x"] {
        error_of(get(&server, path).await, 404, None).await;
    }
}

#[tokio::test]
async fn lines_of_a_batch_wait_for_requests_that_somebody_waits_for() {
    let adjust = |config: &mut ApiConfig| config.batches.in_flight = 4;
    let script = vec![Behaviour::StepOnRelease; 8];
    let mut server = Setup { script, adjust, queue_capacity: 8, ..Setup::default() }.start().await;
    begun(&server, edits(8)).await;
    server.next_request().await;
    server.until(|status| status.waiting == 3).await;
    let direct = server.edit_in_background(edit_form().text("seed", "777"));
    server.until(|status| status.waiting == 4).await;

    server.release(4);

    assert_eq!(server.next_request().await.seed.get(), 777);
    server.release(4 * 8);
    assert_eq!(within_patience(direct).await.unwrap().status(), 200);
}

#[tokio::test]
async fn there_is_a_bound_on_bytes_and_a_file_is_refused_before_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = over_within(folder.path(), 100_000).await;
    let server = Setup { jobs: Some(jobs), ..Setup::default() }.start().await;
    uploaded(&server, vec![b'x'; 60_000]).await;

    let refused = send(&server, upload_form(vec![b'x'; 60_000])).await;

    assert_eq!(refused.headers()["retry-after"], "10");
    assert_eq!(error_of(refused, 503, None).await["code"], "storage_unavailable");
    let blobs = std::fs::read_dir(folder.path().join("jobs.batches")).unwrap().count();
    assert_eq!(blobs, 1, "nothing is left of it");
}

#[tokio::test]
async fn a_batch_ends_whose_file_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let adjust = |config: &mut ApiConfig| config.batches.in_flight = 1;
    let setup = over(folder.path(), vec![Behaviour::Tint, Behaviour::EndlessStep]).await;
    let server = Setup { adjust, ..setup }.start().await;
    let id = begun(&server, edits(4)).await;
    until(&server, &id, |batch| batch["request_counts"]["completed"] == 1).await;
    server.serving.abort();
    drop(server);
    for entry in std::fs::read_dir(folder.path().join("jobs.batches")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "file") {
            std::fs::remove_file(path).unwrap();
        }
    }

    let server = over(folder.path(), Vec::new()).await.start().await;

    let ended = until_status(&server, &id, "completed").await;
    assert_eq!(ended["request_counts"], json!({"total": 4, "completed": 1, "failed": 3}));
    let file = ended["error_file_id"].as_str().unwrap();
    let text = get(&server, &format!("/v1/files/{file}/content")).await.text().await.unwrap();
    assert_eq!(text.matches("\"code\":\"invalid_input_file\"").count(), 3, "{text}");
    let other = begun(&server, edits(1)).await;
    until_status(&server, &other, "completed").await;
}

#[tokio::test]
async fn the_document_has_files_and_batches() {
    let server = TestServer::start().await;

    let document = json_of(get(&server, "/openapi.json").await).await;

    let upload = &document["paths"]["/v1/files"]["post"]["requestBody"];
    assert_eq!(upload["required"], true);
    let schemas = &document["components"]["schemas"];
    let fields = &schemas["UploadForm"];
    assert_eq!(fields["required"], json!(["file", "purpose"]));
    assert_eq!(fields["properties"]["file"]["format"], "binary");
    assert!(fields["properties"]["expires_after[seconds]"].is_object());
    let asked = &schemas["NewBatchBody"]["required"];
    assert_eq!(*asked, json!(["input_file_id", "endpoint", "completion_window"]));
    for (path, method) in [("/v1/batches/{id}/cancel", "post"), ("/v1/files/{id}/content", "get")] {
        assert!(document["paths"][path][method].is_object(), "{path}");
    }
    // A batch as it comes has what is described, and no more.
    let id = begun(&server, "x").await;
    let batch = batch(&server, &id).await;
    let described = schemas["Batch"]["properties"].as_object().unwrap();
    let came: Vec<_> = batch.as_object().unwrap().keys().collect();
    assert_eq!(came, described.keys().collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_place_for_them_there_are_none() {
    let server = Setup { batches: false, ..Setup::default() }.start().await;

    for path in ["/v1/files", "/v1/batches"] {
        let error = error_of(get(&server, path).await, 501, None).await;
        assert_eq!(error["code"], "not_implemented");
    }
}
