//! The lines before the models, and the threads on which these live.
//!
//! [`start`] makes a pool of models and hands out an [`ImageService`] for each, of which
//! clones are cheap. A thread owns a device and the models on it, which it loads when they
//! are asked for and unloads to make room; it makes one request after the other, in the order
//! that `order` finds. A full line refuses at once; a client that goes away takes its job
//! with it; a panic of a model fails one request.

mod board;
mod error;
mod estimate;
mod held;
mod host;
mod mask;
mod memory;
mod observed;
mod order;
mod pace;
mod pool;
mod progress;
mod queue;
mod size_plan;
mod stopwatch;
#[cfg(test)]
mod testing;
mod transparency;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

pub use board::ReplicaState;
pub use error::{ErrorKind, ServiceError};
pub use estimate::RequestEstimate;
pub use host::{LoadFailure, PreloadError};
pub use memory::{MemoryError, MemoryShare, RequestMemory};
pub use order::Client;
pub use pool::{Budget, Loader, PooledModel, ServiceConfig, WorkerHandle, remote, start};
pub use progress::{JobStage, RunningJob};
pub use queue::Position;
pub use size_plan::{Framing, SizeChoice};

use crate::domain::{
    ImageRequest, ImageSize, LayerCount, OutputSize, Picture, Prompt, RgbImage, Steps, Task,
    TaskKind, ValidationError,
};
use crate::metrics::{self, Metrics};
use crate::model::{EditKind, GeneratedImage, Generation, ModelCard};
use crate::telemetry::spans;
use board::Board;
use pace::Work;
use progress::RunningJobs;
use queue::{Action, Command, Length, Place, Queue};
use size_plan::SizePlan;
use transparency::Ground;
use worker::{Answer, Job, Made, Previews};

/// The way to one model. Clones share its line, and all services one pool.
#[derive(Clone)]
pub struct ImageService {
    shared: Arc<Shared>,
    /// Which of the models.
    model: usize,
}

/// What the services of all models share.
struct Shared {
    cards: Vec<ModelCard>,
    queue: Arc<Queue>,
    board: Arc<Board>,
    jobs: Arc<RunningJobs>,
    metrics: Metrics,
    is_shut_down: watch::Sender<bool>,
}

impl Shared {
    fn new(
        cards: Vec<ModelCard>,
        (queue, board, jobs): (Arc<Queue>, Arc<Board>, Arc<RunningJobs>),
        metrics: Metrics,
    ) -> Self {
        Self { cards, queue, board, jobs, metrics, is_shut_down: watch::Sender::new(false) }
    }
}

impl Drop for Shared {
    /// Nobody is left who could ask for anything: the threads of the devices may end.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// How the service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Requests that wait for a model.
    pub waiting: usize,
    /// How many may wait for each.
    pub capacity: usize,
    /// Whether a model is at work.
    pub busy: bool,
    /// Whether new requests are taken.
    pub accepting: bool,
    /// Whether the threads of the models run; also if there are none, for models are elsewhere.
    pub worker_alive: bool,
    /// The threads of devices, at the start.
    pub threads: usize,
}

/// What a model is asked for.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The request, with how its pictures shall come back.
    pub request: ImageRequest<Framing>,
    /// How many looks at the unfinished picture, at most.
    pub previews: usize,
    /// Who asks.
    pub client: Client,
}

impl ImageService {
    fn of(shared: Arc<Shared>, model: usize) -> Self {
        Self { shared, model }
    }

