//! The thread of a device: it owns the models that are loaded there, loads them when they are
//! asked for, and lets them go when others need the room or nobody has asked for a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ServiceError;
use super::board::{Board, ReplicaState};
use super::estimate::seconds_by;
use super::pool::{Budget, PooledModel};
use super::progress::{JobStage, Outlook, RunningJobs, Tracked};
use super::queue::{Action, Command, Next, Queue, Running};
use super::stopwatch::Stopwatch;
use super::worker::{self, Begun, Job, panic_message};
use crate::causes;
use crate::domain::ImageRequest;
use crate::metrics::Metrics;
use crate::model::{
    DeviceChoice, DeviceFailure, DiffusionModel, Estimate, Generation, LoadError, Loaded,
    ModelError, StepObserver, free_memory_bytes,
};
use crate::telemetry::spans;

/// How long a model is given to load by the order of jobs, before that was measured.
const UNKNOWN_LOADING_S: f64 = 10.0;
/// How long a model that could not be loaded is not tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What can be done for a picture that found too little memory on its device, one after the
/// other. (Guidance's two passes and the picture's bands are one after the other anyway.)
#[derive(Debug, Clone, Copy)]
enum Relief {
    /// What was kept to be faster, and the models beside the one at work.
    CachesAndOtherModels,
    /// The model is loaded again by what is free now: more of it may then be streamed.
    PlannedAnew,
}

impl Relief {
    const ALL: [Self; 2] = [Self::CachesAndOtherModels, Self::PlannedAnew];
}

/// A device's thread, with what it owns.
pub(super) struct Host {
    /// The number of the thread.
    thread: usize,
    queue: Arc<Queue>,
    board: Arc<Board>,
    jobs: Arc<RunningJobs>,
    metrics: Metrics,
    budget: Budget,
    replicas: Vec<Replica>,
    /// Gives back to the system what was freed.
    at_rest: fn(),
}

/// A model that this thread serves.
struct Replica {
    /// Its number among all models.
    index: usize,
    device: DeviceChoice,
    model: Arc<PooledModel>,
    state: State,
    /// When it was last used.
    used: Instant,
    loading_s: f64,
    /// Bytes that it takes: those that it took, or as many as its files have.
    bytes: usize,
}

enum State {
    Absent,
    Present(Box<dyn DiffusionModel>),
    Failed { at: Instant, reason: String },
}

impl Host {
    pub(super) fn new(
        (thread, budget): (usize, Budget),
        (queue, board, jobs, metrics): (Arc<Queue>, Arc<Board>, Arc<RunningJobs>, Metrics),
        models: Vec<(usize, DeviceChoice, Arc<PooledModel>)>,
        at_rest: fn(),
    ) -> Self {
        let replica = |(index, device, model): (usize, DeviceChoice, Arc<PooledModel>)| Replica {
            index,
            device,
            bytes: model.expected_bytes,
            model,
            state: State::Absent,
            used: Instant::now(),
            loading_s: UNKNOWN_LOADING_S,
        };
        let replicas = models.into_iter().map(replica).collect();
        Self { thread, queue, board, jobs, metrics, budget, replicas, at_rest }
    }

    /// The numbers of its models.
    pub(super) fn models(&self) -> Vec<usize> {
        self.replicas.iter().map(|replica| replica.index).collect()
    }

    /// Loads what is to be there from the start, as long as there is room for it: the first
    /// ones stay.
    ///
    /// # Errors
    /// Why a model cannot be loaded, with its name.
    pub(super) fn preload(&mut self) -> Result<(), PreloadError> {
        for place in 0..self.replicas.len() {
            if !self.replicas[place].model.preload {
                continue;
            }
            if self.has_room_for(place) {
                self.load(place)?;
            } else {
                let model = &self.replicas[place].model.card.id;
                tracing::info!(model, "no room beside the others: it is loaded when asked for");
            }
        }
        Ok(())
    }

