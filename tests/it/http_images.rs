//! What this server does beyond a plain edit: events, masks, addresses, keys,
//! qualities, and making a picture again.

use diffuser_api::domain::{OutputSize, Task, TaskKind};
use diffuser_api::imaging::provenance;
use diffuser_api::model::{EditKind, ModelCard};
use diffuser_api::requests::{QualityOverride, QualityOverrides};
use diffuser_api::service::ImageService;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files::{decode, png};
use crate::support::scripted_model::{self, Behaviour, Event};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, image_bytes, json_of, prompt_form,
};

/// A model that can do everything.
fn able() -> ModelCard {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    card.tasks = card.tasks.with(TaskKind::Variation);
    card.tasks = card.tasks.with(TaskKind::Inpainting);
    card
}

async fn able_server() -> TestServer {
    Setup { card: able(), ..Setup::default() }.start().await
}

/// The events of a stream: name and data.
fn events(body: &str) -> Vec<(String, Value)> {
    let blocks = body.split("\n\n").filter(|block| block.contains("data:"));
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_owned()
    };
    let parse = |block| {
        let data = serde_json::from_str(&field(block, "data:")).unwrap();
        (field(block, "event:"), data)
    };
    blocks.map(parse).collect()
}

fn masked(mask: Vec<u8>) -> Form {
    edit_form().part("mask", file_part(mask))
}

