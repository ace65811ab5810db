//! Requests with `background`: from the 202 to the result, over the end of the process, too.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diffuser_api::api::{KeyHash, Limits, NamedKey, Scope, Scopes};
use diffuser_api::jobs::{EmbeddedStore, JobStoreError, JobStoreLocation, JobsConfig};
use diffuser_api::model::ModelConfig;
use reqwest::Response;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files::png;
use crate::support::scripted_model::{Behaviour, Event};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, image_bytes, json_of, pooled, prompt_form,
    within_patience,
};

fn job_form() -> Form {
    edit_form().text("background", "true")
}

/// The job of a 202.
async fn accepted(response: Response) -> Value {
    let (status, location) = (response.status(), response.headers().get("location").cloned());
    let job: Value = response.json().await.unwrap();
    assert_eq!(status, 202, "{job}");
    assert_eq!(job["object"], "image.job");
    assert_eq!(location.unwrap(), format!("/v1/jobs/{}", id_of(&job)));
    job
}

fn id_of(job: &Value) -> String {
    job["id"].as_str().unwrap().to_owned()
}

/// The id of a new job.
async fn sent(server: &TestServer, form: Form) -> String {
    id_of(&accepted(server.edit(form).await).await)
}

async fn get(server: &TestServer, path: &str) -> Response {
    within_patience(server.get(path).send()).await.unwrap()
}

async fn job(server: &TestServer, id: &str) -> Value {
    json_of(get(server, &format!("/v1/jobs/{id}")).await).await
}

async fn result(server: &TestServer, id: &str) -> Response {
    get(server, &format!("/v1/jobs/{id}/result")).await
}

async fn delete(server: &TestServer, id: &str) -> Value {
    let request = server.request("DELETE", &format!("/v1/jobs/{id}"));
    json_of(within_patience(request.send()).await.unwrap()).await
}

