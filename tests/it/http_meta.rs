//! What the server says about itself, and what all its answers have in common.

use diffuser_api::api::{ApiConfig, ApiKeys};
use diffuser_api::domain::{TaskKind, TaskKinds};

use crate::support::scripted_model;
use crate::support::server::{Setup, TestServer, edit_form, error_of, json_of};

#[tokio::test]
async fn health_and_root_tell_what_is_running() {
    let server = TestServer::start().await;

    let health = json_of(server.get("/health").send().await.unwrap()).await;
    let root = json_of(server.get("/").send().await.unwrap()).await;

    assert_eq!(health["status"], "healthy");
    assert_eq!(health["busy"], false);
    assert_eq!(root["service"], "Test Service");
    assert_eq!(root["version"], "1.2.3");
    assert_eq!(root["model"]["id"], "test/scripted-edit");
    assert_eq!(root["capabilities"]["image_edit"], true);
    assert_eq!(root["capabilities"]["mask"], false);
    assert_eq!(root["endpoints"]["edits"], "/v1/images/edits");
    assert_eq!(root["docs"], "/docs");
}

#[tokio::test]
async fn the_model_is_listed_and_found_with_a_slash_in_its_id() {
    let server = TestServer::start().await;

    let list = json_of(server.get("/v1/models").send().await.unwrap()).await;

    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "test/scripted-edit");
    assert_eq!(list["data"][0]["object"], "model");
    assert!(list["data"][0]["created"].is_u64());
    assert!(list["data"][0]["owned_by"].is_string());
    for name in ["test/scripted-edit", "test%2Fscripted-edit", "scripted-edit", "gpt-image-1"] {
        let path = format!("/v1/models/{name}?api-version=1");
        let model = json_of(server.get(&path).send().await.unwrap()).await;
        assert_eq!(model["id"], "test/scripted-edit", "{name}");
    }
    let unknown = server.get("/v1/models/gpt-4o").send().await.unwrap();
    let error = error_of(unknown, 404, Some("model")).await;
    assert_eq!(error["code"], "model_not_found");
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_get_the_envelope() {
    let server = TestServer::start().await;

    for (method, path) in [
        ("GET", "/no/such/route"),
        ("POST", "/v1/no"),
        ("GET", "/v1"),
        ("GET", "/v1/model"),
        ("GET", "/docs/no-such-file"),
    ] {
        let response = server.request(method, path).send().await.unwrap();
        error_of(response, 404, None).await;
    }
    let broken = server.get("/v1/models/%ff").send().await.unwrap();
    error_of(broken, 400, None).await;
    for (method, path, allowed) in [
        ("GET", "/v1/images/edits", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
        ("POST", "/v1/models/test/scripted-edit", "GET"),
        ("GET", "/v1/models/test/scripted-edit/load", "POST"),
    ] {
        let response = server.request(method, path).send().await.unwrap();
        let allow = response.headers()["allow"].to_str().unwrap();
        assert!(allow.contains(allowed), "{allow}");
        let error = error_of(response, 405, None).await;
        assert_eq!(error["code"], "method_not_supported");
        assert!(
            error["message"].as_str().unwrap().contains(&format!("{method} on {path}")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn request_ids_are_unique_and_a_clients_own_is_kept() {
    let server = TestServer::start().await;
    let id_of = |response: &reqwest::Response| response.headers()["x-request-id"].clone();

    let first = server.get("/health").send().await.unwrap();
    let second = server.get("/nowhere").send().await.unwrap();
    let own = server.get("/health").header("x-request-id", "trace-7");
    let kept = own.send().await.unwrap();

    assert_ne!(id_of(&first), id_of(&second));
    assert_eq!(id_of(&kept), "trace-7");
}

#[tokio::test]
async fn browsers_may_call_and_read_errors() {
    let server = TestServer::start().await;
    let wanted = "authorization,content-type,x-stainless-lang";

    let preflight = server
        .request("OPTIONS", "/v1/images/edits")
        .header("origin", "http://page.test")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", wanted);
    let preflight = preflight.send().await.unwrap();
    let refused = server.get("/nowhere").header("origin", "http://page.test");
    let refused = refused.send().await.unwrap();

    assert_eq!(preflight.status(), 200);
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(headers["access-control-allow-headers"], wanted);
    assert_eq!(refused.headers()["access-control-allow-origin"], "*");
    let exposed = &refused.headers()["access-control-expose-headers"];
    assert!(exposed.to_str().unwrap().contains("x-request-id"));
    for path in ["/v1/images/generations", "/v1/images/edits", "/", "/nowhere"] {
        let response = server.request("OPTIONS", path).send().await.unwrap();
        assert!(response.status().is_success(), "{path}");
    }
}

#[tokio::test]
async fn the_document_and_its_page_come_from_the_binary() {
    let server = TestServer::start().await;

    let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
    let page = server.get("/docs").send().await.unwrap();
    let page_type = page.headers()["content-type"].clone();
    let script = server.get("/docs/swagger-initializer.js");
    let script = script.send().await.unwrap().text().await.unwrap();

    assert_eq!(document["info"]["title"], "Test Service");
    let edit = &document["paths"]["/v1/images/edits"]["post"];
    let form = &document["components"]["schemas"]["EditForm"]["properties"];
    assert_eq!(form["image"]["type"], "array", "{form}");
    assert_eq!(form["image"]["items"]["format"], "binary", "{form}");
    assert!(form["prompt"]["example"].is_string(), "{form}");
    // What a form should not ask for by itself is told in words.
    for (name, own) in [("model", "`test/scripted-edit`"), ("num_inference_steps", "4")] {
        let text = form[name]["description"].as_str().unwrap();
        assert!(text.ends_with(&format!("Without it: {own}.")), "{text}");
        assert!(form[name]["example"].is_null(), "{form}");
    }
    assert_eq!(edit["requestBody"]["required"], true);
    let file = &document["paths"]["/v1/images/files/{name}"]["get"]["responses"]["200"];
    assert!(file["content"]["image/webp"].is_object(), "{file}");
    assert_eq!(document["components"]["schemas"]["PictureFile"]["format"], "binary");
    assert!(edit["requestBody"]["content"]["multipart/form-data"].is_object());
    assert!(edit["requestBody"]["content"]["application/json"].is_object());
    assert!(page_type.to_str().unwrap().contains("html"));
    assert!(script.contains("/openapi.json"), "{script}");
    assert!(script.contains(r#"validatorUrl: "none""#), "{script}");
    let file = server.get("/docs/swagger-ui-bundle.js").send().await;
    assert_eq!(file.unwrap().status(), 200);
}

#[tokio::test]
async fn every_documented_field_is_known() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    let server = Setup { card, ..Setup::default() }.start().await;
    let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
    let fields_of = |schema: &str| {
        let properties = &document["components"]["schemas"][schema]["properties"];
        let names = properties.as_object().unwrap().keys();
        let optional = names.filter(|name| !["image", "images", "prompt"].contains(&name.as_str()));
        optional.cloned().collect::<Vec<_>>()
    };

    for schema in ["EditForm", "EditJson", "GenerationJson"] {
        let fields = fields_of(schema).into_iter();
        let form = fields.fold(edit_form(), |form, name| form.text(name, ""));
        let reply = json_of(server.edit(form).await).await;

        assert_eq!(reply.get("warnings"), None, "{schema}");
    }
    let format = &document["components"]["schemas"]["EditForm"]["properties"]["output_format"];
    assert_eq!(format["enum"][1], "jpeg", "{format}");
    let required = &document["components"]["schemas"]["EditForm"]["required"];
    assert_eq!(required, &serde_json::json!(["image", "prompt"]));
}

#[tokio::test]
async fn the_document_has_what_the_loaded_model_does_and_nothing_else() {
    let document_of = async |able: bool| {
        let mut card = scripted_model::card();
        let kinds = [TaskKind::TextToImage, TaskKind::Variation, TaskKind::Inpainting];
        let all = kinds.into_iter().fold(card.tasks, TaskKinds::with);
        card.tasks = if able { all } else { card.tasks };
        let server = Setup { card, ..Setup::default() }.start().await;
        json_of(server.get("/openapi.json").send().await.unwrap()).await
    };

    for able in [true, false] {
        let document = document_of(able).await;
        for endpoint in ["generations", "variations"] {
            let path = format!("/v1/images/{endpoint}");
            assert_eq!(document["paths"].get(&path).is_some(), able, "{endpoint}");
        }
        let form = &document["components"]["schemas"]["EditForm"]["properties"];
        for field in ["mask", "preserve_unmasked", "padding_mask_crop", "strength"] {
            assert_eq!(form.get(field).is_some(), able, "{field}");
        }
        assert!(form.get("layers").is_none() && form.get("guidance_scale").is_none());
        assert!(form.get("true_cfg_scale").is_some());
    }
}

#[tokio::test]
async fn the_prefix_can_be_another_or_none() {
    for (prefix, models) in [("/openai/v1", "/openai/v1/models"), ("", "/models")] {
        let setup = Setup { api_prefix: prefix.to_owned(), ..Setup::default() };
        let server = setup.start().await;

        let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;

        json_of(server.get(models).send().await.unwrap()).await;
        assert!(document["paths"][models].is_object(), "{prefix}");
        assert!(document["paths"]["/health"].is_object(), "{prefix}");
    }
}

#[tokio::test]
async fn what_the_model_cannot_do_is_501_and_not_tried_again() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.without(TaskKind::Edit);
    let setup = Setup { card, ..Setup::default() };
    let server = setup.start().await;

    for endpoint in ["edits", "generations", "variations"] {
        let path = format!("/v1/images/{endpoint}");
        // The capability comes first: this body would be a 400.
        let response = server.post(&path).json(&7).send().await.unwrap();

        assert_eq!(response.headers()["x-should-retry"], "false");
        let error = error_of(response, 501, None).await;
        assert_eq!(error["type"], "not_implemented_error", "{endpoint}");
        assert_eq!(error["code"], "not_implemented", "{endpoint}");
    }
}

#[tokio::test]
async fn the_documents_defaults_ask_for_nothing() {
    let server = TestServer::start().await;
    let document = json_of(server.get("/openapi.json").send().await.unwrap()).await;
    let properties = &document["components"]["schemas"]["EditForm"]["properties"];

    // Generated clients send every one of them.
    let defaults = properties.as_object().unwrap().iter();
    let defaults = defaults.filter_map(|(name, schema)| Some((name, schema.get("default")?)));
    let form = defaults.fold(edit_form(), |form, (name, default)| {
        let text = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        form.text(name.clone(), text)
    });
    let reply = json_of(server.edit(form).await).await;

    assert_eq!(reply.get("warnings"), None);
}

#[tokio::test]
async fn the_document_asks_for_keys_where_the_server_does() {
    let adjust = |config: &mut ApiConfig| config.api_keys = ApiKeys::new(vec!["k".to_owned()]);
    let with_keys = Setup { adjust, ..Setup::default() }.start().await;
    let without = TestServer::start().await;

    let asking = json_of(with_keys.get("/openapi.json").send().await.unwrap()).await;
    let open = json_of(without.get("/openapi.json").send().await.unwrap()).await;

    assert_eq!(asking["components"]["securitySchemes"]["azure"]["name"], "api-key");
    assert_eq!(asking["security"].as_array().unwrap().len(), 2);
    for path in ["/", "/health", "/v1/images/files/{name}"] {
        assert_eq!(asking["paths"][path]["get"]["security"], serde_json::json!([]), "{path}");
    }
    assert_eq!(asking["paths"]["/v1/models"]["get"].get("security"), None);
    assert_eq!(open.get("security"), None);
}
