//! The queue, and the thread on which the model lives.
//!
//! [`ImageService::start`] loads a model on a thread of its own and hands out
//! an [`ImageService`], of which clones are cheap. Requests are made one at a
//! time, in the order of their arrival. A full queue refuses at once; a client
//! that goes away takes its job with it; a panic of the model fails one request.

mod canvas;
mod error;
mod held;
mod mask;
mod memory;
mod transparency;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub use canvas::{Framing, SizeChoice};
pub use error::{ErrorKind, ServiceError};
pub use memory::{MemoryError, MemoryShare, RequestMemory};

use crate::domain::{
    ImageCount, ImageRequest, ImageSize, LayerCount, OutputSize, Picture, Prompt, RgbImage, Seed,
    Steps, Task, ValidationError,
};
use crate::model::{DiffusionModel, EditKind, Generation, LoadError, ModelInfo};
use canvas::Canvas;
use transparency::Ground;
use worker::{Job, Previews, Worker};

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
    /// `None` once the service has been shut down.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    /// One place for each request that may wait, and one for the running one.
    places: Arc<Semaphore>,
    capacity: usize,
    busy: Arc<AtomicBool>,
    alive: Arc<AtomicBool>,
    is_shut_down: watch::Sender<bool>,
}

/// A service that clients ask for; what it is to the model is a [`Task`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// A picture from words alone.
    Generations,
    /// Pictures changed as the prompt says.
    Edits,
    /// A picture like a given one.
    Variations,
    /// A part of a picture made anew.
    Masks,
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
        let places = config.queue_capacity.min(Semaphore::MAX_PERMITS - 1) + 1;
        let (queue, arriving) = mpsc::channel(places);
        let busy = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(AtomicBool::new(true));
        let worker = Worker::new(arriving, Arc::clone(&busy));
        let (tell_loaded, loaded) = std::sync::mpsc::sync_channel(1);
        let life_sign = LifeSign(Arc::clone(&alive));
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || {
                let _life_sign = life_sign;
                match load() {
                    Ok(mut model) => {
                        let _ = tell_loaded.send(Ok(model.info().clone()));
                        worker.run(model.as_mut(), at_rest);
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
        let shared = Shared {
            info: loaded?,
            queue: Mutex::new(Some(queue)),
            places: Arc::new(Semaphore::new(places)),
            capacity: places - 1,
            busy,
            alive,
            is_shut_down: watch::Sender::new(false),
        };
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
    pub fn check_offered(&self, offer: Offer) -> Result<(), ServiceError> {
        let can = self.info().capabilities;
        let (offered, what, field) = match offer {
            Offer::Generations => (can.text_to_image, "pictures from words alone", None),
            Offer::Edits => (can.image_edit, "edits of pictures", None),
            Offer::Variations => (can.image_variation, "variations of pictures", None),
            Offer::Masks => (can.inpainting && can.mask, "masks", Some("mask")),
        };
        if offered { Ok(()) } else { Err(ServiceError::NotOffered { what, field }) }
    }

    /// Queues `request`, with its pictures and its size as `framing` says, and
    /// up to `previews` looks at the unfinished picture. What `request.size` says
    /// does not count. `memory` is the request's share: it becomes what waits, and what
    /// the reply needs. Dropping the [`Ticket`] calls the work off at its next step.
    ///
    /// # Errors
    /// [`ServiceError`]; `Busy` and `ShuttingDown` come at once.
    pub async fn order(
        &self,
        request: ImageRequest,
        framing: Framing,
        previews: usize,
        mut memory: MemoryShare,
    ) -> Result<Ticket, ServiceError> {
        let shared = Arc::clone(&self.shared);
        let held = held::held_by(&request.task);
        let needed = held::needed_to_plan(&request.task, framing, &shared.info);
        memory.grow_to(held + needed).await?;
        // The share goes along: the work goes on if the client leaves.
        let planning = off_the_runtime(move || {
            let ground = Ground::for_task(&request.task, &shared.info, framing);
            let task = ground.lay_under_large(request.task);
            let (mut canvas, task) = Canvas::plan(task, &shared.info, framing)?;
            canvas.notes.extend(ground.note());
            let size = canvas.model_size;
            let task = held::reduced_task(ground.lay_under(task), &shared.info);
            let request = ImageRequest { task, size, ..request };
            Ok::<_, ValidationError>((Arc::new(canvas), request, memory))
        });
        let (canvas, request, mut memory) = planning.await??;
        let waiting = held::held_by(&request.task);
        memory.shrink_to(waiting + canvas.held_bytes());
        let (answer, previews) = self.enqueue(request, previews, memory.split(waiting))?;
        Ok(Ticket { answer, previews, canvas, memory })
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
    ) -> Result<(Answer, mpsc::UnboundedReceiver<Picture>), ServiceError> {
        let queue = self.shared.queue.lock();
        let queue = queue.unwrap_or_else(PoisonError::into_inner);
        let queue = queue.as_ref().ok_or(ServiceError::ShuttingDown)?;
        let busy = || ServiceError::Busy { waiting: self.shared.capacity };
        let place = Arc::clone(&self.shared.places).try_acquire_owned();
        let (reply, answer) = oneshot::channel();
        let (to, arriving) = mpsc::unbounded_channel();
        let previews = Previews { count: previews, to };
        let place = place.map_err(|_no_place| busy())?;
        let job = Job { request, previews, reply, place, memory };
        queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => ServiceError::WorkerGone,
        })?;
        Ok((answer, arriving))
    }

    /// Takes no more requests, and refuses those that wait. The running one is
    /// finished and answered; then the thread of the model ends.
    pub fn shut_down(&self) {
        let queue = self.shared.queue.lock();
        drop(queue.unwrap_or_else(PoisonError::into_inner).take());
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
        let busy = self.shared.busy.load(Ordering::Relaxed);
        let admitted = self.shared.capacity + 1 - self.shared.places.available_permits();
        let queue = self.shared.queue.lock();
        let accepting = queue.unwrap_or_else(PoisonError::into_inner).is_some();
        ServiceStatus {
            waiting: admitted.saturating_sub(usize::from(busy)),
            capacity: self.shared.capacity,
            busy,
            accepting,
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
        let (answer, _previews) = self.enqueue(request, 0, nobody_elses)?;
        answer.await.unwrap_or(Err(ServiceError::WorkerGone))?;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// How often a finished picture is held until it is sent: as it was made and as it was
/// asked for, as a file and as a text in the reply.
const REPLY_COPIES: usize = 4;

/// An order on its way. Dropped, it is called off.
pub struct Ticket {
    answer: Answer,
    previews: mpsc::UnboundedReceiver<Picture>,
    canvas: Arc<Canvas>,
    /// That of the canvas; in the end that of the reply, too.
    memory: MemoryShare,
}

type Answer = oneshot::Receiver<Result<Generation, ServiceError>>;

impl Ticket {
    /// The next look at the unfinished picture; `None` once there are no more.
    ///
    /// # Errors
    /// [`ServiceError::Panicked`] if it cannot be brought to its size.
    pub async fn next_preview(&mut self) -> Result<Option<Picture>, ServiceError> {
        let Some(preview) = self.previews.recv().await else {
            return Ok(None);
        };
        let canvas = Arc::clone(&self.canvas);
        off_the_runtime(move || canvas.finish(preview)).await.map(Some)
    }

    /// The finished pictures, with what the client gets that it did not ask for among
    /// the warnings; the share of the memory is for what becomes of them.
    ///
    /// # Errors
    /// [`ServiceError`] says why there are none.
    pub async fn finish(self) -> Result<(Generation, MemoryShare), ServiceError> {
        let Self { answer, canvas, mut memory, .. } = self;
        let mut generation = answer.await.unwrap_or(Err(ServiceError::WorkerGone))?;
        let pixels = generation.images.iter().map(|generated| generated.image.bytes());
        memory.grow_by_what_is_free(REPLY_COPIES * pixels.sum::<usize>());
        generation.warnings.splice(..0, canvas.notes.iter().cloned());
        off_the_runtime(move || {
            for generated in &mut generation.images {
                generated.image = canvas.finish(generated.image.clone());
            }
            (generation, memory)
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
struct LifeSign(Arc<AtomicBool>);

impl Drop for LifeSign {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
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
        _ if info.capabilities.text_to_image => Task::Generate,
        EditKind::Instruction => Task::Edit { images: vec![image] },
        EditKind::ImageToImage => Task::ImageToImage { image, strength: info.defaults.strength },
        EditKind::Layers => Task::Decompose { image, layers: LayerCount::new(1)? },
    };
    let negative_prompt = info.defaults.negative_prompt.clone();
    Ok(ImageRequest {
        task,
        prompt: Prompt::new("warm up")?,
        negative_prompt: negative_prompt.map(Prompt::negative).transpose()?,
        count: ImageCount::new(1)?,
        size: if info.accepts(size) { OutputSize::Exact(size) } else { OutputSize::Reference },
        steps: Steps::new(2)?,
        guidance: info.defaults.guidance,
        seed: Seed::new(0),
    })
}