/// Waits until a job has a status.
async fn until(server: &TestServer, id: &str, status: &str) -> Value {
    within_patience(async {
        loop {
            let job = job(server, id).await;
            if job["status"] == status {
                return job;
            }
            assert!(!["succeeded", "failed"].contains(&job["status"].as_str().unwrap()), "{job}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// A server with jobs in `folder`, which the one before it may be about to leave.
pub(crate) async fn over(folder: &Path, script: Vec<Behaviour>) -> Setup {
    let config = JobsConfig {
        location: JobStoreLocation::within(folder),
        max_tries: 3,
        lifetime: Duration::from_secs(3600),
        capacity: 100,
        max_bytes: 1 << 30,
    };
    let jobs = within_patience(async {
        loop {
            match EmbeddedStore::open(&config) {
                Err(JobStoreError::InUse { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                opened => return Arc::new(opened.unwrap()),
            }
        }
    })
    .await;
    Setup { script, jobs: Some(jobs), ..Setup::default() }
}

#[tokio::test]
async fn a_result_is_the_reply_that_the_endpoint_would_have_given() {
    let server = TestServer::start().await;
    let form = || edit_form().text("seed", "7").text("n", "2").text("strange", "x");

    let job = accepted(server.edit(form().text("background", "True")).await).await;
    let id = id_of(&job);
    assert_eq!(job["endpoint"], "/v1/images/edits");
    assert_eq!(job["model"], "test/scripted-edit");
    assert_eq!(job["seeds"], json!([7, 8]));
    let ended = until(&server, &id, "succeeded").await;
    let response = result(&server, &id).await;

    assert_eq!(response.headers()["content-type"], "application/json");
    let mut reply = json_of(response).await;
    let mut direct = json_of(server.edit(form()).await).await;
    assert!(direct["created"].take().is_u64() && reply["created"].take().is_u64());
    assert_eq!(reply, direct);
    assert_eq!(ended["warnings"], direct["warnings"]);
    assert_eq!(ended["tries"], 1);
    assert!(ended["expires_at"].as_u64() > ended["completed_at"].as_u64());
    assert_eq!(json_of(result(&server, &id).await).await["data"], direct["data"], "once more");
}

#[tokio::test]
async fn the_pictures_are_those_of_the_real_model_bit_by_bit_and_forms_are_json() {
    let model = pooled(&ModelConfig::of("tiny-random".to_owned()));
    let server = Setup::default().start_with(vec![model]).await;
    let images = json!([{"image_url": data_url(&png(64, 48))}]);
    let mut body = json!({
        "prompt": "make it red", "images": images, "seed": 11, "background": true,
        "num_inference_steps": 2, "size": "64x64",
    });

    let id = id_of(&accepted(server.edit_json(&body).await).await);
    until(&server, &id, "succeeded").await;

    let later = json_of(result(&server, &id).await).await;
    body["background"] = json!(false);
    let now = json_of(server.edit_json(&body).await).await;
    assert_eq!(image_bytes(&later, 0), image_bytes(&now, 0));
    // A seed that is drawn is drawn once.
    body["background"] = json!(true);
    body["seed"] = json!(-1);
    let job = accepted(server.edit_json(&body).await).await;
    until(&server, &id_of(&job), "succeeded").await;
    let reply = json_of(result(&server, &id_of(&job)).await).await;
    assert_eq!(reply["data"][0]["seed"], job["seeds"][0]);
}

#[tokio::test]
async fn a_file_and_an_address_come_as_they_would_have_come() {
    let server = TestServer::start().await;
    let request = server.post("/v1/images/edits").header("accept", "image/webp");
    let sent_for_file = request.multipart(job_form().text("seed", "5")).send().await.unwrap();
    let file = id_of(&accepted(sent_for_file).await);
    let address = sent(&server, job_form().text("response_format", "url")).await;
    until(&server, &file, "succeeded").await;
    until(&server, &address, "succeeded").await;

    let response = result(&server, &file).await;
    assert_eq!(response.headers()["content-type"], "image/webp");
    assert_eq!(response.headers()["x-diffuser-seed"], "5");
    assert!(response.bytes().await.unwrap().starts_with(b"RIFF"));
    let reply = json_of(result(&server, &address).await).await;
    let url = reply["data"][0]["url"].as_str().unwrap();
    assert!(url.starts_with(&format!("http://{}/v1/images/files/", server.address())), "{url}");
    assert_eq!(reqwest::get(url).await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_can_be_refused_is_refused_before_there_is_a_job() {
    let mut server = TestServer::start().await;
    let no_picture = prompt_form().text("background", "true");
    error_of(server.edit(no_picture).await, 400, Some("image")).await;
    error_of(server.edit(job_form().text("size", "1x")).await, 400, Some("size")).await;
    error_of(server.edit(job_form().text("model", "none")).await, 404, Some("model")).await;
    let error = error_of(server.edit(job_form().text("stream", "true")).await, 400, Some("stream"));
    assert!(error.await["message"].as_str().unwrap().contains("/events"));
    error_of(server.edit(edit_form().text("background", "bmp")).await, 400, Some("background"))
        .await;

    let list = json_of(get(&server, "/v1/jobs").await).await;

    assert_eq!(
        list,
        json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false})
    );
    assert!(server.is_model_untouched());
}

#[tokio::test]
async fn a_job_has_no_result_before_it_ends_and_that_of_a_failed_one_is_its_error() {
    let mut server =
        Setup::script([Behaviour::StepOnRelease, Behaviour::FindUnsuitable]).start().await;
    let id = sent(&server, job_form()).await;
    server.next_request().await;
    let running = until(&server, &id, "running").await;
    assert_eq!((&running["position"], &running["picture"]), (&Value::Null, &json!(1)));
    let error = error_of(result(&server, &id).await, 409, None).await;
    assert_eq!(error["code"], "job_has_no_result");
    assert!(error["message"].as_str().unwrap().contains("running"), "{error}");
    server.release(4);
    until(&server, &id, "succeeded").await;

    let id = sent(&server, job_form()).await;
    let failed = within_patience(async {
        loop {
            let job = job(&server, &id).await;
            if job["status"] == "failed" {
                break job;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let error = error_of(result(&server, &id).await, 400, Some("prompt")).await;
    assert_eq!(failed["error"], error);

    for path in ["", "/result", "/events"] {
        for strange in ["job_00000000000070008000000000000000", "x", "..%2f.."] {
            error_of(get(&server, &format!("/v1/jobs/{strange}{path}")).await, 404, None).await;
        }
    }
}

#[tokio::test]
async fn a_job_is_called_off_while_it_waits_and_while_it_runs_and_then_forgotten() {
    let mut server = Setup::script([Behaviour::EndlessStep]).start().await;
    let running = sent(&server, job_form()).await;
    server.next_request().await;
    until(&server, &running, "running").await;
    let waiting = sent(&server, job_form()).await;

    for id in [&waiting, &running] {
        assert_eq!(delete(&server, id).await["status"], "cancelled");
        let error = error_of(result(&server, id).await, 409, None).await;
        assert!(error["message"].as_str().unwrap().contains("cancelled"), "{error}");
    }

    assert!(matches!(server.next_event().await, Event::Cancelled));
    server.until(|status| !status.busy && status.waiting == 0).await;
    assert!(server.is_model_untouched(), "the one that waited never began");
    for id in [&waiting, &running] {
        assert_eq!(job(&server, id).await["status"], "cancelled");
        let gone = delete(&server, id).await;
        assert_eq!(gone, json!({"id": id, "object": "image.job", "deleted": true}));
        error_of(get(&server, &format!("/v1/jobs/{id}")).await, 404, None).await;
    }
}

/// Events: number, name and job.
fn events_in(text: &str) -> Vec<(u64, String, Value)> {
    let blocks = text.split("\n\n").filter(|block| block.contains("data:"));
    let events = blocks.map(|block| {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {block}")).trim().to_owned()
        };
        let data = serde_json::from_str(&field("data:")).unwrap();
        (field("id:").parse().unwrap(), field("event:"), data)
    });
    events.collect()
}

/// Reads a stream until what came so far is enough.
async fn read_until(response: &mut Response, is_enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    within_patience(async {
        while !is_enough(&text) {
            let chunk = response.chunk().await.unwrap().expect("the stream should go on");
            text += std::str::from_utf8(&chunk).unwrap();
        }
    })
    .await;
    text
}

#[tokio::test]
async fn events_are_numbered_and_go_on_where_a_client_left() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let id = sent(&server, job_form()).await;
    server.next_request().await;
    let path = format!("/v1/jobs/{id}/events");
    let mut stream = get(&server, &path).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    server.release(1);
    let text =
        read_until(&mut stream, |text| text.contains("\"step\":1") && text.ends_with("\n\n")).await;
    drop(stream);
    let first = events_in(&text);
    let (last, name, seen) = first.last().unwrap().clone();
    assert_eq!((name.as_str(), &seen["total"]), ("progress", &json!(4)));

    server.release(3);
    let resumed = server.get(&path).header("last-event-id", last.to_string()).send().await.unwrap();
    let rest = events_in(&within_patience(resumed.text()).await.unwrap());

    let numbers: Vec<u64> = first.iter().chain(&rest).map(|(number, ..)| *number).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    let (end, name, seen) = rest.last().unwrap();
    assert_eq!((name.as_str(), &seen["status"]), ("completed", &json!("succeeded")));
    assert!(rest.iter().all(|(_, name, _)| name != "queued"), "{rest:?}");
    let whole = events_in(&get(&server, &path).await.text().await.unwrap());
    assert_eq!(whole.len(), 1, "late, the end alone: {whole:?}");
    let over = server.get(&path).header("last-event-id", end.to_string()).send().await.unwrap();
    assert_eq!(over.text().await.unwrap(), "");
}

#[tokio::test]
async fn those_who_follow_a_job_see_its_unfinished_pictures() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let job = accepted(server.edit(job_form().text("partial_images", "3")).await).await;
    assert_eq!(job["warnings"], json!([]));
    let path = format!("/v1/jobs/{}/events", id_of(&job));
    server.next_request().await;
    let mut stream = get(&server, &path).await;
    let mut text = String::new();
    for index in 0..2 {
        // Each by itself: nothing else happens that would have it sent.
        server.release(1);
        let shown = format!("\"partial_image_index\":{index}");
        let is_shown = |text: &str| text.contains(&shown) && text.ends_with("\n\n");
        text = read_until(&mut stream, is_shown).await;
    }
    let last =
        text.split("\n\n").find(|block| block.contains("\"partial_image_index\":1")).unwrap();
    assert!(last.starts_with("event: partial_image\n") && !last.contains("id:"), "{last}");
    let data = last.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let seen: Value = serde_json::from_str(data).unwrap();
    assert_eq!(seen["type"], "image_edit.partial_image");
    assert_eq!(seen["seed"], job["seeds"][0]);
    drop(stream);

    let mut late = get(&server, &path).await;
    let again = read_until(&mut late, |text| text.contains("partial_image_index")).await;
    assert!(again.contains("\"partial_image_index\":1"), "{again}");

    server.release(2);
    until(&server, &id_of(&job), "succeeded").await;
    let after = get(&server, &path).await.text().await.unwrap();
    assert!(!after.contains("partial_image"), "{after}");
    let direct = json_of(server.edit(edit_form().text("partial_images", "2")).await).await;
    assert!(direct["warnings"][0].as_str().unwrap().contains("'partial_images'"), "{direct}");
}

#[tokio::test]
async fn a_name_stands_for_one_request() {
    let server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let named = async |key: &str, form: Form| {
        let request = server.post("/v1/images/edits").header("idempotency-key", key);
        within_patience(request.multipart(form).send()).await.unwrap()
    };
    let first = named("a", job_form()).await;
    assert!(first.headers().get("idempotent-replayed").is_none());
    let first = accepted(first).await;

    let again = named("a", job_form()).await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    let again = accepted(again).await;
    assert_eq!((&again["id"], &again["seeds"]), (&first["id"], &first["seeds"]));
    let other = named("a", job_form().text("n", "2")).await;
    let error = error_of(other, 422, Some("Idempotency-Key")).await;
    assert_eq!(error["code"], "idempotency_key_reused");
    assert_ne!(accepted(named("b", job_form()).await).await["id"], first["id"]);
    error_of(named(&"x".repeat(256), job_form()).await, 400, Some("Idempotency-Key")).await;

    let list = json_of(get(&server, "/v1/jobs").await).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    server.release(4);
}

fn key(name: &str) -> NamedKey {
    NamedKey {
        webhook: None,
        name: name.parse().unwrap(),
        hash: KeyHash::of(name),
        scopes: Scopes::of([Scope::Images]),
        expires: None,
        models: None,
        limits: Limits { pictures_per_day: NonZeroU32::new(3), ..Limits::default() },
    }
}

#[tokio::test]
async fn everybody_sees_ones_own_jobs_page_by_page_and_they_count_as_pictures() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| {
        config.named_keys = vec![key("ann"), key("bob")];
    };
    let script = vec![Behaviour::Tint, Behaviour::FindUnsuitable];
    let server = Setup { script, adjust, ..Setup::default() }.start().await;
    let send = async |who: &str, form: Form| {
        let request = server.post("/v1/images/edits").bearer_auth(who).multipart(form);
        within_patience(request.send()).await.unwrap()
    };
    let see = async |who: &str, path: &str| {
        within_patience(server.get(path).bearer_auth(who).send()).await.unwrap()
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(id_of(&accepted(send("ann", job_form()).await).await));
    }
    within_patience(async {
        while json_of(see("ann", &format!("/v1/jobs/{}", ids[2])).await).await["status"]
            != "succeeded"
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let page = json_of(see("ann", "/v1/jobs?limit=2").await).await;
    assert_eq!((&page["data"][0]["id"], &page["last_id"]), (&json!(ids[2]), &json!(ids[1])));
    assert_eq!(page["has_more"], true);
    let rest = json_of(see("ann", &format!("/v1/jobs?limit=2&after={}", ids[1])).await).await;
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&json!(ids[0]), &json!(false)));
    for (query, param) in [("limit=0", "limit"), ("limit=101", "limit"), ("after=x", "after")] {
        error_of(see("ann", &format!("/v1/jobs?{query}")).await, 400, Some(param)).await;
    }

    assert_eq!(json_of(see("bob", "/v1/jobs").await).await["data"], json!([]));
    for path in ["", "/result", "/events"] {
        error_of(see("bob", &format!("/v1/jobs/{}{path}", ids[0])).await, 404, None).await;
    }
    let request = server.request("DELETE", &format!("/v1/jobs/{}", ids[0])).bearer_auth("bob");
    error_of(request.send().await.unwrap(), 404, None).await;
    error_of(get(&server, "/v1/jobs").await, 401, None).await;

    // One of the three failed, and is given back.
    accepted(send("ann", job_form()).await).await;
    let error = error_of(send("ann", job_form()).await, 429, None).await;
    assert_eq!(error["code"], "insufficient_quota");
}

#[tokio::test]
async fn jobs_wait_in_the_store_when_the_line_is_full() {
    let mut server =
        Setup { queue_capacity: 1, script: vec![Behaviour::StepOnRelease], ..Setup::default() }
            .start()
            .await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(sent(&server, job_form()).await);
    }
    server.next_request().await;
    assert_eq!(job(&server, &ids[5]).await["status"], "queued");
    assert!(job(&server, &ids[5]).await["position"].as_u64() >= Some(4));

    server.release(4);

    for id in &ids {
        until(&server, id, "succeeded").await;
    }
}

#[tokio::test]
async fn there_is_a_bound_on_jobs() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| config.jobs.capacity = 2;
    let script = vec![Behaviour::StepOnRelease];
    let server = Setup { script, adjust, ..Setup::default() }.start().await;
    sent(&server, job_form()).await;
    sent(&server, job_form()).await;

    let refused = server.edit(job_form()).await;

    assert_eq!(refused.headers()["retry-after"], "10");
    assert_eq!(error_of(refused, 429, None).await["code"], "server_busy");
    server.release(4);
}

#[tokio::test]
async fn at_the_end_what_runs_is_finished_and_what_waits_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = over(folder.path(), vec![Behaviour::StepOnRelease]).await.start().await;
    let running = sent(&server, job_form()).await;
    server.next_request().await;
    until(&server, &running, "running").await;
    let waiting = sent(&server, job_form()).await;

    server.stop.take().unwrap().send(()).unwrap();
    within_patience(server.service.until_shut_down()).await;
    server.release(4);
    within_patience(&mut server.serving).await.unwrap().unwrap();
    drop(server);

    let server = over(folder.path(), Vec::new()).await.start().await;
    let first = job(&server, &running).await;
    assert_eq!((&first["status"], &first["tries"]), (&json!("succeeded"), &json!(1)));
    let second = until(&server, &waiting, "succeeded").await;
    assert_eq!(second["tries"], 1, "waiting is no try");
}

#[tokio::test]
async fn what_runs_when_the_grace_is_over_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let adjust = |config: &mut diffuser_api::api::ApiConfig| {
        config.peers.grace = Duration::from_millis(50);
    };
    let setup = over(folder.path(), vec![Behaviour::EndlessStep]).await;
    let mut server = Setup { adjust, ..setup }.start().await;
    let id = sent(&server, job_form()).await;
    until(&server, &id, "running").await;

    server.stop.take().unwrap().send(()).unwrap();
    within_patience(&mut server.serving).await.unwrap().unwrap();
    drop(server);

    let server = over(folder.path(), Vec::new()).await.start().await;
    assert_eq!(until(&server, &id, "succeeded").await["tries"], 1, "it was called off in order");
}

#[cfg(unix)]
mod process {
    //! The program itself, ended in the middle.

    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use reqwest::Client;
    use reqwest::multipart::Form;
    use serde_json::Value;

    use super::{id_of, json_of};
    use crate::support::server::{image_bytes, until_ready, within_patience};

    const ROUNDS: u64 = 20;

    struct Program {
        process: Child,
        origin: String,
    }

    impl Program {
        /// Starts it over the jobs in `folder`.
        async fn start(folder: &Path) -> Self {
            let mut process = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
                .args(["--model", "tiny-random", "--port", "0", "--host", "127.0.0.1"])
                .env("DIFFUSER_DATA_DIR", folder)
                .env("DIFFUSER_JOBS_MAX_TRIES", "1000")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let log = BufReader::new(process.stderr.take().unwrap()).lines();
            let (found, origin) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let mut found = Some(found);
                for line in log.map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once("http://")
                        && let Some((address, _)) = rest.split_once("/health")
                        && let Some(found) = found.take()
                    {
                        let _ = found.send(format!("http://{address}"));
                    }
                }
            });
            let origin = within_patience(origin).await.unwrap();
            until_ready(&origin).await;
            Self { process, origin }
        }

        fn url(&self, path: &str) -> String {
            format!("{}{path}", self.origin)
        }

        /// Asks for a job by a name of the client's own; nothing if the server ends.
        async fn send(&self, client: &Client, seed: u64) -> Option<Value> {
            let form = form_of(seed).text("background", "true");
            let request = client.post(self.url("/v1/images/edits")).multipart(form);
            let request = request.header("idempotency-key", format!("seed-{seed}"));
            let response = request.send().await.ok()?;
            assert_eq!(response.status(), 202);
            response.json().await.ok()
        }

        /// As the system does that is out of memory.
        fn kill(self) {}
    }

    impl Drop for Program {
        fn drop(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    /// A small edit.
    fn form_of(seed: u64) -> Form {
        let form = super::edit_form().text("size", "64x64").text("num_inference_steps", "2");
        form.text("seed", seed.to_string())
    }

    async fn wait_for(program: &Program, client: &Client, id: &str) -> Value {
        within_patience(async {
            loop {
                let url = program.url(&format!("/v1/jobs/{id}"));
                let job = json_of(client.get(url).send().await.unwrap()).await;
                assert_ne!(job["status"], "failed", "{job}");
                if job["status"] == "succeeded" {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_accepted_job_has_one_result_whenever_the_process_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new();
        let mut accepted = std::collections::BTreeMap::new();
        for round in 0..ROUNDS {
            let program = Program::start(folder.path()).await;
            if let Some(job) = program.send(&client, 2 * round).await {
                accepted.insert(2 * round, id_of(&job));
            }
            // The second one is on its way, accepted, or running.
            let moment = tokio::time::sleep(Duration::from_millis(round * 7));
            tokio::select! {
                job = program.send(&client, 2 * round + 1) => {
                    accepted.insert(2 * round + 1, id_of(&job.unwrap()));
                    tokio::time::sleep(Duration::from_millis(round * 5)).await;
                }
                () = moment => {}
            }
            program.kill();
        }

        let program = Program::start(folder.path()).await;
        for seed in 0..2 * ROUNDS {
            let id = id_of(&program.send(&client, seed).await.unwrap());
            assert_eq!(accepted.entry(seed).or_insert_with(|| id.clone()), &id, "{seed}");
        }
        for (seed, id) in &accepted {
            wait_for(&program, &client, id).await;
            let url = program.url(&format!("/v1/jobs/{id}/result"));
            let later = json_of(client.get(url).send().await.unwrap()).await;
            let form = form_of(*seed);
            let request = client.post(program.url("/v1/images/edits")).multipart(form);
            let now = json_of(request.send().await.unwrap()).await;
            assert_eq!(image_bytes(&later, 0), image_bytes(&now, 0), "{seed}");
        }
        let list =
            json_of(client.get(program.url("/v1/jobs?limit=100")).send().await.unwrap()).await;
        assert_eq!(list["data"].as_array().unwrap().len() as u64, 2 * ROUNDS);
        let files = std::fs::read_dir(folder.path().join("jobs.files")).unwrap().count();
        assert_eq!(files as u64, 2 * ROUNDS, "a result each, and nothing else");
        program.kill();
    }

    #[tokio::test]
    async fn a_second_process_on_the_same_jobs_says_so_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::start(folder.path()).await;

        let second = Command::new(env!("CARGO_BIN_EXE_diffuser-api"))
            .args(["--model", "tiny-random", "--port", "0"])
            .env("DIFFUSER_DATA_DIR", folder.path())
            .output()
            .unwrap();

        assert_eq!(second.status.code(), Some(1));
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(said.contains("another process has the jobs of"), "{said}");
        program.kill();
    }
}
