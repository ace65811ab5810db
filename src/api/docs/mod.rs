//! The OpenAPI document and the page on which it can be tried out, both served
//! from this binary.
//!
//! [`bodies`] describes what is read, the structs of `wire` what is written.

mod bodies;

use std::collections::BTreeMap;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::Value;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

pub(super) use bodies::{EditForm, EditJson, GenerationJson, ReplayForm, VariationForm};

use super::wire::{ErrorEnvelope, ImageEvent, ImagesResponse, json_bytes};
use super::{ApiConfig, images, meta, path_prefix};
use crate::model::{EditKind, GuidanceParameter, ModelInfo};

/// Where the document is.
pub(super) const DOCUMENT_PATH: &str = "/openapi.json";
/// Where the page is.
pub(super) const UI_PATH: &str = "/docs";

/// The schemas of request bodies, in which the loaded model's defaults are filled in.
const REQUEST_BODIES: [&str; 5] =
    ["EditForm", "EditJson", "GenerationJson", "VariationForm", "ReplayForm"];

/// The replies of the endpoints that make pictures.
pub(super) struct MadePictures;

impl IntoResponses for MadePictures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        const ERRORS: [(&str, &str); 10] = [
            ("400", "A field is missing or wrong; `param` names it"),
            ("401", "No key, or a wrong one"),
            ("404", "No such model"),
            ("408", "The request took too long to arrive"),
            ("413", "The request is too large"),
            ("415", "Another media type"),
            ("429", "The queue is full; see `Retry-After`"),
            ("500", "The model failed"),
            ("501", "The loaded model does not do this"),
            ("503", "The server is shutting down"),
        ];
        let schema = |name| Content::new(Some(Ref::from_schema_name(name)));
        let made = ResponseBuilder::new()
            .description("The finished pictures; with `stream`, an `ImageEvent` for each event")
            .content("application/json", schema("ImagesResponse"))
            .content("text/event-stream", Content::new(Some(events())));
        let mut responses = BTreeMap::from([("200".to_owned(), made.build().into())]);
        for (status, description) in ERRORS {
            let refused = ResponseBuilder::new()
                .description(description)
                .content("application/json", schema("ErrorEnvelope"));
            responses.insert(status.to_owned(), refused.build().into());
        }
        responses
    }
}

/// One event of a stream.
fn events() -> Object {
    let text = |description: &str| {
        ObjectBuilder::new().schema_type(Type::String).description(Some(description)).build()
    };
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("event", text("What it is: `….partial_image`, `….completed` or `error`."))
        .property("data", text("An `ImageEvent` as JSON; after `error`, an `ErrorEnvelope`."))
        .build()
}

#[derive(OpenApi)]
#[openapi(
    paths(
        images::edits,
        images::generations,
        images::variations,
        images::replay,
        images::file,
        meta::models,
        meta::model,
        meta::health,
        meta::service_info,
    ),
    components(schemas(ImagesResponse, ImageEvent, ErrorEnvelope))
)]
struct Document;

/// Routes of the document and the page.
pub(super) fn router<S: Clone + Send + Sync + 'static>(
    config: &ApiConfig,
    model: &ModelInfo,
) -> Router<S> {
    let document = document(config, model);
    let serve_document = move || {
        let document = document.clone();
        async move { json_bytes(StatusCode::OK, document.into_bytes()) }
    };
    // The validator's badge would have the browser call a foreign site.
    let page = SwaggerUi::new(UI_PATH).config(
        Config::from(DOCUMENT_PATH)
            .validator_url("none")
            .try_it_out_enabled(true)
            .display_request_duration(true)
            .default_models_expand_depth(-1),
    );
    Router::new().route(DOCUMENT_PATH, get(serve_document)).merge(page)
}

