//! What a request would take, without making it.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::access::Permit;
use super::deadline::Deadline;
use super::docs::{OutsideFields, Refusals};
use super::error::ApiError;
use super::form::{self, Encodings};
use super::images::outside_of;
use super::state::AppState;
use super::wire::{EstimateResponse, json_response};
use crate::requests::schema::{EditForm, EditJson};
use crate::requests::{Endpoint, Prepared, prepare};

/// What a request would take
///
/// Send what you would send to the edits, or to the generations: a form, and JSON with
/// `images` or a `mask`, is an edit's, other JSON a generation's. It is checked as there, and
/// what it takes is told in seconds and bytes. Nothing is made.
#[utoipa::path(
    post,
    path = "/images/estimate",
    tag = "images",
    request_body(content((EditForm = "multipart/form-data"), (EditJson = "application/json"))),
    params(OutsideFields),
    responses(
        (status = 200, description = "What it would take", body = EstimateResponse),
        Refusals,
    )
)]
pub(super) async fn estimate(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::of(request.headers(), &state.config)?;
    deadline.bound(estimate_in_time(state, request)).await
}

async fn estimate_in_time(state: AppState, request: Request) -> Result<Response, ApiError> {
    let permit = Permit::of(&request)?;
    let context = permit.context(&state.requests)?;
    let (_, asked) = outside_of(&request, &state, &permit);
    let is_form = form::is_form(&request);
    let mut read = form::read(request, Encodings::JsonOrMultipart, &state).await?;
    // Now or later, it takes as much.
    read.0.take_in_background();
    let has_pictures = ["image", "images", "mask"].iter().any(|name| read.0.has(name));
    let endpoint = if is_form || has_pictures { Endpoint::Edits } else { Endpoint::Generations };
    context.models.check_offered(endpoint.task_kind())?;
    let prepared = prepare(&context, read, endpoint, asked).await?;
    let Prepared { model, request, memory, warnings, .. } = prepared;
    let (n, steps) = (request.count.get(), request.steps.get());
    let estimate = model.images.estimate(request, memory).await?;
    let response = EstimateResponse {
        model: model.images.card().id.clone(),
        n,
        steps,
        seconds: estimate.seconds,
        waiting: estimate.waiting,
        waiting_seconds: estimate.waiting_seconds,
        weight_bytes: estimate.weight_bytes,
        activation_bytes: estimate.activation_bytes,
        warnings,
    };
    Ok(json_response(StatusCode::OK, &response))
}
