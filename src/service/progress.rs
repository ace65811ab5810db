//! How far the jobs are that run: kept by the threads of the models, read by whoever asks,
//! and told in the log, or by a bar on a terminal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::model::{LayerProgress, Stage, StepProgress};
use crate::terminal;

/// A job that runs, as it stands when somebody asks.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningJob {
    /// The name of its model.
    pub model: String,
    /// What is being done for it.
    pub stage: JobStage,
    /// The picture that is being made, from 1.
    pub picture: usize,
    /// How many there will be.
    pub pictures: usize,
    /// Steps of this picture that are done.
    pub step: usize,
    /// Steps that it takes; 0 until the model has told.
    pub steps: usize,
    /// How far the network is, in this step or stage.
    pub layer: Option<LayerProgress>,
    /// Seconds since it began.
    pub elapsed_s: f64,
    /// Seconds that are left, as far as can be told.
    pub left_s: Option<f64>,
}

impl RunningJob {
    /// Milliseconds that are left, as far as can be told.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no job takes so long"
    )]
    pub fn left_ms(&self) -> Option<u64> {
        self.left_s.map(|seconds| (seconds * 1000.0).max(0.0) as u64)
    }
}

/// What is being done for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStage {
    /// Its model is being loaded.
    LoadingModel,
    /// Its model has begun, and has told no more yet.
    Starting,
    /// What its model says.
    Of(Stage),
}

impl JobStage {
    /// Its name, as `/health` and the log have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LoadingModel => "loading_model",
            Self::Starting => "starting",
            Self::Of(stage) => stage.name(),
        }
    }
}

/// What is known of a job before it begins.
pub(super) struct Outlook {
    /// The name of its model.
    pub(super) model: String,
    pub(super) pictures: usize,
    /// How long jobs like it have taken.
    pub(super) expected: Option<Duration>,
    pub(super) stage: JobStage,
}

/// The jobs that run, one for each thread at most.
#[derive(Default)]
pub(super) struct RunningJobs(Mutex<Vec<(usize, Progress)>>);

impl RunningJobs {
    /// A job begins on `thread`; it is over when what is returned is dropped.
    pub(super) fn begin(
        self: &Arc<Self>,
        thread: usize,
        outlook: Outlook,
        now: Instant,
    ) -> Tracked {
        let mut jobs = self.lock();
        jobs.retain(|(other, _)| *other != thread);
        jobs.push((thread, Progress::new(outlook, now)));
        Tracked { jobs: Arc::clone(self), thread, told: watch::Sender::default() }
    }

