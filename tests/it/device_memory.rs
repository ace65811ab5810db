//! A device that has too little memory, or fails: what is tried, what clients are told, and
//! what is refused before it waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use diffuser_api::domain::ImageRequest;
use diffuser_api::model::{
    BytesPerPixel, DiffusionModel, Estimate, Generation, Loaded, ModelCard, ModelError, ModelPlan,
    PlannedComponent, StepObserver,
};
use diffuser_api::service::PooledModel;
use serde_json::json;

use crate::support::scripted_model::{self, Behaviour, ScriptedModel};
use crate::support::server::{
    Setup, TestServer, edit_form, error_of, json_of, unloadable, within_patience,
};

const MIB: usize = 1 << 20;

/// What the models of a server did, in order.
type Diary = Arc<Mutex<Vec<String>>>;

/// A model that writes down what becomes of it, and tells what a picture takes.
struct Diarist {
    inner: ScriptedModel,
    diary: Diary,
    free_bytes: usize,
}

impl Diarist {
    fn note(&self, what: &str) {
        self.diary.lock().unwrap().push(format!("{what} {}", self.inner.card.id));
    }
}

impl DiffusionModel for Diarist {
    fn card(&self) -> &ModelCard {
        &self.inner.card
    }

    fn loaded(&self) -> &Loaded {
        self.inner.loaded()
    }

    fn generate(
        &mut self,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        self.note("try");
        self.inner.generate(request, observer)
    }

    fn release_caches(&mut self) {
        self.note("release");
    }

    fn estimate(&mut self) -> Option<Estimate> {
        let plan = ModelPlan {
            model: self.inner.card.id.clone(),
            pipeline: "ScriptedPipeline".to_owned(),
            device: "cpu".to_owned(),
            dtype: "float32".to_owned(),
            image_area: self.inner.card.image_area,
            components: vec![PlannedComponent::resident("all", 100 * MIB)],
            activation_bytes: Some(20 * MIB),
            total_bytes: 120 * MIB,
            free_bytes: Some(self.free_bytes),
        };
        Some(Estimate {
            plan,
            width: 256,
            height: 256,
            steps: 4,
            seconds: Some(8.0),
            faster: Vec::new(),
            bytes_per_pixel: Some(BytesPerPixel { most: 200, least: 100 }),
        })
    }
}

impl Drop for Diarist {
    fn drop(&mut self) {
        self.note("drop");
    }
}

/// A model that does as `script` says, also after it has been loaded anew.
fn model(id: &str, script: &[Behaviour], diary: &Diary) -> PooledModel {
    let card = ModelCard { id: id.to_owned(), ..scripted_model::card() };
    let script = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
    let (diary, own_card) = (Arc::clone(diary), card.clone());
    let load = move |_| {
        diary.lock().unwrap().push(format!("load {}", own_card.id));
        let (_, releases) = std::sync::mpsc::channel();
        // It takes over what is left of the script: as many tries as there were are over.
        let tries = diary.lock().unwrap().iter().filter(|entry| entry.starts_with("try")).count();
        let inner = ScriptedModel {
            card: own_card.clone(),
            loaded: scripted_model::loaded(),
            script: script.lock().unwrap().iter().skip(tries).copied().collect(),
            events: tokio::sync::mpsc::unbounded_channel().0,
            releases,
        };
        let diary = Arc::clone(&diary);
        Ok(Box::new(Diarist { inner, diary, free_bytes: 200 * MIB }) as Box<dyn DiffusionModel>)
    };
    PooledModel { load: Box::new(load), ..unloadable(card) }
}

async fn server(script: &[Behaviour], diary: &Diary) -> TestServer {
    let models = vec![model("hungry", script, diary), model("other", &[], diary)];
    Setup::default().start_with(models).await
}

fn entries(diary: &Diary) -> Vec<String> {
    diary.lock().unwrap().clone()
}

#[tokio::test]
async fn a_picture_that_finds_no_memory_is_tried_again_without_caches_and_other_models() {
    let diary = Diary::default();
    let server = server(&[Behaviour::FindNoMemory], &diary).await;

    json_of(server.edit(edit_form()).await).await;

    let expected =
        ["load hungry", "load other", "try hungry", "release hungry", "drop other", "try hungry"];
    assert_eq!(entries(&diary), expected);
}

