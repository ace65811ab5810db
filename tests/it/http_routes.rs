//! The addresses that clients write, and what is said to those that lead nowhere.

use diffuser_api::api::{ApiConfig, ApiKeys};
use diffuser_api::domain::TaskKind;
use reqwest::Response;
use serde_json::json;

use crate::support::scripted_model;
use crate::support::server::{
    Setup, TestServer, data_url, edit_form, error_of, image_bytes, json_of,
};
use crate::support::{files, server};

/// A server whose model does all that there is an endpoint for.
async fn able_server() -> TestServer {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    card.tasks = card.tasks.with(TaskKind::Variation);
    Setup { card, ..Setup::default() }.start().await
}

async fn edit_at(server: &TestServer, path: &str) -> Response {
    server.post(path).multipart(edit_form()).send().await.unwrap()
}

#[tokio::test]
async fn the_images_api_is_at_azures_addresses_as_well() {
    let server = able_server().await;
    let generation = json!({"prompt": "a cat"});
    let variation =
        || reqwest::multipart::Form::new().part("image", server::file_part(files::png(64, 48)));
    for base in [
        "/v1",
        "/openai",
        "/openai/v1",
        "/openai/deployments/gpt-image-1",
        "/openai/deployments/scripted-edit",
        "/v1/deployments/dall-e-3",
    ] {
        let at =
            |endpoint: &str| format!("{base}/images/{endpoint}?api-version=2025-04-01-preview");
        let json_body =
            json!({"prompt": "p", "images": [{"image_url": data_url(&files::png(64, 48))}]});

        json_of(edit_at(&server, &at("edits")).await).await;
        json_of(server.post(&at("edits")).json(&json_body).send().await.unwrap()).await;
        json_of(server.post(&at("generations")).json(&generation).send().await.unwrap()).await;
        json_of(server.post(&at("variations")).multipart(variation()).send().await.unwrap()).await;
        let wrong_method = server.get(&at("edits")).send().await.unwrap();
        assert!(wrong_method.headers()["allow"].to_str().unwrap().contains("POST"), "{base}");
        error_of(wrong_method, 405, None).await;
    }
    for path in ["/openai/models", "/openai/v1/models", "/openai/models/test%2Fscripted-edit"] {
        let answer = server.get(path).query(&[("api-version", "preview")]).send().await.unwrap();
        json_of(answer).await;
    }
}

#[tokio::test]
async fn a_deployment_is_a_name_of_the_model_also_encoded_and_with_slashes() {
    let server = TestServer::start().await;
    for name in [
        "test%2Fscripted-edit",
        "test%2fscripted-edit",
        "test/scripted-edit",
        "scripted%2Dedit",
        "gpt-image-2.6-flare",
    ] {
        json_of(edit_at(&server, &format!("/openai/deployments/{name}/images/edits")).await).await;
    }
    for (name, shown) in [
        ("my-own", "my-own"),
        ("gpt%204o", "gpt 4o"),
        ("%ff", "\u{fffd}"),
        ("a%2Fimages", "a/images"),
    ] {
        let path = format!("/openai/deployments/{name}/images/edits");
        let error = error_of(edit_at(&server, &path).await, 404, Some("model")).await;
        assert_eq!(error["code"], "model_not_found");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&format!("'{shown}'")), "{message}");
        assert!(message.contains("test/scripted-edit"), "{message}");
    }
}

#[tokio::test]
async fn the_deployment_and_not_the_body_names_the_model() {
    let server = TestServer::start().await;
    let edit = async |form| {
        let request = server.post("/openai/deployments/scripted-edit/images/edits");
        json_of(request.multipart(form).send().await.unwrap()).await
    };

    let same = edit(edit_form().text("model", "gpt-image-1")).await;
    let other = edit(edit_form().text("model", "some-deployment")).await;

    assert_eq!(same.get("warnings"), None);
    let warning = other["warnings"][0].as_str().unwrap();
    assert!(warning.contains("'model'") && warning.contains("some-deployment"), "{warning}");
}

#[tokio::test]
async fn keys_and_what_is_not_offered_act_at_every_address() {
    let adjust = |config: &mut ApiConfig| config.api_keys = ApiKeys::new(vec!["s3cret".to_owned()]);
    let server = Setup { adjust, ..Setup::default() }.start().await;
    for base in ["/openai", "/openai/v1", "/openai/deployments/gpt-image-1", "/v1/deployments/x"] {
        let path = format!("{base}/images/generations");
        let refused = server.post(&path).json(&json!({"prompt": "p"})).send().await.unwrap();
        error_of(refused, 401, None).await;
    }
    for base in ["/openai", "/openai/deployments/gpt-image-1"] {
        let path = format!("{base}/images/generations");
        let with_key = server.post(&path).header("api-key", "s3cret").json(&json!({"prompt": "p"}));
        let response = with_key.send().await.unwrap();
        assert_eq!(response.headers()["x-should-retry"], "false");
        error_of(response, 501, None).await;
    }
}

