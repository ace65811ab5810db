//! What a step takes where pictures are made together.

use std::ops::ControlFlow;
use std::time::Instant;

use super::{PipelineBenchmark, QwenImage};
use crate::domain::{ImageCount, ImageRequest};
use crate::model::benchmark::{BenchmarkError, BenchmarkPlan, Part, with_random_weights};
use crate::model::qwen_image::pipeline::batching::{Batching, Joining};
use crate::model::{StepObserver, StepProgress};

/// Pictures made together, and what that took.
#[derive(Debug, Clone, Copy)]
pub struct BatchTime {
    /// How many.
    pub pictures: usize,
    /// Whether as one batch; else one after another within each step.
    pub is_joined: bool,
    /// Seconds of a step for one of them, the fastest of all.
    pub step_s: f64,
    /// Processor seconds of all threads likewise: steadier on a busy machine.
    pub step_cpu_s: f64,
}

/// The transformer's steps of `plan` with random weights, for so many pictures together as
/// each of `counts` says, and as one batch; all in turns, `plan.repeats` times.
///
/// # Errors
/// [`BenchmarkError`]: no such device, a faulty configuration, out of memory.
pub fn batches(plan: &BenchmarkPlan, counts: &[usize]) -> Result<Vec<BatchTime>, BenchmarkError> {
    let plan = &BenchmarkPlan { parts: vec![Part::Transformer], ..plan.clone() };
    let mut bench =
        with_random_weights(&QwenImage, plan, |context| PipelineBenchmark::new(context, plan))?;
    let of = |pictures: usize| {
        let (step_s, step_cpu_s) = (f64::INFINITY, f64::INFINITY);
        let time = |is_joined| BatchTime { pictures, is_joined, step_s, step_cpu_s };
        [time(false), time(true)]
    };
    let mut times: Vec<BatchTime> = counts.iter().copied().flat_map(of).collect();
    for _ in 0..plan.repeats {
        for time in &mut times {
            bench.measure(time)?;
        }
    }
    Ok(times)
}

impl PipelineBenchmark {
    /// Makes the pictures of `time` once more, and keeps what the fastest step took.
    fn measure(&mut self, time: &mut BatchTime) -> Result<(), BenchmarkError> {
        let joining = if time.is_joined { Joining::Joined } else { Joining::Separate };
        self.pipeline.batching = Some(Batching { at_once: time.pictures, joining });
        let count = ImageCount::new(time.pictures as i64)?;
        let request = ImageRequest { count, ..self.request.clone() };
        let mut marks = Marks { last_image: time.pictures - 1, ended: Vec::new() };
        self.make_of(&request, &mut marks)?;
        for ends in marks.ended.windows(2) {
            let seconds = (ends[1].0 - ends[0].0).as_secs_f64() / time.pictures as f64;
            let cpu_s = (ends[1].1 - ends[0].1) / time.pictures as f64;
            time.step_s = time.step_s.min(seconds);
            time.step_cpu_s = time.step_cpu_s.min(cpu_s);
        }
        Ok(())
    }
}

/// When each step of the last picture ended, and the processor seconds until then.
struct Marks {
    last_image: usize,
    ended: Vec<(Instant, f64)>,
}

impl StepObserver for Marks {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        if progress.image == self.last_image {
            // Stages before the first step are told of as step 0, too.
            self.ended.truncate(progress.step);
            let cpu_s = crate::device::process_cpu_s().unwrap_or(f64::NAN);
            self.ended.push((Instant::now(), cpu_s));
        }
        ControlFlow::Continue(())
    }
}
