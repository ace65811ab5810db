//! The queue, and the thread on which the model lives.
//!
//! [`ImageService::start`] loads a model on a thread of its own and hands out
//! an [`ImageService`], of which clones are cheap. Requests are made one at a
//! time, in the order of their arrival. A full queue refuses at once; a client
//! that goes away takes its job with it; a panic of the model fails one request.

mod error;
mod held;
mod mask;
mod memory;
mod queue;
mod size_plan;
mod transparency;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

pub use error::{ErrorKind, ServiceError};
pub use memory::{MemoryError, MemoryShare, RequestMemory};
pub use size_plan::{Framing, SizeChoice};

use crate::domain::{
    ImageRequest, ImageSize, LayerCount, OutputSize, Picture, Prompt, RgbImage, Steps, Task,
    TaskKind, ValidationError,
};
use crate::model::{DiffusionModel, EditKind, GeneratedImage, Generation, LoadError, ModelInfo};
use queue::{Length, Place, Queue};
use size_plan::SizePlan;
use transparency::Ground;
use worker::{Answer, Job, Previews};

/// What the service can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// How many requests may wait while one is being served.
    pub queue_capacity: usize,
}

/// The way to the model. Clones share one queue and one model.
#[derive(Clone)]
pub struct ImageService {
    shared: Arc<Shared>,
}

struct Shared {
    info: ModelInfo,
    queue: Arc<Queue>,
    alive: Arc<AtomicBool>,
    is_shut_down: watch::Sender<bool>,
}

impl Drop for Shared {
    /// Nobody is left who could ask for anything: the thread of the model may end.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// How the service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Requests that wait for the model.
    pub waiting: usize,
    /// How many may wait.
    pub capacity: usize,
    /// Whether the model is at work.
    pub busy: bool,
    /// Whether new requests are taken.
    pub accepting: bool,
    /// Whether the thread of the model runs.
    pub worker_alive: bool,
}

/// The thread of the model, to wait for after a shutdown.
#[derive(Debug)]
pub struct WorkerHandle(JoinHandle<()>);

impl WorkerHandle {
    /// Blocks until the thread has ended, which it does once
    /// [`ImageService::shut_down`] was called, or all services were dropped, and
    /// the running request is finished.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the thread of the model ended with a panic");
        }
    }
}

