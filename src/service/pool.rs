//! The models of a server, and the threads that own them: one for each device.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::board::Board;
use super::host::{Host, LoadFailure, PreloadError};
use super::progress::RunningJobs;
use super::queue::Queue;
use super::{ImageService, Shared};
use crate::metrics::Metrics;
use crate::model::{DeviceChoice, DiffusionModel, LoadError, ModelCard};

/// What loads a model onto a device, on the calling thread.
pub type Loader = dyn Fn(DeviceChoice) -> Result<Box<dyn DiffusionModel>, LoadError> + Send + Sync;

/// A model that can be asked for.
pub struct PooledModel {
    /// What it is and can do.
    pub card: ModelCard,
    /// Where it runs: on each of these is a replica, and all take from one line.
    pub devices: Vec<DeviceChoice>,
    /// Whether it is loaded from the start; else when it is first asked for.
    pub preload: bool,
    /// How long it stays while nobody asks for it; for ever if absent.
    pub keep_alive: Option<Duration>,
    /// Bytes that it will take, as far as its files say.
    pub expected_bytes: usize,
    /// What loads it.
    pub load: Box<Loader>,
}

/// How much of a device models may take together. What was used least recently leaves for
/// what is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of weights; without it, what is free.
    pub memory_bytes: Option<usize>,
    /// How many models.
    pub max_loaded: Option<NonZeroUsize>,
}

/// What the service can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceConfig {
    /// How many requests may wait for a model while it serves another.
    pub queue_capacity: usize,
    /// What the models of each device may take.
    pub budget: Budget,
    /// Whether anything is counted and timed for [`ImageService::metrics`].
    pub metrics: bool,
}

/// The threads of the devices, to wait for after a shutdown.
#[derive(Debug, Default)]
pub struct WorkerHandle(Vec<JoinHandle<()>>);

impl WorkerHandle {
    /// Blocks until the threads have ended, which they do once
    /// [`ImageService::shut_down`] was called, or all services were dropped, and
    /// the running requests are finished.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("the thread of a device ended with a panic");
            }
        }
    }
}

/// Starts a thread for each device that `models` name (a CUDA stream belongs to a thread),
/// loads there what is to be there from the start, and waits until that is done. The
/// threads call `at_rest` whenever they have made what they were asked for and nobody
/// waits: what they have freed can go back then. The services are in the order of `models`.
///
/// # Errors
/// [`PreloadError`] if one of these models cannot be loaded.
pub fn start(
    models: Vec<PooledModel>,
    config: ServiceConfig,
    at_rest: fn(),
) -> Result<(Vec<ImageService>, WorkerHandle), PreloadError> {
    let models: Vec<Arc<PooledModel>> = models.into_iter().map(Arc::new).collect();
    let hosted = by_thread(&models);
    let numbers: Vec<Vec<usize>> =
        hosted.iter().map(|models| models.iter().map(|(model, _)| *model).collect()).collect();
    let queue = Arc::new(Queue::new(config.queue_capacity, models.len(), &numbers));
    let board = Arc::new(Board::new(models.len(), &hosted));
    let jobs = Arc::new(RunningJobs::default());
    let metrics = if config.metrics { Metrics::new() } else { Metrics::off() };
    models.iter().for_each(|model| metrics.begin_model(&model.card.id));
    let (tell, told) = std::sync::mpsc::channel();
    let mut threads = Vec::new();
    for (thread, hosted) in hosted.into_iter().enumerate() {
        let own =
            hosted.into_iter().map(|(index, device)| (index, device, Arc::clone(&models[index])));
        let shared = (Arc::clone(&queue), Arc::clone(&board), Arc::clone(&jobs), metrics.clone());
        let host = Host::new((thread, config.budget), shared, own.collect(), at_rest);
        let life_sign = LifeSign { queue: Arc::clone(&queue), thread, models: host.models() };
        let (tell, metrics) = (tell.clone(), metrics.clone());
        let work = move || {
            let _life_sign = life_sign;
            // Made here, dropped here: what is on a GPU belongs to this thread.
            let mut host = host;
            metrics.on_this_thread(|| {
                let preloaded = host.preload();
                let is_ready = preloaded.is_ok();
                let _ = tell.send(preloaded);
                drop(tell);
                if is_ready {
                    host.work();
                }
            });
        };
        let started = std::thread::Builder::new().name("model".to_owned()).spawn(work);
        threads.push(started.map_err(|error| no_thread(&models, error))?);
    }
    drop(tell);
    let outcome = told.iter().collect::<Result<Vec<()>, PreloadError>>();
    let cards = models.iter().map(|model| model.card.clone()).collect();
    // Dropped if a model was not loaded: the other threads end.
    let shared = Arc::new(Shared::new(cards, (queue, board, jobs), metrics));
    outcome?;
    let service = |index| ImageService::of(Arc::clone(&shared), index);
    Ok(((0..models.len()).map(service).collect(), WorkerHandle(threads)))
}

/// The ways to models that are elsewhere: what is asked of them can be understood and sized
/// here, and is made by others. Everything is counted in `metrics`.
#[must_use]
pub fn remote(cards: Vec<ModelCard>, metrics: &Metrics) -> Vec<ImageService> {
    let queue = Arc::new(Queue::new(0, cards.len(), &[]));
    let board = Arc::new(Board::new(cards.len(), &[]));
    let (count, jobs) = (cards.len(), Arc::new(RunningJobs::default()));
    let shared = Arc::new(Shared::new(cards, (queue, board, jobs), metrics.clone()));
    (0..count).map(|index| ImageService::of(Arc::clone(&shared), index)).collect()
}

fn no_thread(models: &[Arc<PooledModel>], error: std::io::Error) -> PreloadError {
    let model = models.first().map(|model| model.card.id.clone()).unwrap_or_default();
    PreloadError { model, error: LoadFailure::Error(Box::new(LoadError::Thread(error))) }
}

/// The models of each thread, and on which device: those that will be on the same device
/// share one.
fn by_thread(models: &[Arc<PooledModel>]) -> Vec<Vec<(usize, DeviceChoice)>> {
    let mut threads: Vec<(DeviceChoice, Vec<(usize, DeviceChoice)>)> = Vec::new();
    for (index, model) in models.iter().enumerate() {
        for device in &model.devices {
            let key = device.likely();
            let known = threads.iter_mut().find(|(known, _)| *known == key);
            let hosted = match known {
                Some((_, hosted)) => hosted,
                None => &mut threads.push_mut((key, Vec::new())).1,
            };
            if !hosted.iter().any(|(other, _)| *other == index) {
                hosted.push((index, *device));
            }
        }
    }
    threads.into_iter().map(|(_, hosted)| hosted).collect()
}

/// Says that the thread of a device has ended, however it ends.
struct LifeSign {
    queue: Arc<Queue>,
    thread: usize,
    models: Vec<usize>,
}

impl Drop for LifeSign {
    fn drop(&mut self) {
        self.queue.desert(self.thread, &self.models);
    }
}
