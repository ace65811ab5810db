//! What changes the model for one request: LoRAs of a folder, the step cache, the schedule.

use std::path::PathBuf;

use diffuser_api::domain::{RequestLora, RequestLoras, ScheduleShift};
use diffuser_api::model::ModelCard;
use diffuser_api::requests::{QualityOverride, QualityOverrides};
use serde_json::{Value, json};

use crate::support::files::png;
use crate::support::scripted_model;
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, image_bytes, json_of,
};

/// A server whose folder has the LoRAs `fast` and `style`.
async fn server(quality: QualityOverrides) -> (TestServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["fast.safetensors", "style.safetensors", "notes.txt"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let lora_dir: Option<PathBuf> = Some(folder.path().to_owned());
    let server = Setup { lora_dir, quality, ..Setup::default() }.start().await;
    (server, folder)
}

fn edit(fields: Value) -> Value {
    let mut body = json!({
        "prompt": "make it red",
        "images": [{"image_url": data_url(&png(64, 48))}],
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn named(loras: &RequestLoras) -> Vec<(String, f64)> {
    loras.as_slice().iter().map(|lora| (lora.name().to_owned(), lora.scale())).collect()
}

#[tokio::test]
async fn what_a_request_says_reaches_the_model() {
    let (mut server, _folder) = server(QualityOverrides::default()).await;
    for (loras, expected) in [
        (json!([{"name": "style", "scale": -0.5}]), vec![("style", -0.5)]),
        (json!(["fast", {"name": "style"}]), vec![("fast", 1.0), ("style", 1.0)]),
        (json!([]), vec![]),
    ] {
        let fields = json!({"loras": loras, "cache_threshold": 0.12, "shift": 3});
        let reply = json_of(server.edit_json(&edit(fields)).await).await;

        assert_eq!(reply.get("warnings"), None);
        let request = server.next_request().await;
        let expected: Vec<_> = expected.into_iter().map(|(n, s)| (n.to_owned(), s)).collect();
        assert_eq!(named(&request.loras), expected);
        assert_eq!(request.cache_threshold.unwrap().get(), 0.12);
        assert_eq!(request.schedule_shift.unwrap().get(), 3.0);
    }
    let form = edit_form().text("loras", r#"[{"name": "fast", "scale": 2}]"#);
    json_of(server.edit(form).await).await;
    let request = server.next_request().await;
    assert_eq!(named(&request.loras), [("fast".to_owned(), 2.0)]);
    assert!(request.cache_threshold.is_none() && request.schedule_shift.is_none());
}

#[tokio::test]
async fn a_prompt_is_words_and_names_no_lora() {
    let (mut server, _folder) = server(QualityOverrides::default()).await;
    let fields = json!({"prompt": "a cat <lora:fast:0.8>"});

    json_of(server.edit_json(&edit(fields)).await).await;

    let request = server.next_request().await;
    assert_eq!(request.prompt.as_str(), "a cat <lora:fast:0.8>");
    assert!(request.loras.is_empty());
}

#[tokio::test]
async fn what_is_no_lora_is_refused_before_the_model_hears_of_it() {
    let (mut server, _folder) = server(QualityOverrides::default()).await;
    for (loras, part) in [
        (json!([{"name": "slow"}]), "fast"),
        (json!([{"name": "notes"}]), "notes"),
        (json!([{"name": "../fast"}]), "not by a path"),
        (json!([{"name": ""}]), "name"),
        (json!([{"scale": 1}]), "without a name"),
        (json!([{"name": "fast", "scale": 11}]), "<= 10"),
        (json!([{"name": "fast", "scale": "x"}]), "no number"),
        (json!([{"name": "fast", "weight": 1}]), "weight"),
        (json!([7]), "names, or objects"),
        (json!({"name": "fast"}), "a list"),
        (json!(["fast"; 9].as_slice()), "at most 8"),
    ] {
        let response = server.edit_json(&edit(json!({"loras": loras}))).await;

        let error = error_of(response, 400, Some("loras")).await;
        assert!(error["message"].as_str().unwrap().contains(part), "{loras}: {error}");
    }
    let form = edit_form().text("loras", "fast");
    error_of(server.edit(form).await, 400, Some("loras")).await;
    for (name, value) in [("cache_threshold", 2.0), ("schedule_shift", 0.0)] {
        let response = server.edit_json(&edit(json!({name: value}))).await;
        error_of(response, 400, Some(name)).await;
    }
    assert!(server.is_model_untouched());
}

#[tokio::test]
async fn loras_are_listed_and_a_new_one_can_be_used_at_once() {
    let (server, folder) = server(QualityOverrides::default()).await;
    let ids = async || {
        let list = json_of(server.get("/v1/loras").send().await.unwrap()).await;
        let ids = list["data"].as_array().unwrap().iter().map(|lora| lora["id"].clone());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids().await, ["fast", "style"]);

    std::fs::write(folder.path().join("new.safetensors"), "").unwrap();

    assert_eq!(ids().await, ["fast", "new", "style"]);
    json_of(server.edit_json(&edit(json!({"loras": ["new"]}))).await).await;
}

#[tokio::test]
async fn low_quality_may_stand_for_a_lora_with_its_schedule_and_explicit_parameters_win() {
    let low = QualityOverride {
        loras: RequestLoras::new(vec![RequestLora::new("fast", 1.0).unwrap()]).unwrap(),
        schedule_shift: Some(ScheduleShift::new(3.0).unwrap()),
        ..QualityOverride::default()
    };
    let (mut server, _folder) = server(QualityOverrides { low, ..Default::default() }).await;
    for (fields, loras, shift) in [
        (json!({"quality": "low"}), vec!["fast"], Some(3.0)),
        (json!({"quality": "low", "loras": []}), vec![], Some(3.0)),
        (json!({"quality": "low", "loras": ["style"], "shift": 2}), vec!["style"], Some(2.0)),
        (json!({"quality": "high"}), vec![], None),
    ] {
        json_of(server.edit_json(&edit(fields)).await).await;

        let request = server.next_request().await;
        let names: Vec<_> = request.loras.as_slice().iter().map(RequestLora::name).collect();
        assert_eq!(names, loras);
        assert_eq!(request.schedule_shift.map(ScheduleShift::get), shift);
    }
    let path = "/v1/models/test/scripted-edit";
    let model = json_of(server.get(path).send().await.unwrap()).await;
    assert_eq!(model["qualities"][0]["loras"], json!(["fast"]));
    assert_eq!(model["qualities"][0]["schedule_shift"], 3.0);
}

#[tokio::test]
async fn a_picture_with_a_lora_is_made_again_with_it() {
    let (mut server, _folder) = server(QualityOverrides::default()).await;
    let fields = json!({"loras": [{"name": "style", "scale": 0.5}], "cache_threshold": 0.2});
    let made = json_of(server.edit_json(&edit(fields)).await).await;
    server.next_request().await;

    let form = edit_form().part("picture", file_part(image_bytes(&made, 0)));
    let again = server.post("/v1/images/replay").multipart(form).send().await.unwrap();

    json_of(again).await;
    let request = server.next_request().await;
    assert_eq!(named(&request.loras), [("style".to_owned(), 0.5)]);
    assert_eq!(request.cache_threshold.unwrap().get(), 0.2);
}

#[tokio::test]
async fn a_model_that_cannot_refuses_and_the_document_does_not_offer_it() {
    let card = ModelCard { is_tunable: false, ..scripted_model::card() };
    let fixed = Setup { card, ..Setup::default() }.start().await;
    for (name, value) in
        [("loras", json!(["fast"])), ("cache_threshold", json!(0.1)), ("schedule_shift", json!(3))]
    {
        let response = fixed.edit_json(&edit(json!({name: value}))).await;
        let error = error_of(response, 400, Some(name)).await;
        assert_eq!(error["code"], "unsupported_parameter");
    }
    let (tunable, _folder) = server(QualityOverrides::default()).await;
    for (server, is_offered) in [(&fixed, false), (&tunable, true)] {
        let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
        let fields = &document["components"]["schemas"]["EditForm"]["properties"];
        for name in ["loras", "cache_threshold", "schedule_shift"] {
            assert_eq!(fields.get(name).is_some(), is_offered, "{name}");
        }
    }
    let without = TestServer::start().await;
    let response = without.edit_json(&edit(json!({"loras": ["fast"]}))).await;
    error_of(response, 400, Some("loras")).await;
}