    /// What the model is and can do.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.shared.cards[self.model]
    }

    /// Refuses what the model does not do, or was switched off.
    ///
    /// # Errors
    /// [`ServiceError::NotOffered`].
    pub fn check_offered(&self, kind: TaskKind) -> Result<(), ServiceError> {
        if self.card().tasks.contains(kind) {
            return Ok(());
        }
        let (what, field) = match kind {
            TaskKind::TextToImage => ("pictures from words alone", None),
            TaskKind::Edit => ("edits of pictures", None),
            TaskKind::Variation => ("variations of pictures", None),
            TaskKind::Inpainting => ("masks", Some("mask")),
        };
        Err(ServiceError::NotOffered { what, field })
    }

    /// What there is of the model, on each of its devices.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaState> {
        self.shared.board.replicas(self.model)
    }

    /// Loads the model on all its devices, if it is not there.
    ///
    /// # Errors
    /// [`ServiceError::NotLoaded`] says why it cannot be; or the service is shut down.
    pub async fn load(&self) -> Result<(), ServiceError> {
        self.command(Action::Load).await
    }

    /// Unloads the model everywhere, after what runs; a request that comes loads it again.
    ///
    /// # Errors
    /// If the service is shut down.
    pub async fn unload(&self) -> Result<(), ServiceError> {
        self.command(Action::Unload).await
    }

    async fn command(&self, action: Action) -> Result<(), ServiceError> {
        let mut answers = Vec::new();
        for thread in self.shared.board.hosts(self.model) {
            let (reply, answer) = oneshot::channel();
            let command = Command { model: self.model, action, reply };
            self.shared.queue.command(thread, command)?;
            answers.push(answer);
        }
        for answer in answers {
            answer.await.unwrap_or(Err(ServiceError::WorkerGone))?;
        }
        Ok(())
    }

    /// Queues what is asked for, with its pictures and its size as they are planned for the model.
    /// `memory` is the request's share: it becomes what waits, and what the reply needs.
    /// Dropping the [`JobHandle`] calls the work off at its next step.
    ///
    /// # Errors
    /// [`ServiceError`]; `Busy` and `ShuttingDown` come at once.
    pub async fn submit(
        &self,
        submission: Submission,
        memory: MemoryShare,
    ) -> Result<JobHandle, ServiceError> {
        let Submission { request, previews, client } = submission;
        let (request, size_plan, mut memory) = self.sized(request, memory).await?;
        self.check_room(&request)?;
        let waiting = held::held_by(&request.task);
        memory.shrink_to(waiting + size_plan.held_bytes());
        let (submitted, arriving) =
            self.enqueue(request, (previews, client), memory.split(waiting))?;
        let previews = Unfinished { arriving, size_plan: Arc::clone(&size_plan) };
        Ok(JobHandle { submitted, previews, size_plan, memory })
    }

    /// `request` with its pictures and its size as the model takes them, and the way back.
    async fn sized(
        &self,
        request: ImageRequest<Framing>,
        mut memory: MemoryShare,
    ) -> Result<(ImageRequest, Arc<SizePlan>, MemoryShare), ServiceError> {
        let (shared, model) = (Arc::clone(&self.shared), self.model);
        let held = held::held_by(&request.task);
        let needed = held::needed_to_plan(&request.task, request.size, self.card());
        memory.grow_to(held + needed).await?;
        // The share goes along: the work goes on if the client leaves.
        let planning = off_the_runtime(move || {
            let card = &shared.cards[model];
            let (task, framing, with) = request.into_parts();
            let ground = Ground::for_task(&task, card, framing);
            let task = ground.lay_under_large(task);
            let (mut size_plan, task) = SizePlan::plan(task, card, framing)?;
            size_plan.notes.extend(ground.note());
            let task = held::reduced_task(ground.lay_under(task), card);
            let request = with(task, size_plan.model_size);
            Ok::<_, ValidationError>((request, Arc::new(size_plan), memory))
        });
        Ok(planning.await??)
    }

    /// Refuses what the model's device has no room for.
    fn check_room(&self, request: &ImageRequest) -> Result<(), ServiceError> {
        let work = Work::of(request, self.card());
        match self.shared.board.estimate(self.model) {
            Some(estimate) => estimate::check_room(&estimate, work),
            None => Ok(()),
        }
    }

    /// What a request would take, which is refused as [`Self::submit`] would refuse it, but
    /// for a full line. `memory` is its share.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn estimate(
        &self,
        request: ImageRequest<Framing>,
        memory: MemoryShare,
    ) -> Result<RequestEstimate, ServiceError> {
        let (request, _, _memory) = self.sized(request, memory).await?;
        self.check_room(&request)?;
        let work = Work::of(&request, self.card());
        let loaded = self.shared.board.estimate(self.model);
        let (cost_s, measured, waiting) = self.shared.queue.outlook(self.model, work);
        let by_loaded = |estimate| estimate::seconds_by(estimate, self.card(), work);
        let running = self.running_jobs().into_iter().filter(|job| job.model == self.card().id);
        let running_s =
            running.map(|job| job.left_s).try_fold(0.0, |sum, left_s| Some(sum + left_s?));
        Ok(RequestEstimate {
            cost_s,
            seconds: measured.or_else(|| loaded.as_deref().and_then(by_loaded)),
            waiting,
            waiting_seconds: running_s
                .zip(self.shared.queue.waiting_s(self.model))
                .map(|(a, b)| a + b),
            weight_bytes: loaded.as_ref().map(|estimate| estimate.plan.resident_bytes()),
            activation_bytes: loaded.and_then(|of| estimate::activation_bytes(&of, work)),
        })
    }

    /// Completes once a device has failed for good: the process has to be started anew.
    pub async fn until_device_fault(&self) {
        self.shared.board.until_device_fault().await;
    }

    /// A picture beside the first of a task as the task needs it: one that is far larger
    /// than the model looks at is reduced. Not for the async runtime.
    #[must_use]
    pub fn reduced(&self, picture: Picture) -> Picture {
        held::reduced(picture, self.card())
    }

    fn enqueue(
        &self,
        request: ImageRequest,
        (previews, client): (usize, Client),
        memory: MemoryShare,
    ) -> Result<(Submitted, mpsc::UnboundedReceiver<(usize, Picture)>), ServiceError> {
        let (reply, answer) = oneshot::channel();
        let (to, arriving) = mpsc::unbounded_channel();
        let previews = Previews { count: previews, to };
        let work = Work::of(&request, self.card());
        let span = tracing::Span::current();
        let (told, progress) = watch::channel(None);
        let job = Job { model: self.model, request, work, previews, reply, memory, span, told };
        let place = self.shared.queue.join(job, client, work)?;
        let (metrics, model) = (self.metrics().clone(), self.card().id.clone());
        let unanswered = Unanswered { metrics, model, is_answered: false };
        Ok((Submitted { answer, progress, unanswered, place }, arriving))
    }

    /// Takes no more requests, of any model, and refuses those that wait. The running ones
    /// are finished and answered; then the threads of the devices end.
    pub fn shut_down(&self) {
        self.shared.queue.close();
        self.shared.is_shut_down.send_replace(true);
    }

    /// Completes once [`Self::shut_down`] was called.
    pub async fn until_shut_down(&self) {
        let mut is_shut_down = self.shared.is_shut_down.subscribe();
        // The sender lives as long as this service.
        let _ = is_shut_down.wait_for(|is_shut_down| *is_shut_down).await;
    }

    /// How the service is doing.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        let queue = &self.shared.queue;
        let Length { waiting, running, is_open, is_hosted, threads } = queue.length();
        ServiceStatus {
            waiting,
            capacity: queue.capacity,
            busy: running > 0,
            accepting: is_open,
            worker_alive: is_hosted || threads == 0,
            threads,
        }
    }

    /// The jobs of all models that run now, and how far they are.
    #[must_use]
    pub fn running_jobs(&self) -> Vec<RunningJob> {
        self.shared.jobs.all(Instant::now())
    }

    /// Where everything about the models of this pool is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The lines, the models and their devices, as the metrics tell of them. Asks the
    /// system: not for the async runtime.
    #[must_use]
    pub fn observed(&self) -> metrics::State {
        observed::state_of(&self.shared.cards, &self.shared.queue, &self.shared.board)
    }

    /// Makes one small throw-away picture, so that the first client does not
    /// wait for what a device does only once. `image` is the picture to edit;
    /// without one, a grey square is.
    ///
    /// Returns how long it took, in seconds.
    ///
    /// # Errors
    /// [`ServiceError`], as for any request.
    pub async fn warm_up(&self, image: Option<Picture>) -> Result<f64, ServiceError> {
        let started = Instant::now();
        self.make_unasked(warm_up_request(self.card(), image)?).await?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Makes a small picture that is always the same: of the same words and seed.
    ///
    /// # Errors
    /// [`ServiceError`], as for any request.
    pub async fn make_test_picture(&self) -> Result<Picture, ServiceError> {
        let generation = self.make_unasked(warm_up_request(self.card(), None)?).await?;
        let first = generation.images.into_iter().next();
        let none = || ServiceError::Panicked { message: "the model made no picture".to_owned() };
        Ok(first.ok_or_else(none)?.image)
    }

    /// What a request comes to that no client sent.
    async fn make_unasked(&self, request: ImageRequest) -> Result<Generation, ServiceError> {
        let nobody_elses = RequestMemory::new(0, Duration::ZERO).share();
        let (submitted, _) = self.enqueue(request, (0, Client::NOBODY), nobody_elses)?;
        Ok(submitted.answered().await?.generation)
    }
}