impl ImageService {
    /// Starts the thread `model`, has `load` make a model there (a CUDA stream
    /// belongs to a thread) and waits until it has. That thread calls `at_rest` whenever it
    /// has made what it was asked for and nobody waits: what it has freed can go back then.
    ///
    /// # Errors
    /// What `load` gives back, or [`LoadError::Thread`] if the system gives no
    /// thread.
    ///
    /// # Panics
    /// If `load` does: its panic is passed on.
    pub fn start(
        config: ServiceConfig,
        load: impl FnOnce() -> Result<Box<dyn DiffusionModel>, LoadError> + Send + 'static,
        at_rest: fn(),
    ) -> Result<(Self, WorkerHandle), LoadError> {
        let queue = Arc::new(Queue::new(config.queue_capacity));
        let alive = Arc::new(AtomicBool::new(true));
        let (tell_loaded, loaded) = std::sync::mpsc::sync_channel(1);
        let life_sign = LifeSign { alive: Arc::clone(&alive), queue: Arc::clone(&queue) };
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || {
                let life_sign = life_sign;
                match load() {
                    Ok(mut model) => {
                        let _ = tell_loaded.send(Ok(model.info().clone()));
                        worker::work(&life_sign.queue, model.as_mut(), at_rest);
                    }
                    Err(error) => {
                        let _ = tell_loaded.send(Err(error));
                    }
                }
            })
            .map_err(LoadError::Thread)?;
        let Ok(loaded) = loaded.recv() else {
            // The thread went away without a word: `load` panicked.
            let panic = thread.join().err();
            std::panic::resume_unwind(panic.unwrap_or_else(|| Box::new("loading ended early")));
        };
        let shared =
            Shared { info: loaded?, queue, alive, is_shut_down: watch::Sender::new(false) };
        let service = Self { shared: Arc::new(shared) };
        Ok((service, WorkerHandle(thread)))
    }

    /// What the model is and can do.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Refuses what the model does not do, or was switched off.
    ///
    /// # Errors
    /// [`ServiceError::NotOffered`].
    pub fn check_offered(&self, kind: TaskKind) -> Result<(), ServiceError> {
        if self.info().tasks.contains(kind) {
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

    /// Queues `request`, with its pictures and its size as `framing` says, and
    /// up to `previews` looks at the unfinished picture. What `request.size` says
    /// does not count. `memory` is the request's share: it becomes what waits, and what
    /// the reply needs. Dropping the [`JobHandle`] calls the work off at its next step.
    ///
    /// # Errors
    /// [`ServiceError`]; `Busy` and `ShuttingDown` come at once.
    pub async fn submit(
        &self,
        request: ImageRequest,
        framing: Framing,
        previews: usize,
        mut memory: MemoryShare,
    ) -> Result<JobHandle, ServiceError> {
        let shared = Arc::clone(&self.shared);
        let held = held::held_by(&request.task);
        let needed = held::needed_to_plan(&request.task, framing, &shared.info);
        memory.grow_to(held + needed).await?;
        // The share goes along: the work goes on if the client leaves.
        let planning = off_the_runtime(move || {
            let ground = Ground::for_task(&request.task, &shared.info, framing);
            let task = ground.lay_under_large(request.task);
            let (mut size_plan, task) = SizePlan::plan(task, &shared.info, framing)?;
            size_plan.notes.extend(ground.note());
            let size = size_plan.model_size;
            let task = held::reduced_task(ground.lay_under(task), &shared.info);
            let request = ImageRequest { task, size, ..request };
            Ok::<_, ValidationError>((Arc::new(size_plan), request, memory))
        });
        let (size_plan, request, mut memory) = planning.await??;
        let waiting = held::held_by(&request.task);
        memory.shrink_to(waiting + size_plan.held_bytes());
        let submitted = self.enqueue(request, previews, memory.split(waiting))?;
        Ok(JobHandle { submitted, size_plan, memory })
    }

    /// A picture beside the first of a task as the task needs it: one that is far larger
    /// than the model looks at is reduced. Not for the async runtime.
    #[must_use]
    pub fn reduced(&self, picture: Picture) -> Picture {
        held::reduced(picture, self.info())
    }

    fn enqueue(
        &self,
        request: ImageRequest,
        previews: usize,
        memory: MemoryShare,
    ) -> Result<Submitted, ServiceError> {
        let (reply, answer) = oneshot::channel();
        let (to, arriving) = mpsc::unbounded_channel();
        let previews = Previews { count: previews, to };
        let job = Job { request, previews, reply, memory, span: tracing::Span::current() };
        let place = self.shared.queue.join(job)?;
        Ok(Submitted { answer, previews: arriving, _place: place })
    }

    /// Takes no more requests, and refuses those that wait. The running one is
    /// finished and answered; then the thread of the model ends.
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
        let Length { waiting, running, is_open } = queue.length();
        ServiceStatus {
            waiting,
            capacity: queue.capacity,
            busy: running > 0,
            accepting: is_open,
            worker_alive: self.shared.alive.load(Ordering::Relaxed),
        }
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
        let request = warm_up_request(self.info(), image)?;
        let nobody_elses = RequestMemory::new(0, Duration::ZERO).share();
        let submitted = self.enqueue(request, 0, nobody_elses)?;
        submitted.answer.await.unwrap_or(Err(ServiceError::WorkerGone))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// How often a finished picture is held until it is sent: as it was made and as it was
/// asked for, as a file and as a text in the reply.
const REPLY_COPIES: usize = 4;

/// A request on its way. Dropped, it is called off.
struct Submitted {
    answer: Answer,
    previews: mpsc::UnboundedReceiver<Picture>,
    _place: Place,
}

/// An order on its way. Dropped, it is called off.
pub struct JobHandle {
    submitted: Submitted,
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
        let Some(preview) = self.submitted.previews.recv().await else {
            return Ok(None);
        };
        let size_plan = Arc::clone(&self.size_plan);
        off_the_runtime(move || size_plan.finish(preview)).await.map(Some)
    }

    /// The finished pictures, with what the client gets that it did not ask for among
    /// the warnings; the share of the memory is for what becomes of them.
    ///
    /// # Errors
    /// [`ServiceError`] says why there are none.
    pub async fn finish(self) -> Result<(Generation, MemoryShare), ServiceError> {
        let Self { submitted, size_plan, mut memory } = self;
        let generation = submitted.answer.await.unwrap_or(Err(ServiceError::WorkerGone))?;
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
            (Generation { images, usage, warnings, skipped_blocks }, memory)
        })
        .await
    }
}

/// Does `work` on a thread for work that blocks.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServiceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ServiceError::Panicked { message: error.to_string() })
}

impl std::fmt::Debug for ImageService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ImageService")
            .field("model", &self.info().id)
            .field("status", &self.status())
            .finish()
    }
}

/// Says that the thread of the model has ended, however it ends.
struct LifeSign {
    alive: Arc<AtomicBool>,
    queue: Arc<Queue>,
}

impl Drop for LifeSign {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::Relaxed);
        self.queue.desert();
    }
}

/// The least that the model can be asked for: two steps, one small picture.
fn warm_up_request(
    info: &ModelInfo,
    image: Option<Picture>,
) -> Result<ImageRequest, ValidationError> {
    const SIDE: usize = 256;
    let side = SIDE.min(info.image_area.isqrt()).next_multiple_of(info.size_multiple.max(1));
    let size = ImageSize::new(side, side)?;
    let grey = || RgbImage::filled(side, side, [128, 128, 128]).into();
    let image = image.unwrap_or_else(grey);
    let task = match info.edit_kind {
        _ if info.tasks.contains(TaskKind::TextToImage) => Task::Generate,
        EditKind::Instruction => Task::Edit { images: vec![image] },
        EditKind::ImageToImage => Task::ImageToImage { image, strength: info.defaults.strength },
        EditKind::Layers => Task::Decompose { image, layers: LayerCount::new(1)? },
    };
    let negative_prompt = info.defaults.negative_prompt.clone();
    Ok(ImageRequest {
        negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
        size: if info.accepts(size) { OutputSize::Exact(size) } else { OutputSize::Reference },
        steps: Steps::new(2)?,
        guidance: info.defaults.guidance,
        ..ImageRequest::new(task, Prompt::new("warm up")?)
    })
}
