//! Several models in one server: which one a request is for, when it is loaded, and what
//! happens to the others meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diffuser_api::api::{ApiConfig, ApiKeys};
use diffuser_api::domain::{ImageRequest, Prompt, RgbImage, Task, TaskKind, TaskKinds};
use diffuser_api::model::{
    DeviceChoice, DiffusionModel, Generation, LoadError, Loaded, ModelCard, ModelError,
    StepObserver,
};
use diffuser_api::service::{
    Budget, Client, Framing, PooledModel, ReplicaState, RequestMemory, SizeChoice, Submission,
};
use reqwest::Response;
use serde_json::{Value, json};

use crate::support::scripted_model::{self, ScriptedModel};
use crate::support::server::{
    Setup, TestServer, edit_form, error_of, image_bytes, json_of, unloadable, within_patience,
};

/// What the models of a server did, in order, such as `load draw`.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, what: &str, model: &str) {
        self.0.lock().unwrap().push(format!("{what} {model}"));
    }

    fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A model that tints, and writes down what becomes of it.
struct Diarist {
    inner: ScriptedModel,
    diary: Diary,
    /// A picture waits for a word from here, if there is one.
    gate: Option<Arc<Mutex<Receiver<()>>>>,
}

impl DiffusionModel for Diarist {
    fn card(&self) -> &ModelCard {
        self.inner.card()
    }

    fn loaded(&self) -> &Loaded {
        self.inner.loaded()
    }

    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        self.diary.note("begin", request.prompt.as_str());
        if let Some(gate) = &self.gate {
            let _ = gate.lock().unwrap().recv();
        }
        self.diary.note("make", &self.inner.card.id);
        self.inner.generate(request, observer)
    }
}

impl Drop for Diarist {
    fn drop(&mut self) {
        self.diary.note("drop", &self.inner.card.id);
    }
}

fn card(id: &str, kinds: &[TaskKind]) -> ModelCard {
    ModelCard { id: id.to_owned(), tasks: TaskKinds::of(kinds), ..scripted_model::card() }
}

fn scripted(card: &ModelCard) -> ScriptedModel {
    ScriptedModel {
        card: card.clone(),
        loaded: scripted_model::loaded(),
        script: Vec::new().into(),
        events: tokio::sync::mpsc::unbounded_channel().0,
        releases: channel().1,
    }
}

fn model(diary: &Diary, id: &str, kinds: &[TaskKind]) -> PooledModel {
    gated(diary, id, kinds, None)
}

fn gated(
    diary: &Diary,
    id: &str,
    kinds: &[TaskKind],
    gate: Option<Arc<Mutex<Receiver<()>>>>,
) -> PooledModel {
    let (card, diary) = (card(id, kinds), diary.clone());
    let of_loader = card.clone();
    let load = move |_| {
        diary.note("load", &of_loader.id);
        let inner = scripted(&of_loader);
        Ok(Box::new(Diarist { inner, diary: diary.clone(), gate: gate.clone() }) as _)
    };
    PooledModel { load: Box::new(load), ..unloadable(card) }
}

/// An edit model and one that draws.
async fn two(diary: &Diary, setup: Setup) -> TestServer {
    let edit = model(diary, "house/edit", &[TaskKind::Edit]);
    let draw = model(diary, "house/draw", &[TaskKind::TextToImage, TaskKind::Variation]);
    setup.start_with(vec![edit, draw]).await
}

async fn generate(server: &TestServer, fields: Value) -> Response {
    let request = server.post("/v1/images/generations").json(&fields);
    within_patience(request.send()).await.unwrap()
}

async fn model_of(response: Response) -> String {
    json_of(response).await["model"].as_str().unwrap().to_owned()
}

fn one_at_a_time() -> Budget {
    Budget { max_loaded: 1.try_into().ok(), ..Budget::default() }
}

fn load_ms(response: &Response) -> Option<u64> {
    response.headers().get("x-model-load-ms")?.to_str().unwrap().parse().ok()
}

async fn state_of(server: &TestServer, id: &str) -> Value {
    let model = json_of(server.get(&format!("/v1/models/{id}")).send().await.unwrap()).await;
    model["details"]["state"].clone()
}