/// A mask of 64x48 that is white, or transparent, in its left half.
fn half_mask(transparent: bool) -> Vec<u8> {
    use image::{ImageFormat, Rgba, RgbaImage};
    let mask = RgbaImage::from_fn(64, 48, |x, _| match (x < 32, transparent) {
        (true, true) => Rgba([0, 0, 0, 0]),
        (true, false) => Rgba([255, 255, 255, 255]),
        (false, _) => Rgba([0, 0, 0, 255]),
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[tokio::test]
async fn a_stream_shows_unfinished_pictures_evenly_and_ends_with_the_finished_one() {
    let server = TestServer::start().await;
    let form = edit_form().text("stream", "true").text("partial_images", "2").text("user", "me");

    let response = server.edit(form.text("num_inference_steps", "9")).await;

    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    assert_eq!(headers["cache-control"], "no-cache");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert!(headers.contains_key("x-request-id"));
    let events = events(&response.text().await.unwrap());
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let partial = "image_edit.partial_image";
    assert_eq!(names, [partial, partial, "image_edit.completed"]);
    for (index, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], *name);
        assert!(data["created_at"].is_u64());
        assert_eq!(data["size"], "64x48");
        assert_eq!(data["output_format"], "png");
        assert_eq!(data["background"], "opaque");
        assert_eq!(data["quality"], "high");
        let is_last = index == 2;
        assert_eq!(data.get("usage").is_some(), is_last);
        assert_eq!(data.get("partial_image_index").is_some(), !is_last);
    }
    assert_eq!(events[1].1["partial_image_index"], 1);
    assert_eq!(events[2].1["usage"]["total_tokens"], 5 + 7 + 11);
    assert_eq!(events[2].1["warnings"].as_array().unwrap().len(), 1);
    // The model paints its step number: 3 of 9, then 6 of 9.
    let colour_of = |event: &Value| {
        let reply = json!({"data": [event]});
        decode(&image_bytes(&reply, 0)).pixels()[0]
    };
    assert_eq!((colour_of(&events[0].1), colour_of(&events[1].1)), (3, 6));
}

#[tokio::test]
async fn a_stream_of_fewer_steps_than_pictures_shows_fewer() {
    let server = able_server().await;
    for (steps, partials) in [("1", 0), ("2", 1), ("3", 2), ("4", 3)] {
        let object = json!({
            "prompt": "x", "stream": true, "partial_images": 3,
            "num_inference_steps": steps.parse::<u8>().unwrap(),
        });

        let response = server.post("/v1/images/generations").json(&object).send().await.unwrap();

        let events = events(&response.text().await.unwrap());
        assert_eq!(events.len(), partials + 1, "{steps} steps");
        assert_eq!(events[partials].0, "image_generation.completed");
    }
}

#[tokio::test]
async fn what_fails_in_a_stream_is_told_in_a_nested_error_and_before_it_as_json() {
    let server = Setup::script([Behaviour::Fail, Behaviour::FindUnsuitable]).start().await;
    let streamed = || edit_form().text("stream", "true");

    let failed = server.edit(streamed()).await.text().await.unwrap();
    let unsuitable = server.edit(streamed()).await.text().await.unwrap();

    let failed = &events(&failed)[0];
    assert_eq!(failed.0, "error");
    assert_eq!(failed.1["error"]["type"], "server_error");
    assert!(!failed.1.to_string().contains("secret"));
    assert_eq!(events(&unsuitable)[0].1["error"]["param"], "prompt");
    error_of(server.edit(streamed().text("size", "x")).await, 400, Some("size")).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_cancels_its_job() {
    let mut server = Setup::script([Behaviour::UntilCancelled]).start().await;
    let response = server.edit(edit_form().text("stream", "true")).await;
    server.next_request().await;

    drop(response);

    assert!(matches!(server.next_event().await, Event::Cancelled));
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn what_a_mask_spares_comes_back_bit_by_bit_in_both_ways_to_say_it() {
    let mut server = able_server().await;
    for transparent in [true, false] {
        let reply = server.edit(masked(half_mask(transparent)).text("seed", "90")).await;

        let picture = decode(&image_bytes(&json_of(reply).await, 0));
        let input = decode(&png(64, 48));
        let columns = |x: usize| (0..48).map(move |y| (y * 64 + x) * 3);
        for x in 32..64 {
            assert!(
                columns(x).all(|at| input.pixels()[at..at + 3] == picture.pixels()[at..at + 3])
            );
        }
        for x in 0..28 {
            assert!(columns(x).all(|at| input.pixels()[at] != picture.pixels()[at]), "{x}");
        }
        let Task::Inpaint { mask, strength, crop_padding, .. } = server.next_request().await.task
        else {
            panic!("a mask means inpainting");
        };
        assert_eq!(mask.width() % 16, 0);
        assert_eq!((mask.pixels()[0], *mask.pixels().last().unwrap()), (255, 0));
        assert_eq!(crop_padding, None);
        assert!((strength.get() - 0.6).abs() < f64::EPSILON);
    }

    let form = masked(half_mask(true)).text("preserve_unmasked", "false").text("seed", "90");
    let form = form.text("size", "reference").text("strength", "1").text("padding_mask_crop", "5");
    let reply = json_of(server.edit(form).await).await;
    let picture = decode(&image_bytes(&reply, 0));
    let input = decode(&png(64, 48));
    assert_ne!(picture.pixels()[63 * 3], input.pixels()[63 * 3]);
    let request = server.next_request().await;
    assert_eq!(request.size, OutputSize::Reference);
    assert!(matches!(request.task, Task::Inpaint { crop_padding: Some(5), .. }));
}

#[tokio::test]
async fn masks_come_as_data_urls_too_and_must_fit_the_picture() {
    let mut server = able_server().await;
    let mask = data_url(&half_mask(true));
    let object = json!({
        "prompt": "x", "images": [{"image_url": data_url(&png(64, 48))}],
        "mask": {"image_url": mask},
    });
    json_of(server.edit_json(&object).await).await;
    json_of(server.edit(edit_form().text("mask", mask)).await).await;
    for _ in 0..2 {
        assert!(matches!(server.next_request().await.task, Task::Inpaint { .. }));
    }

    error_of(server.edit(masked(png(32, 48))).await, 400, Some("mask")).await;
    let error = error_of(server.edit(masked(b"no".to_vec())).await, 400, Some("mask")).await;
    assert_eq!(error["code"], "invalid_image_file");
    error_of(server.edit(edit_form().text("mask", "/etc/passwd")).await, 400, Some("mask")).await;
    let several = masked(half_mask(true)).part("mask", file_part(half_mask(true)));
    error_of(server.edit(several).await, 400, Some("mask")).await;
    let two_pictures = masked(half_mask(true)).part("image", file_part(png(64, 48)));
    error_of(server.edit(two_pictures).await, 400, Some("image")).await;
    assert!(server.is_model_untouched());
}

#[tokio::test]
async fn an_edit_is_what_the_model_makes_of_one() {
    for kind in [EditKind::ImageToImage, EditKind::Layers] {
        let mut card = able();
        card.edit_kind = kind;
        let mut server = Setup { card, ..Setup::default() }.start().await;

        match kind {
            EditKind::ImageToImage => {
                json_of(server.edit(edit_form().text("strength", "0.4")).await).await;
                let Task::ImageToImage { strength, .. } = server.next_request().await.task else {
                    panic!("not an image to image");
                };
                assert!((strength.get() - 0.4).abs() < f64::EPSILON);
                error_of(server.edit(edit_form().text("layers", "2")).await, 400, Some("layers"))
                    .await;
                // Also before a stream has begun.
                let nothing = edit_form().text("strength", "0").text("stream", "true");
                error_of(server.edit(nothing).await, 400, Some("strength")).await;
            }
            EditKind::Layers => {
                let form = edit_form().text("layers", "3").text("background", "transparent");
                json_of(server.edit(form).await).await;
                let Task::Decompose { layers, .. } = server.next_request().await.task else {
                    panic!("not taken apart");
                };
                assert_eq!(layers.get(), 3);
                let form = edit_form().text("background", "transparent");
                let form = form.text("output_format", "jpeg");
                error_of(server.edit(form).await, 400, Some("background")).await;
            }
            EditKind::Instruction => {}
        }
    }
}

#[tokio::test]
async fn a_variation_goes_as_far_as_the_original_system_did() {
    let mut server = able_server().await;
    let form = Form::new().part("image", file_part(png(32, 32)));

    let request = server.post("/v1/images/variations").multipart(form);
    json_of(request.send().await.unwrap()).await;

    let request = server.next_request().await;
    assert_eq!(request.prompt.as_str(), "");
    let Task::ImageToImage { strength, .. } = request.task else {
        panic!("a variation is an image to image");
    };
    assert!((strength.get() - 0.75).abs() < f64::EPSILON);
}

#[tokio::test]
async fn pictures_by_url_are_fetched_from_the_origin_that_was_asked() {
    let server = TestServer::start().await;
    for (format, media_type) in
        [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")]
    {
        let form = edit_form().text("response_format", "url").text("output_format", format);

        let reply = json_of(server.edit(form.text("n", "2")).await).await;

        let [first, second] = [0, 1].map(|index| reply["data"][index]["url"].as_str().unwrap());
        assert_ne!(first, second);
        assert_eq!(reply["data"][0].get("b64_json"), None);
        let path = first.strip_prefix("http://").unwrap().split_once('/').unwrap().1;
        let file = server.get(&format!("/{path}")).send().await.unwrap();
        assert_eq!(file.status(), 200);
        assert_eq!(file.headers()["content-type"], media_type);
        assert!(file.headers()["cache-control"].to_str().unwrap().contains("max-age="));
        assert_eq!(decode(&file.bytes().await.unwrap()).width(), 64);
        let head = server.request("HEAD", &format!("/{path}")).send().await.unwrap();
        assert_eq!(head.status(), 200);
    }
    let unknown = server.get("/v1/images/files/0123.png").send().await.unwrap();
    error_of(unknown, 404, None).await;
}

#[tokio::test]
async fn addresses_follow_the_settings_and_trusted_proxies_only() {
    let url_of = async |adjust: fn(&mut diffuser_api::api::ApiConfig)| {
        let server = Setup { adjust, ..Setup::default() }.start().await;
        let request = server.post("/v1/images/edits");
        let request = request.multipart(edit_form().text("response_format", "url"));
        let request = request.header("x-forwarded-proto", "https");
        let request = request.header("x-forwarded-host", "pictures.test");
        let reply = json_of(request.send().await.unwrap()).await;
        reply["data"][0]["url"].as_str().unwrap().to_owned()
    };

    assert!(url_of(|_| {}).await.starts_with("http://127.0.0.1:"));
    let trusting = url_of(|config| config.trust_forwarded_headers = true).await;
    assert!(trusting.starts_with("https://pictures.test/v1/images/files/"));
    let named = url_of(|config| config.public_url = Some("https://a.test/".to_owned())).await;
    assert!(named.starts_with("https://a.test/v1/images/files/"));
}

#[tokio::test]
async fn a_picture_too_large_for_the_store_is_refused_by_name() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| config.picture_store.max_bytes = 10;
    let server = Setup { adjust, ..Setup::default() }.start().await;

    let response = server.edit(edit_form().text("response_format", "url")).await;

    error_of(response, 400, Some("response_format")).await;
}

#[tokio::test]
async fn with_keys_only_their_owners_are_served() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| {
        config.api_keys = diffuser_api::api::ApiKeys::new(vec!["s3cret".to_owned()]);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;

    for request in [
        server.get("/v1/models"),
        server.get("/v1/models").header("authorization", "Bearer wrong"),
        server.post("/v1/images/edits").multipart(edit_form()),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let error = error_of(response, 401, None).await;
        assert_eq!(error["code"], "invalid_api_key");
    }
    let with_key = server.get("/v1/models").header("authorization", "Bearer s3cret");
    json_of(with_key.send().await.unwrap()).await;
    json_of(server.get("/v1/models").header("api-key", "s3cret").send().await.unwrap()).await;
    for open in ["/", "/health", "/openapi.json", "/docs/"] {
        assert_eq!(server.get(open).send().await.unwrap().status(), 200, "{open}");
    }
    let preflight = server.request("OPTIONS", "/v1/images/edits").send().await.unwrap();
    assert_eq!(preflight.status(), 200);
}

#[tokio::test]
async fn an_upload_that_does_not_end_gets_a_408() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| {
        config.upload_timeout = std::time::Duration::from_millis(50);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let endless = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();

    let request = server
        .post("/v1/images/edits")
        .header("content-type", "multipart/form-data; boundary=b")
        .body(reqwest::Body::wrap_stream(endless));
    let response = request.send().await.unwrap();

    assert_eq!(response.headers()["x-should-retry"], "false");
    error_of(response, 408, None).await;
}

#[tokio::test]
async fn a_quality_stands_for_steps_and_guidance_and_explicit_parameters_win() {
    let medium = QualityOverride {
        num_inference_steps: Some(diffuser_api::domain::Steps::new(17).unwrap()),
        guidance: Some(diffuser_api::domain::GuidanceScale::new(1.5).unwrap()),
        ..QualityOverride::default()
    };
    let quality = QualityOverrides { medium, ..QualityOverrides::default() };
    let mut server = Setup { quality, ..Setup::default() }.start().await;
    for (quality, steps, guidance) in
        [("low", 2, 4.0), ("medium", 17, 1.5), ("high", 4, 4.0), ("auto", 4, 4.0), ("hd", 4, 4.0)]
    {
        let reply = json_of(server.edit(edit_form().text("quality", quality)).await).await;

        let request = server.next_request().await;
        assert_eq!(request.steps.get(), steps, "{quality}");
        assert!((request.guidance.get() - guidance).abs() < f64::EPSILON, "{quality}");
        let told = if ["auto", "hd"].contains(&quality) { "high" } else { quality };
        assert_eq!(reply["quality"], told);
    }
    let form = edit_form().text("quality", "low").text("num_inference_steps", "3");
    json_of(server.edit(form).await).await;
    assert_eq!(server.next_request().await.steps.get(), 3);

    let model = json_of(server.get("/v1/models/gpt-image-1").send().await.unwrap()).await;
    assert_eq!(model["qualities"][1]["quality"], "medium");
    assert_eq!(model["qualities"][1]["num_inference_steps"], 17);
    assert_eq!(model["capabilities"]["image_edit"], true);
}

#[tokio::test]
async fn aliases_are_listed_and_answered_to() {
    let adjust = |config: &mut diffuser_api::api::ApiConfig| {
        config.model_aliases = vec!["our-model".to_owned(), "our-*".to_owned()];
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;

    let list = json_of(server.get("/v1/models").send().await.unwrap()).await;

    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["test/scripted-edit", "our-model"]);
    for name in ["our-model", "our-other"] {
        json_of(server.edit(edit_form().text("model", name)).await).await;
    }
    let unknown = server.edit(edit_form().text("model", "gpt-image-1")).await;
    error_of(unknown, 404, Some("model")).await;
}

#[tokio::test]
async fn pictures_carry_how_they_were_made_but_not_the_prompt() {
    let server = TestServer::start().await;
    for format in ["png", "jpeg", "webp"] {
        let form = edit_form().text("output_format", format).text("seed", "77");

        let reply = json_of(server.edit(form).await).await;

        let text = provenance::read(&image_bytes(&reply, 0)).unwrap();
        let recipe: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(recipe["model"], "test/scripted-edit");
        assert_eq!(recipe["picture"], "64x48");
        assert_eq!(recipe["parameters"]["seed"], 77);
        assert_eq!(recipe["parameters"]["num_inference_steps"], 4);
        assert_eq!(recipe["parameters"]["true_cfg_scale"], 4.0);
        assert!(!text.contains("make it red"));
    }
    let adjust = |config: &mut diffuser_api::api::ApiConfig| config.write_prompts = true;
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let reply = json_of(server.edit(edit_form()).await).await;
    let text = provenance::read(&image_bytes(&reply, 0)).unwrap();
    assert!(text.contains("make it red"));
}

#[tokio::test]
async fn a_picture_is_made_again_from_its_file_and_the_inputs() {
    let mut server = able_server().await;
    let form = edit_form().text("n", "2").text("seed", "300").text("num_inference_steps", "3");
    let first = json_of(server.edit(form.text("size", "96x80")).await).await;
    server.next_request().await;
    let made = image_bytes(&first, 1);

    let form = edit_form().part("picture", file_part(made.clone()));
    let replayed = server.post("/v1/images/replay").multipart(form).send().await.unwrap();

    let replayed = json_of(replayed).await;
    assert_eq!(image_bytes(&replayed, 0), made);
    let request = server.next_request().await;
    assert_eq!((request.seed.get(), request.steps.get()), (301, 3));

    let object = json!({"prompt": "x", "seed": 5});
    let generated = server.post("/v1/images/generations").json(&object).send().await.unwrap();
    let generated = image_bytes(&json_of(generated).await, 0);
    let form = Form::new().part("picture", file_part(generated)).text("prompt", "x");
    let request = server.post("/v1/images/replay").multipart(form.text("seed", "6"));
    json_of(request.send().await.unwrap()).await;
    server.next_request().await;
    let request = server.next_request().await;
    assert!(matches!(request.task, Task::Generate));
    assert_eq!(request.seed.get(), 6);

    for (form, param) in [
        (edit_form(), "picture"),
        (edit_form().part("picture", file_part(png(8, 8))), "picture"),
        (edit_form().part("picture", file_part(b"no".to_vec())), "picture"),
        (edit_form().text("picture", "x"), "picture"),
        (prompt_form().part("picture", file_part(made)), "image"),
    ] {
        let response = server.post("/v1/images/replay").multipart(form).send().await.unwrap();
        error_of(response, 400, Some(param)).await;
    }
}

#[tokio::test]
async fn after_a_shutdown_a_stream_is_refused_before_its_first_byte() {
    let server = TestServer::start().await;
    let service: &ImageService = &server.service;
    service.shut_down();

    let response = server.edit(edit_form().text("stream", "true")).await;

    error_of(response, 503, None).await;
}