/// How often a finished picture is held until it is sent: as it was made and as it was
/// asked for, as a file and as a text in the reply.
const REPLY_COPIES: usize = 4;

/// A request on its way. Dropped, it is called off.
struct Submitted {
    answer: Answer,
    progress: watch::Receiver<Option<RunningJob>>,
    unanswered: Unanswered,
    place: Place,
}

impl Submitted {
    async fn answered(self) -> Result<Made, ServiceError> {
        let Self { answer, mut unanswered, place: _place, .. } = self;
        let answer = answer.await.unwrap_or(Err(ServiceError::WorkerGone));
        unanswered.is_answered = true;
        answer
    }
}

/// A job that has no answer yet. Dropped before it has one, it counts as called off.
struct Unanswered {
    metrics: Metrics,
    model: String,
    is_answered: bool,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.is_answered {
            self.metrics.called_off(&self.model);
        }
    }
}

/// What a request came to.
pub struct Finished {
    /// The pictures, as the client asked for them.
    pub generation: Generation,
    /// For what becomes of them.
    pub memory: MemoryShare,
    /// How long the request waited for its model to be loaded, if it did.
    pub loading: Option<Duration>,
}

/// Looks at the unfinished picture of an order.
pub struct Unfinished {
    arriving: mpsc::UnboundedReceiver<(usize, Picture)>,
    size_plan: Arc<SizePlan>,
}

