//! Makes the pictures of one job with a model, on the thread that owns it.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::pace::Work;
use super::progress::{Audience, Reporter, RunningJob, Tracked};
use super::queue::Running;
use super::stopwatch::Stopwatch;
use super::{MemoryShare, ServiceError};
use crate::domain::{ImageRequest, Picture};
use crate::model::{Generation, LayerProgress, ModelError, Stage, StepObserver, StepProgress};

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
    /// Hears how far it is.
    pub(super) told: watch::Sender<Option<RunningJob>>,
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
    /// How many of each picture, at most.
    pub(super) count: usize,
    /// Each with the picture that it will be, from 0.
    pub(super) to: mpsc::UnboundedSender<(usize, Picture)>,
}

impl Previews {
    /// Whether one is due: they are spread evenly over the steps.
    fn are_due(&self, progress: StepProgress) -> bool {
        let due = |number: usize| number * progress.total_steps / (self.count + 1);
        (1..=self.count).any(|number| due(number) == progress.step)
    }
}

/// What there is of a job that begins.
pub(super) struct Begun {
    /// How long it waited for its model, if it did.
    pub(super) loading: Option<Duration>,
    pub(super) running: Running,
    pub(super) tracked: Option<Tracked>,
    pub(super) stopwatch: Stopwatch,
}

/// Makes the pictures of one job with `make`. A panic fails this job only.
pub(super) fn serve(
    job: Job,
    begun: Begun,
    make: impl FnOnce(&ImageRequest, &mut dyn StepObserver) -> Result<Generation, ModelError>,
) {
    let Job { request, work, previews, reply, memory, span, .. } = job;
    let Begun { loading, running, tracked, stopwatch } = begun;
    let reporter = Reporter::new(Audience::of_standard_error(), Instant::now());
    let job = tracked.map(|tracked| (tracked, reporter));
    let mut observer =
        ClientWatch { reply: &reply, previews, job, stopwatch, clock: &Instant::now };
    let outcome =
        span.in_scope(|| catch_unwind(AssertUnwindSafe(|| make(&request, &mut observer))));
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
    let ClientWatch { stopwatch, previews, job, .. } = observer;
    if result.is_ok() {
        stopwatch.finish(Instant::now());
    }
    drop((request, memory, previews, job, running));
    // A client that has gone needs no answer.
    let _ = reply.send(result);
}

/// Stops a job between two of its layers once its client has gone, and keeps how far it is.
struct ClientWatch<'a> {
    reply: &'a oneshot::Sender<Result<Made, ServiceError>>,
    previews: Previews,
    /// Where it is noted how far the job is, and who tells of it.
    job: Option<(Tracked, Reporter)>,
    stopwatch: Stopwatch,
    clock: &'a dyn Fn() -> Instant,
}

impl ClientWatch<'_> {
    /// Notes with `note` how far the job is, and tells of it if it is time to.
    fn note(&mut self, note: impl FnOnce(&Tracked, Instant)) {
        if let Some((tracked, reporter)) = &mut self.job {
            let now = (self.clock)();
            note(tracked, now);
            reporter.beat(tracked, now);
        }
    }
}

impl StepObserver for ClientWatch<'_> {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.stopwatch.on_step(progress, (self.clock)());
        self.note(|job, _| job.on_step(progress));
        if self.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn on_stage(&mut self, stage: Stage) {
        self.stopwatch.on_stage(stage, (self.clock)());
        self.note(|job, now| job.on_stage(stage, now));
    }

    fn on_decoding_cost(&mut self, steps: f64) {
        self.note(|job, _| job.on_decoding_cost(steps));
    }

    fn on_layer(&mut self, layer: LayerProgress) {
        self.note(|job, _| job.on_layer(layer));
    }

    fn is_cancelled(&mut self) -> bool {
        self.note(|_, _| ());
        self.reply.is_closed()
    }

    fn wants_preview(&mut self, progress: StepProgress) -> bool {
        self.previews.are_due(progress)
    }

    fn on_preview(&mut self, progress: StepProgress, preview: Picture) {
        // A client that has gone sees none.
        let _ = self.previews.to.send((progress.image, preview));
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::service::progress::{JobStage, Outlook, RunningJobs};
    use crate::service::testing::Captured;

    #[test]
    fn a_long_job_is_told_of_in_its_requests_span_while_its_model_asks_whether_to_go_on() {
        let (start, seconds) = (Instant::now(), Cell::new(0));
        let clock = || start + Duration::from_secs(seconds.get());
        let (model, stage) = ("test/model".to_owned(), JobStage::Starting);
        let outlook = Outlook { model, pictures: 1, expected: None, stage };
        let jobs = Arc::new(RunningJobs::default());
        let tracked = jobs.begin(0, outlook, start);
        let (reply, _answer) = oneshot::channel();
        let previews = Previews { count: 0, to: mpsc::unbounded_channel().0 };
        let job = Some((tracked, Reporter::new(Audience::Log, start)));
        let stopwatch = Stopwatch::new(Metrics::off(), String::new());
        let mut watch = ClientWatch { reply: &reply, previews, job, stopwatch, clock: &clock };
        let captured = Captured::default();

        captured.during(|| {
            tracing::info_span!("request", request_id = "trace-7").in_scope(|| {
                watch.on_stage(Stage::Denoising);
                let _ = watch.on_step(StepProgress { image: 0, step: 0, total_steps: 2 });
                watch.on_layer(LayerProgress { done: 30, total_layers: 60 });
                seconds.set(20);
                assert!(!watch.is_cancelled());
                assert!(!watch.is_cancelled());
            });
        });

        let text = captured.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("request_id=\"trace-7\""), "{text}");
        assert!(text.contains("left_s=\"60\""), "half a step in 20 s: {text}");
        assert_eq!(jobs.all(clock())[0].layer.map(|layer| layer.done), Some(30));
        drop(watch);
        assert!(jobs.all(clock()).is_empty());
    }
}
