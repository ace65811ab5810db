//! Edits, generations and variations that work, whatever way they are sent.

use diffuser_api::domain::{OutputSize, Task, TaskKind};
use diffuser_api::imaging::codec::OutputFormat;
use futures::stream;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files::{self, decode, file, png};
use crate::support::scripted_model;
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, image_bytes, json_of, prompt_form,
};

#[tokio::test]
async fn an_edit_answers_with_a_picture_its_seed_and_its_usage() {
    let server = TestServer::start().await;

    let reply = json_of(server.edit(edit_form().text("seed", "7")).await).await;

    let picture = files::decode(&image_bytes(&reply, 0));
    assert_eq!((picture.width(), picture.height()), (64, 48));
    assert!(reply["created"].is_u64());
    assert_eq!(reply["model"], "test/scripted-edit");
    assert_eq!(reply["data"][0]["seed"], 7);
    assert_eq!(reply["data"][0].get("url"), None);
    assert_eq!(reply["size"], "64x48");
    assert_eq!(reply["output_format"], "png");
    assert_eq!(reply["background"], "opaque");
    let usage = json!({
        "input_tokens": 12, "output_tokens": 11, "total_tokens": 23,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 7},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 11},
    });
    assert_eq!(reply["usage"], usage);
    assert_eq!(reply.get("warnings"), None);
}

#[tokio::test]
async fn pictures_keep_their_order_under_either_name() {
    let mut server = TestServer::start().await;
    let form = Form::new()
        .part("image[]", file_part(png(16, 16)))
        .text("prompt", "in between")
        .part("image", file_part(png(32, 16)))
        .part("image[]", file_part(png(48, 16)))
        .text("size", "reference");

    json_of(server.edit(form).await).await;

    let Task::Edit { images } = server.next_request().await.task else {
        panic!("an edit is an edit");
    };
    let widths: Vec<_> = images.iter().map(|image| image.width()).collect();
    assert_eq!(widths, [16, 32, 48]);
}

#[tokio::test]
async fn the_format_is_found_in_the_bytes() {
    let server = TestServer::start().await;
    for format in
        [OutputFormat::Png, OutputFormat::Jpeg { quality: 90 }, OutputFormat::Webp { quality: 100 }]
    {
        let bytes = file(32, 32, format);
        let lying = file_part(bytes).file_name("/home/me/a.gif");
        let lying = lying.mime_str("image/gif").unwrap();

        json_of(server.edit(prompt_form().part("image", lying)).await).await;
    }
}