impl Unfinished {
    /// The next one, and of which picture it is, from 0; `None` once there are no more.
    ///
    /// # Errors
    /// [`ServiceError::Panicked`] if it cannot be brought to its size.
    pub async fn next(&mut self) -> Result<Option<(usize, Picture)>, ServiceError> {
        let Some((image, preview)) = self.arriving.recv().await else {
            return Ok(None);
        };
        let size_plan = Arc::clone(&self.size_plan);
        off_the_runtime(move || (image, size_plan.finish(preview))).await.map(Some)
    }
}

/// An order on its way. Dropped, it is called off.
pub struct JobHandle {
    submitted: Submitted,
    previews: Unfinished,
    size_plan: Arc<SizePlan>,
    /// That of the size_plan; in the end that of the reply, too.
    memory: MemoryShare,
}

impl JobHandle {
    /// The next look at the unfinished picture; `None` once there are no more.
    ///
    /// # Errors
    /// [`ServiceError::Panicked`] if it cannot be brought to its size.
    pub async fn next_preview(&mut self) -> Result<Option<Picture>, ServiceError> {
        Ok(self.previews.next().await?.map(|(_only_one, preview)| preview))
    }

    /// The looks at the unfinished picture, for somebody else; the handle has none any more.
    pub fn take_previews(&mut self) -> Unfinished {
        let none = Unfinished {
            arriving: mpsc::unbounded_channel().1,
            size_plan: Arc::clone(&self.size_plan),
        };
        std::mem::replace(&mut self.previews, none)
    }

    /// How far the work is; nothing until it begins.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Option<RunningJob>> {
        self.submitted.progress.clone()
    }

    /// Where it is in its line.
    #[must_use]
    pub fn position(&self) -> Position {
        self.submitted.place.position()
    }

    /// The finished pictures, with what the client gets that it did not ask for among
    /// the warnings; the share of the memory is for what becomes of them.
    ///
    /// # Errors
    /// [`ServiceError`] says why there are none.
    pub async fn finish(self) -> Result<Finished, ServiceError> {
        let Self { submitted, size_plan, mut memory, .. } = self;
        let Made { generation, loading } = submitted.answered().await?;
        let Generation { images, usage, mut warnings, skipped_blocks } = generation;
        let pixels = images.iter().map(|generated| generated.image.bytes());
        memory.grow_by_what_is_free(REPLY_COPIES * pixels.sum::<usize>());
        warnings.splice(..0, size_plan.notes.iter().cloned());
        off_the_runtime(move || {
            let finish = |GeneratedImage { image, seed }| GeneratedImage {
                image: size_plan.finish(image),
                seed,
            };
            let images = images.into_iter().map(finish).collect();
            let generation = Generation { images, usage, warnings, skipped_blocks };
            Finished { generation, memory, loading }
        })
        .await
    }
}

/// Does `work` on a thread for work that blocks.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServiceError> {
    let done = tokio::task::spawn_blocking(spans::carried(work)).await;
    done.map_err(|error| ServiceError::Panicked { message: error.to_string() })
}

impl std::fmt::Debug for ImageService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ImageService")
            .field("model", &self.card().id)
            .field("status", &self.status())
            .finish()
    }
}

/// The least that the model can be asked for: two steps, one small picture.
fn warm_up_request(
    card: &ModelCard,
    image: Option<Picture>,
) -> Result<ImageRequest, ValidationError> {
    const SIDE: usize = 256;
    let side = SIDE.min(card.image_area.isqrt()).next_multiple_of(card.size_multiple.max(1));
    let size = ImageSize::new(side, side)?;
    let grey = || RgbImage::filled(side, side, [128, 128, 128]).into();
    let image = image.unwrap_or_else(grey);
    let task = match card.edit_kind {
        _ if card.tasks.contains(TaskKind::TextToImage) => Task::Generate,
        EditKind::Instruction => Task::Edit { images: vec![image] },
        EditKind::ImageToImage => Task::ImageToImage { image, strength: card.defaults.strength },
        EditKind::Layers => Task::Decompose { image, layers: LayerCount::new(1)? },
    };
    let negative_prompt = card.defaults.negative_prompt.clone();
    Ok(ImageRequest {
        negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
        size: if card.accepts(size) { OutputSize::Exact(size) } else { OutputSize::Reference },
        steps: Steps::new(2)?,
        guidance: card.defaults.guidance,
        ..ImageRequest::new(task, Prompt::new("warm up")?)
    })
}
