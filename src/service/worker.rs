//! Makes the pictures of one job with a model, on the thread that owns it.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::pace::Work;
use super::queue::Running;
use super::{MemoryShare, ServiceError};
use crate::domain::{ImageRequest, Picture};
use crate::model::{DiffusionModel, Generation, StepObserver, StepProgress};

/// What becomes of a job.
pub(super) type Answer = oneshot::Receiver<Result<Made, ServiceError>>;

/// What a model made.
pub(super) struct Made {
    pub(super) generation: Generation,
    /// How long the job waited for its model to be loaded, if it did.
    pub(super) loading: Option<Duration>,
}

/// One request on its way to its model.
pub(super) struct Job {
    /// Which of the models.
    pub(super) model: usize,
    pub(super) request: ImageRequest,
    pub(super) work: Work,
    /// How many unfinished pictures the client wants to see, and where to.
    pub(super) previews: Previews,
    /// Closed once nobody waits for the answer any more.
    pub(super) reply: oneshot::Sender<Result<Made, ServiceError>>,
    /// What its pictures hold; given back with them.
    pub(super) memory: MemoryShare,
    /// That of the request, so that what is logged meanwhile bears its id.
    pub(super) span: Span,
}

impl Job {
    /// Tells whoever waits that the service is shutting down.
    pub(super) fn refuse(self) {
        self.fail(ServiceError::ShuttingDown);
    }

    /// Tells whoever waits why there will be no pictures.
    pub(super) fn fail(self, error: ServiceError) {
        let Self { reply, .. } = self;
        // A client that has gone needs no answer.
        let _ = reply.send(Err(error));
    }
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

/// Makes the pictures of one job, which waited so long for its model. A panic fails this
/// job only.
pub(super) fn serve(
    job: Job,
    loading: Option<Duration>,
    running: Running,
    model: &mut dyn DiffusionModel,
) {
    let Job { request, work, previews, reply, memory, span, .. } = job;
    let mut observer = ClientWatch { reply: &reply, previews };
    let outcome = span
        .in_scope(|| catch_unwind(AssertUnwindSafe(|| model.generate(&request, &mut observer))));
    let result = match outcome {
        Ok(Ok(generation)) => Ok(Made { generation, loading }),
        Ok(Err(error)) => Err(error.into()),
        Err(panic) => Err(ServiceError::Panicked { message: panic_message(panic.as_ref()) }),
    };
    if result.is_ok() {
        running.finished(work);
    }
    // The place is free before the client hears of it, so that its next request is not
    // refused for its last one.
    drop((request, memory, running));
    // A client that has gone needs no answer.
    let _ = reply.send(result);
}

/// Stops a job between two of its layers once its client has gone.
struct ClientWatch<'a> {
    reply: &'a oneshot::Sender<Result<Made, ServiceError>>,
    previews: Previews,
}

impl StepObserver for ClientWatch<'_> {
    fn on_step(&mut self, _progress: StepProgress) -> ControlFlow<()> {
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_cancelled(&mut self) -> bool {
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
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}
