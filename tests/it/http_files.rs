//! Pictures as files: for clients that say so in `Accept`.

use diffuser_api::api::{ApiConfig, PngCompression};
use reqwest::Response;
use reqwest::multipart::Form;
use serde_json::Value;

use crate::support::files::{decode, png};
use crate::support::server::{Setup, TestServer, edit_form, error_of, file_part, json_of};

async fn edit_accepting(server: &TestServer, accept: &str, form: Form) -> Response {
    let request = server.post("/v1/images/edits").header("accept", accept).multipart(form);
    request.send().await.unwrap()
}

#[tokio::test]
async fn who_accepts_a_picture_gets_the_file_with_seed_usage_and_warnings_in_headers() {
    let server = TestServer::start().await;
    let form = edit_form().text("seed", "7").text("no_such_field", "1");

    let response = edit_accepting(&server, "image/png", form).await;

    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "image/png");
    assert_eq!(header("x-diffuser-seed"), "7");
    let usage: Value = serde_json::from_str(&header("x-diffuser-usage")).unwrap();
    assert_eq!(usage["input_tokens"], 12);
    let warnings: Vec<String> = serde_json::from_str(&header("x-diffuser-warnings")).unwrap();
    assert!(warnings[0].contains("'no_such_field'"), "{warnings:?}");
    let exposed = header("access-control-expose-headers");
    assert!(exposed.contains("x-diffuser-seed"), "{exposed}");
    let picture = decode(&response.bytes().await.unwrap());
    assert_eq!((picture.width(), picture.height()), (64, 48));
}

#[tokio::test]
async fn the_file_has_the_accepted_format_unless_the_request_names_one() {
    let server = TestServer::start().await;
    for (accept, named, expected) in [
        ("image/*", None, "image/png"),
        ("image/jpeg", None, "image/jpeg"),
        ("image/webp", None, "image/webp"),
        ("image/png", Some("jpeg"), "image/jpeg"),
    ] {
        let form =
            named.into_iter().fold(edit_form(), |form, name| form.text("output_format", name));

        let response = edit_accepting(&server, accept, form).await;

        assert_eq!(response.headers()["content-type"], expected, "{accept} {named:?}");
        let magic = response.bytes().await.unwrap();
        let expected_start: &[u8] = match expected {
            "image/png" => b"\x89PNG",
            "image/jpeg" => b"\xff\xd8",
            _ => b"RIFF",
        };
        assert!(magic.starts_with(expected_start), "{accept} {named:?}");
    }
}

#[tokio::test]
async fn who_accepts_anything_or_json_gets_json() {
    let server = TestServer::start().await;
    for accept in ["*/*", "application/json", "text/html, */*;q=0.5"] {
        let reply = json_of(edit_accepting(&server, accept, edit_form()).await).await;
        assert!(reply["data"][0]["b64_json"].is_string(), "{accept}");
    }
}

#[tokio::test]
async fn several_pictures_and_events_do_not_go_into_a_file() {
    let mut server = TestServer::start().await;
    for (field, value) in [("n", "2"), ("stream", "true")] {
        let response = edit_accepting(&server, "image/png", edit_form().text(field, value)).await;

        let error = error_of(response, 406, Some(field)).await;
        assert_eq!(error["code"], "not_acceptable");
    }
    assert!(server.is_model_untouched());
}

#[tokio::test]
async fn errors_are_json_whatever_is_accepted() {
    let server = TestServer::start().await;
    let form = Form::new().part("image", file_part(png(8, 8)));

    error_of(edit_accepting(&server, "image/png", form).await, 400, Some("prompt")).await;
}

#[tokio::test]
async fn all_of_the_strength_is_what_an_edit_by_instruction_does_anyway() {
    let server = TestServer::start().await;

    let reply = json_of(server.edit(edit_form().text("strength", "1")).await).await;
    let warnings = reply["warnings"].as_array().unwrap();
    assert!(warnings[0].as_str().unwrap().contains("'strength'"), "{warnings:?}");
    let refused = server.edit(edit_form().text("strength", "0.5")).await;

    error_of(refused, 400, Some("strength")).await;
}

#[tokio::test]
async fn the_servers_png_compression_acts_on_files_and_on_json_alike() {
    let sizes = [PngCompression::Fast, PngCompression::Best].map(async |level| {
        let adjust: fn(&mut ApiConfig) = match level {
            PngCompression::Best => |config| config.png_compression = PngCompression::Best,
            PngCompression::Fast | PngCompression::Balanced => |_| {},
        };
        let server = Setup { adjust, ..Setup::default() }.start().await;
        let sent = edit_accepting(&server, "image/png", edit_form().text("seed", "7")).await;
        let file = sent.bytes().await.unwrap();
        let sent = edit_accepting(&server, "*/*", edit_form().text("seed", "7")).await;
        let base64 = json_of(sent).await["data"][0]["b64_json"].as_str().unwrap().len();
        (decode(&file), file.len(), base64)
    });
    let [fast, best] = sizes;
    let ((fast, fast_file, fast_text), (best, best_file, best_text)) = (fast.await, best.await);

    assert_eq!(fast, best);
    assert!(best_file < fast_file && best_text < fast_text, "{best_file} {fast_file}");
}
