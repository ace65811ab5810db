//! The OpenAPI document and the page on which it can be tried out, both served
//! from this binary.
//!
//! `requests::schema` describes what is read, the structs of `wire` what is written.

mod page;

use std::collections::BTreeMap;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{Content, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};

use super::error::ApiError;
use super::wire::{ErrorEnvelope, ImageEvent, ImagesResponse, json_bytes};
use super::{ApiConfig, deadline, path_prefix};
use crate::domain::TaskKind;
use crate::model::{EditKind, GuidanceParameter, ModelCard};
use crate::requests::{DefaultResponseFormat, Models};

/// Where the document is.
pub(super) const DOCUMENT_PATH: &str = "/openapi.json";
/// Where the page is.
pub(super) const UI_PATH: &str = "/docs";

/// The schemas of request bodies, in which the models' defaults are filled in.
const REQUEST_BODIES: [&str; 5] =
    ["EditForm", "EditJson", "GenerationJson", "VariationForm", "ReplayForm"];

/// What a request for pictures may say outside its body.
pub(super) struct OutsideFields;

impl IntoParams for OutsideFields {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let version = Object::with_type(Type::String);
        let timeout = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(deadline::MOST_MS));
        let parameter = |name: &str, place, schema: Object, description: &str| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(place)
                .schema(Some(schema))
                .description(Some(description))
                .build()
        };
        vec![
            parameter(
                "api-version",
                ParameterIn::Query,
                version,
                "Accepted for the sake of Azure's clients; has no effect here",
            ),
            parameter(
                deadline::HEADER,
                ParameterIn::Header,
                timeout.build(),
                "After so many milliseconds the answer is a 504, and the work is called off",
            ),
        ]
    }
}

/// The replies of the endpoints that make pictures.
pub(super) struct MadePictures;

impl IntoResponses for MadePictures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let schema = |name| Content::new(Some(Ref::from_schema_name(name)));
        let made = ResponseBuilder::new()
            .description(
                "The finished pictures; with `stream`, an `ImageEvent` for each event; with \
                 `Accept: image/png` (or jpeg, webp), the file of one picture",
            )
            .content("image/png", Content::new(Some(PictureFile::schema())))
            .content("application/json", schema("ImagesResponse"))
            .content("text/event-stream", Content::new(Some(events())));
        let job = ResponseBuilder::new()
            .description("With `background`: the job that makes them")
            .content("application/json", schema("ImageJob"));
        let made = BTreeMap::from([
            ("200".to_owned(), made.build().into()),
            ("202".to_owned(), job.build().into()),
        ]);
        made.into_iter().chain(Refusals::responses()).collect()
    }
}

/// The errors of the endpoints that are asked for pictures.
pub(super) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut refusals: BTreeMap<String, Vec<(ApiError, &str)>> = BTreeMap::new();
        for (error, description) in ApiError::examples() {
            let status = error.status().as_str().to_owned();
            refusals.entry(status).or_default().push((error, description));
        }
        refusals.into_iter().map(|(status, of)| (status, refusal(&of).into())).collect()
    }
}

/// The reply of one status: an example of each error that has it, with what it means.
fn refusal(errors: &[(ApiError, &str)]) -> Response {
    let examples = errors.iter().map(|(error, description)| {
        let example = ExampleBuilder::new().value(serde_json::to_value(error.body()).ok());
        (*description, example.build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ErrorEnvelope")))
        .examples_from_iter(examples);
    let descriptions: Vec<&str> = errors.iter().map(|(_, description)| *description).collect();
    ResponseBuilder::new()
        .description(descriptions.join("; or: "))
        .content("application/json", content.build())
        .build()
}

/// The bytes of a picture.
pub(super) struct PictureFile;

impl PartialSchema for PictureFile {
    fn schema() -> RefOr<Schema> {
        let bytes = ObjectBuilder::new().schema_type(Type::String);
        bytes.format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary))).into()
    }
}

impl ToSchema for PictureFile {}

/// One event of a stream of pictures.
fn events() -> Object {
    event([
        ("event", "What it is: `….partial_image`, `….completed` or `error`."),
        ("data", "An `ImageEvent` as JSON; after `error`, an `ErrorEnvelope`."),
    ])
}

/// One event of a job.
pub(super) struct JobEvent;

