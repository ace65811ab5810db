//! The JSON that clients read, word for word.

mod health;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(super) use health::{DeepHealth, ExpectedFrom, Health, PictureStatus, Readiness};

use crate::domain::{ScheduleShift, TaskKind, TaskKinds};
use crate::model::{EditKind, TokenUsage};
use crate::requests::{self, Preset, Quality, QualityTable};
use crate::service::{ImageService, ReplicaState};

/// The body of every error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct ErrorEnvelope {
    pub(super) error: ErrorBody,
}

/// What went wrong. All four keys are always there.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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
    pub(super) created: u64,
    /// The model that made them.
    pub(super) model: String,
    pub(super) data: Vec<ImageData>,
    /// Width and height of the pictures.
    #[schema(example = "1024x1024")]
    pub(super) size: String,
    #[schema(example = "high")]
    pub(super) quality: &'static str,
    #[schema(example = "png")]
    pub(super) output_format: &'static str,
    pub(super) background: Background,
    /// How the mask was understood; only with a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mask_convention: Option<MaskConvention>,
    pub(super) usage: Usage,
    /// The share of the network's blocks that `cache_threshold` spared; only with that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skipped_blocks: Option<f64>,
    /// What was accepted without effect; left out if there is nothing to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(super) warnings: Vec<String>,
}

/// One finished picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageData {
    /// The file, in standard base64; not with `response_format=url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) b64_json: Option<String>,
    /// Where the file can be fetched for a while; with `response_format=url`, or `store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    /// Always null: the prompt is taken as it is.
    pub(super) revised_prompt: Option<String>,
    /// The seed that makes this picture again.
    pub(super) seed: u64,
}

/// Token counts of the request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
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

/// An event of a stream of pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageEvent {
    /// `image_edit` or `image_generation`, then `.partial_image` or `.completed`.
    #[serde(rename = "type")]
    #[schema(example = "image_edit.completed")]
    pub(super) kind: String,
    /// The file, in standard base64.
    pub(super) b64_json: String,
    /// The number of an unfinished picture, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partial_image_index: Option<usize>,
    /// Seconds since 1970.
    pub(super) created_at: u64,
    /// Width and height of the picture.
    #[schema(example = "1024x1024")]
    pub(super) size: String,
    #[schema(example = "high")]
    pub(super) quality: &'static str,
    pub(super) background: Background,
    #[schema(example = "png")]
    pub(super) output_format: &'static str,
    /// Where the file can be fetched for a while; with `store`, and the finished picture only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    /// With the finished picture only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    /// How long the request waited for its model to be loaded, if it did; only with the
    /// finished picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_load_ms: Option<u64>,
    /// The share of the network's blocks that `cache_threshold` spared; only with that, and
    /// with the finished picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skipped_blocks: Option<f64>,
    /// How the mask was understood; only with the finished picture, and a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mask_convention: Option<MaskConvention>,
    /// The seed that makes this picture again.
    pub(super) seed: u64,
    /// What was accepted without effect; left out if there is nothing to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(super) warnings: Vec<String>,
}

/// What is behind the picture.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Background {
    Opaque,
    Transparent,
}

impl Background {
    pub(super) fn of(is_transparent: bool) -> Self {
        if is_transparent { Self::Transparent } else { Self::Opaque }
    }
}

/// Where a mask says that a picture is to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum MaskConvention {
    /// Where it is transparent: OpenAI's.
    Transparent,
    /// Where it is white: that of most other programs.
    White,
}

impl From<requests::MaskConvention> for MaskConvention {
    fn from(convention: requests::MaskConvention) -> Self {
        match convention {
            requests::MaskConvention::Transparent => Self::Transparent,
            requests::MaskConvention::White => Self::White,
        }
    }
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
    /// Always null: it is served as long as the server runs.
    pub(super) shutdown_date: Option<u64>,
}

/// A model, with what requests need to know of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelDetails {
    #[serde(flatten)]
    pub(super) object: ModelObject,
    /// What it is.
    pub(super) details: ModelFacts,
    /// What it can do.
    pub(super) capabilities: CapabilityFacts,
    /// What each `quality` stands for.
    pub(super) qualities: Vec<QualityFacts>,
    /// Other names that it answers to; one that ends with `*` stands for all that
    /// begin so.
    pub(super) aliases: Vec<String>,
}

