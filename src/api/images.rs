//! Pictures: edits, generations and variations.
//!
//! All three go the same way: body → fields (`form`) → what is to be done
//! ([`prepare`]) → the queue → files → reply. Whatever can be refused is refused before a picture
//! is decoded, and decoded before a place in the queue is taken.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::accept;
use super::access::Permit;
use super::address::Deployment;
use super::deadline::Deadline;
use super::docs::{MadePictures, OutsideFields};
use super::error::ApiError;
use super::form::{self, Encodings};
use super::jobs;
use super::kept::Keeper;
use super::origin::Origin;
use super::reply::{self, ReplyFacts};
use super::role::Role;
use super::state::AppState;
use super::stream::{self, PreviewEvents};
use crate::domain::{Seed, Task};
use crate::metrics::Operation;
use crate::requests::schema::{EditForm, EditJson, GenerationJson, ReplayForm, VariationForm};
use crate::requests::{
    Asked, Delivery, Endpoint, Fields, Output, Prepared, Recipe, RequestContext, prepare,
};
use crate::service::{JobHandle, MemoryShare, Submission};
use crate::telemetry::spans;

/// Edit pictures as a prompt says
///
/// Send the pictures as files (`multipart/form-data`) or as data URLs
/// (`application/json`). OpenAI's clients work unchanged; fields without effect
/// here are accepted and named in `warnings`.
#[utoipa::path(
    post,
    path = "/images/edits",
    tag = "images",
    request_body(content((EditForm = "multipart/form-data"), (EditJson = "application/json"))),
    params(OutsideFields),
    responses(MadePictures)
)]
pub(super) async fn edits(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Edits).await
}

/// Make pictures from words alone
#[utoipa::path(
    post,
    path = "/images/generations",
    tag = "images",
    request_body(content = GenerationJson, content_type = "application/json"),
    params(OutsideFields),
    responses(MadePictures)
)]
pub(super) async fn generations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Generations).await
}

/// Make pictures like a given one
#[utoipa::path(
    post,
    path = "/images/variations",
    tag = "images",
    request_body(content = VariationForm, content_type = "multipart/form-data"),
    params(OutsideFields),
    responses(MadePictures)
)]
pub(super) async fn variations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(state, request, Endpoint::Variations).await
}

/// Make a picture again
///
/// Pictures of this server carry how they were made, but for what the client
/// had. Send such a file as `picture`, with the original inputs (the pictures,
/// the words, the mask): the same model makes the same picture. Fields that are
/// sent win over what the file says, so that a picture can be made again with,
/// say, more steps.
#[utoipa::path(
    post,
    path = "/images/replay",
    tag = "images",
    request_body(content = ReplayForm, content_type = "multipart/form-data"),
    params(OutsideFields),
    responses(MadePictures)
)]
pub(super) async fn replay(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::of(request.headers(), &state.config)?;
    deadline.bound(replay_until(deadline, state, request)).await
}

async fn replay_until(
    deadline: Deadline,
    state: AppState,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let context = permit.context(&state.requests)?;
    let (origin, asked) = outside_of(&request, &state, &permit);
    let idempotency_key = jobs::idempotency_key(request.headers())?;
    let (mut fields, mut memory) = form::read(request, Encodings::Multipart, &state).await?;
    // The recipe in it is at most as long again.
    memory.grow_by(fields.held_bytes()).await?;
    let (recipe, mut fields, memory) = tokio::task::spawn_blocking(spans::carried(move || {
        Recipe::take(&mut fields).map(|recipe| (recipe, fields, memory))
    }))
    .await??;
    let endpoint = recipe.endpoint;
    let kind = endpoint.task_kind();
    // The picture is of one model, however the request is sent.
    let made_by = context.models.named(&recipe.model, Some(kind))?;
    let asked = Asked { deployment: Some(made_by.images.card().id.clone()), ..asked };
    recipe.fill(&mut fields);
    let sent = Sent { endpoint, origin, asked, idempotency_key };
    make((&state, &permit, &context), (fields, memory), sent, deadline).await
}

/// Reads a request and does what it asks for. What no model does is refused before the
/// body is read.
async fn answer(
    state: AppState,
    request: Request,
    endpoint: Endpoint,
) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let context = permit.context(&state.requests)?;
    context.models.check_offered(endpoint.task_kind())?;
    let deadline = Deadline::of(request.headers(), &state.config)?;
    let answering = async {
        let (origin, asked) = outside_of(&request, &state, &permit);
        let idempotency_key = jobs::idempotency_key(request.headers())?;
        let read = form::read(request, Encodings::of(endpoint), &state).await?;
        let sent = Sent { endpoint, origin, asked, idempotency_key };
        make((&state, &permit, &context), read, sent, deadline).await
    };
    deadline.bound(answering).await
}

/// What was sent besides the fields.
pub(super) struct Sent {
    pub(super) endpoint: Endpoint,
    pub(super) origin: Origin,
    pub(super) asked: Asked,
    /// The client's own name for the request, if it asks for a job.
    pub(super) idempotency_key: Option<String>,
}

