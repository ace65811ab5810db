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
mod tests {
    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;
    use crate::service::testing::Captured;

    /// A terminal that keeps what was written last, and is empty once that was cleared.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> std::io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }

        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    struct Case {
        jobs: Arc<RunningJobs>,
        job: Tracked,
        start: Instant,
    }

    impl Case {
        /// A job of `pictures` that is expected to take `expected_s`.
        fn new(pictures: usize, expected_s: Option<u64>) -> Self {
            let (jobs, start) = (Arc::new(RunningJobs::default()), Instant::now());
            let expected = expected_s.map(Duration::from_secs);
            let (model, stage) = ("test/model".to_owned(), JobStage::Starting);
            let outlook = Outlook { model, pictures, expected, stage };
            let job = jobs.begin(0, outlook, start);
            Self { jobs, job, start }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + SECOND.mul_f64(seconds)
        }

        fn stage(&self, stage: Stage, seconds: f64) {
            self.job.on_stage(stage, self.at(seconds));
        }

        fn step(&self, image: usize, step: usize) {
            self.job.on_step(StepProgress { image, step, total_steps: 4 });
        }

        fn seen(&self, seconds: f64) -> RunningJob {
            self.jobs.all(self.at(seconds)).remove(0)
        }
    }

    fn close(left: Option<f64>, right: f64) -> bool {
        left.is_some_and(|left| (left - right).abs() < 1e-6)
    }

    #[test]
    fn a_job_is_seen_in_its_stages_and_its_end_is_told_from_its_steps() {
        let case = Case::new(1, Some(40));
        let seen = case.seen(5.0);
        assert_eq!((seen.stage, seen.steps), (JobStage::Starting, 0));
        assert!(close(seen.left_s, 35.0), "what was expected: {seen:?}");

        case.stage(Stage::EncodingPrompts, 5.0);
        case.job.on_layer(LayerProgress { done: 7, total_layers: 28 });
        let seen = case.seen(10.0);
        assert_eq!(seen.stage, JobStage::Of(Stage::EncodingPrompts));
        assert_eq!(seen.layer, Some(LayerProgress { done: 7, total_layers: 28 }));
        assert!(close(seen.left_s, 30.0), "layers of the encoder are no steps: {seen:?}");

        case.stage(Stage::Denoising, 20.0);
        case.step(0, 0);
        case.step(0, 1);
        let seen = case.seen(30.0);
        assert_eq!((seen.step, seen.steps, seen.layer), (1, 4, None));
        assert!(close(seen.left_s, 30.0), "ten seconds a step, three are left: {seen:?}");
        assert!((seen.elapsed_s - 30.0).abs() < 1e-6);
    }

    #[test]
    fn the_layers_of_the_first_step_tell_of_its_end() {
        let case = Case::new(1, None);
        case.stage(Stage::Denoising, 0.0);
        case.step(0, 0);
        assert_eq!(case.seen(3.0).left_s, None);

        case.job.on_layer(LayerProgress { done: 15, total_layers: 60 });

        assert!(close(case.seen(10.0).left_s, 150.0), "a quarter of a step in 10 s");
    }

    #[test]
    fn what_all_steps_have_in_common_is_no_part_of_a_step() {
        let case = Case::new(1, None);
        case.stage(Stage::Denoising, 0.0);
        case.stage(Stage::Denoising, 100.0);
        case.step(0, 0);
        case.step(0, 1);

        assert!(close(case.seen(110.0).left_s, 30.0), "{:?}", case.seen(110.0));
    }

    #[test]
    fn pictures_that_are_made_together_share_the_layers() {
        let case = Case::new(2, None);
        case.stage(Stage::Denoising, 0.0);
        case.step(0, 0);
        case.step(1, 0);

        case.job.on_layer(LayerProgress { done: 30, total_layers: 60 });

        // Half of a step of both in 10 s: of 8 steps one is done.
        assert!(close(case.seen(10.0).left_s, 70.0), "{:?}", case.seen(10.0));
    }

