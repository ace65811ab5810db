//! The thread that owns the model and makes one request after the other.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{MemoryShare, ServiceError};
use crate::domain::{ImageRequest, Picture};
use crate::model::{DiffusionModel, Generation, StepObserver, StepProgress};

/// One request on its way to the model.
pub(super) struct Job {
    pub(super) request: ImageRequest,
    /// How many unfinished pictures the client wants to see, and where to.
    pub(super) previews: Previews,
    /// Closed once nobody waits for the answer any more.
    pub(super) reply: oneshot::Sender<Result<Generation, ServiceError>>,
    /// The job's place in the queue; given back when the job is dropped.
    pub(super) place: OwnedSemaphorePermit,
    /// What its pictures hold; given back with them.
    pub(super) memory: MemoryShare,
}

/// Unfinished pictures for a client.
pub(super) struct Previews {
    /// How many, at most.
    pub(super) count: usize,
    pub(super) to: mpsc::UnboundedSender<Picture>,
}

impl Previews {
    /// Whether one is due: they are spread evenly over the steps.
    fn are_due(&self, progress: StepProgress) -> bool {
        let due = |number: usize| number * progress.total_steps / (self.count + 1);
        (1..=self.count).any(|number| due(number) == progress.step)
    }
}

/// What the worker reads, and what it shows of itself.
pub(super) struct Worker {
    arriving: mpsc::Receiver<Job>,
    /// Jobs already taken from the channel, oldest first.
    waiting: VecDeque<Job>,
    busy: Arc<AtomicBool>,
}

impl Worker {
    pub(super) fn new(arriving: mpsc::Receiver<Job>, busy: Arc<AtomicBool>) -> Self {
        Self { arriving, waiting: VecDeque::new(), busy }
    }

    /// Serves until the service shuts down; whoever waits then is refused. Calls `at_rest`
    /// whenever nothing is left to do.
    pub(super) fn run(mut self, model: &mut dyn DiffusionModel, at_rest: fn()) {
        while let Some(job) = self.next(at_rest) {
            if self.arriving.is_closed() {
                refuse(job);
            } else if !job.reply.is_closed() {
                self.busy.store(true, Ordering::Relaxed);
                self.serve(job, model);
                self.busy.store(false, Ordering::Relaxed);
            }
        }
    }

    fn next(&mut self, at_rest: fn()) -> Option<Job> {
        if let Some(job) = self.waiting.pop_front().or_else(|| self.arriving.try_recv().ok()) {
            return Some(job);
        }
        at_rest();
        self.arriving.blocking_recv()
    }

    /// Makes the pictures of one job. A panic fails this job only.
    fn serve(&mut self, job: Job, model: &mut dyn DiffusionModel) {
        let Job { request, previews, reply, place, memory } = job;
        let mut observer = ClientWatch { reply: &reply, previews, worker: self };
        let outcome = catch_unwind(AssertUnwindSafe(|| model.generate(&request, &mut observer)));
        let result = match outcome {
            Ok(result) => result.map_err(ServiceError::from),
            Err(panic) => Err(ServiceError::Panicked { message: panic_message(panic.as_ref()) }),
        };
        // The place is free before the client hears of it, so that its next
        // request is not refused for its last one.
        drop((request, memory, place));
        self.busy.store(false, Ordering::Relaxed);
        // A client that has gone needs no answer.
        let _ = reply.send(result);
    }

    /// Lets go of waiting jobs that need not be made any more: those whose
    /// client has gone, and on shutdown all of them.
    fn thin_out(&mut self) {
        while let Ok(job) = self.arriving.try_recv() {
            self.waiting.push_back(job);
        }
        if self.arriving.is_closed() {
            self.waiting.drain(..).for_each(refuse);
        } else {
            self.waiting.retain(|job| !job.reply.is_closed());
        }
    }
}

fn refuse(job: Job) {
    drop(job.place);
    let _ = job.reply.send(Err(ServiceError::ShuttingDown));
}

/// Stops a job between two of its layers once its client has gone.
struct ClientWatch<'a> {
    reply: &'a oneshot::Sender<Result<Generation, ServiceError>>,
    previews: Previews,
    worker: &'a mut Worker,
}

impl StepObserver for ClientWatch<'_> {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_cancelled(&mut self) -> bool {
        self.worker.thin_out();
        self.reply.is_closed()
    }

    fn wants_preview(&mut self, progress: StepProgress) -> bool {
        self.previews.are_due(progress)
    }

    fn on_preview(&mut self, _progress: StepProgress, preview: Picture) {
        // A client that has gone sees none.
        let _ = self.previews.to.send(preview);
    }
}

/// What a panic said, where it said so in words.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}
