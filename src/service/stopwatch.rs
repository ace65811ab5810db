//! How long the steps and stages of a job take: for the metrics, and as spans of its trace.

use std::time::{Duration, Instant};

use tracing::Span;

use crate::metrics::{self, Metrics};
use crate::model::{Stage, StepProgress};
use crate::telemetry::spans;

/// The clock of one job.
pub(super) struct Stopwatch {
    metrics: Metrics,
    /// The name of the model.
    model: String,
    /// What is being done, since when.
    stage: Option<Begun>,
    /// What was spent on each stage before.
    spent: Vec<(Stage, Duration)>,
    /// The step that was told last, and when the first picture was told of it.
    step: Option<(usize, Instant)>,
}

/// A stage that is not over.
struct Begun {
    stage: Stage,
    since: Instant,
    span: Span,
}

impl Stopwatch {
    pub(super) fn new(metrics: Metrics, model: String) -> Self {
        Self { metrics, model, stage: None, spent: Vec::new(), step: None }
    }

    /// A stage begins, and the one before it is over. To be called in the request's span.
    pub(super) fn on_stage(&mut self, stage: Stage, now: Instant) {
        self.end_stage(now);
        let span = spans::stage(named(stage).name());
        self.stage = Some(Begun { stage, since: now, span });
    }

    /// A step is done. Pictures that are made together are told of it one after another;
    /// that none is done may be told several times, the last time right before the first.
    pub(super) fn on_step(&mut self, progress: StepProgress, now: Instant) {
        let since = match self.step {
            _ if progress.step == 0 => None,
            Some((last, _)) if last == progress.step => return,
            before => before.map(|(_, since)| since),
        };
        if let Some(since) = since {
            if let Some(Begun { span, .. }) = &self.stage {
                spans::step(span, progress.image, progress.step);
            }
            self.metrics.step_took(&self.model, now.saturating_duration_since(since));
        }
        self.step = Some((progress.step, now));
    }

    /// The job was made to its end: its stages are told, each once. Of what fails or is
    /// called off only the steps are.
    pub(super) fn finish(mut self, now: Instant) {
        self.end_stage(now);
        for (stage, spent) in &self.spent {
            self.metrics.stage_took(&self.model, named(*stage), *spent);
        }
    }

    fn end_stage(&mut self, now: Instant) {
        let Some(Begun { stage, since, .. }) = self.stage.take() else { return };
        let took = now.saturating_duration_since(since);
        match self.spent.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, spent)) => *spent += took,
            None => self.spent.push((stage, took)),
        }
    }
}

fn named(stage: Stage) -> metrics::Stage {
    match stage {
        Stage::EncodingPrompts => metrics::Stage::EncodingPrompts,
        Stage::EncodingLatents => metrics::Stage::EncodingLatents,
        Stage::Denoising => metrics::Stage::Denoising,
        Stage::Decoding => metrics::Stage::Decoding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::State;

    struct Case {
        metrics: Metrics,
        watch: Stopwatch,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            let metrics = Metrics::new();
            let watch = Stopwatch::new(metrics.clone(), "a".to_owned());
            Self { metrics, watch, start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn stage(&mut self, stage: Stage, seconds: u64) {
            self.watch.on_stage(stage, self.at(seconds));
        }

        fn step(&mut self, image: usize, step: usize, seconds: u64) {
            self.watch.on_step(StepProgress { image, step, total_steps: 2 }, self.at(seconds));
        }

        /// The sum and the count of a histogram.
        fn told(&self, name: &str, stage: &str) -> (f64, f64) {
            let text = self.metrics.render(&State::default()).unwrap();
            let value = |suffix: &str| {
                let series = format!("diffuser_{name}_seconds_{suffix}{{model=\"a\"{stage}}} ");
                let line = text.lines().find_map(|line| line.strip_prefix(&series));
                line.map_or(0.0, |value| value.parse().unwrap())
            };
            (value("sum"), value("count"))
        }
    }

    #[test]
    fn a_step_of_pictures_that_are_made_together_is_told_once() {
        let mut case = Case::new();
        for (step, seconds) in [(0, 0), (1, 10), (2, 14)] {
            case.step(0, step, seconds);
            case.step(1, step, seconds);
        }

        assert_eq!(case.told("step_duration", ""), (14.0, 2.0));
    }

    #[test]
    fn what_is_done_between_two_pictures_belongs_to_no_step() {
        let mut case = Case::new();
        // Before the first one the model asks at each stage whether to go on.
        for (image, step, seconds) in [(0, 0, 0), (0, 0, 50), (0, 1, 53), (1, 0, 100), (1, 1, 103)]
        {
            case.step(image, step, seconds);
        }

        assert_eq!(case.told("step_duration", ""), (6.0, 2.0));
    }

    #[test]
    fn stages_that_come_again_are_told_together_and_only_of_what_is_finished() {
        let mut case = Case::new();
        case.stage(Stage::EncodingPrompts, 0);
        for start in [5, 30] {
            case.stage(Stage::Denoising, start);
            case.stage(Stage::Decoding, start + 20);
        }
        assert_eq!(case.told("stage_duration", ",stage=\"denoising\""), (0.0, 0.0));

        let end = case.at(60);
        let (metrics, start) = (case.metrics.clone(), case.start);
        case.watch.finish(end);

        let watch = Stopwatch::new(metrics.clone(), String::new());
        let case = Case { metrics, watch, start };
        let told = |stage: &str| case.told("stage_duration", &format!(",stage=\"{stage}\""));
        assert_eq!(told("encoding_prompts"), (5.0, 1.0));
        assert_eq!(told("denoising"), (40.0, 1.0));
        assert_eq!(told("decoding"), (15.0, 1.0));
        assert_eq!(told("encoding_latents"), (0.0, 0.0));
    }
}