/// What a `quality` stands for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QualityFacts {
    #[schema(example = "low")]
    quality: &'static str,
    num_inference_steps: usize,
    guidance: f64,
    /// LoRAs that act with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    loras: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule_shift: Option<f64>,
}

impl QualityFacts {
    pub(super) fn all_of(table: &QualityTable) -> Vec<Self> {
        let facts = |quality: Quality| {
            let Preset { steps, guidance, loras, schedule_shift } = table.preset(quality);
            let loras = loras.as_slice().iter();
            Self {
                quality: quality.name(),
                num_inference_steps: steps.get(),
                guidance: guidance.get(),
                loras: loras.map(|lora| lora.name().to_owned()).collect(),
                schedule_shift: schedule_shift.map(ScheduleShift::get),
            }
        };
        Quality::ALL.map(facts).into()
    }
}

/// The names of the models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    pub(super) object: &'static str,
    pub(super) data: Vec<ModelObject>,
}

/// What requests may name as `loras`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoraListing {
    /// Always `list`.
    #[schema(example = "list")]
    pub(super) object: &'static str,
    pub(super) data: Vec<LoraObject>,
}

/// A LoRA.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoraObject {
    /// Its name.
    #[schema(example = "Qwen-Image-Edit-Lightning-8steps")]
    pub(super) id: String,
    /// Always `lora`.
    #[schema(example = "lora")]
    pub(super) object: &'static str,
    /// The models in whose folder it is.
    pub(super) models: Vec<String>,
}

/// What a request would take.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EstimateResponse {
    /// The model that would make the pictures.
    pub(super) model: String,
    /// Pictures.
    pub(super) n: usize,
    /// Steps of each.
    pub(super) steps: usize,
    /// Seconds that they take once they are begun; `null` where that cannot be told yet.
    pub(super) seconds: Option<f64>,
    /// Requests that wait for this model.
    pub(super) waiting: usize,
    /// Seconds that what runs and waits takes; `null` where that cannot be told.
    pub(super) waiting_seconds: Option<f64>,
    /// Bytes of the model's weights that stay on its device; `null` if it is not loaded.
    pub(super) weight_bytes: Option<usize>,
    /// Bytes that the pictures take there besides, at most; `null` if that is not known.
    pub(super) activation_bytes: Option<usize>,
    /// What the client should know: sentences.
    pub(super) warnings: Vec<String>,
}

/// What this server is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceInfo {
    pub(super) service: String,
    pub(super) version: String,
    /// The model of requests that name none.
    pub(super) model: ModelFacts,
    /// The ids of all models.
    pub(super) models: Vec<String>,
    /// What any of them can do.
    pub(super) capabilities: CapabilityFacts,
    /// Paths; `capabilities` says which of them are served.
    pub(super) endpoints: Endpoints,
    /// Path of the page to play with; null if there is none.
    #[schema(required = true)]
    pub(super) playground: Option<&'static str>,
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
    pub(super) replay: String,
    pub(super) models: String,
    pub(super) health: &'static str,
}

/// What a model is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelFacts {
    id: String,
    /// Class of the pipeline in diffusers.
    pipeline: String,
    description: String,
    /// `loaded`, `loading`, `not_loaded` (it is when somebody asks for it) or `failed`; of
    /// the replica that is farthest, if there are several. `remote`: it is with workers.
    #[schema(example = "loaded")]
    state: &'static str,
    /// Where it is; null while it is not loaded.
    device: Option<String>,
    dtype: Option<String>,
    weight_bytes: Option<usize>,
    /// It on each of its devices, if these are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    replicas: Vec<ReplicaFacts>,
    max_input_images: usize,
    /// Output sides are multiples of this many pixels.
    size_multiple: usize,
    /// The largest output, in pixels.
    max_output_area: usize,
    /// Pixels that it works on when a request does not say otherwise.
    image_area: usize,
    /// The least and the most pixels at which it works, if that is known: what is asked
    /// outside of them is made at `image_area` and scaled.
    image_area_range: Option<[usize; 2]>,
    /// Whether an edit in other proportions than its input's goes on past the input's
    /// edges; if not, the input is cut to them.
    fills_beyond_input: bool,
    /// What an edit without a mask is to it: `instruction`, `image_to_image` or
    /// `layers`.
    edit_kind: &'static str,
    /// The parameter that sets the strength of its guidance.
    guidance_parameter: &'static str,
    /// Whether it takes `loras`, `cache_threshold` and `schedule_shift`.
    is_tunable: bool,
    /// Instructions that it follows, if it knows a fixed list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    instructions: Vec<String>,
    defaults: DefaultFacts,
}

