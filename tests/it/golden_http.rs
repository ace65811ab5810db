//! Whole requests over HTTP, from the seed alone, held against the pictures that
//! diffusers made. The numbers come from `tests/data/make_fixtures.py`; the list of
//! cases is that of the folder.

use diffuser_api::model::{DeviceChoice, DtypeChoice, ModelConfig};
use image::ImageFormat;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::golden::{Golden, assert_same_picture, fixtures};
use crate::support::server::{Setup, TestServer, image_bytes, json_of, pooled};

/// How the recorded calls of a pipeline class are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A JSON object to `/v1/images/generations`.
    Generation,
    /// A form to `/v1/images/edits`.
    Edit,
}

/// Every class that is recorded.
const WAYS: &[(&str, Way)] = &[
    ("QwenImagePipeline", Way::Generation),
    ("QwenImageEditPipeline", Way::Edit),
    ("QwenImageEditPlusPipeline", Way::Edit),
    ("QwenImageImg2ImgPipeline", Way::Edit),
    ("QwenImageInpaintPipeline", Way::Edit),
    ("QwenImageEditInpaintPipeline", Way::Edit),
    ("QwenImageLayeredPipeline", Way::Edit),
];

/// Every recorded call by name.
fn cases() -> Vec<(String, Value)> {
    let mut cases: Vec<(String, Value)> = std::fs::read_dir(fixtures().join("golden"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
        })
        .collect();
    cases.sort_by(|(left, _), (right, _)| left.cmp(right));
    cases
}

fn way_of(case: &Value) -> Way {
    let class = case["pipeline"].as_str().unwrap();
    let known = WAYS.iter().find(|(name, _)| *name == class);
    known.unwrap_or_else(|| panic!("no way for {class}")).1
}

/// A server of the case's checkpoint, at the case's areas.
async fn server_of(case: &Value) -> TestServer {
    let area = |name: &str| case["areas"][name].as_u64().map(|area| area as usize);
    let layered = case["pipeline"] == "QwenImageLayeredPipeline";
    let config = ModelConfig {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::Float32,
        image_area: area(if layered { "409600" } else { "1048576" }),
        condition_area: area("147456"),
        ..ModelConfig::of(
            fixtures().join(case["checkpoint"].as_str().unwrap()).display().to_string(),
        )
    };
    Setup::default().start_with(vec![pooled(&config)]).await
}

/// The call's parameters, whatever the way.
fn parameters_of(case: &Value) -> Vec<(&'static str, Value)> {
    let call = &case["call"];
    let mut parameters = vec![("seed", case["generator_seed"].clone())];
    for name in
        ["prompt", "negative_prompt", "num_inference_steps", "true_cfg_scale", "strength", "layers"]
    {
        if !call[name].is_null() {
            parameters.push((name, call[name].clone()));
        }
    }
    if !call["padding_mask_crop"].is_null() {
        parameters.push(("padding_mask_crop", call["padding_mask_crop"].clone()));
    }
    if case["inputs"]["mask_image"].is_array() {
        // The reference gives its own picture back, outside the mask as well.
        parameters.push(("preserve_unmasked", json!(false)));
    }
    let size = match (call["width"].as_u64(), call["height"].as_u64()) {
        // The reference floors to its grid; this server answers a size as it is.
        (Some(width), Some(height)) => format!("{}x{}", width / 16 * 16, height / 16 * 16),
        _ => "reference".to_owned(),
    };
    parameters.push(("size", json!(size)));
    parameters
}

fn form_of(case: &Value) -> Form {
    let mut form = Form::new();
    for (name, value) in parameters_of(case) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        form = form.text(name, text);
    }
    for (field, key) in [("image", "image"), ("mask", "mask_image")] {
        for file in case["inputs"][key].as_array().into_iter().flatten() {
            let path = fixtures().join("golden").join(file.as_str().unwrap());
            form = form.part(field, Part::bytes(std::fs::read(path).unwrap()).file_name("upload"));
        }
    }
    form
}

fn object_of(case: &Value) -> Value {
    Value::Object(
        parameters_of(case).into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    )
}

async fn assert_picture_over_http(name: &str, case: &Value) {
    let server = server_of(case).await;

    let reply = match way_of(case) {
        // A real model takes the time that it takes.
        Way::Edit => server.edit_in_background(form_of(case)).await.unwrap(),
        Way::Generation => {
            let request = server.post("/v1/images/generations").json(&object_of(case));
            request.send().await.unwrap()
        }
    };

    let status = reply.status();
    let reply = json_of(reply).await;
    assert_eq!(status, 200, "{name}: {reply}");
    assert_eq!(reply["data"][0]["seed"], case["generator_seed"]);
    let theirs = Golden::read(&format!("golden/{name}")).tensor("out.image");
    let channels = theirs.dims().last().copied().unwrap();
    let pictures = (0..reply["data"].as_array().unwrap().len()).flat_map(|index| {
        let png = image_bytes(&reply, index);
        let picture = image::load_from_memory_with_format(&png, ImageFormat::Png).unwrap();
        if channels == 4 { picture.to_rgba8().into_raw() } else { picture.to_rgb8().into_raw() }
    });
    assert_same_picture(name, &pictures.collect::<Vec<_>>(), &theirs);
}

/// Asks for every recorded call that goes `way`.
async fn assert_pictures_over_http(way: Way) {
    let mut asked = 0;
    for (name, case) in cases().iter().filter(|(_, case)| way_of(case) == way) {
        // A request has one prompt; calls with a list are compared below HTTP.
        if case["call"]["prompt"].is_string() {
            assert_picture_over_http(name, case).await;
            asked += 1;
        }
    }
    assert!(asked > 0, "no case goes {way:?}");
}

#[tokio::test]
async fn generations_over_http_are_the_pictures_of_the_reference() {
    assert_pictures_over_http(Way::Generation).await;
}

#[tokio::test]
async fn edits_over_http_are_the_pictures_of_the_reference() {
    assert_pictures_over_http(Way::Edit).await;
}