    /// Serves until the lines are closed.
    pub(super) fn work(&mut self) {
        loop {
            let loading_s = |model| self.loading_s(model);
            match self.queue.take(self.thread, self.next_expiry(), loading_s, self.at_rest) {
                Next::Job(job, running) => self.serve(*job, running),
                Next::Command(command) => self.obey(command),
                Next::Nothing => self.unload_idle(),
                Next::End => return,
            }
        }
    }

    /// The name of a model.
    fn name_of(&self, place: usize) -> String {
        self.replicas[place].model.card.id.clone()
    }

    fn place_of(&self, model: usize) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.index == model)
    }

    /// How long a job would wait for its model; `None` for models of other threads.
    fn loading_s(&self, model: usize) -> Option<f64> {
        let replica = &self.replicas[self.place_of(model)?];
        Some(match replica.state {
            State::Present(_) => 0.0,
            State::Absent => replica.loading_s,
            // It is told at once.
            State::Failed { .. } => 0.0,
        })
    }

    fn serve(&mut self, job: Job, mut running: Running) {
        let Some(place) = self.place_of(job.model) else {
            return job.fail(ServiceError::WorkerGone);
        };
        // Nobody waits for it any more.
        if job.reply.is_closed() {
            return;
        }
        self.metrics.waited(&self.replicas[place].model.card.id, running.waited());
        let span = job.span.clone();
        let tracked = self.track(&job, &running, JobStage::LoadingModel);
        let loading = match span.in_scope(|| self.ensure_loaded(place)) {
            Ok(loading) => loading,
            Err(error) => {
                drop((tracked, running));
                return job.fail(error);
            }
        };
        // Nor now.
        if job.reply.is_closed() {
            return;
        }
        running.begins();
        drop(tracked);
        let tracked = self.track(&job, &running, JobStage::Starting);
        let stopwatch = Stopwatch::new(self.metrics.clone(), self.name_of(place));
        let begun = Begun { loading, running, tracked, stopwatch };
        worker::serve(job, begun, |request, observer| self.make(place, request, observer));
        self.replicas[place].used = Instant::now();
    }

    /// Has a model make pictures. Where its device has too little memory, what can be given
    /// back is, and it tries again.
    fn make(
        &mut self,
        place: usize,
        request: &ImageRequest,
        observer: &mut dyn StepObserver,
    ) -> Result<Generation, ModelError> {
        let mut reliefs = Relief::ALL.into_iter();
        loop {
            let State::Present(model) = &mut self.replicas[place].state else {
                let nothing = "nothing: it is not loaded any more".to_owned();
                return Err(ModelError::BadOutput(nothing));
            };
            let outcome = model.generate(request, observer);
            let Err(error) = &outcome else { return outcome };
            match error.device_failure() {
                None => return outcome,
                Some(DeviceFailure::Fault) => {
                    self.board.report_device_fault();
                    return outcome;
                }
                Some(DeviceFailure::OutOfMemory) => {}
            }
            let Some(relief) = reliefs.next() else { return outcome };
            tracing::warn!(?relief, "the device has too little memory: trying again with less");
            if !self.relieve(place, relief) {
                return outcome;
            }
        }
    }

    /// Gives back memory of the device; says whether the model is still there.
    fn relieve(&mut self, place: usize, relief: Relief) -> bool {
        match relief {
            Relief::CachesAndOtherModels => {
                if let State::Present(model) = &mut self.replicas[place].state {
                    model.release_caches();
                }
                (0..self.replicas.len()).filter(|other| *other != place).for_each(|other| {
                    if self.replicas[other].is_loaded() {
                        self.unload(other);
                    }
                });
                (self.at_rest)();
                true
            }
            Relief::PlannedAnew => {
                self.unload(place);
                self.load(place).is_ok()
            }
        }
    }

    /// Shows a job among those that run.
    fn track(&self, job: &Job, running: &Running, stage: JobStage) -> Option<Tracked> {
        let model = &self.replicas[self.place_of(job.model)?].model.card.id;
        let (model, pictures) = (model.clone(), job.request.count.get());
        let expected = match stage {
            JobStage::LoadingModel => None,
            JobStage::Starting | JobStage::Of(_) => {
                running.expected(job.work).or_else(|| self.estimated(job))
            }
        };
        let outlook = Outlook { model, pictures, expected, stage };
        let tracked = self.jobs.begin(self.thread, outlook, Instant::now());
        Some(tracked.telling(job.told.clone()))
    }

    /// How long a job takes by what was counted when its model was loaded.
    fn estimated(&self, job: &Job) -> Option<Duration> {
        let card = &self.replicas[self.place_of(job.model)?].model.card;
        let estimate = self.board.estimate(job.model)?;
        Duration::try_from_secs_f64(seconds_by(&estimate, card, job.work)?).ok()
    }

    fn obey(&mut self, command: Command) {
        let done = match (self.place_of(command.model), command.action) {
            (None, _) => Err(ServiceError::WorkerGone),
            (Some(place), Action::Load) => {
                // Whoever asks for it again knows of what has changed.
                self.forget_failure(place);
                self.ensure_loaded(place).map(drop)
            }
            (Some(place), Action::Unload) => {
                self.unload(place);
                Ok(())
            }
        };
        let _ = command.reply.send(done);
    }

    fn forget_failure(&mut self, place: usize) {
        if matches!(self.replicas[place].state, State::Failed { .. }) {
            self.replicas[place].state = State::Absent;
        }
    }

    /// Loads a model that is not there; says how long that took.
    ///
    /// # Errors
    /// [`ServiceError::NotLoaded`] if it cannot be, or could not be a moment ago.
    fn ensure_loaded(&mut self, place: usize) -> Result<Option<Duration>, ServiceError> {
        let replica = &self.replicas[place];
        match &replica.state {
            State::Present(_) => return Ok(None),
            State::Failed { at, reason } if at.elapsed() < RETRY_AFTER => {
                return Err(ServiceError::NotLoaded {
                    model: replica.model.card.id.clone(),
                    reason: reason.clone(),
                });
            }
            State::Absent | State::Failed { .. } => {}
        }
        self.make_room_for(place);
        let started = Instant::now();
        self.load(place).map_err(|PreloadError { model, error }| {
            tracing::error!(model, cause = causes::one_line(&error), "cannot load the model");
            ServiceError::NotLoaded { model, reason: error.reason() }
        })?;
        Ok(Some(started.elapsed()))
    }

    fn load(&mut self, place: usize) -> Result<(), PreloadError> {
        let replica = &mut self.replicas[place];
        let id = &replica.model.card.id;
        let _stage = spans::stage(spans::LOAD_MODEL).entered();
        self.board.set(replica.index, self.thread, ReplicaState::Loading);
        let started = Instant::now();
        let load = &replica.model.load;
        let outcome = catch_unwind(AssertUnwindSafe(|| load(replica.device)));
        let error = match outcome {
            Ok(Ok(mut model)) => {
                replica.loading_s = started.elapsed().as_secs_f64();
                replica.used = Instant::now();
                let loaded = model.loaded().clone();
                replica.bytes = loaded.weight_bytes;
                log_loaded(id, &loaded, replica.loading_s);
                self.metrics.model_loaded(id, started.elapsed());
                // What it counts and times may fail as anything else: it is only advice.
                let estimate = catch_unwind(AssertUnwindSafe(|| model.estimate()));
                let estimate = estimate.ok().flatten();
                estimate.iter().for_each(|estimate| log_estimate(id, estimate));
                self.board.set_estimate(replica.index, estimate);
                replica.state = State::Present(model);
                self.board.set(replica.index, self.thread, ReplicaState::Loaded(loaded));
                return Ok(());
            }
            Ok(Err(error)) => LoadFailure::Error(Box::new(error)),
            Err(panic) => LoadFailure::Panicked(panic_message(panic.as_ref())),
        };
        let reason = error.reason();
        let model = id.clone();
        self.metrics.model_not_loaded(&model);
        replica.state = State::Failed { at: Instant::now(), reason: reason.clone() };
        self.board.set(replica.index, self.thread, ReplicaState::Failed(reason));
        Err(PreloadError { model, error })
    }

    fn unload(&mut self, place: usize) {
        let replica = &mut self.replicas[place];
        if let State::Present(model) = std::mem::replace(&mut replica.state, State::Absent) {
            tracing::info!(model = replica.model.card.id, "unloading");
            self.metrics.model_unloaded(&replica.model.card.id);
            drop(model);
            // Else what is free would be told without it.
            (self.at_rest)();
        }
        self.board.set(replica.index, self.thread, ReplicaState::NotLoaded);
    }

    /// When the first of the loaded models will have been idle for too long.
    fn next_expiry(&self) -> Option<Instant> {
        self.replicas.iter().filter_map(Replica::expires).min()
    }

    fn unload_idle(&mut self) {
        let now = Instant::now();
        for place in 0..self.replicas.len() {
            if self.replicas[place].expires().is_some_and(|expires| expires <= now) {
                self.unload(place);
            }
        }
    }

    /// Unloads what was used least recently until there is room for one more.
    fn make_room_for(&mut self, place: usize) {
        while !self.has_room_for(place) {
            let loaded = self.replicas.iter().enumerate().filter(|(_, other)| other.is_loaded());
            let oldest = loaded.min_by_key(|(_, other)| other.used).map(|(oldest, _)| oldest);
            match oldest {
                Some(oldest) => self.unload(oldest),
                None => return,
            }
        }
    }

    fn has_room_for(&self, place: usize) -> bool {
        let needed = self.replicas[place].bytes;
        let loaded = self.replicas.iter().filter(|replica| replica.is_loaded());
        // Alone it is loaded as well as may be: weights that do not fit are streamed.
        if loaded.clone().next().is_none() {
            return true;
        }
        let (count, bytes) =
            loaded.fold((0, 0), |(count, bytes), replica| (count + 1, bytes + replica.bytes));
        if self.budget.max_loaded.is_some_and(|most| count + 1 > most.get()) {
            return false;
        }
        match self.budget.memory_bytes {
            Some(most) => bytes + needed <= most,
            None => {
                free_memory_bytes(self.replicas[place].device).is_none_or(|free| needed <= free)
            }
        }
    }
}

