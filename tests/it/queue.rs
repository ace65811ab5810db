//! The queue: order, back-pressure, cancellation, panics and shutdown.

use std::time::{Duration, Instant};

use diffuser_api::model::LoadError;
use diffuser_api::service::{Budget, PooledModel, RunningJob, ServiceConfig, start};

use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::scripted_model::{self, Behaviour, Event};
use crate::support::server::{
    Setup, TestServer, edit_form, error_of, json_of, unloadable, within_patience,
};

/// Steps of a request that says nothing about them.
const STEPS: usize = 4;

#[tokio::test]
async fn a_full_queue_answers_429_at_once() {
    let setup = Setup { queue_capacity: 1, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form());
    server.until(|status| status.waiting == 1).await;

    let refused = server.edit(edit_form()).await;

    assert_eq!(refused.headers()["retry-after"], "5");
    let error = error_of(refused, 429, None).await;
    assert_eq!(error["code"], "server_busy");
    assert_eq!(error["type"], "rate_limit_error");
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    json_of(waiting.await.unwrap()).await;
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn a_queue_of_none_serves_one_at_a_time() {
    let setup = Setup { queue_capacity: 0, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;

    error_of(server.edit(edit_form()).await, 429, None).await;

    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn bad_input_is_refused_although_the_queue_is_full() {
    let setup = Setup { queue_capacity: 0, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;

    let refused = server.edit(edit_form().text("n", "0")).await;

    error_of(refused, 400, Some("n")).await;
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
}

#[tokio::test]
async fn health_answers_in_milliseconds_while_a_picture_is_being_made() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;

    let asked = Instant::now();
    let health = json_of(server.get("/health").send().await.unwrap()).await;

    assert!(asked.elapsed() < Duration::from_millis(500));
    assert_eq!((&health["status"], &health["busy"]), (&"healthy".into(), &true.into()));
    server.release(STEPS);
    json_of(running.await.unwrap()).await;
    server.until(|status| !status.busy).await;
}

#[tokio::test]
async fn health_tells_how_far_the_running_job_is_and_nothing_of_its_prompt() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(edit_form().text("n", "2"));
    server.next_request().await;
    server.release(STEPS + 1);
    let has_begun = |job: &RunningJob| (job.picture, job.step) == (2, 1);
    within_patience(async {
        while !server.service.running_jobs().iter().any(has_begun) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let health = server.get("/health").send().await.unwrap().text().await.unwrap();

    let told: Value = serde_json::from_str(&health).unwrap();
    let job = &told["running"][0];
    assert_eq!(told["running"].as_array().unwrap().len(), 1, "{told}");
    for (key, value) in [
        ("model", json!("test/scripted-edit")),
        ("stage", json!("denoising")),
        ("picture", json!(2)),
        ("pictures", json!(2)),
        ("step", json!(1)),
        ("steps", json!(STEPS)),
    ] {
        assert_eq!(job[key], value, "{key}: {told}");
    }
    assert!(job["elapsed_s"].is_f64() && job["left_s"].is_f64(), "{told}");
    assert!(!health.contains("make it red"), "{health}");
    server.release(STEPS - 1);
    json_of(running.await.unwrap()).await;
    server.until(|status| !status.busy).await;
    let idle = json_of(server.get("/health").send().await.unwrap()).await;
    assert_eq!(idle["running"], json!([]));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_running_job_with_it() {
    for behaviour in [Behaviour::UntilCancelled, Behaviour::EndlessStep] {
        let mut server = Setup::script([behaviour]).start().await;
        let running = server.edit_in_background(edit_form());
        server.next_request().await;

        running.abort();

        assert!(matches!(server.next_event().await, Event::Cancelled));
        json_of(server.edit(edit_form()).await).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_within_a_step_of_another_gives_its_place_back() {
    let setup = Setup { queue_capacity: 1, ..Setup::script([Behaviour::EndlessStep]) };
    let mut server = setup.start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form().text("seed", "1"));
    server.until(|status| status.waiting == 1).await;

    waiting.abort();

    server.until(|status| status.waiting == 0).await;
    running.abort();
}

#[tokio::test]
async fn a_request_that_takes_too_long_answers_504_and_is_called_off() {
    let timed = |server: &TestServer, ms: &'static str, form: Form| {
        server.post("/v1/images/edits").header("x-request-timeout-ms", ms).multipart(form).send()
    };
    let setup = Setup { queue_capacity: 1, ..Setup::script([Behaviour::EndlessStep]) };
    let mut server = setup.start().await;
    let running = timed(&server, "600", edit_form());
    let running = tokio::spawn(running);
    server.next_request().await;

    // It waits for the running one, and is out of the line long before that ends.
    let waited = timed(&server, "50", edit_form()).await.unwrap();

    let error = error_of(waited, 504, None).await;
    assert_eq!(error["code"], "deadline_exceeded");
    assert_eq!(server.service.status().waiting, 0);
    error_of(running.await.unwrap().unwrap(), 504, None).await;
    assert!(matches!(server.next_event().await, Event::Cancelled));
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn a_stream_that_takes_too_long_ends_with_an_error() {
    let mut server = Setup::script([Behaviour::EndlessStep]).start().await;
    let form = edit_form().text("stream", "true");
    let request = server.post("/v1/images/edits").header("x-request-timeout-ms", "200");

    let stream = request.multipart(form).send().await.unwrap().text().await.unwrap();

    assert!(stream.contains("event: error") && stream.contains("deadline_exceeded"), "{stream}");
    server.next_request().await;
    assert!(matches!(server.next_event().await, Event::Cancelled));
}

#[tokio::test]
async fn the_settings_bound_every_request_and_a_wrong_header_is_named() {
    let server = Setup {
        adjust: |config| config.request_timeout = Some(Duration::from_millis(150)),
        ..Setup::script([Behaviour::EndlessStep])
    }
    .start()
    .await;

    error_of(server.edit(edit_form()).await, 504, None).await;

    for wrong in ["0", "-1", "1.5", "soon", "86400001"] {
        let request = server.post("/v1/images/edits").header("x-request-timeout-ms", wrong);
        let refused = request.multipart(edit_form()).send().await.unwrap();
        error_of(refused, 400, Some("x-request-timeout-ms")).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_waiting_gives_its_place_back() {
    let setup = Setup { queue_capacity: 1, ..Setup::script([Behaviour::StepOnRelease]) };
    let mut server = setup.start().await;
    let long = edit_form().text("num_inference_steps", "150");
    let running = server.edit_in_background(long);
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form().text("seed", "1"));
    server.until(|status| status.waiting == 1).await;

    waiting.abort();

    // The worker looks at its queue after each step.
    for _ in 0..100 {
        server.release(1);
        tokio::time::sleep(Duration::from_millis(2)).await;
        if server.service.status().waiting == 0 {
            break;
        }
    }
    let next = server.edit_in_background(edit_form().text("seed", "2"));
    server.until(|status| status.waiting == 1).await;
    server.release(150);
    json_of(running.await.unwrap()).await;
    json_of(next.await.unwrap()).await;
    assert_eq!(server.next_request().await.seed.get(), 2);
}

#[tokio::test]
async fn failures_and_panics_fail_one_request_and_tell_no_secrets() {
    let script = [Behaviour::Panic, Behaviour::Fail, Behaviour::Panic];
    let server = Setup::script(script).start().await;

    for _ in script {
        let response = server.edit(edit_form()).await;
        assert_eq!(response.headers()["x-should-retry"], "false");
        let error = error_of(response, 500, None).await;
        assert_eq!(error["type"], "server_error");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    json_of(server.edit(edit_form()).await).await;
    assert!(server.service.status().worker_alive);
}

#[tokio::test]
async fn what_the_model_finds_unsuitable_is_the_clients_to_mend() {
    let server = Setup::script([Behaviour::FindUnsuitable]).start().await;

    let error = error_of(server.edit(edit_form()).await, 400, Some("prompt")).await;

    assert_eq!(error["message"], "Invalid 'prompt': too many tokens.");
}

#[tokio::test]
async fn shutdown_finishes_the_running_picture_and_refuses_the_rest() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;
    let waiting = server.edit_in_background(edit_form());
    server.until(|status| status.waiting == 1).await;

    server.service.shut_down();

    let late = server.edit(edit_form()).await;
    assert!(late.headers().contains_key("retry-after"));
    let error = error_of(late, 503, None).await;
    assert_eq!(error["code"], "shutting_down");
    let health = server.get("/health").send().await.unwrap();
    assert_eq!(health.status(), 503);
    // One step of the running picture is enough for the waiting client to hear.
    server.release(1);
    error_of(within_patience(waiting).await.unwrap(), 503, None).await;
    server.release(STEPS - 1);
    json_of(running.await.unwrap()).await;
    let worker = server.worker.take().unwrap();
    within_patience(tokio::task::spawn_blocking(move || worker.join())).await.unwrap();
    assert!(!server.service.status().worker_alive);
}

#[tokio::test]
async fn a_stopped_server_answers_what_is_in_flight_and_returns() {
    let mut server = Setup::script([Behaviour::StepOnRelease]).start().await;
    let running = server.edit_in_background(edit_form());
    server.next_request().await;

    server.stop.take().unwrap().send(()).unwrap();
    server.until(|status| !status.accepting).await;
    server.release(STEPS);

    json_of(running.await.unwrap()).await;
    within_patience(&mut server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn warm_up_makes_one_small_picture() {
    let mut server = TestServer::start().await;

    let seconds = server.service.warm_up(None).await.unwrap();

    assert!(seconds > 0.0);
    let request = server.next_request().await;
    assert_eq!((request.steps.get(), request.count.get()), (2, 1));
}

#[test]
fn a_model_that_does_not_load_is_reported_to_the_starter() {
    let config = ServiceConfig { queue_capacity: 1, budget: Budget::default(), metrics: true };
    let load = |_| {
        Err(LoadError::UnknownModel {
            id: "nobody/nothing".to_owned(),
            reason: "it is a test".to_owned(),
        })
    };
    let model = PooledModel { load: Box::new(load), ..unloadable(scripted_model::card()) };

    let error = start(vec![model], config, || {}).unwrap_err();

    let cause = error.error.to_string();
    assert_eq!(cause, "no model 'nobody/nothing': it is a test");
    assert!(error.to_string().contains("test/scripted-edit"), "{error}");
}