impl PartialSchema for JobEvent {
    fn schema() -> RefOr<Schema> {
        event([
            ("event", "What it is: `queued`, `progress`, `completed`, `failed` or `cancelled`."),
            ("id", "Its number, for `Last-Event-ID`."),
            ("data", "The `ImageJob` as JSON."),
        ])
        .into()
    }
}

impl ToSchema for JobEvent {}

/// A server-sent event with these fields, all of them texts.
fn event<const FIELDS: usize>(fields: [(&str, &str); FIELDS]) -> Object {
    let text = |description: &str| {
        ObjectBuilder::new().schema_type(Type::String).description(Some(description)).build()
    };
    let object = ObjectBuilder::new().schema_type(Type::Object);
    let add = |object: ObjectBuilder, (name, description)| object.property(name, text(description));
    fields.into_iter().fold(object, add).build()
}

/// What is named in replies, and is no reply by itself.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(ImagesResponse, ImageEvent, ErrorEnvelope)))]
struct Base;

/// The document before any endpoint is in it.
pub(super) fn base() -> OpenApi {
    <Base as utoipa::OpenApi>::openapi()
}

/// Routes of the page and of `document`, which has the endpoints.
pub(super) fn router<S: Clone + Send + Sync + 'static>(
    document: OpenApi,
    config: &ApiConfig,
    models: &Models,
) -> Router<S> {
    let cards: Vec<&ModelCard> = models.all().iter().map(|model| model.images.card()).collect();
    let has_loras = models.all().iter().any(|model| model.has_loras());
    let document = finished(document, config, (&cards, has_loras));
    let serve_document = move || {
        let document = document.clone();
        async move { json_bytes(StatusCode::OK, document.into_bytes()) }
    };
    Router::new().route(DOCUMENT_PATH, get(serve_document)).merge(page::router())
}

/// `document` as JSON, with what the settings and the models make of it.
fn finished(
    mut document: OpenApi,
    config: &ApiConfig,
    (models, has_loras): (&[&ModelCard], bool),
) -> String {
    document.info.title.clone_from(&config.app_name);
    document.info.version.clone_from(&config.app_version);
    document.info.license = None;
    let described = models.iter().map(|model| format!("`{}`. {}", model.id, model.description));
    document.info.description = Some(format!(
        "OpenAI's images API, answered by {}",
        described.collect::<Vec<_>>().join(" And by ")
    ));
    let prefix = path_prefix(config);
    // Only maps with keys that are no strings fail, and the document has none.
    let mut document = serde_json::to_value(&document).unwrap_or_default();
    leave_out_what_is_not_offered(&mut document, (models, has_loras), &prefix);
    leave_out_single_files(&mut document, models);
    if !config.webhooks.allow_requests {
        leave_out_field(&mut document, "webhook_url");
    }
    fill_in_examples(&mut document, models);
    tell_defaults(&mut document, models);
    fill_in_bodies(&mut document);
    fill_in_response_format(&mut document, config.response_format);
    put_forms_first(&mut document);
    require_bodies(&mut document);
    if config.asks_for_keys() {
        ask_for_keys(&mut document, &prefix);
    }
    document.to_string()
}

/// Leaves out the endpoints and the fields that every model answers with a 501, or refuses
/// whatever their value.
fn leave_out_what_is_not_offered(
    document: &mut Value,
    (models, has_loras): (&[&ModelCard], bool),
    prefix: &str,
) {
    let is_tunable = models.iter().any(|model| model.is_tunable);
    let offers = |kind| models.iter().any(|model| model.tasks.contains(kind));
    let edits_as = |kind| models.iter().any(|model| model.edit_kind == kind);
    let guides_by = |name| models.iter().any(|model| model.guidance_parameter == name);
    let endpoints = [
        ("edits", offers(TaskKind::Edit)),
        ("generations", offers(TaskKind::TextToImage)),
        ("variations", offers(TaskKind::Variation)),
    ];
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        for (name, _) in endpoints.into_iter().filter(|(_, is_offered)| !is_offered) {
            paths.shift_remove(&format!("{prefix}/images/{name}"));
        }
        estimate_what_is_made(paths, prefix);
    }
    let masks = offers(TaskKind::Inpainting);
    let by_noise = masks || edits_as(EditKind::ImageToImage);
    let fields = [
        ("mask", masks),
        ("preserve_unmasked", masks),
        ("padding_mask_crop", masks),
        ("layers", edits_as(EditKind::Layers)),
        ("loras", has_loras && is_tunable),
        ("cache_threshold", is_tunable),
        ("schedule_shift", is_tunable),
        ("strength", by_noise || offers(TaskKind::Variation)),
        ("guidance_scale", guides_by(GuidanceParameter::GuidanceScale)),
        ("true_cfg_scale", guides_by(GuidanceParameter::TrueCfgScale)),
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

fn leave_out_field(document: &mut Value, name: &str) {
    for schema in request_schemas(document) {
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.shift_remove(name);
        }
    }
}