#[tokio::test]
async fn a_request_goes_to_the_model_that_it_names_or_to_the_first_that_does_it() {
    let server = two(&Diary::default(), Setup::default()).await;

    let drawn = generate(&server, json!({"prompt": "a hill"})).await;
    let edited = server.edit(edit_form()).await;
    let by_alias = generate(&server, json!({"prompt": "a hill", "model": "gpt-image-1"})).await;
    let by_name = generate(&server, json!({"prompt": "a hill", "model": "draw"})).await;
    let by_address = server
        .post("/openai/deployments/draw/images/generations")
        .json(&json!({"prompt": "a hill", "model": "gpt-image-1"}));
    let by_address = json_of(by_address.send().await.unwrap()).await;

    assert_eq!(model_of(drawn).await, "house/draw");
    assert_eq!(model_of(edited).await, "house/edit");
    assert_eq!(model_of(by_alias).await, "house/draw");
    assert_eq!(model_of(by_name).await, "house/draw");
    assert_eq!(by_address["model"], "house/draw");
    assert_eq!(by_address.get("warnings"), None);
}

#[tokio::test]
async fn what_a_named_model_does_not_do_is_501_and_a_name_that_is_none_is_404_with_those_that_are()
{
    let server = two(&Diary::default(), Setup::default()).await;

    let wrong = generate(&server, json!({"prompt": "a hill", "model": "house/edit"})).await;
    let none = generate(&server, json!({"prompt": "a hill", "model": "house/sing"})).await;
    let other = server.edit(edit_form().text("model", "house/draw")).await;

    error_of(wrong, 501, None).await;
    error_of(other, 501, None).await;
    let error = error_of(none, 404, Some("model")).await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("house/edit") && message.contains("house/draw"), "{message}");
}

#[tokio::test]
async fn the_list_and_the_first_page_and_the_document_have_all_models() {
    let server = two(&Diary::default(), Setup::default()).await;
    let get = async |path: &str| json_of(server.get(path).send().await.unwrap()).await;

    let (list, root) = (get("/v1/models").await, get("/").await);
    let (draw, document) = (get("/v1/models/house/draw").await, get("/openapi.json").await);

    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert!(ids.iter().any(|id| **id == "house/edit") && ids.iter().any(|id| **id == "house/draw"));
    assert_eq!(root["models"], json!(["house/edit", "house/draw"]));
    assert_eq!(
        (&root["capabilities"]["text_to_image"], &root["model"]["id"]),
        (&json!(true), &json!("house/edit"))
    );
    assert_eq!(draw["capabilities"]["image_edit"], false);
    for endpoint in ["edits", "generations", "variations"] {
        assert!(document["paths"][format!("/v1/images/{endpoint}")].is_object(), "{endpoint}");
    }
    let description = document["info"]["description"].as_str().unwrap();
    assert!(description.contains("house/edit") && description.contains("house/draw"));
}

#[tokio::test]
async fn under_a_budget_of_one_the_model_that_is_asked_for_takes_the_others_place() {
    let diary = Diary::default();
    let server = two(&diary, Setup { budget: one_at_a_time(), ..Setup::default() }).await;
    assert_eq!(diary.entries(), ["load house/edit"], "there is no room for the second");
    assert_eq!(state_of(&server, "house/draw").await, "not_loaded");

    let first = generate(&server, json!({"prompt": "a hill"})).await;
    let second = generate(&server, json!({"prompt": "a hill"})).await;
    let back = server.edit(edit_form()).await;

    assert!(load_ms(&first).is_some() && load_ms(&second).is_none() && load_ms(&back).is_some());
    for response in [first, second, back] {
        assert_eq!(json_of(response).await.get("warnings"), None);
    }
    let moves: Vec<String> =
        diary.entries().into_iter().filter(|entry| !entry.starts_with("begin")).collect();
    assert_eq!(
        moves,
        [
            "load house/edit",
            "drop house/edit",
            "load house/draw",
            "make house/draw",
            "make house/draw",
            "drop house/draw",
            "load house/edit",
            "make house/edit",
        ]
    );
}

