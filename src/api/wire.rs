//! The JSON that clients read, word for word.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, chain};
use crate::imaging::codec::{self, OutputFormat};
use crate::model::{Capabilities, Generation, ModelInfo, TokenUsage};

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorEnvelope {
    pub(super) error: ErrorBody,
}

/// What went wrong. All four keys are always there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// For people.
    #[schema(example = "Missing required parameter: 'prompt'.")]
    pub(super) message: String,
    /// The class of the error.
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    pub(super) kind: String,
    /// The field at fault, if one is.
    #[schema(example = "prompt", required = true)]
    pub(super) param: Option<String>,
    /// The error for programs, if it has a name.
    #[schema(example = "missing_required_parameter", required = true)]
    pub(super) code: Option<String>,
}

/// The finished pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImagesResponse {
    /// Seconds since 1970.
    created: u64,
    /// The model that made them.
    model: String,
    data: Vec<ImageData>,
    /// Width and height of the pictures.
    #[schema(example = "1024x1024")]
    size: String,
    #[schema(example = "png")]
    output_format: &'static str,
    /// Always `opaque`.
    #[schema(example = "opaque")]
    background: &'static str,
    usage: Usage,
    /// What was accepted without effect; left out if there is nothing to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
}

/// One finished picture.
#[derive(Debug, Serialize, ToSchema)]
struct ImageData {
    /// The file, in standard base64.
    b64_json: String,
    /// The seed that makes this picture again.
    seed: u64,
}

/// Token counts of the request.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    input_tokens: usize,
    output_tokens: usize,
    total_tokens: usize,
    input_tokens_details: TokenDetails,
    output_tokens_details: TokenDetails,
}

/// Tokens by what they stand for.
#[derive(Debug, Serialize, ToSchema)]
struct TokenDetails {
    text_tokens: usize,
    image_tokens: usize,
}

impl From<TokenUsage> for Usage {
    fn from(usage: TokenUsage) -> Self {
        let input_tokens = usage.input_text_tokens + usage.input_image_tokens;
        Self {
            input_tokens,
            output_tokens: usage.output_image_tokens,
            total_tokens: input_tokens + usage.output_image_tokens,
            input_tokens_details: TokenDetails {
                text_tokens: usage.input_text_tokens,
                image_tokens: usage.input_image_tokens,
            },
            output_tokens_details: TokenDetails {
                text_tokens: 0,
                image_tokens: usage.output_image_tokens,
            },
        }
    }
}

/// What the pictures of a reply are like, besides the pictures.
#[derive(Debug)]
pub(super) struct ReplyFacts {
    pub(super) created: u64,
    pub(super) model: String,
    /// `WIDTHxHEIGHT` of the pictures.
    pub(super) size: String,
    pub(super) format: OutputFormat,
    pub(super) warnings: Vec<String>,
}

/// Encodes the pictures and writes the reply's body. Takes long: not for the
/// async runtime.
///
/// # Errors
/// [`ApiError::Internal`] if the format cannot hold a picture.
pub(super) fn images_body(generation: &Generation, facts: ReplyFacts) -> Result<Vec<u8>, ApiError> {
    let internal = |error: &dyn std::error::Error| ApiError::Internal(chain(error));
    let mut data = Vec::new();
    for generated in &generation.images {
        let file = codec::encode(&generated.image, facts.format).map_err(|e| internal(&e))?;
        data.push(ImageData { b64_json: STANDARD.encode(file), seed: generated.seed.get() });
    }
    let response = ImagesResponse {
        created: facts.created,
        model: facts.model,
        data,
        size: facts.size,
        output_format: facts.format.name(),
        background: "opaque",
        usage: generation.usage.into(),
        warnings: facts.warnings,
    };
    serde_json::to_vec(&response).map_err(|error| internal(&error))
}

/// A model, as OpenAI lists it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelObject {
    #[schema(example = "Qwen/Qwen-Image-Edit")]
    pub(super) id: String,
    /// Always `model`.
    #[schema(example = "model")]
    pub(super) object: &'static str,
    /// Seconds since 1970: when the server started.
    pub(super) created: u64,
    pub(super) owned_by: String,
}

/// The loaded model, in a list of one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    pub(super) object: &'static str,
    pub(super) data: Vec<ModelObject>,
}

/// How the server is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `healthy`, `shutting_down` or `failed`.
    #[schema(example = "healthy")]
    pub(super) status: &'static str,
    /// Whether a picture is being made.
    pub(super) busy: bool,
    /// Requests that wait for the model.
    pub(super) waiting: usize,
    /// How many may wait.
    pub(super) queue_capacity: usize,
}

/// What this server is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceInfo {
    pub(super) service: String,
    pub(super) version: String,
    pub(super) model: ModelFacts,
    pub(super) capabilities: CapabilityFacts,
    /// Paths; `capabilities` says which of them the model serves.
    pub(super) endpoints: Endpoints,
    /// Path of the documentation that can be tried out.
    pub(super) docs: &'static str,
    /// Path of the OpenAPI document.
    pub(super) openapi: &'static str,
}

/// Where things are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Endpoints {
    pub(super) edits: String,
    pub(super) generations: String,
    pub(super) variations: String,
    pub(super) models: String,
    pub(super) health: &'static str,
}

/// What the loaded model is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelFacts {
    id: String,
    /// Class of the pipeline in diffusers.
    pipeline: String,
    description: String,
    device: String,
    dtype: String,
    weight_bytes: usize,
    max_input_images: usize,
    /// Output sides are multiples of this many pixels.
    size_multiple: usize,
    /// The largest output, in pixels.
    max_output_area: usize,
    defaults: DefaultFacts,
}

/// What a request gets when it does not say otherwise.
#[derive(Debug, Serialize, ToSchema)]
struct DefaultFacts {
    num_inference_steps: usize,
    true_cfg_scale: f64,
    negative_prompt: Option<String>,
}

impl From<&ModelInfo> for ModelFacts {
    fn from(info: &ModelInfo) -> Self {
        Self {
            id: info.id.clone(),
            pipeline: info.pipeline.clone(),
            description: info.description.clone(),
            device: info.device.clone(),
            dtype: info.dtype.clone(),
            weight_bytes: info.weight_bytes,
            max_input_images: info.max_input_images,
            size_multiple: info.size_multiple,
            max_output_area: info.max_output_area,
            defaults: DefaultFacts {
                num_inference_steps: info.defaults.num_inference_steps.get(),
                true_cfg_scale: info.defaults.guidance.get(),
                negative_prompt: info.defaults.negative_prompt.clone(),
            },
        }
    }
}

/// What the loaded model can do; the server answers 501 for the rest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CapabilityFacts {
    text_to_image: bool,
    image_edit: bool,
    image_variation: bool,
    inpainting: bool,
    mask: bool,
}

impl From<Capabilities> for CapabilityFacts {
    fn from(capabilities: Capabilities) -> Self {
        let Capabilities { text_to_image, image_edit, image_variation, inpainting, mask } =
            capabilities;
        Self { text_to_image, image_edit, image_variation, inpainting, mask }
    }
}

/// `body` as JSON under `status`.
pub(super) fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    // Only maps with keys that are no strings fail, and these types have none.
    json_bytes(status, serde_json::to_vec(body).unwrap_or_default())
}

/// A response of bytes that are JSON already.
pub(super) fn json_bytes(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
