//! The OpenAPI document as its readers use it: forms and JSON that are sent as they are
//! filled in.

use diffuser_api::domain::TaskKind;
use reqwest::Response;
use reqwest::multipart::Form;
use serde_json::{Value, json};

use crate::capabilities::{MATRICES, server_of};
use crate::support::files::png;
use crate::support::scripted_model;
use crate::support::server::{Setup, TestServer, error_of, file_part, image_bytes, json_of};

/// The request bodies of the operations that make pictures.
struct Bodies {
    document: Value,
}

impl Bodies {
    async fn of(server: &TestServer) -> Self {
        Self { document: json_of(server.get("/openapi.json").send().await.unwrap()).await }
    }

    /// What makes pictures.
    fn paths(&self) -> Vec<String> {
        let paths = self.document["paths"].as_object().unwrap();
        let makes =
            |(path, item): &(&String, &Value)| path.contains("/images/") && !item["post"].is_null();
        paths.iter().filter(makes).map(|(path, _)| path.clone()).collect()
    }

    fn content(&self, path: &str, media_type: &str) -> Option<&Value> {
        self.document["paths"][path]["post"]["requestBody"]["content"].get(media_type)
    }

    fn properties(&self, path: &str, media_type: &str) -> Vec<(String, Value)> {
        let Some(content) = self.content(path, media_type) else { return Vec::new() };
        let name = content["schema"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        let schema = &self.document["components"]["schemas"][name];
        let properties = schema["properties"].as_object().unwrap();
        properties.iter().map(|(name, field)| (name.clone(), field.clone())).collect()
    }

    /// The form of `path`, with what its fields give as examples and defaults, and with
    /// files where a person chooses one.
    fn form(&self, path: &str, filling: Filling, made: &[u8]) -> Form {
        let mut form = Form::new();
        for (name, field) in self.properties(path, "multipart/form-data") {
            let file = match name.as_str() {
                "image" => Some(png(64, 64)),
                "picture" => Some(made.to_vec()),
                _ => None,
            };
            if let Some(file) = file {
                form = form.part(name, file_part(file));
                continue;
            }
            let value = filling.of(&field);
            if let Some(text) = value.as_str() {
                form = form.text(name, text.to_owned());
            } else if !value.is_null() {
                form = form.text(name, value.to_string());
            }
        }
        form
    }
}

/// What an editor puts into a field that it is not told to leave empty.
#[derive(Debug, Clone, Copy)]
enum Filling {
    /// The example, and nothing without one, as our page does.
    Examples,
    /// The example, else the default.
    Defaults,
    /// The example, else the default, else a number within the bounds.
    Elements,
}

impl Filling {
    fn of(self, field: &Value) -> Value {
        let or =
            |first: &Value, second: Value| if first.is_null() { second } else { first.clone() };
        let number = ["maximum", "minimum"].map(|bound| field[bound].clone());
        match self {
            Self::Examples => field["example"].clone(),
            Self::Defaults => or(&field["example"], field["default"].clone()),
            Self::Elements => {
                let [most, least] = number;
                let bound = if least == json!(0) { least } else { most };
                or(&field["example"], or(&field["default"], bound))
            }
        }
    }
}

/// The first picture that came; none of an estimate.
async fn assert_made(path: &str, what: &str, response: Response) -> Vec<u8> {
    println!("{path} {what}: {}", response.status());
    let reply = json_of(response).await;
    if path.ends_with("/estimate") {
        assert_eq!(reply["n"], 1, "{reply}");
        return Vec::new();
    }
    image_bytes(&reply, 0)
}

#[tokio::test]
async fn every_form_and_every_example_works_as_it_stands_with_every_class() {
    for matrix in MATRICES {
        let server = server_of(matrix.checkpoint).await;
        let bodies = Bodies::of(&server).await;
        // What was made first is what a replay is about.
        let mut made = Vec::new();
        for path in bodies.paths() {
            for filling in [Filling::Examples, Filling::Defaults, Filling::Elements] {
                if bodies.content(&path, "multipart/form-data").is_none() {
                    continue;
                }
                let form = bodies.form(&path, filling, &made);
                let response = server.post(&path).multipart(form).send().await.unwrap();
                let picture = assert_made(&path, &format!("{filling:?}"), response).await;
                if made.is_empty() {
                    made = picture;
                }
            }
            if let Some(content) = bodies.content(&path, "application/json") {
                let response = server.post(&path).json(&content["example"]).send().await.unwrap();
                assert_made(&path, "JSON", response).await;
            }
        }
        assert!(!made.is_empty(), "{}", matrix.checkpoint);
    }
}

#[tokio::test]
async fn what_the_page_asks_for_first_is_what_every_class_can_send() {
    for matrix in MATRICES {
        let server = server_of(matrix.checkpoint).await;
        let bodies = Bodies::of(&server).await;
        for path in bodies.paths().into_iter().filter(|path| !path.ends_with("replay")) {
            if bodies.content(&path, "multipart/form-data").is_none() {
                continue;
            }
            let sent = &bodies.document["paths"][&path]["post"]["responses"]["200"]["content"];
            let media_type = sent.as_object().unwrap().keys().next().unwrap();
            let form = bodies.form(&path, Filling::Examples, &[]);

            let request = server.post(&path).header("accept", media_type).multipart(form);
            let response = request.send().await.unwrap();

            assert_eq!(response.status(), 200, "{} {path}: {media_type}", matrix.checkpoint);
            let came = response.headers()["content-type"].to_str().unwrap();
            assert!(came.starts_with(media_type), "{path}: {came}");
        }
    }
}

#[tokio::test]
async fn every_example_of_an_error_is_one_of_its_own_status() {
    let server = TestServer::start().await;
    let bodies = Bodies::of(&server).await;

    let responses = bodies.document["paths"]["/v1/images/edits"]["post"]["responses"].clone();

    let mut messages = Vec::new();
    for (status, response) in responses.as_object().unwrap() {
        if status.starts_with(['4', '5']) {
            let examples = &response["content"]["application/json"]["examples"];
            for example in examples.as_object().unwrap_or_else(|| panic!("{status}")).values() {
                let message = example["value"]["error"]["message"].as_str().unwrap();
                assert!(!messages.contains(&message), "{status}: {message}");
                messages.push(message);
            }
        }
    }
    assert!(messages.len() > 9, "{messages:?}");
    // Both reasons to come back later, both kinds of what is too large.
    for said in ["shutting down", "memory for requests is taken", "request_memory_bytes"] {
        assert!(messages.iter().any(|message| message.contains(said)), "{said}: {messages:?}");
    }
}

/// The page finds its blocks by them, and generated clients call their functions so.
#[tokio::test]
async fn no_two_operations_are_called_the_same() {
    let server = TestServer::start().await;
    let bodies = Bodies::of(&server).await;

    let paths = bodies.document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|path| path.as_object().unwrap().values());
    let mut names: Vec<_> = operations.filter_map(|it| it["operationId"].as_str()).collect();