#[tokio::test]
async fn a_budget_of_bytes_lets_go_of_what_was_used_least_recently() {
    let diary = Diary::default();
    let kinds = [TaskKind::TextToImage];
    let sized = |id| PooledModel {
        expected_bytes: 40,
        preload: false,
        ..heavy(model(&diary, id, &kinds), 40)
    };
    let budget = Budget { memory_bytes: Some(100), max_loaded: None };
    let setup = Setup { budget, ..Setup::default() };
    let server = setup.start_with(vec![sized("a"), sized("b"), sized("c")]).await;

    for name in ["a", "b", "a", "c"] {
        json_of(generate(&server, json!({"prompt": "p", "model": name})).await).await;
    }

    let drops: Vec<String> =
        diary.entries().into_iter().filter(|entry| entry.starts_with("drop")).collect();
    assert_eq!(drops, ["drop b"]);
}

/// The same model, which says when it is loaded that it takes so many bytes.
fn heavy(model: PooledModel, weight_bytes: usize) -> PooledModel {
    struct Heavy(Box<dyn DiffusionModel>, Loaded);
    impl DiffusionModel for Heavy {
        fn card(&self) -> &ModelCard {
            self.0.card()
        }
        fn loaded(&self) -> &Loaded {
            &self.1
        }
        fn generate(
            &mut self,
            request: &ImageRequest,
            observer: &mut dyn StepObserver,
        ) -> Result<Generation, ModelError> {
            self.0.generate(request, observer)
        }
    }
    let PooledModel { load, .. } = model;
    let load = move |device| {
        let loaded = Loaded { weight_bytes, ..scripted_model::loaded() };
        Ok(Box::new(Heavy(load(device)?, loaded)) as _)
    };
    PooledModel { load: Box::new(load), ..model }
}