/// Makes what the fields ask for, now or, `background`, later.
async fn make(
    with: (&AppState, &Arc<Permit>, &RequestContext),
    read: (Fields, MemoryShare),
    sent: Sent,
    deadline: Deadline,
) -> Result<Response, ApiError> {
    match begin(with, read, sent).await? {
        Begun::Accepted(response) => Ok(response),
        Begun::Relayed(relayed) => relayed.deliver(deadline).await,
        Begun::Ordered(ordered) => ordered.deliver(deadline).await,
    }
}

/// A request that was understood.
pub(super) enum Begun {
    /// It is a job: 202 with it.
    Accepted(Response),
    /// A worker makes it, while its client waits here.
    Relayed(jobs::Relayed),
    /// It is in the line of its model.
    Ordered(Box<Ordered>),
}

/// Has what the fields ask for stored, or made by a worker, or puts it into the line of its
/// model.
pub(super) async fn begin(
    (state, permit, context): (&AppState, &Arc<Permit>, &RequestContext),
    (mut fields, memory): (Fields, MemoryShare),
    sent: Sent,
) -> Result<Begun, ApiError> {
    if fields.take_in_background() {
        let accepted = jobs::accept((state, permit, context), (fields, memory), sent).await?;
        return Ok(Begun::Accepted(accepted));
    }
    jobs::refuse_webhook(&mut fields)?;
    if state.config.role == Role::Gateway {
        let relayed = jobs::relay((state, permit, context), (fields, memory), sent).await?;
        return Ok(Begun::Relayed(relayed));
    }
    let prepared = prepare(context, (fields, memory), sent.endpoint, sent.asked).await?;
    permit.book(prepared.request.count.get())?;
    Ok(Begun::Ordered(Box::new(order(state, prepared, sent.origin).await?)))
}

/// What a request says outside its body.
pub(super) fn outside_of(request: &Request, state: &AppState, permit: &Permit) -> (Origin, Asked) {
    let deployment = request.extensions().get::<Deployment>();
    let asked = Asked {
        deployment: deployment.map(|Deployment(name)| name.clone()),
        accepted: accept::accepted_by(request.headers()),
        client: permit.client(),
        is_followed: false,
    };
    (Origin::of(request.headers(), &state.config), asked)
}

fn operation_of(endpoint: Endpoint, task: &Task) -> Operation {
    match (endpoint, task) {
        (Endpoint::Generations, _) => Operation::Generation,
        (Endpoint::Variations, _) => Operation::Variation,
        (Endpoint::Edits, Task::Inpaint { .. }) => Operation::Inpainting,
        (Endpoint::Edits, _) => Operation::Edit,
    }
}

/// Pictures that a model was asked for.
pub(super) struct Ordered {
    pub(super) handle: JobHandle,
    facts: ReplyFacts,
    output: Output,
    keeper: Keeper,
    endpoint: Endpoint,
    seed: Seed,
}

/// Puts a request into the line of its model.
pub(super) async fn order(
    state: &AppState,
    prepared: Prepared,
    origin: Origin,
) -> Result<Ordered, ApiError> {
    let Prepared { endpoint, model, request, client, output, memory, .. } = prepared;
    let seed = request.seed;
    let facts = ReplyFacts {
        model: model.images.card().id.clone(),
        steps: request.steps.get(),
        quality: prepared.quality,
        format: output.format,
        png_compression: state.config.png_compression,
        recipe: prepared.recipe,
        software: format!("{} {}", state.config.app_name, state.config.app_version),
        mask_convention: prepared.mask_convention.map(Into::into),
        warnings: prepared.warnings,
        operation: operation_of(endpoint, &request.task),
        metrics: state.metrics().clone(),
    };
    facts.describe(&tracing::Span::current(), request.count.get());
    let submission = Submission { request, previews: output.previews, client };
    let handle = model.images.submit(submission, memory).await?;
    let keeper = Keeper { state: state.clone(), origin };
    Ok(Ordered { handle, facts, output, keeper, endpoint, seed })
}

impl Ordered {
    /// Whether the reply is events.
    pub(super) fn is_streamed(&self) -> bool {
        self.output.delivery.is_streamed()
    }

    /// What is seen of the picture while it is made: by others than those who get the reply,
    /// which has none of it then.
    pub(super) fn take_previews(&mut self) -> PreviewEvents {
        let previews = self.handle.take_previews();
        PreviewEvents::new(previews, self.facts.clone(), (self.endpoint, self.seed))
    }

    /// The reply; dropped, the work is called off.
    pub(super) async fn deliver(self, deadline: Deadline) -> Result<Response, ApiError> {
        let Self { handle, facts, output, keeper, endpoint, seed } = self;
        match output.delivery {
            Delivery::Events => {
                let keeper = output.store.then_some(keeper);
                Ok(stream::respond((handle, deadline), (facts, keeper), endpoint, seed))
            }
            Delivery::Base64 | Delivery::Url | Delivery::File => {
                reply::respond(handle, facts, (output, keeper)).await
            }
        }
    }
}