    names.sort_unstable();
    assert!(names.len() > 20, "{names:?}");
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[tokio::test]
async fn the_page_starts_with_our_script_and_the_rest_of_swagger_ui() {
    let server = TestServer::start().await;

    for (path, media_type, part) in [
        ("/docs", "text/html", "swagger-initializer.js"),
        ("/docs/", "text/html", "swagger-initializer.js"),
        ("/docs/swagger-initializer.js", "text/javascript", "ParameterIncludeEmpty"),
        ("/docs/swagger-ui.css", "text/css", ".swagger-ui"),
    ] {
        let response = server.get(path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with(media_type), "{path}: {kind}");
        assert!(response.text().await.unwrap().contains(part), "{path}");
    }
}

#[tokio::test]
async fn what_is_estimated_is_what_the_document_says() {
    let mut card = scripted_model::card();
    card.tasks = card.tasks.with(TaskKind::TextToImage);
    let both = Setup { card, ..Setup::default() }.start().await;
    let edits = TestServer::start().await;
    let estimate = "/v1/images/estimate";
    let send = async |server: &TestServer, body: Value| {
        server.post(estimate).json(&body).send().await.unwrap()
    };

    let document = Bodies::of(&both).await;
    let json = &document.content(estimate, "application/json").unwrap()["schema"]["anyOf"];
    let form = &document.content(estimate, "multipart/form-data").unwrap()["schema"]["$ref"];
    let schema = |name: &str| json!(format!("#/components/schemas/{name}"));
    assert_eq!(json[0]["$ref"], schema("EditJson"));
    assert_eq!(json[1]["$ref"], schema("GenerationJson"));
    assert_eq!(*form, schema("EditForm"));
    // Null is "not given": words alone are a generation's.
    for generation in [json!({"prompt": "p"}), json!({"prompt": "p", "images": null})] {
        assert_eq!(json_of(send(&both, generation).await).await["n"], 1);
    }
    let no_pictures = send(&both, json!({"prompt": "p", "images": []})).await;
    error_of(no_pictures, 400, Some("images")).await;
    // As the schemas say: an empty text is one, and no number.
    assert_eq!(json_of(send(&both, json!({"prompt": "p", "size": ""})).await).await["n"], 1);
    error_of(send(&both, json!({"prompt": "p", "n": ""})).await, 400, Some("n")).await;
    let words = Form::new().text("prompt", "p");
    let no_picture = both.post(estimate).multipart(words).send().await.unwrap();
    error_of(no_picture, 400, Some("image")).await;

    let document = Bodies::of(&edits).await;
    let json = &document.content(estimate, "application/json").unwrap()["schema"];
    assert_eq!(json["$ref"], schema("EditJson"));
    error_of(send(&edits, json!({"prompt": "p"})).await, 501, None).await;
}

#[tokio::test]
async fn a_model_is_loaded_and_unloaded_at_paths_of_their_own() {
    let server = TestServer::start().await;
    let document = Bodies::of(&server).await.document;

    let itself = server.post("/v1/models/test/scripted-edit").send().await.unwrap();

    let asked = server.get("/v1/models/test/scripted-edit/load").send().await.unwrap();
    assert_eq!(itself.headers()["allow"], "GET,HEAD");
    assert_eq!(asked.headers()["allow"], "POST");
    error_of(itself, 405, None).await;
    error_of(asked, 405, None).await;
    for (path, method) in [("", "get"), ("/load", "post"), ("/unload", "post")] {
        let item = &document["paths"][&format!("/v1/models/{{id}}{path}")];
        let methods: Vec<&String> = item.as_object().unwrap().keys().collect();
        assert_eq!(methods, [method], "{path}");
        assert_eq!(item[method]["parameters"][0]["name"], "id", "{path}");
    }
}

#[tokio::test]
async fn what_becomes_of_jobs_is_documented_as_it_is_told() {
    let server = TestServer::start().await;
    let document = Bodies::of(&server).await.document;
    let of = |operation: &str| {
        let place = format!("/paths/~1v1~1jobs~1{{id}}{operation}/responses/200/content");
        document.pointer(&place).unwrap_or_else(|| panic!("{place}")).clone()
    };
    let schemas = &document["components"]["schemas"];

    assert_eq!(
        of("/delete")["application/json"]["schema"]["$ref"],
        "#/components/schemas/EndedJob"
    );
    assert_eq!(schemas["EndedJob"]["oneOf"].as_array().unwrap().len(), 2);
    assert_eq!(schemas["DeletedJob"]["required"], json!(["id", "object", "deleted"]));
    assert_eq!(
        of("~1events/get")["text/event-stream"]["schema"]["$ref"],
        "#/components/schemas/JobEvent"
    );
    let event = schemas["JobEvent"]["properties"].as_object().unwrap();
    assert_eq!(event.keys().collect::<Vec<_>>(), ["event", "id", "data"]);
    for media_type in ["application/json", "image/png", "image/jpeg", "image/webp"] {
        assert!(of("~1result/get").get(media_type).is_some(), "{media_type}");
    }
}
