//! Whether the server lives, whether it is to be sent requests, and whether it makes the
//! pictures that it should.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::error::ApiError;
use super::role::Role;
use super::state::AppState;
use super::wire::{
    DeepHealth, ErrorEnvelope, ExpectedFrom, Health, PictureStatus, Readiness, json_response,
};
use crate::domain::Picture;
use crate::requests::ServedModel;
use crate::service::ReplicaState;

/// Whether the server works
///
/// Answers at once, also while models are loaded and while a picture is being made.
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    responses(
        (status = 200, description = "It works", body = Health),
        (status = 503, description = "It does not, or takes no more requests", body = Health),
    )
)]
pub(super) async fn health(State(state): State<AppState>) -> Response {
    let service = state.service().status();
    let (code, status) = if !service.accepting {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
    } else if service.worker_alive {
        (StatusCode::OK, "healthy")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "failed")
    };
    let health = Health {
        status,
        busy: service.busy,
        waiting: service.waiting,
        queue_capacity: service.capacity,
        running: state.service().running_jobs().into_iter().map(Into::into).collect(),
    };
    json_response(code, &health)
}

/// Whether requests are to be sent here
///
/// Not while models are loaded at the start, not once the server has been told to stop, and
/// not if no model can be loaded.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "server",
    responses(
        (status = 200, description = "Send them", body = Readiness),
        (status = 503, description = "Do not; it says why", body = Readiness),
    )
)]
pub(super) async fn ready(State(state): State<AppState>) -> Response {
    match unreadiness(&state) {
        None => json_response(StatusCode::OK, &Readiness::READY),
        Some(why) => json_response(StatusCode::SERVICE_UNAVAILABLE, &Readiness::not_yet(why)),
    }
}

/// Why no requests are to be sent here.
fn unreadiness(state: &AppState) -> Option<&'static str> {
    let service = state.service().status();
    let cannot_be_loaded = |model: &ServedModel| {
        let replicas = model.images.replicas();
        let has_failed = |replica: &ReplicaState| matches!(replica, ReplicaState::Failed(_));
        !replicas.is_empty() && replicas.iter().all(has_failed)
    };
    let is_out_of_reach = state.jobs.fleet.as_ref().is_some_and(|fleet| !*fleet.reached().borrow());
    if !service.accepting {
        Some("shutting_down")
    } else if !service.worker_alive {
        Some("failed")
    } else if is_out_of_reach && state.config.role != Role::All {
        Some("jobs_out_of_reach")
    } else if state.requests.models.all().iter().all(|model| cannot_be_loaded(model)) {
        Some("no_model_loads")
    } else {
        None
    }
}

/// Which model is looked at.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeepHealthQuery {
    /// Its name; the default one without.
    model: Option<String>,
}

/// Whether a model makes the picture that it should
///
/// Makes a small picture of a fixed seed and holds it against the one that the settings name
/// (`model.health_digest`), or against the first of this process. For administrators. It waits
/// its turn as any request, and is made once a minute at most: the last result is told
/// meanwhile.
#[utoipa::path(
    get,
    path = "/health/deep",
    tag = "server",
    params(DeepHealthQuery),
    responses(
        (status = 200, description = "It does", body = DeepHealth),
        (status = 403, description = "Only an administrator's key may ask", body = ErrorEnvelope),
        (status = 404, description = "No such model", body = ErrorEnvelope),
        (status = 503, description = "It makes another", body = DeepHealth),
    )
)]
pub(super) async fn deep(
    State(state): State<AppState>,
    Query(query): Query<DeepHealthQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    state.access.check_administrator(request.headers())?;
    state.refuse_on_gateway("pictures to look at")?;
    let model = match &query.model {
        Some(name) => state.requests.models.named(name, None)?,
        None => state.requests.models.first(),
    };
    let checks = state.deep_checks.of(&model.images.card().id);
    let mut last = checks.lock().await;
    let is_fresh = last.made.as_ref().is_some_and(|made| made.at.elapsed() < RATE);
    if !is_fresh {
        last.made = Some(Made::by(model).await?);
    }
    let health = last.held_against(model.health_digest.as_deref())?;
    let code = match health.status {
        PictureStatus::Healthy => StatusCode::OK,
        PictureStatus::WrongPicture => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(json_response(code, &health))
}

/// How often a picture is made for this, at most.
const RATE: Duration = Duration::from_secs(60);

/// What has been seen of each model.
#[derive(Default)]
pub(super) struct DeepChecks(Mutex<BTreeMap<String, Checks>>);

type Checks = Arc<tokio::sync::Mutex<Checked>>;

impl DeepChecks {
    fn of(&self, model: &str) -> Checks {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(models.entry(model.to_owned()).or_default())
    }
}

/// What has been seen of one model.
#[derive(Default)]
struct Checked {
    first_sha256: Option<String>,
    made: Option<Made>,
}

/// A picture that was made to be looked at.
struct Made {
    at: Instant,
    sha256: String,
    seconds: f64,
}

impl Made {
    async fn by(model: &ServedModel) -> Result<Self, ApiError> {
        let started = Instant::now();
        let picture = model.images.make_test_picture().await?;
        let sha256 = tokio::task::spawn_blocking(move || sha256_of(&picture)).await?;
        Ok(Self { at: Instant::now(), sha256, seconds: started.elapsed().as_secs_f64() })
    }
}

/// Of the pixels, without transparency: 64 hexadecimal digits.
fn sha256_of(picture: &Picture) -> String {
    let digest = Sha256::digest(picture.colour().pixels());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Checked {
    /// The last picture beside the one that it should be.
    fn held_against(&mut self, of_settings: Option<&str>) -> Result<DeepHealth, ApiError> {
        let no_picture = || ApiError::Internal("no picture was made".to_owned());
        let made = self.made.as_ref().ok_or_else(no_picture)?;
        let first = self.first_sha256.get_or_insert_with(|| made.sha256.clone());
        let (expected, expected_from) = match of_settings {
            Some(sha256) => (sha256, ExpectedFrom::Settings),
            None => (first.as_str(), ExpectedFrom::FirstCheck),
        };
        let status = if made.sha256.eq_ignore_ascii_case(expected) {
            PictureStatus::Healthy
        } else {
            PictureStatus::WrongPicture
        };
        Ok(DeepHealth {
            status,
            sha256: made.sha256.clone(),
            expected: expected.to_owned(),
            expected_from,
            seconds: made.seconds,
            age_s: made.at.elapsed().as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(sha256: &str) -> Option<Made> {
        Some(Made { at: Instant::now(), sha256: sha256.to_owned(), seconds: 0.1 })
    }

    #[test]
    fn a_picture_is_held_against_the_settings_or_the_first_one() {
        let mut checked = Checked { first_sha256: None, made: made("ab") };
        let status = |checked: &mut Checked, settings| {
            let health = checked.held_against(settings).unwrap();
            (health.status, health.expected, health.expected_from)
        };

        let first = status(&mut checked, None);
        assert_eq!(first, (PictureStatus::Healthy, "ab".to_owned(), ExpectedFrom::FirstCheck));
        checked.made = made("cd");
        let other = status(&mut checked, None);
        assert_eq!(other, (PictureStatus::WrongPicture, "ab".to_owned(), ExpectedFrom::FirstCheck));
        let named = status(&mut checked, Some("CD"));
        assert_eq!(named, (PictureStatus::Healthy, "CD".to_owned(), ExpectedFrom::Settings));
    }
}