#[tokio::test]
async fn pictures_come_in_the_format_that_was_asked_for() {
    let server = TestServer::start().await;
    for (format, magic) in
        [("png", b"\x89PNG".as_slice()), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
    {
        let form = edit_form().text("output_format", format);
        let reply = json_of(server.edit(form.text("output_compression", "100")).await).await;

        assert!(image_bytes(&reply, 0).starts_with(magic), "{format}");
        assert_eq!(reply["output_format"], format);
        assert_eq!(reply.get("warnings"), None);
    }

    let size_at = async |quality: &str| {
        let form = edit_form().text("output_format", "jpeg").text("seed", "1");
        let form = form.text("output_compression", quality.to_owned());
        image_bytes(&json_of(server.edit(form).await).await, 0).len()
    };
    assert!(size_at("10").await < size_at("95").await);

    let lossless = edit_form().text("output_compression", "80");
    let reply = json_of(server.edit(lossless).await).await;
    assert!(reply["warnings"][0].as_str().unwrap().contains("jpeg and webp only"));
}

#[tokio::test]
async fn parameters_reach_the_model_from_forms_and_from_json_alike() {
    let mut server = TestServer::start().await;
    let form = edit_form()
        .text("n", "2")
        .text("size", "128x96")
        .text("num_inference_steps", "3")
        .text("true_cfg_scale", "2.5")
        .text("negative_prompt", "")
        .text("seed", "18446744073709551615");
    let object = json!({
        "prompt": "make it red", "n": 2, "size": "128x96", "num_inference_steps": 3,
        "true_cfg_scale": 2.5, "negative_prompt": "", "seed": u64::MAX,
        "images": [{"image_url": data_url(&png(64, 48))}],
        "quality": null, "output_format": null,
    });

    let from_form = json_of(server.edit(form).await).await;
    let from_json = json_of(server.edit_json(&object).await).await;

    assert_eq!(from_form["data"], from_json["data"]);
    assert_eq!(from_form["data"][0]["seed"], u64::MAX);
    assert_eq!(from_form["data"][1]["seed"], 0);
    assert_ne!(from_form["data"][0]["b64_json"], from_form["data"][1]["b64_json"]);
    for _ in 0..2 {
        let request = server.next_request().await;
        assert_eq!(request.prompt.as_str(), "make it red");
        assert_eq!(request.negative_prompt.unwrap().as_str(), "");
        assert_eq!(request.count.get(), 2);
        assert_eq!(request.steps.get(), 3);
        assert!((request.guidance.get() - 2.5).abs() < f64::EPSILON);
        let OutputSize::Exact(size) = request.size else {
            panic!("an exact size was asked for");
        };
        assert_eq!(size.to_string(), "128x96");
    }
}

#[tokio::test]
async fn what_is_absent_null_or_empty_takes_the_models_defaults() {
    let mut server = TestServer::start().await;
    let empty = [
        "model",
        "n",
        "size",
        "num_inference_steps",
        "true_cfg_scale",
        "seed",
        "output_format",
        "response_format",
        "quality",
        "stream",
        "guidance_scale",
        "partial_images",
        "user",
    ];
    let form = empty.iter().fold(edit_form(), |form, name| form.text(*name, ""));
    let mut object = json!({
        "prompt": "make it red", "negative_prompt": null,
        "images": [{"image_url": data_url(&png(64, 48)), "file_id": null}],
    });
    for name in empty {
        object[name] = Value::Null;
    }

    let replies = [server.edit(form).await, server.edit_json(&object).await];

    for reply in replies {
        let reply = json_of(reply).await;
        assert_eq!(reply.get("warnings"), None);
        let request = server.next_request().await;
        assert_eq!(request.count.get(), 1);
        assert_eq!(request.steps.get(), 4);
        assert!((request.guidance.get() - 4.0).abs() < f64::EPSILON);
        assert_eq!(request.negative_prompt.unwrap().as_str(), "default negative");
        assert_eq!(request.size, OutputSize::AsInput);
        assert_eq!(reply["quality"], "high");
        assert_eq!(reply["data"][0]["seed"], request.seed.get());
        assert!(request.seed.get() <= u64::from(u32::MAX));
    }
}

#[tokio::test]
async fn sizes_are_auto_reference_or_exact_and_answered_to_the_pixel() {
    let server = TestServer::start().await;
    for (asked, made) in [
        ("auto", "64x48"),
        ("reference", "64x48"),
        ("256x320", "256x320"),
        ("250x100", "250x100"),
        ("1x999", "1x999"),
    ] {
        let reply = json_of(server.edit(edit_form().text("size", asked)).await).await;

        assert_eq!(reply["size"], made);
        let picture = decode(&image_bytes(&reply, 0));
        assert_eq!(format!("{}x{}", picture.width(), picture.height()), made);
        assert_eq!(reply.get("warnings"), None);
    }
    for (width, height) in [(1023, 777), (1, 1), (1500, 900)] {
        let form = prompt_form().part("image", file_part(png(width, height)));
        let reply = json_of(server.edit(form).await).await;
        let picture = decode(&image_bytes(&reply, 0));
        // 1500x900 is more than the model gives back.
        let warned = reply["warnings"].as_array().is_some_and(|warnings| warnings.len() == 1);
        let expected = if warned { (1321, 793) } else { (width, height) };
        assert_eq!((picture.width(), picture.height()), expected);
    }
    let sides = edit_form().text("width", "80").text("height", "70");
    assert_eq!(json_of(server.edit(sides).await).await["size"], "80x70");
}

#[tokio::test]
async fn the_model_goes_by_its_names() {
    let server = TestServer::start().await;
    for name in ["test/scripted-edit", "scripted-edit", "gpt-image-1", "dall-e-2"] {
        json_of(server.edit(edit_form().text("model", name)).await).await;
    }
}

#[tokio::test]
async fn what_has_no_effect_is_accepted_and_reported() {
    let server = TestServer::start().await;
    let neutral = [
        ("background", "auto"),
        ("background", "opaque"),
        ("quality", "auto"),
        ("quality", "standard"),
        ("moderation", "auto"),
        ("stream", "False"),
        ("partial_images", "0"),
        ("response_format", "b64_json"),
        ("preserve_unmasked", "true"),
    ];
    for (name, value) in neutral {
        let reply = json_of(server.edit(edit_form().text(name, value)).await).await;
        assert_eq!(reply.get("warnings"), None, "{name}={value}");
    }
    let without_effect = [
        ("quality", "xhigh"),
        ("preserve_unmasked", "false"),
        ("padding_mask_crop", "8"),
        ("input_fidelity", "high"),
        ("moderation", "low"),
        ("style", "vivid"),
        ("user", "user-1"),
        ("safety_identifier", "abc"),
        ("partial_images", "2"),
        ("guidance_scale", "1.0"),
        ("foo", "bar"),
        ("extra_headers[x]", "1"),
    ];
    for (name, value) in without_effect {
        let reply = json_of(server.edit(edit_form().text(name, value)).await).await;
        let warnings = reply["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{name}");
        assert!(warnings[0].as_str().unwrap().contains(name), "{name}");
    }

    let object = json!({
        "prompt": "x", "images": [{"image_url": data_url(&png(16, 16))}],
        "extra_headers": {"x": [1, 2]}, "user": "me",
    });
    let reply = json_of(server.edit_json(&object).await).await;
    assert_eq!(reply["warnings"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn names_of_other_servers_work_as_well() {
    let mut server = TestServer::start().await;
    let form = edit_form().text("steps", "2").text("cfg_scale", "3").text("batch_size", "2");

    let reply = json_of(server.edit(form).await).await;

    let request = server.next_request().await;
    assert_eq!((request.steps.get(), request.count.get()), (2, 2));
    assert!((request.guidance.get() - 3.0).abs() < f64::EPSILON);
    assert_eq!(reply.get("warnings"), None);
}

#[tokio::test]
async fn uploads_may_be_chunked_large_and_in_any_order() {
    let mut server = TestServer::start().await;
    // Noise does not compress: more than 3 MB, and axum's own limit is 2.
    let mut state = 1_u32;
    let noise = (0..1200 * 1000 * 3).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    let noise = diffuser_api::domain::RgbImage::new(1200, 1000, noise.collect()).unwrap();
    let picture = diffuser_api::imaging::codec::encode(&noise.into(), OutputFormat::Png).unwrap();
    assert!(picture.len() > 3 << 20);
    let mut body =
        b"--b\r\nContent-Disposition: form-data; filename=\"x\"; name=\"image\"\r\n\r\n".to_vec();
    body.extend(picture);
    body.extend(b"\r\n--b\r\nContent-Disposition: form-data; name=prompt\r\n\r\n");
    body.extend("把天空变成红色 🌇".as_bytes());
    body.extend(b"\r\n--b--\r\n");
    let chunks: Vec<_> =
        body.chunks(50_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();

    let request = server
        .post("/v1/images/edits?api-version=2026")
        .header("content-type", "multipart/form-data; boundary=\"b\"")
        .body(reqwest::Body::wrap_stream(stream::iter(chunks)));
    json_of(request.send().await.unwrap()).await;

    let request = server.next_request().await;
    assert_eq!(request.prompt.as_str(), "把天空变成红色 🌇");
}

#[tokio::test]
async fn a_file_input_left_empty_by_a_browser_is_no_file() {
    let server = TestServer::start().await;
    let nothing = file_part(Vec::new()).file_name("");

    json_of(server.edit(edit_form().part("mask", nothing)).await).await;
}

#[tokio::test]
async fn generations_and_variations_work_where_the_model_does_them() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    card.tasks = card.tasks.with(TaskKind::Variation);
    let setup = Setup { card, ..Setup::default() };
    let mut server = setup.start().await;

    let object = json!({"prompt": "a red ball", "n": 2, "size": "64x64", "extra": 1});
    let request = server.post("/v1/images/generations").json(&object);
    let generated = json_of(request.send().await.unwrap()).await;
    let form = Form::new().part("image", file_part(png(32, 32)));
    let request = server.post("/v1/images/variations");
    let request = request.multipart(form.text("strength", "0.25"));
    let varied = json_of(request.send().await.unwrap()).await;

    assert_eq!(generated["data"].as_array().unwrap().len(), 2);
    assert_eq!(generated["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(varied["size"], "32x32");
    assert!(matches!(server.next_request().await.task, Task::Generate));
    let Task::ImageToImage { strength, .. } = server.next_request().await.task else {
        panic!("a variation is a variation");
    };
    assert!((strength.get() - 0.25).abs() < f64::EPSILON);

    let object = json!({"prompt": "x", "image": "data:image/png;base64,aaaa"});
    let request = server.post("/v1/images/generations").json(&object);
    error_of(request.send().await.unwrap(), 400, Some("image")).await;
    let object = json!({"size": "64x64"});
    let request = server.post("/v1/images/generations").json(&object);
    error_of(request.send().await.unwrap(), 400, Some("prompt")).await;
    for (name, value) in [("strength", "1.5"), ("strength", "nan"), ("mask", "x")] {
        let form = Form::new().part("image", file_part(png(32, 32)));
        let request = server.post("/v1/images/variations");
        let response = request.multipart(form.text(name, value)).send().await;
        error_of(response.unwrap(), 400, Some(name)).await;
    }
    let two = Form::new().part("image", file_part(png(32, 32)));
    let two = two.part("image", file_part(png(32, 32)));
    let request = server.post("/v1/images/variations").multipart(two);
    error_of(request.send().await.unwrap(), 400, Some("image")).await;
    assert!(server.is_model_untouched());
}
