//! What certain clients send, and what they need to get back.

use diffuser_api::api::{ApiConfig, ApiKeys};
use diffuser_api::domain::TaskKind;
use diffuser_api::requests::DefaultResponseFormat;
use reqwest::multipart::Form;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::files;
use crate::support::scripted_model;
use crate::support::server::{Setup, TestServer, edit_form, file_part, json_of, within_patience};

/// Whether the pictures of a reply came by address; never both ways, never neither.
fn is_by_url(reply: &Value) -> bool {
    let item = &reply["data"][0];
    assert_ne!(item.get("url").is_some(), item.get("b64_json").is_some(), "{item}");
    item.get("url").is_some()
}

async fn edit(server: &TestServer, fields: &[(&'static str, &'static str)]) -> Value {
    let add = |form: Form, (name, value): &(&'static str, &'static str)| form.text(*name, *value);
    json_of(server.edit(fields.iter().fold(edit_form(), add)).await).await
}

#[tokio::test]
async fn who_asks_for_a_dall_e_gets_addresses_and_all_others_base64() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    card.tasks = card.tasks.with(TaskKind::Variation);
    let server = Setup { card, ..Setup::default() }.start().await;

    for name in ["dall-e-2", "dall-e-3"] {
        let edited = edit(&server, &[("model", name)]).await;
        let generation = json!({"model": name, "prompt": "p", "response_format": null});
        let request = server.post("/v1/images/generations").json(&generation);
        let generated = json_of(request.send().await.unwrap()).await;
        let form = Form::new().part("image", file_part(files::png(64, 48))).text("model", name);
        let request = server.post("/v1/images/variations").multipart(form);
        let varied = json_of(request.send().await.unwrap()).await;
        let path = format!("/openai/deployments/{name}/images/edits");
        let request = server.post(&path).multipart(edit_form());
        let deployed = json_of(request.send().await.unwrap()).await;

        for reply in [&edited, &generated, &varied, &deployed] {
            assert!(is_by_url(reply), "{name}");
        }
        assert!(!is_by_url(
            &edit(&server, &[("model", name), ("response_format", "b64_json")]).await
        ));
    }
    for name in ["gpt-image-1", "gpt-image-2.6-flare", "chatgpt-image-latest", "scripted-edit", ""]
    {
        assert!(!is_by_url(&edit(&server, &[("model", name)]).await), "{name}");
        assert!(is_by_url(&edit(&server, &[("model", name), ("response_format", "url")]).await));
    }
    assert!(!is_by_url(&edit(&server, &[]).await));
}

#[tokio::test]
async fn a_stream_for_a_dall_e_is_a_stream() {
    let server = TestServer::start().await;

    let response = server.edit(edit_form().text("model", "dall-e-2").text("stream", "true")).await;

    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("b64_json"));
}

#[tokio::test]
async fn the_settings_have_the_last_word_on_the_way_back() {
    let server_with =
        async |adjust: fn(&mut ApiConfig)| Setup { adjust, ..Setup::default() }.start().await;
    let base64 = server_with(|config| config.response_format = DefaultResponseFormat::Base64).await;
    let url = server_with(|config| config.response_format = DefaultResponseFormat::Url).await;

    assert!(!is_by_url(&edit(&base64, &[("model", "dall-e-3")]).await));
    assert!(is_by_url(&edit(&base64, &[("response_format", "url")]).await));
    assert!(is_by_url(&edit(&url, &[]).await));
    assert!(!is_by_url(&edit(&url, &[("response_format", "b64_json")]).await));
    let document = json_of(url.get("/openapi.json").send().await.unwrap()).await;
    let form = &document["components"]["schemas"]["EditForm"]["properties"];
    assert_eq!(form["response_format"]["default"], "url");
}

#[tokio::test]
async fn an_address_needs_no_key() {
    let adjust = |config: &mut ApiConfig| {
        config.api_keys = ApiKeys::new(vec!["s3cret".to_owned()]);
    };
    let server = Setup { adjust, ..Setup::default() }.start().await;
    let form = edit_form().text("model", "dall-e-2");
    let request = server.post("/v1/images/edits").bearer_auth("s3cret").multipart(form);

    let reply = json_of(request.send().await.unwrap()).await;
    let url = reply["data"][0]["url"].as_str().unwrap();
    let path = url.splitn(4, '/').nth(3).unwrap();

    assert_eq!(server.get(&format!("/{path}")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn hosted_names_of_the_day_are_listed_and_their_snapshots_known() {
    let server = TestServer::start().await;

    let list = json_of(server.get("/v1/models").send().await.unwrap()).await;

    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str()).collect();
    assert_eq!(ids[0], Some("test/scripted-edit"));
    for name in ["gpt-image-2.5-flare", "gpt-image-2.6-sunburst", "gpt-image-1", "dall-e-2"] {
        assert!(ids.contains(&Some(name)), "{name}: {ids:?}");
    }
    assert!(ids.iter().all(|id| !id.unwrap().contains('*')), "{ids:?}");
    for name in ["gpt-image-2.5-flare-2026-09-08", "gpt-image-2.6-flare"] {
        json_of(server.get(&format!("/v1/models/{name}")).send().await.unwrap()).await;
        edit(&server, &[("model", name)]).await;
    }
}

/// The reply to the bytes of a request.
async fn reply_to(server: &TestServer, request: &[u8]) -> Value {
    let mut connection = server.connect().await;
    connection.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut chunk = vec![0; 1 << 16];
        let read = within_patience(connection.read(&mut chunk)).await.unwrap();
        answer.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("HTTP/1.1 200 "), "{text:.600}");
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return serde_json::from_str(body).unwrap();
        }
    }
}

/// Recorded by `tests/clients/replay.mjs`, with the libraries of these clients.
#[tokio::test]
async fn recorded_requests_of_n8n_and_librechat_get_what_these_read() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    let adjust = |config: &mut ApiConfig| {
        config.api_keys = ApiKeys::new(vec!["clients-key".to_owned()]);
    };
    let server = Setup { card, adjust, ..Setup::default() }.start().await;
    for (name, reads_urls) in [
        ("n8n-generate-dall-e-3", false),
        ("n8n-generate-dall-e-2-urls", true),
        ("n8n-generate-gpt-image", false),
        ("n8n-edit-dall-e-2", true),
        ("n8n-edit-gpt-image", false),
        ("librechat-generate", false),
        ("librechat-generate-azure", false),
        ("librechat-edit", false),
        ("librechat-edit-azure", false),
    ] {
        let path = format!("{}/tests/data/requests/{name}.http", env!("CARGO_MANIFEST_DIR"));

        let reply = reply_to(&server, &std::fs::read(path).unwrap()).await;

        assert_eq!(is_by_url(&reply), reads_urls, "{name}");
    }
}
