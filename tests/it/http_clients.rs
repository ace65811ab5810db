//! What certain clients send, and what they need to get back.

use diffuser_api::api::{ApiConfig, DefaultResponseFormat};
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::support::files;
use crate::support::scripted_model;
use crate::support::server::{Setup, TestServer, edit_form, file_part, json_of};

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
    let mut info = scripted_model::info();
    info.capabilities.text_to_image = true;
    info.capabilities.image_variation = true;
    let server = Setup { info, ..Setup::default() }.start().await;

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
        config.api_keys = diffuser_api::api::ApiKeys::new(vec!["s3cret".to_owned()]);
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