    /// What runs at `now`.
    pub(super) fn all(&self, now: Instant) -> Vec<RunningJob> {
        self.lock().iter().map(|(_, progress)| progress.seen_at(now)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Progress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job that runs. Dropped, it does not any more.
pub(super) struct Tracked {
    jobs: Arc<RunningJobs>,
    thread: usize,
    /// Hears of each stage and step.
    told: watch::Sender<Option<RunningJob>>,
}

impl Tracked {
    /// The same, of which `told` hears from now on.
    pub(super) fn telling(mut self, told: watch::Sender<Option<RunningJob>>) -> Self {
        self.told = told;
        self.tell(Instant::now());
        self
    }

    /// Tells whoever follows this job how far it is.
    fn tell(&self, now: Instant) {
        self.told.send_replace(self.seen_at(now));
    }

    fn with<R: Default>(&self, action: impl FnOnce(&mut Progress) -> R) -> R {
        let mut jobs = self.jobs.lock();
        let own = jobs.iter_mut().find(|(thread, _)| *thread == self.thread);
        own.map(|(_, progress)| action(progress)).unwrap_or_default()
    }

    pub(super) fn on_stage(&self, stage: Stage, now: Instant) {
        self.with(|progress| progress.on_stage(stage, now));
        self.tell(now);
    }

    pub(super) fn on_step(&self, step: StepProgress) {
        self.with(|progress| progress.on_step(step));
        self.tell(Instant::now());
    }

    pub(super) fn on_decoding_cost(&self, steps: f64) {
        self.with(|progress| progress.decoding_steps = steps);
    }

    pub(super) fn on_layer(&self, layer: LayerProgress) {
        self.with(|progress| progress.layer = Some(layer));
    }

    fn seen_at(&self, now: Instant) -> Option<RunningJob> {
        self.with(|progress| Some(progress.seen_at(now)))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.jobs.lock().retain(|(thread, _)| *thread != self.thread);
    }
}

/// How far a job is.
struct Progress {
    outlook: Outlook,
    started: Instant,
    stage: JobStage,
    stage_started: Instant,
    /// The last step that was told.
    step: StepProgress,
    layer: Option<LayerProgress>,
    /// Steps that are done, of all pictures.
    done: usize,
    /// Pictures that go through the network together, as far as was told.
    together: usize,
    /// How long earlier pictures' steps took.
    denoised: Duration,
    /// Steps that take as long as decoding a picture does.
    decoding_steps: f64,
    /// Pictures that are decoded.
    decoded: usize,
}

impl Progress {
    fn new(outlook: Outlook, now: Instant) -> Self {
        Self {
            stage: outlook.stage,
            outlook,
            started: now,
            stage_started: now,
            step: StepProgress { image: 0, step: 0, total_steps: 0 },
            layer: None,
            done: 0,
            together: 0,
            denoised: Duration::ZERO,
            decoding_steps: 0.0,
            decoded: 0,
        }
    }

    fn on_stage(&mut self, stage: Stage, now: Instant) {
        // Before the first step, what all steps have in common is made.
        self.denoised = if self.done > 0 { self.denoised_at(now) } else { Duration::ZERO };
        if self.stage == JobStage::Of(Stage::Decoding) {
            self.decoded = self.done / self.step.total_steps.max(1);
        }
        self.stage = JobStage::Of(stage);
        self.stage_started = now;
        self.layer = None;
        self.together = 0;
    }

    fn on_step(&mut self, step: StepProgress) {
        self.step = step;
        self.layer = None;
        if step.step > 0 {
            self.done += 1;
        } else {
            self.together += 1;
        }
    }

    /// How long steps have taken until `now`.
    fn denoised_at(&self, now: Instant) -> Duration {
        match self.stage {
            JobStage::Of(Stage::Denoising) => {
                self.denoised + now.saturating_duration_since(self.stage_started)
            }
            JobStage::LoadingModel | JobStage::Starting | JobStage::Of(_) => self.denoised,
        }
    }

    /// Steps that are done, with the part of those under way.
    fn steps_done(&self) -> f64 {
        let is_denoising = self.stage == JobStage::Of(Stage::Denoising);
        let part = self
            .layer
            .filter(|_| is_denoising)
            .map_or(0.0, |layer| layer.done as f64 / layer.total_layers.max(1) as f64);
        self.done as f64 + part * self.together.max(1) as f64
    }

    /// How long it takes yet, by the steps that are done; what takes longer than was
    /// expected ends nobody knows when.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (done, taken) = (self.steps_done(), self.denoised_at(now));
        let elapsed = now.saturating_duration_since(self.started);
        let steps_left = self.steps_left();
        if done > 0.0 && !taken.is_zero() && steps_left > 0.0 {
            let left = taken.mul_f64(steps_left / done);
            return left.checked_sub(self.decoding_for(now));
        }
        self.outlook.expected?.checked_sub(elapsed)
    }

    /// Steps that are to be done, and what decoding the pictures takes, as steps.
    fn steps_left(&self) -> f64 {
        let pictures = self.outlook.pictures;
        let steps = (pictures * self.step.total_steps) as f64 - self.steps_done();
        steps.max(0.0) + self.decoding_steps * pictures.saturating_sub(self.decoded) as f64
    }

    /// How long pictures have been decoded that are not done yet.
    fn decoding_for(&self, now: Instant) -> Duration {
        match self.stage {
            JobStage::Of(Stage::Decoding) => now.saturating_duration_since(self.stage_started),
            JobStage::LoadingModel | JobStage::Starting | JobStage::Of(_) => Duration::ZERO,
        }
    }

    fn seen_at(&self, now: Instant) -> RunningJob {
        let pictures = self.outlook.pictures;
        RunningJob {
            model: self.outlook.model.clone(),
            stage: self.stage,
            picture: (self.step.image + 1).min(pictures),
            pictures,
            step: self.step.step,
            steps: self.step.total_steps,
            layer: self.layer,
            elapsed_s: now.saturating_duration_since(self.started).as_secs_f64(),
            left_s: self.left(now).map(|left| left.as_secs_f64()),
        }
    }
}

/// Jobs that are over sooner are not told of.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// Between two lines of the log.
const BETWEEN_LINES: Duration = Duration::from_secs(30);
/// Between two looks of a bar.
const BETWEEN_DRAWS: Duration = Duration::from_secs(1);

/// Who is told how far a job is.
#[derive(Clone, Copy)]
pub(super) enum Audience {
    /// Whoever reads the log.
    Log,
    /// Whoever sits at the terminal.
    Terminal(&'static MultiProgress),
}

impl Audience {
    pub(super) fn of_standard_error() -> Self {
        terminal::bars().map_or(Self::Log, Self::Terminal)
    }
}

/// Tells how far a job is, from time to time.
pub(super) struct Reporter {
    audience: Audience,
    next: Instant,
    bar: Option<ProgressBar>,
}

impl Reporter {
    pub(super) fn new(audience: Audience, now: Instant) -> Self {
        Self { audience, next: now + TOLD_AFTER, bar: None }
    }

    /// Tells of `job` if it is time to; costs next to nothing if not.
    pub(super) fn beat(&mut self, job: &Tracked, now: Instant) {
        if now < self.next {
            return;
        }
        let Some(seen) = job.seen_at(now) else { return };
        match self.audience {
            Audience::Log => {
                self.next = now + BETWEEN_LINES;
                log(&seen);
            }
            Audience::Terminal(bars) => {
                self.next = now + BETWEEN_DRAWS;
                draw(self.bar.get_or_insert_with(|| bars.add(new_bar())), &seen);
            }
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn log(job: &RunningJob) {
    let RunningJob { model, picture, pictures, step, steps, .. } = job;
    let picture = format!("{picture} of {pictures}");
    let step = format!("{step} of {steps}");
    let layer = job.layer.map(|layer| format!("{} of {}", layer.done, layer.total_layers));
    let seconds = |seconds: f64| format!("{seconds:.0}");
    tracing::info!(
        model,
        stage = job.stage.name(),
        picture,
        steps_done = step,
        layers_done = layer,
        elapsed_s = seconds(job.elapsed_s),
        left_s = job.left_s.map(seconds),
        "at work"
    );
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} steps {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn draw(bar: &ProgressBar, job: &RunningJob) {
    let steps = job.steps * job.pictures;
    let done = (job.picture - 1) * job.steps + job.step;
    bar.set_length(steps as u64);
    bar.set_position(done as u64);
    bar.set_prefix(job.model.clone());
    bar.set_message(message(job));
}

/// What stands beside the bar.
fn message(job: &RunningJob) -> String {
    let mut text = job.stage.name().replace('_', " ");
    if let Some(layer) = job.layer {
        text += &format!(", layer {} of {}", layer.done + 1, layer.total_layers);
    }
    text += &format!(", {:.0} s", job.elapsed_s);
    if let Some(left) = job.left_s {
        text += &format!(", {left:.0} s left");
    }
    text
}

#[cfg(test)]
mod tests;
