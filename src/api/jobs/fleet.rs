//! What gateways and workers know of each other: models, which workers announce.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::causes;
use crate::jobs::{AnnouncedModel, Fleet, JobStoreError};
use crate::metrics::Metrics;
use crate::model::LoraNames;
use crate::requests::{Announcement, ModelService};
use crate::service::remote;

/// How often a worker says which models it has.
const ANNOUNCING: Duration = Duration::from_secs(10);

/// Says which models are here, until it is told that this process ends. Dropped, it stops
/// without a word.
pub(in crate::api) struct Announcing {
    task: JoinHandle<()>,
    fleet: Arc<dyn Fleet>,
}

impl Announcing {
    /// Needs a runtime.
    pub(in crate::api) fn start(models: Vec<ModelService>, fleet: Arc<dyn Fleet>) -> Self {
        let task = tokio::spawn(announce(models.into(), Arc::clone(&fleet)));
        Self { task, fleet }
    }

    /// Says that there are none any more: others get the jobs.
    pub(in crate::api) async fn end(&self) {
        self.task.abort();
        if let Err(error) = self.fleet.leave().await {
            tracing::warn!(cause = causes::one_line(&error), "this worker's end is not told");
        }
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn announce(models: Arc<[ModelService]>, fleet: Arc<dyn Fleet>) {
    let mut ticks = tokio::time::interval(ANNOUNCING);
    loop {
        ticks.tick().await;
        let announcing = Arc::clone(&models);
        // Folders of LoRAs are looked into.
        let told = tokio::task::spawn_blocking(move || told_of(&announcing));
        let Ok(Ok(told)) = told.await else { continue };
        if let Err(error) = fleet.announce(&told).await {
            tracing::warn!(cause = causes::one_line(&error), "this worker's models are not told");
        }
    }
}

/// The models, each with what is said of it.
fn told_of(models: &[ModelService]) -> Result<Vec<(String, String)>, serde_json::Error> {
    let told = |model: &ModelService| {
        Ok((model.images.card().id.clone(), Announcement::of(model).text()?))
    };
    models.iter().map(told).collect()
}

/// What workers have announced. A model of a version that this one does not understand is left
/// out.
pub(in crate::api) async fn announced_by(
    fleet: &dyn Fleet,
) -> Result<Vec<Announcement>, JobStoreError> {
    Ok(fleet.models().await?.iter().filter_map(read).collect())
}

/// The ways to models that workers have announced, for a gateway.
pub(in crate::api) fn models_of(
    announced: Vec<Announcement>,
    metrics: &Metrics,
) -> Vec<ModelService> {
    let cards = announced.iter().map(|announced| announced.card.clone()).collect();
    let services = remote(cards, metrics);
    let with_settings = services.into_iter().zip(announced).map(|(images, announced)| {
        let Announcement { aliases, quality, loras, .. } = announced;
        let loras = loras.map(LoraNames::Listed);
        ModelService { images, aliases, quality, loras, health_digest: None }
    });
    with_settings.collect()
}

fn read(model: &AnnouncedModel) -> Option<Announcement> {
    match Announcement::read(&model.announcement) {
        Ok(announcement) => Some(announcement),
        Err(error) => {
            let cause = causes::one_line(&error);
            tracing::warn!(model = model.name, cause, "a model is not understood");
            None
        }
    }
}