/// Has the estimate ask for what the generations ask for, beside or instead of what the edits
/// do. Its JSON is one or the other, its form always an edit's.
fn estimate_what_is_made(paths: &mut serde_json::Map<String, Value>, prefix: &str) {
    let address = |name: &str| format!("{prefix}/images/{name}");
    let edits = paths.contains_key(&address("edits"));
    let generations = paths.get(&address("generations"));
    let generations = generations.and_then(|path| path.pointer("/post/requestBody")).cloned();
    let estimate = paths.get_mut(&address("estimate"));
    let estimate = estimate.and_then(|path| path.pointer_mut("/post/requestBody"));
    let (Some(estimate), Some(generations)) = (estimate, generations) else { return };
    if !edits {
        *estimate = generations;
    } else if let Some(edit) = estimate.pointer_mut("/content/application~1json/schema") {
        let generation = &generations["content"]["application/json"]["schema"];
        *edit = json!({"anyOf": [edit.clone(), generation]});
    }
}

/// Leaves out that one file may be asked for, where every reply has several pictures.
fn leave_out_single_files(document: &mut Value, models: &[&ModelCard]) {
    if models.iter().any(|model| model.edit_kind != EditKind::Layers) {
        return;
    }
    for (_, operations) in paths(document) {
        let content = operations.pointer_mut("/post/responses/200/content");
        if let Some(content) = content.and_then(Value::as_object_mut) {
            content.shift_remove("image/png");
        }
    }
}

/// The schemas of the request bodies.
fn request_schemas(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let schemas = document.pointer_mut("/components/schemas");
    let schemas = schemas.and_then(Value::as_object_mut).into_iter().flatten();
    schemas.filter(|(name, _)| REQUEST_BODIES.contains(&name.as_str())).map(|(_, schema)| schema)
}

/// The paths of the document.
fn paths(document: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    paths.into_iter().flat_map(|paths| paths.iter_mut())
}

/// Where a body may be a form or JSON, the page offers what comes first: let
/// that be the form, which has a button to choose a file.
fn put_forms_first(document: &mut Value) {
    for (_, operations) in paths(document) {
        let content = operations.pointer_mut("/post/requestBody/content");
        if let Some(content) = content.and_then(Value::as_object_mut)
            && let Some(json) = content.shift_remove("application/json")
        {
            content.insert("application/json".to_owned(), json);
        }
    }
}

/// Says that no endpoint does without its body.
fn require_bodies(document: &mut Value) {
    for (_, operations) in paths(document) {
        if let Some(body) = operations.pointer_mut("/post/requestBody") {
            body["required"] = true.into();
        }
    }
}

/// Says how a key is sent, so that the page has a field for it, and what needs none.
fn ask_for_keys(document: &mut Value, prefix: &str) {
    document["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer"},
        "azure": {"type": "apiKey", "in": "header", "name": "api-key"},
    });
    document["security"] = json!([{"bearer": []}, {"azure": []}]);
    let files = format!("{prefix}/images/files/");
    let is_open = |path: &str| {
        ["/", "/health", super::metrics::PATH].contains(&path) || path.starts_with(&files)
    };
    for (_, operations) in paths(document).filter(|(path, _)| is_open(path)) {
        operations["get"]["security"] = json!([]);
    }
}

/// Says how pictures come back where a request leaves it open.
fn fill_in_response_format(document: &mut Value, response_format: DefaultResponseFormat) {
    let default = match response_format {
        DefaultResponseFormat::ByModelName | DefaultResponseFormat::Base64 => "b64_json",
        DefaultResponseFormat::Url => "url",
    };
    for field in request_fields(document, "response_format") {
        field["default"] = default.into();
    }
}