    #[test]
    fn decoding_a_picture_does_not_make_the_next_ones_steps_slower() {
        let case = Case::new(2, None);
        case.stage(Stage::Denoising, 0.0);
        (1..=4).for_each(|step| case.step(0, step));
        case.stage(Stage::Decoding, 8.0);
        case.stage(Stage::Denoising, 108.0);
        case.step(1, 0);

        let seen = case.seen(108.0);

        assert_eq!((seen.picture, seen.pictures, seen.step), (2, 2, 0));
        assert!(close(seen.left_s, 8.0), "{seen:?}");
    }

    #[test]
    fn decoding_is_counted_as_so_many_steps_and_runs_down() {
        let case = Case::new(2, None);
        case.stage(Stage::Denoising, 0.0);
        case.job.on_decoding_cost(3.0);
        case.step(0, 0);
        case.step(0, 1);

        // Two seconds a step: seven more of them, and both pictures' decoding.
        assert!(close(case.seen(2.0).left_s, 2.0 * (7.0 + 6.0)), "{:?}", case.seen(2.0));
        (2..=4).for_each(|step| case.step(0, step));
        case.stage(Stage::Decoding, 8.0);
        assert!(close(case.seen(10.0).left_s, 2.0 * (4.0 + 6.0) - 2.0), "{:?}", case.seen(10.0));
        case.stage(Stage::Denoising, 15.0);
        assert!(close(case.seen(15.0).left_s, 2.0 * (4.0 + 3.0)), "{:?}", case.seen(15.0));
        (1..=4).for_each(|step| case.step(1, step));
        case.stage(Stage::Decoding, 23.0);
        assert!(close(case.seen(24.0).left_s, 5.0), "{:?}", case.seen(24.0));
        // Longer than was counted: nobody knows.
        assert_eq!(case.seen(30.0).left_s, None);
    }

    #[test]
    fn what_takes_longer_than_was_expected_has_no_known_end_and_what_has_ended_is_gone() {
        let case = Case::new(1, Some(10));
        assert_eq!(case.seen(11.0).left_s, None);

        let Case { jobs, job, start } = case;
        drop(job);

        assert!(jobs.all(start).is_empty());
    }

    #[test]
    fn a_line_comes_after_ten_seconds_then_each_thirty_and_none_of_a_short_job() {
        let case = Case::new(1, Some(100));
        let mut reporter = Reporter::new(Audience::Log, case.start);
        let captured = Captured::default();
        let lines_at = |seconds: f64, reporter: &mut Reporter| {
            captured.during(|| reporter.beat(&case.job, case.at(seconds)));
            captured.text().lines().count()
        };

        assert_eq!(lines_at(9.9, &mut reporter), 0);
        assert_eq!(lines_at(10.0, &mut reporter), 1);
        assert_eq!(lines_at(39.0, &mut reporter), 1);
        case.stage(Stage::Denoising, 39.0);
        case.step(0, 1);
        assert_eq!(lines_at(41.0, &mut reporter), 2);

        let text = captured.text();
        for part in ["stage=\"starting\"", "left_s=\"90\"", "stage=\"denoising\"", "1 of 4"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_terminal_has_a_bar_and_no_lines() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bars: &'static MultiProgress =
            Box::leak(Box::new(MultiProgress::with_draw_target(target)));
        let case = Case::new(1, None);
        let mut reporter = Reporter::new(Audience::Terminal(bars), case.start);
        case.stage(Stage::Denoising, 0.0);
        case.step(0, 1);
        let captured = Captured::default();

        captured.during(|| reporter.beat(&case.job, case.at(10.0)));
        let shown = screen.0.lock().unwrap().clone();
        drop(reporter);

        assert!(captured.text().is_empty());
        assert!(shown.contains("1/4 steps denoising, 10 s, 30 s left"), "{shown}");
        assert_eq!(screen.0.lock().unwrap().as_str(), "");
    }
}
