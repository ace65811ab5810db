//! The OpenAPI document and the page on which it can be tried out, both served
//! from this binary.
//!
//! The structs here are never made: they describe the request bodies that
//! `form` and `parameters` read, each field with what it does.
#![expect(dead_code, reason = "read by the derive macros only")]

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::Value;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::{OpenApi, ToSchema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::wire::json_bytes;
use super::{ApiConfig, images, meta, path_prefix};
use crate::model::ModelInfo;

/// Where the document is.
pub(super) const DOCUMENT_PATH: &str = "/openapi.json";
/// Where the page is.
pub(super) const UI_PATH: &str = "/docs";

/// The schemas of request bodies, in which the loaded model's defaults are filled in.
const REQUEST_BODIES: [&str; 4] = ["EditForm", "EditJson", "GenerationJson", "VariationForm"];

/// A form for an edit.
#[derive(ToSchema)]
pub(super) struct EditForm {
    /// The pictures to edit: PNG, JPEG or WebP. `image[]` works as well.
    #[schema(value_type = Vec<String>, format = Binary)]
    image: Vec<Vec<u8>>,
    /// What to change, in words: 1 to 32,000 characters.
    #[schema(example = "Turn the sky into a red sunset")]
    prompt: String,
    /// The loaded model's id, or a hosted name such as `gpt-image-1`.
    #[schema(nullable = false)]
    model: Option<String>,
    /// How many pictures.
    #[schema(nullable = false, minimum = 1, maximum = 10, default = 1)]
    n: Option<u32>,
    /// `auto` (what the model makes of the first picture) or `WIDTHxHEIGHT`.
    #[schema(nullable = false, default = "auto")]
    size: Option<String>,
    /// What to steer away from; the empty text counts.
    #[schema(nullable = false)]
    negative_prompt: Option<String>,
    /// Denoising steps; the model's own number if absent.
    #[schema(nullable = false, minimum = 1, maximum = 150)]
    num_inference_steps: Option<u32>,
    /// Strength of true classifier-free guidance; the model's own if absent.
    #[schema(nullable = false, minimum = 0, maximum = 20)]
    true_cfg_scale: Option<f64>,
    /// Same request, same seed, same picture. Drawn if absent, and reported.
    #[schema(nullable = false, minimum = 0, example = 42)]
    seed: Option<u64>,
    #[schema(schema_with = format_schema, required = false)]
    output_format: Option<String>,
    /// Quality of a JPEG, 0 to 100.
    #[schema(nullable = false, minimum = 0, maximum = 100)]
    output_compression: Option<u8>,
    /// Only `b64_json`.
    #[schema(nullable = false)]
    response_format: Option<String>,
}

/// A format of the finished pictures, for a list to choose from.
fn format_schema() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(["png", "jpeg", "webp"]))
        .default(Some("png".into()))
        .description(Some("Format of the pictures; `webp` is without loss."))
        .build()
}

/// A picture by reference.
#[derive(ToSchema)]
pub(super) struct ImageReference {
    /// A data URL. Addresses are not fetched.
    #[schema(
        example = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"
    )]
    image_url: String,
}

/// A JSON object for an edit. Takes every field of the form, too.
#[derive(ToSchema)]
pub(super) struct EditJson {
    /// The pictures to edit.
    images: Vec<ImageReference>,
    /// What to change, in words: 1 to 32,000 characters.
    #[schema(example = "Turn the sky into a red sunset")]
    prompt: String,
    /// The loaded model's id, or a hosted name such as `gpt-image-1`.
    model: Option<String>,
    /// How many pictures.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    n: Option<u32>,
    /// `auto` or `WIDTHxHEIGHT`.
    #[schema(default = "auto")]
    size: Option<String>,
    /// What to steer away from; the empty text counts.
    negative_prompt: Option<String>,
    /// Denoising steps; the model's own number if absent.
    #[schema(minimum = 1, maximum = 150)]
    num_inference_steps: Option<u32>,
    /// Strength of true classifier-free guidance; the model's own if absent.
    #[schema(minimum = 0, maximum = 20)]
    true_cfg_scale: Option<f64>,
    /// Same request, same seed, same picture. Drawn if absent, and reported.
    #[schema(minimum = 0, example = 42)]
    seed: Option<u64>,
    #[schema(schema_with = format_schema, required = false)]
    output_format: Option<String>,
}

/// A JSON object for a generation. Takes every field of an edit's form but the
/// pictures.
#[derive(ToSchema)]
pub(super) struct GenerationJson {
    /// What to show, in words: 1 to 32,000 characters.
    #[schema(example = "A lighthouse at dusk, oil on canvas")]
    prompt: String,
    /// The loaded model's id, or a hosted name such as `gpt-image-1`.
    model: Option<String>,
    /// How many pictures.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    n: Option<u32>,
    /// `auto` or `WIDTHxHEIGHT`.
    #[schema(default = "auto")]
    size: Option<String>,
    /// What to steer away from; the empty text counts.
    negative_prompt: Option<String>,
    /// Denoising steps; the model's own number if absent.
    #[schema(minimum = 1, maximum = 150)]
    num_inference_steps: Option<u32>,
    /// Same request, same seed, same picture. Drawn if absent, and reported.
    #[schema(minimum = 0, example = 42)]
    seed: Option<u64>,
    #[schema(schema_with = format_schema, required = false)]
    output_format: Option<String>,
}

/// A form for a variation.
#[derive(ToSchema)]
pub(super) struct VariationForm {
    /// The picture to vary: PNG, JPEG or WebP.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// How far to go from it: 0 (not at all) to 1 (anew).
    #[schema(nullable = false, minimum = 0, maximum = 1)]
    strength: Option<f64>,
    /// Words to go by; may be left out.
    #[schema(nullable = false)]
    prompt: Option<String>,
    /// How many pictures.
    #[schema(nullable = false, minimum = 1, maximum = 10, default = 1)]
    n: Option<u32>,
    /// `auto` or `WIDTHxHEIGHT`.
    #[schema(nullable = false, default = "auto")]
    size: Option<String>,
    /// Same request, same seed, same picture. Drawn if absent, and reported.
    #[schema(nullable = false, minimum = 0, example = 42)]
    seed: Option<u64>,
}

#[derive(OpenApi)]
#[openapi(paths(
    images::edits,
    images::generations,
    images::variations,
    meta::models,
    meta::model,
    meta::health,
    meta::service_info,
))]
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
    fill_in_examples(&mut document, model);
    put_forms_first(&mut document);
    document.to_string()
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
    let negative_prompt = defaults.negative_prompt.as_deref().unwrap_or_default();
    let examples = [
        ("model", Value::from(model.id.as_str())),
        ("num_inference_steps", defaults.num_inference_steps.get().into()),
        ("true_cfg_scale", defaults.guidance.get().into()),
        ("negative_prompt", negative_prompt.into()),
    ];
    let schemas = document.pointer_mut("/components/schemas");
    let schemas = schemas.and_then(Value::as_object_mut).into_iter().flatten();
    let requests = schemas.filter(|(name, _)| REQUEST_BODIES.contains(&name.as_str()));
    for (_, schema) in requests {
        for (field, example) in &examples {
            if let Some(field) = schema.pointer_mut(&format!("/properties/{field}")) {
                field["example"] = example.clone();
            }
        }
    }
}