/// Fills in what a person would type, and what the first try needs. All else stays empty,
/// so that a form asks for nothing by itself.
fn fill_in_examples(document: &mut Value, models: &[&ModelCard]) {
    let instructions = models.iter().flat_map(|model| model.instructions.first());
    let prompt = instructions.take(1).map(|phrase| ("prompt", phrase.as_str().into()));
    // Of several layers none can be shown as one file.
    let examples = [("layers", Value::from(1))].into_iter().chain(prompt);
    for (name, example) in examples {
        for field in request_fields(document, name) {
            field["example"] = example.clone();
        }
    }
}

/// Says what the models do where a field is left out. Not as defaults: clients that are made
/// from the document send these, and what is sent wins over `quality`.
fn tell_defaults(document: &mut Value, models: &[&ModelCard]) {
    let names: Vec<String> = models.iter().map(|model| format!("`{}`", model.id)).collect();
    let default_model = match names.as_slice() {
        [only] => only.clone(),
        _ => "the first that does what is asked".to_owned(),
    };
    let mut facts = vec![("model", default_model)];
    for name in ["num_inference_steps", "true_cfg_scale", "guidance_scale", "negative_prompt"] {
        let of_models = models.iter().filter_map(|model| Some((*model, default_of(model, name)?)));
        let of_models: Vec<(&ModelCard, String)> = of_models.collect();
        if let Some(told) = told(&of_models) {
            facts.push((name, told));
        }
    }
    for (name, fact) in facts {
        for field in request_fields(document, name) {
            let text = field["description"].as_str().unwrap_or_default();
            field["description"] = format!("{text} Without it: {fact}.").into();
        }
    }
}

/// What a model does where the field `name` is left out, if it has that field.
fn default_of(model: &ModelCard, name: &str) -> Option<String> {
    let defaults = &model.defaults;
    match name {
        "num_inference_steps" => Some(defaults.num_inference_steps.get().to_string()),
        "negative_prompt" => defaults.negative_prompt.as_ref().map(|text| format!("`{text:?}`")),
        _ if name == model.guidance_parameter.name() => Some(defaults.guidance.get().to_string()),
        _ => None,
    }
}

/// What models do, once where they all do the same.
fn told(defaults: &[(&ModelCard, String)]) -> Option<String> {
    let (_, first) = defaults.first()?;
    if defaults.iter().all(|(_, default)| default == first) {
        return Some(first.clone());
    }
    let each = defaults.iter().map(|(model, default)| format!("{default} (`{}`)", model.id));
    Some(each.collect::<Vec<_>>().join(", "))
}

/// The field `name` of every request body that has it.
fn request_fields<'a>(
    document: &'a mut Value,
    name: &'a str,
) -> impl Iterator<Item = &'a mut Value> {
    let pointer = format!("/properties/{name}");
    request_schemas(document).filter_map(move |schema| schema.pointer_mut(&pointer))
}

/// Gives each body of JSON an example that is whole and works: what must be there, and
/// a seed.
fn fill_in_bodies(document: &mut Value) {
    let schemas: Vec<(String, Value)> = request_schemas_by_name(document);
    for (_, operations) in paths(document) {
        let Some(body) = operations.pointer_mut("/post/requestBody/content/application~1json")
        else {
            continue;
        };
        let reference = ["/schema/$ref", "/schema/anyOf/0/$ref"];
        let name = reference.into_iter().find_map(|place| body.pointer(place)?.as_str());
        let name = name.unwrap_or_default();
        let schema = schemas.iter().find(|(known, _)| name.ends_with(known.as_str()));
        if let Some((_, schema)) = schema {
            body["example"] = example_of(schema);
        }
    }
}

fn request_schemas_by_name(document: &Value) -> Vec<(String, Value)> {
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object);
    let of_requests = |(name, _): &(&String, &Value)| REQUEST_BODIES.contains(&name.as_str());
    let schemas = schemas.into_iter().flatten().filter(of_requests);
    schemas.map(|(name, schema)| (format!("/{name}"), schema.clone())).collect()
}

/// The examples of the fields that are needed, and of the seed.
fn example_of(schema: &Value) -> Value {
    let needed = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let fields = needed.chain(["seed"]).map(|name| {
        let field = &schema["properties"][name];
        (name.to_owned(), field["example"].clone())
    });
    Value::Object(fields.collect())
}
