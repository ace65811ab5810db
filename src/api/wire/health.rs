//! What those read who watch over the server.

use serde::Serialize;
use utoipa::ToSchema;

use crate::service::RunningJob;

/// How the server is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Health {
    /// `healthy`, `starting`, `shutting_down` or `failed`.
    #[schema(example = "healthy")]
    pub(in crate::api) status: &'static str,
    /// Whether a picture is being made.
    pub(in crate::api) busy: bool,
    /// Requests that wait for the model.
    pub(in crate::api) waiting: usize,
    /// How many may wait.
    pub(in crate::api) queue_capacity: usize,
    /// The requests that models work on now.
    pub(in crate::api) running: Vec<RunningFacts>,
}

impl Health {
    /// That of a server which has no models yet.
    pub(in crate::api) fn starting() -> Self {
        Self { status: "starting", busy: false, waiting: 0, queue_capacity: 0, running: Vec::new() }
    }
}

/// Whether requests are to be sent here.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Readiness {
    /// `ready` or `not_ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// Why not: `looking_for_files`, `loading_models`, `warming_up`, `waiting_for_workers`,
    /// `jobs_out_of_reach`, `no_model_loads`,
    /// `failed` or `shutting_down`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Readiness {
    pub(in crate::api) const READY: Self = Self { status: "ready", reason: None };

    pub(in crate::api) fn not_yet(reason: &'static str) -> Self {
        Self { status: "not_ready", reason: Some(reason) }
    }
}

/// Whether a model makes the picture that it should.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct DeepHealth {
    pub(in crate::api) status: PictureStatus,
    /// SHA-256 of the pixels that were made.
    pub(in crate::api) sha256: String,
    /// What it should be.
    pub(in crate::api) expected: String,
    /// Who says so.
    pub(in crate::api) expected_from: ExpectedFrom,
    /// How long the picture took, with waiting.
    pub(in crate::api) seconds: f64,
    /// Seconds since it was made.
    pub(in crate::api) age_s: u64,
}

/// Whether a picture is the one that it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum PictureStatus {
    Healthy,
    WrongPicture,
}

/// Where it is written what a picture should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum ExpectedFrom {
    /// `model.health_digest` of the settings.
    Settings,
    /// The first such picture of this process.
    FirstCheck,
}

/// How far a request is that a model works on.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct RunningFacts {
    /// Its model.
    #[schema(example = "Qwen/Qwen-Image-Edit")]
    model: String,
    /// `loading_model`, `starting`, `encoding_prompts`, `encoding_latents`, `denoising` or
    /// `decoding`.
    #[schema(example = "denoising")]
    stage: &'static str,
    /// The picture that is being made, from 1.
    picture: usize,
    pictures: usize,
    /// Steps of this picture that are done.
    step: usize,
    /// Steps that it takes; 0 until that is known.
    steps: usize,
    /// Layers that are done in this step, or stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<usize>,
    /// Seconds since it began.
    elapsed_s: f64,
    /// About how many seconds are left; null if that cannot be told.
    #[schema(required = true)]
    left_s: Option<f64>,
}

impl From<RunningJob> for RunningFacts {
    fn from(job: RunningJob) -> Self {
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        Self {
            model: job.model,
            stage: job.stage.name(),
            picture: job.picture,
            pictures: job.pictures,
            step: job.step,
            steps: job.steps,
            layer: job.layer.map(|layer| layer.done),
            layers: job.layer.map(|layer| layer.total_layers),
            elapsed_s: tenths(job.elapsed_s),
            left_s: job.left_s.map(tenths),
        }
    }
}
