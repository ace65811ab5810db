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
    let bars: &'static MultiProgress = Box::leak(Box::new(MultiProgress::with_draw_target(target)));
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