#[tokio::test]
async fn azures_addresses_stand_beside_any_prefix() {
    for prefix in ["", "/openai", "/openai/v1", "/behind/a/proxy"] {
        let setup = Setup { api_prefix: prefix.to_owned(), ..Setup::default() };
        let server = setup.start().await;
        for base in [prefix, "/openai", "/openai/v1", "/openai/deployments/dall-e-2"] {
            json_of(edit_at(&server, &format!("{base}/images/edits")).await).await;
        }
        let by_url = edit_form().text("response_format", "url");
        let request = server.post("/openai/images/edits").multipart(by_url);
        let reply = json_of(request.send().await.unwrap()).await;
        let url = reply["data"][0]["url"].as_str().unwrap();
        let file = server.get(&format!("/{}", url.splitn(4, '/').nth(3).unwrap()));
        assert_eq!(file.send().await.unwrap().status(), 200, "{url}");
    }
}

#[tokio::test]
async fn a_slash_too_many_does_no_harm() {
    let server = TestServer::start().await;
    for path in [
        "//v1/images/edits",
        "/v1//images/edits",
        "/v1/images/edits/",
        "/v1/images//edits//",
        "/openai//deployments/gpt-image-1/images/edits/",
    ] {
        let reply = json_of(edit_at(&server, path).await).await;
        assert!(!image_bytes(&reply, 0).is_empty(), "{path}");
    }
    for path in ["/v1/models/", "//v1/models", "/v1/models/gpt-image-1/"] {
        json_of(server.get(path).send().await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_404_says_where_the_images_api_is() {
    let server = TestServer::start().await;
    let address = server.address();
    for (method, path) in [
        ("POST", "/images/generations"),
        ("POST", "/images/edits"),
        ("POST", "/v1/v1/images/edits"),
        ("POST", "/v1/images/edits/images/edits"),
        ("POST", "/v1/openai/deployments/x/images/edits"),
        ("POST", "/api/v1/images/generations"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/openai/deployments/gpt-4o/chat/completions"),
        ("POST", "/openai/deployments/images/edits"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/images"),
        ("POST", "/v1/image/edits"),
        ("POST", "/api/generate"),
        ("POST", "/sdapi/v1/txt2img"),
        ("GET", "/v1"),
        ("GET", "/models"),
        ("GET", "/favicon.ico"),
    ] {
        let response = server.request(method, path).body("x").send().await.unwrap();

        let error = error_of(response, 404, None).await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&format!("Invalid URL ({method} {path})")), "{message}");
        assert!(message.contains(&format!("http://{address}/v1/images/edits")), "{message}");
        assert!(message.contains(&format!("'http://{address}/v1'")), "{message}");
        assert!(message.contains(&format!("Azure 'http://{address}'")), "{message}");
    }
}

#[tokio::test]
async fn a_404_names_the_address_that_the_client_can_reach() {
    let message_of = async |adjust: fn(&mut ApiConfig)| {
        let server = Setup { adjust, ..Setup::default() }.start().await;
        let request = server.post("/v1/chat/completions").header("x-forwarded-host", "a.test");
        let error = error_of(request.send().await.unwrap(), 404, None).await;
        error["message"].as_str().unwrap().to_owned()
    };

    let named = message_of(|config| config.public_url = Some("https://b.test/".to_owned())).await;
    let trusting = message_of(|config| config.trust_forwarded_headers = true).await;
    let prefixed = message_of(|config| config.api_prefix = "/pictures".to_owned()).await;

    assert!(named.contains("'https://b.test/v1'"), "{named}");
    assert!(trusting.contains("'http://a.test/v1'"), "{trusting}");
    assert!(prefixed.contains("/pictures/images/edits"), "{prefixed}");
}

#[tokio::test]
async fn browsers_ask_once_a_day_and_may_call_from_public_pages() {
    let server = TestServer::start().await;
    for path in ["/v1/images/edits", "/openai/deployments/gpt-image-1/images/edits", "/nowhere"] {
        let preflight = server
            .request("OPTIONS", path)
            .header("origin", "https://page.test")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,api-key")
            .header("access-control-request-private-network", "true");
        let preflight = preflight.send().await.unwrap();

        let headers = preflight.headers();
        assert_eq!(headers["access-control-max-age"], "86400", "{path}");
        assert_eq!(headers["access-control-allow-headers"], "authorization,api-key");
        assert_eq!(headers["access-control-allow-private-network"], "true");
        let methods = headers["access-control-allow-methods"].to_str().unwrap();
        assert_eq!(methods, "GET,POST,DELETE,OPTIONS");
    }
}