#[tokio::test]
async fn if_that_is_not_enough_the_model_is_loaded_anew_by_what_is_free_now() {
    let diary = Diary::default();
    let server = server(&[Behaviour::FindNoMemory; 2], &diary).await;

    json_of(server.edit(edit_form()).await).await;

    let expected = ["try hungry", "drop hungry", "load hungry", "try hungry"];
    assert_eq!(entries(&diary)[5..], expected);
}

#[tokio::test]
async fn a_picture_that_never_finds_memory_fails_alone_and_says_so() {
    let diary = Diary::default();
    let server = server(&[Behaviour::FindNoMemory; 3], &diary).await;

    let refused = server.edit(edit_form()).await;

    assert_eq!(refused.headers()["x-should-retry"], "false");
    let error = error_of(refused, 503, None).await;
    assert_eq!(error["code"], "device_out_of_memory");
    assert!(error["message"].as_str().unwrap().contains("smaller size"), "{error}");
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn a_device_that_is_lost_fails_its_request_and_is_told_to_whoever_starts_the_program_anew() {
    let server = Setup::script([Behaviour::Tint, Behaviour::FindGpuLost]).start().await;
    json_of(server.edit(edit_form()).await).await;
    let told = server.service.until_device_fault();
    tokio::pin!(told);
    assert!(futures::poll!(&mut told).is_pending());

    let failed = server.edit(edit_form()).await;

    error_of(failed, 500, None).await;
    within_patience(told).await;
}

#[tokio::test]
async fn what_has_no_room_is_refused_before_it_waits() {
    let diary = Diary::default();
    let server = server(&[], &diary).await;
    // 100 MiB are left: a megapixel made and the 256x256 shown take more than 106.
    let large = || edit_form().text("size", "1024x1024");

    let refused = server.edit(large()).await;
    let estimated = server.post("/v1/images/estimate").multipart(large()).send().await.unwrap();
    json_of(server.edit(edit_form().text("size", "512x512")).await).await;

    let error = error_of(refused, 413, None).await;
    assert_eq!(error["code"], "request_too_large");
    assert!(error["message"].as_str().unwrap().contains("smaller size"), "{error}");
    assert_eq!(error_of(estimated, 413, None).await["code"], "request_too_large");
    assert_eq!(entries(&diary).iter().filter(|entry| entry.starts_with("try")).count(), 1);
}

#[tokio::test]
async fn an_estimate_tells_seconds_and_bytes_and_makes_nothing() {
    let diary = Diary::default();
    let server = server(&[], &diary).await;
    let estimate = async |form| {
        let request = server.post("/v1/images/estimate").multipart(form);
        within_patience(request.send()).await.unwrap()
    };

    let usual = json_of(estimate(edit_form().text("size", "256x256")).await).await;
    let twice = edit_form().text("size", "256x256").text("n", "2").text("num_inference_steps", "8");
    let twice = json_of(estimate(twice).await).await;
    let invalid = estimate(edit_form().text("n", "0")).await;

    let expected = json!({
        "model": "hungry", "n": 1, "steps": 4, "seconds": 8.0, "waiting": 0,
        "waiting_seconds": 0.0, "weight_bytes": 100 * MIB, "activation_bytes": 20 * MIB,
        "warnings": usual["warnings"],
    });
    assert_eq!(usual, expected);
    assert_eq!((&twice["seconds"], &twice["n"]), (&json!(32.0), &json!(2)), "{twice}");
    error_of(invalid, 400, Some("n")).await;
    // Not -0, which is equal to it.
    assert_eq!(usual["waiting_seconds"].to_string(), "0.0");
    let late = server.post("/v1/images/estimate").header("x-request-timeout-ms", "no number");
    let late = within_patience(late.multipart(edit_form()).send()).await.unwrap();
    error_of(late, 400, Some("x-request-timeout-ms")).await;
    assert!(!entries(&diary).iter().any(|entry| entry.starts_with("try")));
}
