//! Every bad input that we could think of: each a clear 4xx that names what is
//! wrong, and none of them reaches the model.

use diffuser_api::imaging::codec::OutputFormat;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files::{file, png, png_bomb};
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, file_part, json_of, prompt_form,
};

/// The server still makes pictures, and has made none until now.
async fn assert_only_refusals(mut server: TestServer) {
    assert!(server.is_model_untouched());
    json_of(server.edit(edit_form()).await).await;
}

#[tokio::test]
async fn values_out_of_range_or_of_the_wrong_type_are_named() {
    let server = TestServer::start().await;
    let long_prompt = "cat ".repeat(10_000);
    let cases: &[(&'static str, &[&str], &str)] = &[
        ("n", &["0", "-1"], "integer_below_min_value"),
        (
            "n",
            &["11", "99", "99999999999999999999999999999999999999999999"],
            "integer_above_max_value",
        ),
        ("n", &["abc", "2.0", "1e1", " 1", "0x1", "true", "nan", "٣"], "invalid_type"),
        ("num_inference_steps", &["0", "-1"], "integer_below_min_value"),
        ("num_inference_steps", &["151", "1000000"], "integer_above_max_value"),
        ("num_inference_steps", &["abc", "1.5"], "invalid_type"),
        ("seed", &["-2"], "integer_below_min_value"),
        ("seed", &["18446744073709551616"], "integer_above_max_value"),
        ("seed", &["1.5", "random"], "invalid_type"),
        ("true_cfg_scale", &["nan", "inf", "-inf", "NaN", "four", "1,5"], "invalid_type"),
        ("true_cfg_scale", &["-0.1"], "decimal_below_min_value"),
        ("true_cfg_scale", &["20.1", "1000"], "decimal_above_max_value"),
        ("guidance_scale", &["nan", "inf", "-inf", "x"], "invalid_type"),
        ("guidance_scale", &["3.5", "0"], "unsupported_parameter"),
        ("output_compression", &["101"], "integer_above_max_value"),
        ("output_compression", &["-1"], "integer_below_min_value"),
        ("output_compression", &["80%", "80.0"], "invalid_type"),
        ("partial_images", &["4"], "integer_above_max_value"),
        ("partial_images", &["two"], "invalid_type"),
        ("stream", &["yes", "2"], "invalid_type"),
        ("strength", &["0.5"], "unsupported_parameter"),
        ("model", &["no-such-model"], "model_not_found"),
    ];
    for (name, values, code) in cases {
        for value in *values {
            let response = server.edit(edit_form().text(*name, (*value).to_owned())).await;

            let status = if *name == "model" { 404 } else { 400 };
            let error = error_of(response, status, Some(name)).await;
            assert_eq!(error["code"], *code, "{name}={value}");
        }
    }
    let form = Form::new().part("image", file_part(png(16, 16)));
    let response = server.edit(form.text("prompt", long_prompt)).await;
    let error = error_of(response, 400, Some("prompt")).await;
    assert_eq!(error["code"], "string_above_max_length");
    let response = server.edit(edit_form().text("negative_prompt", "a".repeat(32_001))).await;
    error_of(response, 400, Some("negative_prompt")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn sizes_that_are_none_or_too_large_or_too_small_are_refused() {
    let server = TestServer::start().await;
    for size in [
        "banana",
        "1024",
        "x",
        "1024x",
        "x1024",
        "-256x256",
        "1e3x1e3",
        "0x0",
        "0x64",
        "64X64",
        "64 x 64",
        "64x64x64",
        "99999x99999",
        "99999999999999999999x1",
        "2048x1024",
    ] {
        let response = server.edit(edit_form().text("size", size)).await;
        let error = error_of(response, 400, Some("size")).await;
        assert_eq!(error["code"], "invalid_value", "{size}");
    }
    let response = server.edit(edit_form().text("size", "2048x1024")).await;
    let error = error_of(response, 400, Some("size")).await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("2048x1024") && message.contains("1048576"), "{message}");
    let response = server.edit(edit_form().text("width", "64")).await;
    error_of(response, 400, Some("height")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn words_outside_their_lists_are_refused_with_the_list() {
    let server = TestServer::start().await;
    for name in [
        "output_format",
        "response_format",
        "quality",
        "background",
        "input_fidelity",
        "moderation",
        "style",
        "complexity",
    ] {
        let response = server.edit(edit_form().text(name, "bmp")).await;
        let error = error_of(response, 400, Some(name)).await;
        assert_eq!(error["code"], "invalid_value");
        assert!(error["message"].as_str().unwrap().contains("Supported values"), "{error}");
    }
    assert_only_refusals(server).await;
}

#[tokio::test]
async fn what_is_not_offered_is_refused_and_never_ignored() {
    let server = TestServer::start().await;
    for (name, value) in
        [("background", "transparent"), ("layers", "3"), ("url", "http://127.0.0.1:9/x.png")]
    {
        let response = server.edit(edit_form().text(name, value)).await;
        error_of(response, 400, Some(name)).await;
    }
    for name in ["mask", "mask[]", "mask_image"] {
        let response = server.edit(edit_form().part(name, file_part(png(64, 48)))).await;
        assert_eq!(response.headers()["x-should-retry"], "false");
        let error = error_of(response, 501, Some("mask")).await;
        assert_eq!(error["code"], "not_implemented");
    }
    let markup = edit_form().part("markup", file_part(png(64, 48)));
    error_of(server.edit(markup).await, 400, Some("markup")).await;
    let by_url = edit_form().text("stream", "true").text("response_format", "url");
    error_of(server.edit(by_url).await, 400, Some("response_format")).await;
    let several = edit_form().text("stream", "1").text("n", "2");
    error_of(server.edit(several).await, 400, Some("n")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn missing_empty_and_repeated_fields_are_named() {
    let server = TestServer::start().await;
    let picture = || Form::new().part("image", file_part(png(16, 16)));

    let error = error_of(server.edit(picture()).await, 400, Some("prompt")).await;
    assert_eq!(error["code"], "missing_required_parameter");
    let empty = picture().text("prompt", "");
    let error = error_of(server.edit(empty).await, 400, Some("prompt")).await;
    assert_eq!(error["code"], "string_below_min_length");
    let error = error_of(server.edit(prompt_form()).await, 400, Some("image")).await;
    assert_eq!(error["code"], "missing_required_parameter");
    let twice = edit_form().text("prompt", "again");
    error_of(server.edit(twice).await, 400, Some("prompt")).await;
    let twice = edit_form().text("n", "1").text("n", "2");
    error_of(server.edit(twice).await, 400, Some("n")).await;
    let prompt_file = picture().part("prompt", file_part(b"words".to_vec()));
    error_of(server.edit(prompt_file).await, 400, Some("prompt")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn files_that_are_no_pictures_are_refused() {
    let server = TestServer::start().await;
    let jpeg = file(64, 64, OutputFormat::Jpeg { quality: 90 });
    let webp = file(64, 64, OutputFormat::Webp { quality: 100 });
    let whole = png(64, 64);
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let bad = [
        ("empty", Vec::new()),
        ("text", b"this is not a picture".repeat(50)),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
        ("gif", b"GIF89a\x01\0\x01\0\0\0\0;".to_vec()),
        ("half a png", whole[..whole.len() / 2].to_vec()),
        ("a png's signature", whole[..8].to_vec()),
        ("half a jpeg", jpeg[..jpeg.len() / 2].to_vec()),
        ("half a webp", webp[..webp.len() / 2].to_vec()),
        ("a flipped byte", flipped),
        ("a bomb", png_bomb()),
        ("too many pixels", png(2100, 2000)),
    ];
    for (what, bytes) in bad {
        let form = prompt_form().part("image", file_part(bytes.clone()));
        let error = error_of(server.edit(form).await, 400, Some("image")).await;
        assert_eq!(error["type"], "image_generation_user_error", "{what}");
        assert_eq!(error["code"], "invalid_image_file", "{what}");

        let object = json!({"prompt": "x", "images": [{"image_url": data_url(&bytes)}]});
        error_of(server.edit_json(&object).await, 400, Some("images")).await;
    }
    let second = edit_form().part("image[]", file_part(b"no".to_vec()));
    let error = error_of(server.edit(second).await, 400, Some("image")).await;
    assert!(error["message"].as_str().unwrap().contains("image 2"));

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn texts_in_the_place_of_pictures_are_never_opened() {
    let server = TestServer::start().await;
    for text in ["/etc/passwd", "file:///etc/passwd", "aGVsbG8="] {
        let response = server.edit(prompt_form().text("image", text)).await;
        let error = error_of(response, 400, Some("image")).await;
        assert_eq!(error["code"], "invalid_type");
    }
    for url in [
        "http://127.0.0.1:1/x.png",
        "https://example.test/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "not a url",
        "",
        "data",
        "ftp://x",
    ] {
        let object = json!({"prompt": "x", "images": [{"image_url": url}]});
        error_of(server.edit_json(&object).await, 400, Some("images")).await;
    }
    let fields = (0..200).fold(prompt_form(), |form, i| form.text(format!("image[{i}]"), "137"));
    error_of(server.edit(fields).await, 400, Some("image")).await;
    let fields = (0..2000).fold(prompt_form(), |form, i| form.text(format!("image[{i}]"), "137"));
    error_of(server.edit(fields).await, 400, None).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn a_file_over_the_limit_of_one_picture_is_refused_although_the_body_is_not() {
    let server = TestServer::start().await;
    let mut padded = png(16, 16);
    padded.resize((8 << 20) + 1, 0);

    let response = server.edit(prompt_form().part("image", file_part(padded))).await;

    let error = error_of(response, 400, Some("image")).await;
    assert!(error["message"].as_str().unwrap().contains("8388608"), "{error}");
    assert_only_refusals(server).await;
}

#[tokio::test]
async fn too_many_pictures_are_refused() {
    let server = TestServer::start().await;
    let form = (0..4).fold(prompt_form(), |form, _| form.part("image[]", file_part(png(16, 16))));
    let references = vec![json!({"image_url": data_url(&png(16, 16))}); 17];

    let error = error_of(server.edit(form).await, 400, Some("image")).await;
    assert!(error["message"].as_str().unwrap().contains("at most 3"));
    let object = json!({"prompt": "x", "images": references});
    error_of(server.edit_json(&object).await, 400, Some("images")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn json_values_of_the_wrong_type_are_named() {
    let server = TestServer::start().await;
    let good = json!({"prompt": "x", "images": [{"image_url": data_url(&png(16, 16))}]});
    let cases: &[(&str, Value)] = &[
        ("prompt", json!(7)),
        ("prompt", json!(["x"])),
        ("prompt", json!("")),
        ("prompt", json!(null)),
        ("n", json!("1")),
        ("n", json!(1.0)),
        ("n", json!(1.5)),
        ("n", json!(true)),
        ("n", json!([1])),
        ("n", json!(u64::MAX)),
        ("n", json!(-3)),
        ("seed", json!(-2)),
        ("seed", json!(1e30)),
        ("seed", json!({})),
        ("size", json!(512)),
        ("size", json!("512")),
        ("num_inference_steps", json!(0)),
        ("true_cfg_scale", json!("4")),
        ("true_cfg_scale", json!(1e300)),
        ("guidance_scale", json!(3.5)),
        ("negative_prompt", json!(false)),
        ("stream", json!("true")),
        ("model", json!(1)),
        ("user", json!({})),
        ("output_format", json!(["png"])),
        ("output_compression", json!("80")),
        ("images", json!([])),
        ("images", json!("data:image/png;base64,aaaa")),
        ("images", json!([7])),
        ("images", json!(["data:image/png;base64,aaaa"])),
        ("images", json!([{}])),
        ("images", json!([{"file_id": "file-1"}])),
        ("images", json!([{"image_url": null}])),
        ("images", json!([{"image_url": "data:image/png;base64,@@@"}])),
        ("images", json!([{"image_url": "data:image/png;base64,"}])),
        ("images", json!([{"image_url": "data:,"}])),
        ("image", json!("data:image/png;base64,aaaa")),
    ];
    for (name, value) in cases {
        let mut object = good.clone();
        object[*name] = value.clone();
        error_of(server.edit_json(&object).await, 400, Some(name)).await;
    }
    let mut masked = good.clone();
    masked["mask"] = json!({"image_url": data_url(&png(16, 16))});
    error_of(server.edit_json(&masked).await, 501, Some("mask")).await;

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn bodies_that_are_not_what_they_say_are_refused() {
    let server = TestServer::start().await;
    let send = async |media_type: Option<&str>, body: &[u8]| {
        let request = server.post("/v1/images/edits").body(body.to_vec());
        let request = match media_type {
            Some(media_type) => request.header("content-type", media_type),
            None => request,
        };
        request.send().await.unwrap()
    };
    let deep = b"[".repeat(100_000);
    for body in [b"{nope".as_slice(), b"", b"[]", b"\"x\"", b"7", b"null", b"\xff\xfe", &deep] {
        error_of(send(Some("application/json"), body).await, 400, None).await;
    }
    for body in [b"".as_slice(), b"--b", b"--b\r\n", b"--b\r\nnonsense\r\n\r\nx\r\n--b--", b"hello"]
    {
        let media_type = "multipart/form-data; boundary=b";
        error_of(send(Some(media_type), body).await, 400, None).await;
    }
    error_of(send(Some("multipart/form-data"), b"x").await, 400, None).await;
    for media_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("image/png"),
        Some("nonsense"),
    ] {
        let error = error_of(send(media_type, b"hello").await, 415, None).await;
        assert_eq!(error["code"], "unsupported_content_type");
    }

    assert_only_refusals(server).await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_named() {
    let server = TestServer::start().await;
    let prompt = reqwest::multipart::Part::bytes(vec![0xff, 0xfe, 0x41]);
    let form = Form::new().part("image", file_part(png(16, 16)));

    let response = server.edit(form.part("prompt", prompt)).await;

    error_of(response, 400, Some("prompt")).await;
}

#[tokio::test]
async fn an_upload_over_the_limit_gets_its_413_and_not_a_reset() {
    let setup = Setup { max_upload_bytes: 100_000, ..Setup::default() };
    let server = setup.start().await;
    let huge = || prompt_form().part("image", file_part(vec![0; 30 << 20]));

    for _ in 0..3 {
        let error = error_of(server.edit(huge()).await, 413, None).await;
        assert_eq!(error["code"], "request_too_large");
    }
    let object = json!({"prompt": "x".repeat(200_000)});
    error_of(server.edit_json(&object).await, 413, None).await;
    // Also where the body is not even looked at.
    let response = server.post("/v1/nowhere").multipart(huge()).send().await;
    error_of(response.unwrap(), 404, None).await;

    assert_only_refusals(server).await;
}