/// The document as JSON, with the configured prefix and the loaded model.
fn document(config: &ApiConfig, model: &ModelInfo) -> String {
    let mut document = Document::openapi();
    document.info.title.clone_from(&config.app_name);
    document.info.version.clone_from(&config.app_version);
    document.info.license = None;
    document.info.description = Some(format!(
        "OpenAI's images API, answered by `{}` on `{}`. {}",
        model.id, model.device, model.description
    ));
    let prefix = path_prefix(config);
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths
        .into_iter()
        .map(|(path, item)| match path.as_str() {
            "/" | "/health" => (path, item),
            _ => (format!("{prefix}{path}"), item),
        })
        .collect();
    // Only maps with keys that are no strings fail, and the document has none.
    let mut document = serde_json::to_value(&document).unwrap_or_default();
    leave_out_what_is_not_offered(&mut document, model, &prefix);
    fill_in_examples(&mut document, model);
    put_forms_first(&mut document);
    document.to_string()
}

/// Leaves out the endpoints and the fields that the loaded model answers with a
/// 501, or refuses whatever their value.
fn leave_out_what_is_not_offered(document: &mut Value, model: &ModelInfo, prefix: &str) {
    let can = model.capabilities;
    let endpoints = [
        ("edits", can.image_edit),
        ("generations", can.text_to_image),
        ("variations", can.image_variation),
    ];
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        for (name, _) in endpoints.into_iter().filter(|(_, is_offered)| !is_offered) {
            paths.shift_remove(&format!("{prefix}/images/{name}"));
        }
    }
    let masks = can.inpainting && can.mask;
    let by_noise = masks || model.edit_kind == EditKind::ImageToImage;
    let fields = [
        ("mask", masks),
        ("preserve_unmasked", masks),
        ("padding_mask_crop", masks),
        ("layers", model.edit_kind == EditKind::Layers),
        ("strength", by_noise || can.image_variation),
        ("guidance_scale", model.guidance_parameter == GuidanceParameter::GuidanceScale),
        ("true_cfg_scale", model.guidance_parameter == GuidanceParameter::TrueCfgScale),
    ];
    for schema in request_schemas(document) {
        let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
            continue;
        };
        for (name, _) in fields.iter().filter(|(_, is_offered)| !is_offered) {
            properties.shift_remove(*name);
        }
    }
}

/// The schemas of the request bodies.
fn request_schemas(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let schemas = document.pointer_mut("/components/schemas");
    let schemas = schemas.and_then(Value::as_object_mut).into_iter().flatten();
    schemas.filter(|(name, _)| REQUEST_BODIES.contains(&name.as_str())).map(|(_, schema)| schema)
}

/// Where a body may be a form or JSON, the page offers what comes first: let
/// that be the form, which has a button to choose a file.
fn put_forms_first(document: &mut Value) {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    for operations in paths.into_iter().flat_map(|paths| paths.values_mut()) {
        let content = operations.pointer_mut("/post/requestBody/content");
        if let Some(content) = content.and_then(Value::as_object_mut)
            && let Some(json) = content.shift_remove("application/json")
        {
            content.insert("application/json".to_owned(), json);
        }
    }
}

/// Puts what the loaded model goes by into the forms of the page.
fn fill_in_examples(document: &mut Value, model: &ModelInfo) {
    let defaults = &model.defaults;
    let examples = [
        ("model", Value::from(model.id.as_str())),
        ("num_inference_steps", defaults.num_inference_steps.get().into()),
        (model.guidance_parameter.name(), defaults.guidance.get().into()),
    ];
    let negative_prompt = defaults.negative_prompt.as_deref();
    let negative_prompt = negative_prompt.map(|text| ("negative_prompt", Value::from(text)));
    let prompt = model.instructions.first().map(|phrase| ("prompt", phrase.as_str().into()));
    let examples: Vec<_> = examples.into_iter().chain(negative_prompt).chain(prompt).collect();
    for schema in request_schemas(document) {
        for (field, example) in &examples {
            if let Some(field) = schema.pointer_mut(&format!("/properties/{field}")) {
                field["example"] = example.clone();
            }
        }
    }
}