#[tokio::test]
async fn a_model_that_nobody_asks_for_is_let_go_and_comes_back() {
    let diary = Diary::default();
    let edit = model(&diary, "house/edit", &[TaskKind::Edit]);
    let edit = PooledModel { keep_alive: Some(Duration::from_millis(30)), ..edit };
    let server = Setup::default().start_with(vec![edit]).await;

    within_patience(async {
        while state_of(&server, "house/edit").await != "not_loaded" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let response = server.edit(edit_form()).await;

    assert!(load_ms(&response).is_some());
    json_of(response).await;
    assert_eq!(diary.entries()[..3], ["load house/edit", "drop house/edit", "load house/edit"]);
}

/// A model that cannot be loaded for as long as `faults` last.
fn faulty(diary: &Diary, faults: usize) -> PooledModel {
    let good = model(diary, "house/edit", &[TaskKind::Edit]);
    let PooledModel { load, .. } = good;
    let (tries, diary) = (AtomicUsize::new(0), diary.clone());
    let load = move |device| {
        let tries = tries.fetch_add(1, Ordering::SeqCst);
        if tries >= faults {
            return load(device);
        }
        diary.note("fail", "house/edit");
        match tries % 2 {
            0 => Err(LoadError::Tokenizer("no file /secret/path".to_owned())),
            _ => panic!("loading panics at /secret/path"),
        }
    };
    PooledModel { load: Box::new(load), preload: false, ..good }
}

fn with_administrators() -> Setup {
    let adjust = |config: &mut ApiConfig| config.admin_keys = ApiKeys::new(vec!["root".to_owned()]);
    Setup { adjust, ..Setup::default() }
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_503_with_the_reason_and_is_tried_again_later() {
    let diary = Diary::default();
    let server = with_administrators().start_with(vec![faulty(&diary, 2)]).await;
    let load = async || {
        let request = server.post("/v1/models/house/edit/load").bearer_auth("root");
        within_patience(request.send()).await.unwrap()
    };

    for _ in 0..2 {
        let response = server.edit(edit_form()).await;
        assert_eq!(response.headers()["retry-after"], "10");
        let error = error_of(response, 503, None).await;
        assert_eq!(error["code"], "model_not_loaded");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("house/edit") && message.contains("files are faulty"));
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(diary.entries(), ["fail house/edit"], "not tried again at once");
    assert_eq!(state_of(&server, "house/edit").await, "failed");
    let second = error_of(load().await, 503, None).await;
    assert!(second["message"].as_str().unwrap().contains("loading it failed"), "{second}");
    assert_eq!(json_of(load().await).await["details"]["state"], "loaded");
    json_of(server.edit(edit_form()).await).await;
    assert_eq!(json_of(server.get("/health").send().await.unwrap()).await["status"], "healthy");
}

#[tokio::test]
async fn administrators_alone_load_and_unload() {
    let diary = Diary::default();
    let server = two(&diary, with_administrators()).await;
    let change = async |path: &str, key: Option<&str>| {
        let request = server.post(path);
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        within_patience(request.send()).await.unwrap()
    };

    for key in [None, Some("guest")] {
        error_of(change("/v1/models/house/edit/unload", key).await, 403, None).await;
    }
    assert_eq!(state_of(&server, "house/edit").await, "loaded");
    let unloaded = json_of(change("/v1/models/house/edit/unload", Some("root")).await).await;
    let loaded = json_of(change("/v1/models/house/edit/load", Some("root")).await).await;
    error_of(change("/v1/models/house/sing/load", Some("root")).await, 404, Some("model")).await;
    error_of(change("/v1/models/house/edit", Some("root")).await, 405, None).await;

    assert_eq!(unloaded["details"]["state"], "not_loaded");
    assert_eq!(unloaded["details"]["device"], Value::Null);
    assert_eq!(
        (&loaded["details"]["state"], &loaded["details"]["device"]),
        (&json!("loaded"), &json!("cpu"))
    );
    let plain = two(&diary, Setup::default()).await;
    let refused = plain.post("/v1/models/house/edit/load").bearer_auth("root");
    let error = error_of(refused.send().await.unwrap(), 403, None).await;
    assert!(error["message"].as_str().unwrap().contains("server.admin_keys"), "{error}");
}

/// A model whose loading waits for a word.
fn slow_to_load(diary: &Diary, id: &str, kinds: &[TaskKind]) -> (PooledModel, Sender<()>) {
    let (go, waits) = channel();
    let good = model(diary, id, kinds);
    let PooledModel { load, .. } = good;
    let waits = Mutex::new(waits);
    let load = move |device| {
        let _ = waits.lock().unwrap().recv();
        load(device)
    };
    (PooledModel { load: Box::new(load), preload: false, ..good }, go)
}

#[tokio::test]
async fn while_a_model_loads_another_device_works_and_health_answers() {
    let diary = Diary::default();
    let (slow, go) = slow_to_load(&diary, "house/draw", &[TaskKind::TextToImage]);
    let edit = model(&diary, "house/edit", &[TaskKind::Edit]);
    let edit = PooledModel { devices: vec![DeviceChoice::Cuda(1)], ..edit };
    let server = Setup::default().start_with(vec![edit, slow]).await;

    let drawing = server.post("/v1/images/generations").json(&json!({"prompt": "a hill"}));
    let drawing = tokio::spawn(drawing.send());
    within_patience(async {
        while state_of(&server, "house/draw").await != "loading" {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    json_of(server.edit(edit_form()).await).await;
    json_of(server.get("/health").send().await.unwrap()).await;
    assert!(!drawing.is_finished());
    go.send(()).unwrap();

    let drawn = within_patience(drawing).await.unwrap().unwrap();
    assert!(load_ms(&drawn).is_some());
    json_of(drawn).await;
}

/// An edit, past the HTTP side.
fn submission() -> Submission {
    let images = vec![RgbImage::filled(64, 48, [90; 3]).into()];
    let framing = Framing { size: SizeChoice::Auto, preserve_unmasked: true };
    let prompt = Prompt::new("left").unwrap();
    let request = ImageRequest::of_size(Task::Edit { images }, prompt, framing);
    Submission { request, previews: 0, client: Client::NOBODY }
}

#[tokio::test]
async fn who_leaves_while_a_model_loads_is_not_served_and_the_model_stays() {
    let diary = Diary::default();
    let (slow, go) = slow_to_load(&diary, "house/edit", &[TaskKind::Edit]);
    let server = Setup::default().start_with(vec![slow]).await;
    let leaving =
        server.service.submit(submission(), RequestMemory::new(1 << 30, Duration::ZERO).share());
    let leaving = leaving.await.unwrap();
    server.until(|status| status.busy).await;

    drop(leaving);
    let staying = server.edit_in_background(edit_form().text("seed", "3"));
    server.until(|status| status.waiting == 1).await;
    go.send(()).unwrap();

    json_of(within_patience(staying).await.unwrap()).await;
    let made = diary.entries().iter().filter(|entry| entry.starts_with("make")).count();
    assert_eq!(made, 1);
}

#[tokio::test]
async fn replicas_on_two_devices_take_from_one_line() {
    let diary = Diary::default();
    let (go, waits) = channel();
    let gate = Some(Arc::new(Mutex::new(waits)));
    let edit = gated(&diary, "house/edit", &[TaskKind::Edit], gate);
    let devices = vec![DeviceChoice::Cpu, DeviceChoice::Cuda(1)];
    let server = Setup::default().start_with(vec![PooledModel { devices, ..edit }]).await;
    let is_loaded = |replica: &ReplicaState| matches!(replica, ReplicaState::Loaded(_));
    assert_eq!(server.service.replicas().iter().filter(|replica| is_loaded(replica)).count(), 2);

    let jobs: Vec<_> = (0..3).map(|_| server.edit_in_background(edit_form())).collect();
    server.until(|status| status.waiting == 1).await;
    within_patience(async {
        while diary.entries().iter().filter(|entry| entry.starts_with("begin")).count() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    (0..3).for_each(|_| go.send(()).unwrap());

    for job in jobs {
        json_of(within_patience(job).await.unwrap()).await;
    }
    let details = json_of(server.get("/v1/models/house/edit").send().await.unwrap()).await;
    assert_eq!(details["details"]["replicas"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_picture_is_made_again_by_the_model_that_made_it() {
    let diary = Diary::default();
    let first = model(&diary, "house/first", &[TaskKind::TextToImage]);
    let second = model(&diary, "house/second", &[TaskKind::TextToImage]);
    let server = Setup::default().start_with(vec![first, second]).await;
    let fields = json!({"prompt": "a hill", "model": "house/second", "seed": 5});
    let made = json_of(generate(&server, fields).await).await;

    let form = reqwest::multipart::Form::new()
        .part("picture", crate::support::server::file_part(image_bytes(&made, 0)))
        .text("prompt", "a hill");
    let again = server.post("/v1/images/replay").multipart(form).send().await.unwrap();

    assert_eq!(model_of(again).await, "house/second");
}

/// Sends a request with a key, and waits until it stands in the line.
async fn stand_in_line(server: &TestServer, key: &str, prompt: &str, steps: usize) {
    let before = server.service.status().waiting;
    let fields = json!({"prompt": prompt, "num_inference_steps": steps});
    let request = server.post("/v1/images/generations").bearer_auth(key).json(&fields);
    tokio::spawn(request.send());
    server.until(|status| status.waiting > before).await;
}

#[tokio::test]
async fn small_requests_go_first_and_keys_take_turns() {
    let diary = Diary::default();
    let (go, waits) = channel();
    let gate = Some(Arc::new(Mutex::new(waits)));
    let draw = gated(&diary, "house/draw", &[TaskKind::TextToImage], gate);
    let adjust = |config: &mut ApiConfig| {
        config.api_keys = ApiKeys::new(vec!["ann".to_owned(), "bob".to_owned()]);
    };
    let setup = Setup { adjust, queue_capacity: 16, ..Setup::default() };
    let server = setup.start_with(vec![draw]).await;
    // The first takes the model; the others stand in line behind it.
    let first = json!({"prompt": "first", "num_inference_steps": 1});
    let first = server.post("/v1/images/generations").bearer_auth("ann").json(&first);
    tokio::spawn(first.send());
    server.until(|status| status.busy && status.waiting == 0).await;

    for prompt in ["ann 1", "ann 2", "ann 3"] {
        stand_in_line(&server, "ann", prompt, 10).await;
    }
    stand_in_line(&server, "bob", "bob big", 20).await;
    stand_in_line(&server, "bob", "bob small", 2).await;
    (0..6).for_each(|_| go.send(()).unwrap());
    server.until(|status| !status.busy && status.waiting == 0).await;

    let begun: Vec<String> =
        diary.entries().into_iter().filter(|entry| entry.starts_with("begin")).collect();
    let place = |prompt: &str| begun.iter().position(|entry| entry.ends_with(prompt)).unwrap();
    assert_eq!(place("bob small"), 1, "{begun:?}");
    assert!(place("bob big") < place("ann 3"), "keys take turns: {begun:?}");
    assert!(place("ann 1") < place("ann 2") && place("ann 2") < place("ann 3"), "{begun:?}");
}