impl Replica {
    fn is_loaded(&self) -> bool {
        matches!(self.state, State::Present(_))
    }

    /// When it will have been idle for too long, if it is loaded and not to stay for ever.
    fn expires(&self) -> Option<Instant> {
        let keep_alive = self.model.keep_alive.filter(|_| self.is_loaded())?;
        self.used.checked_add(keep_alive)
    }
}

/// A model that is to be there from the start cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the model '{model}'")]
pub struct PreloadError {
    /// Its name.
    pub model: String,
    /// Why not.
    #[source]
    pub error: LoadFailure,
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// It said why.
    #[error(transparent)]
    Error(Box<LoadError>),
    /// It panicked.
    #[error("loading panicked: {0}")]
    Panicked(String),
}

impl LoadFailure {
    /// A sentence for clients, without what is only the server's business.
    fn reason(&self) -> String {
        match self {
            Self::Error(error) => error.kind().to_owned(),
            Self::Panicked(_) => "loading it failed".to_owned(),
        }
    }
}

fn log_loaded(model: &str, loaded: &Loaded, seconds: f64) {
    let weights = indicatif::BinaryBytes(loaded.weight_bytes as u64);
    let (device, dtype) = (&loaded.device, &loaded.dtype);
    let seconds = format!("{seconds:.1}");
    tracing::info!(model, device, dtype, %weights, %seconds, "loaded");
}

fn log_estimate(model: &str, estimate: &Estimate) {
    let Estimate { width, height, steps, .. } = estimate;
    let bytes = |bytes: usize| indicatif::BinaryBytes(bytes as u64).to_string();
    let faster = Some(estimate.faster.join("; ")).filter(|ways| !ways.is_empty());
    tracing::info!(
        model,
        weights = estimate.weights(),
        picture = format!("{width}x{height}, {steps} steps"),
        memory = estimate.plan.activation_bytes.map(bytes),
        about = estimate.duration(),
        faster,
        "what a picture takes"
    );
}
