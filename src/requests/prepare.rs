//! From the fields of a request to what the service is to do.

use std::sync::Arc;

use super::context::{Asked, RequestContext};
use super::endpoint::Endpoint;
use super::error::RequestError;
use super::fields::Fields;
use super::masks::MaskConvention;
use super::models::ServedModel;
use super::parameters::{Output, Parameters};
use super::pictures::{DecodedInputs, Inputs};
use super::quality::Quality;
use super::recipe::Recipe;
use super::route::Route;
use crate::domain::{ImageRequest, Task, TaskKind};
use crate::model::{EditKind, ModelCard};
use crate::service::{Client, Framing, MemoryShare};
use crate::telemetry::spans;

/// A request that has been understood, with its pictures.
pub(crate) struct Prepared {
    pub(crate) endpoint: Endpoint,
    /// The model that it is for.
    pub(crate) model: Arc<ServedModel>,
    pub(crate) request: ImageRequest<Framing>,
    pub(crate) client: Client,
    pub(crate) output: Output,
    pub(crate) quality: Quality,
    /// How to make the pictures again.
    pub(crate) recipe: Recipe,
    pub(crate) mask_convention: Option<MaskConvention>,
    /// What the client should know: sentences.
    pub(crate) warnings: Vec<String>,
    /// The share of the pictures.
    pub(crate) memory: MemoryShare,
}

/// Fields → model → parameters → pictures → task. What can be refused is refused before a picture
/// is decoded. `memory` is the share of `fields`.
///
/// # Errors
/// The first fault, naming its field.
pub(crate) async fn prepare(
    context: &RequestContext,
    (mut fields, mut memory): (Fields, MemoryShare),
    endpoint: Endpoint,
    asked: Asked,
) -> Result<Prepared, RequestError> {
    let client = asked.client;
    let route = Route::find(&mut fields, endpoint, asked.deployment, &context.models)?;
    let served = Arc::clone(&route.model);
    let model = served.images.card();
    served.images.check_offered(endpoint.task_kind())?;
    let against = (context.settings, (asked.accepted, asked.is_followed));
    let mut parameters = Parameters::take(&mut fields, endpoint, route, against)?;
    check_loras(&served, &parameters).await?;
    let inputs = Inputs::take(&mut fields, endpoint, model)?;
    if inputs.has_mask() {
        served.images.check_offered(TaskKind::Inpainting)?;
    } else {
        parameters.note_missing_mask();
    }
    parameters.report_unknown(&fields);
    drop(fields);
    memory.shrink_to(inputs.held_bytes());

    let (mut inputs, memory) = inputs.decode((context, &served.images), memory).await?;
    parameters.warnings.append(&mut inputs.warnings);
    let mask_convention = inputs.mask_convention;
    let task = task_of(endpoint, &mut parameters, inputs, model)?;
    if let Task::Decompose { layers, .. } = &task {
        parameters.output.check_count("layers", layers.get())?;
    }
    Ok(Prepared {
        endpoint,
        output: parameters.output,
        quality: parameters.quality,
        recipe: parameters.recipe(endpoint, &task, (model, context.settings)),
        client,
        request: parameters.request(task),
        mask_convention,
        warnings: parameters.warnings,
        memory,
        model: served,
    })
}

/// Refuses LoRAs that are not there: off the runtime, for a folder is looked at.
async fn check_loras(
    served: &Arc<ServedModel>,
    parameters: &Parameters,
) -> Result<(), RequestError> {
    let loras = parameters.tuning.loras.clone();
    if loras.is_empty() {
        return Ok(());
    }
    let served = Arc::clone(served);
    Ok(tokio::task::spawn_blocking(spans::carried(move || served.check_loras(&loras))).await??)
}

/// What the request is to its model.
fn task_of(
    endpoint: Endpoint,
    parameters: &mut Parameters,
    inputs: DecodedInputs,
    model: &ModelCard,
) -> Result<Task, RequestError> {
    let DecodedInputs { images, mask, .. } = inputs;
    let mut images = images.into_iter();
    let mut first = || images.next().ok_or(RequestError::LostPicture);
    let default = model.defaults.strength;
    Ok(match (endpoint, mask) {
        (Endpoint::Generations, _) => Task::Generate,
        (Endpoint::Variations, _) => {
            Task::ImageToImage { image: first()?, strength: parameters.variation_strength()? }
        }
        (Endpoint::Edits, Some(mask)) => Task::Inpaint {
            image: first()?,
            mask,
            strength: parameters.strength_or(default),
            crop_padding: parameters.masking.crop_padding(),
        },
        (Endpoint::Edits, None) => match model.edit_kind {
            EditKind::Instruction => {
                parameters.refuse_strength()?;
                Task::Edit { images: images.collect() }
            }
            EditKind::ImageToImage => {
                let strength = parameters.strength_or(default);
                Task::ImageToImage { image: first()?, strength }
            }
            EditKind::Layers => {
                parameters.refuse_strength()?;
                Task::Decompose { image: first()?, layers: parameters.layers()? }
            }
        },
    })
}