/// What a request gets when it does not say otherwise.
#[derive(Debug, Serialize, ToSchema)]
struct DefaultFacts {
    num_inference_steps: usize,
    guidance: f64,
    negative_prompt: Option<String>,
    strength: f64,
}

/// A model on one device.
#[derive(Debug, Serialize, ToSchema)]
struct ReplicaFacts {
    /// As the model's.
    state: &'static str,
    device: Option<String>,
    dtype: Option<String>,
    weight_bytes: Option<usize>,
}

impl From<&ReplicaState> for ReplicaFacts {
    fn from(replica: &ReplicaState) -> Self {
        let (state, loaded) = match replica {
            ReplicaState::NotLoaded => ("not_loaded", None),
            ReplicaState::Loading => ("loading", None),
            ReplicaState::Failed(_) => ("failed", None),
            ReplicaState::Loaded(loaded) => ("loaded", Some(loaded)),
        };
        Self {
            state,
            device: loaded.map(|loaded| loaded.device.clone()),
            dtype: loaded.map(|loaded| loaded.dtype.clone()),
            weight_bytes: loaded.map(|loaded| loaded.weight_bytes),
        }
    }
}

impl ModelFacts {
    /// What is told of the model behind `service`.
    pub(super) fn of(service: &ImageService) -> Self {
        let card = service.card();
        let mut replicas: Vec<ReplicaFacts> =
            service.replicas().iter().map(ReplicaFacts::from).collect();
        let farthest = |replica: &ReplicaFacts| {
            ["loaded", "loading", "not_loaded"].iter().position(|state| *state == replica.state)
        };
        replicas.sort_by_key(|replica| farthest(replica).unwrap_or(usize::MAX));
        let first = replicas.first();
        Self {
            id: card.id.clone(),
            pipeline: card.pipeline.clone(),
            description: card.description.clone(),
            state: first.map_or("remote", |replica| replica.state),
            device: first.and_then(|replica| replica.device.clone()),
            dtype: first.and_then(|replica| replica.dtype.clone()),
            weight_bytes: first.and_then(|replica| replica.weight_bytes),
            replicas: if replicas.len() > 1 { replicas } else { Vec::new() },
            max_input_images: card.max_input_images,
            size_multiple: card.size_multiple,
            max_output_area: card.max_output_area,
            image_area: card.image_area,
            image_area_range: card.area_range.map(|range| [range.least, range.most]),
            fills_beyond_input: card.fills_beyond_input,
            edit_kind: match card.edit_kind {
                EditKind::Instruction => "instruction",
                EditKind::ImageToImage => "image_to_image",
                EditKind::Layers => "layers",
            },
            guidance_parameter: card.guidance_parameter.name(),
            is_tunable: card.is_tunable,
            instructions: card.instructions.clone(),
            defaults: DefaultFacts {
                num_inference_steps: card.defaults.num_inference_steps.get(),
                guidance: card.defaults.guidance.get(),
                negative_prompt: card.defaults.negative_prompt.clone(),
                strength: card.defaults.strength.get(),
            },
        }
    }
}

/// What a model can do; the server answers 501 for the rest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CapabilityFacts {
    text_to_image: bool,
    image_edit: bool,
    image_variation: bool,
    inpainting: bool,
    mask: bool,
}

impl From<TaskKinds> for CapabilityFacts {
    fn from(tasks: TaskKinds) -> Self {
        Self {
            text_to_image: tasks.contains(TaskKind::TextToImage),
            image_edit: tasks.contains(TaskKind::Edit),
            image_variation: tasks.contains(TaskKind::Variation),
            inpainting: tasks.contains(TaskKind::Inpainting),
            mask: tasks.contains(TaskKind::Inpainting),
        }
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
