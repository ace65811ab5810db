//! Whole edits over HTTP, from the seed alone, held against the pictures that
//! diffusers made. The numbers come from `tests/data/make_fixtures.py`.

use base64::Engine;
use diffuser_api::hub::HubConfig;
use diffuser_api::model::{
    CapabilitySwitches, DefaultOverrides, DeviceChoice, DtypeChoice, ModelConfig,
};
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::Value;

use crate::support::golden::{Golden, assert_same_picture, fixtures};
use crate::support::server::{Setup, TestServer};

/// A server of the case's checkpoint, at the case's area.
async fn server_of(case: &Value) -> TestServer {
    let area = case["areas"]["1048576"].as_u64().unwrap();
    let config = ModelConfig {
        id: fixtures().join(case["checkpoint"].as_str().unwrap()).display().to_string(),
        name: None,
        revision: None,
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::Float32,
        image_area: Some(area as usize),
        condition_area: None,
        defaults: DefaultOverrides::default(),
        capabilities: CapabilitySwitches::default(),
    };
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        cache: std::env::temp_dir(),
        token: None,
        offline: true,
    };
    Setup::default().start_with(move || diffuser_api::model::load(&config, &hub)).await
}

fn form_of(case: &Value) -> Form {
    let call = &case["call"];
    let input = fixtures().join("golden").join(case["inputs"]["image"][0].as_str().unwrap());
    let picture = Part::bytes(std::fs::read(input).unwrap()).file_name("upload");
    let mut form = Form::new()
        .part("image", picture)
        .text("seed", case["generator_seed"].to_string())
        .text("prompt", call["prompt"].as_str().unwrap().to_owned());
    for parameter in ["num_inference_steps", "true_cfg_scale"] {
        form = form.text(parameter, call[parameter].to_string());
    }
    if let Some(negative_prompt) = call["negative_prompt"].as_str() {
        form = form.text("negative_prompt", negative_prompt.to_owned());
    }
    match (call["width"].as_u64(), call["height"].as_u64()) {
        // The reference floors to its grid; this server answers a size as it is.
        (Some(width), Some(height)) => {
            form.text("size", format!("{}x{}", width / 16 * 16, height / 16 * 16))
        }
        _ => form.text("size", "reference"),
    }
}

async fn assert_picture_over_http(name: &str) {
    let path = fixtures().join(format!("golden/{name}.json"));
    let case: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let server = server_of(&case).await;

    let reply = server.edit(form_of(&case)).await;

    assert_eq!(reply.status(), 200);
    let reply: Value = reply.json().await.unwrap();
    assert_eq!(reply["data"][0]["seed"], case["generator_seed"]);
    let png = reply["data"][0]["b64_json"].as_str().unwrap();
    let png = base64::engine::general_purpose::STANDARD.decode(png).unwrap();
    let picture = image::load_from_memory_with_format(&png, ImageFormat::Png).unwrap();
    let theirs = Golden::read(&format!("golden/{name}")).tensor("out.image");
    assert_same_picture(name, &picture.to_rgb8().into_raw(), &theirs);
}

#[tokio::test]
async fn a_guided_edit_over_http_is_the_picture_of_the_reference() {
    assert_picture_over_http("edit_cfg").await;
}

#[tokio::test]
async fn an_edit_of_odd_size_over_http_is_the_picture_of_the_reference() {
    assert_picture_over_http("edit_nocfg_odd").await;
}

#[tokio::test]
async fn an_edit_at_the_published_area_over_http_is_the_picture_of_the_reference() {
    assert_picture_over_http("edit_fullarea").await;
}
