//! Notes when each stage and each step of a picture ended, and tells what begins.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Device;

use super::{Run, Stage};
use crate::model::benchmark::{BenchmarkStage, Part};
use crate::model::{StepObserver, StepProgress};

/// What a measurement begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Making the weights.
    Loading,
    /// A stage of a picture, or one of its steps.
    Stage {
        /// The stage.
        name: &'static str,
        /// Which picture, from 1 on.
        picture: usize,
        /// Of how many.
        pictures: usize,
        /// Which of how many steps, from 1 on.
        step: Option<(usize, usize)>,
    },
    /// One more picture, operation by operation.
    Trace,
    /// Products like the transformer's.
    Ceiling,
}

/// Which picture is made.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) picture: usize,
    pub(super) pictures: usize,
    pub(super) parts: &'a [Part],
    pub(super) stages: &'static [BenchmarkStage],
}

impl Order<'_> {
    /// The place among the stages of all steps.
    fn steps(&self) -> usize {
        self.stages.len().saturating_sub(2)
    }

    /// Whether the stage at `index` does anything.
    fn includes(&self, index: usize) -> bool {
        self.stages[index].part.is_none_or(|part| self.parts.contains(&part))
    }
}

/// Notes when each stage and each step ended, once the device is done with it.
pub(super) struct Stopwatch<'a> {
    device: &'a Device,
    order: Order<'a>,
    marks: Vec<Mark>,
    told: &'a mut dyn FnMut(Work),
}

#[derive(Clone, Copy)]
struct Mark {
    instant: Instant,
    cpu_s: f64,
    /// The most memory since the mark before, if that can be told.
    peak_bytes: Option<usize>,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn start(
        (device, order): (&'a Device, Order<'a>),
        told: &'a mut dyn FnMut(Work),
    ) -> Self {
        let mut watch = Self { device, order, marks: Vec::new(), told };
        watch.mark();
        watch.tell(0, None);
        watch
    }

    /// The picture is made. Returns the most memory that it took, in bytes.
    pub(super) fn stop(&mut self) -> Option<usize> {
        self.mark();
        self.marks.iter().map(|mark| mark.peak_bytes).max().flatten()
    }

    fn mark(&mut self) {
        // What fails on the device fails again in the pipeline, which tells it.
        _ = self.device.synchronize();
        let cpu_s = crate::device::process_cpu_s().unwrap_or(f64::NAN);
        let instant = Instant::now();
        let peak = crate::device::peak_memory_bytes(self.device);
        let peak_bytes = peak.filter(|_| crate::device::forget_peak_memory(self.device));
        self.marks.push(Mark { instant, cpu_s, peak_bytes });
    }

    /// Stage `index` begins, if it does anything.
    fn tell(&mut self, index: usize, step: Option<(usize, usize)>) {
        let Order { picture, pictures, .. } = self.order;
        if self.order.includes(index) {
            let name = self.order.stages[index].name;
            (self.told)(Work::Stage { name, picture, pictures, step });
        }
    }

    /// The run, with the operations of each stage.
    pub(super) fn into_run(self, operations: &[f64]) -> Run {
        let Order { stages, .. } = self.order;
        let between = |from: usize, to: usize| {
            let (from, to) = (self.marks[from], self.marks[to]);
            (to.instant.duration_since(from.instant).as_secs_f64(), to.cpu_s - from.cpu_s)
        };
        let last = self.marks.len() - 1;
        let first_step = self.order.steps();
        // The start and the stages before the steps, all steps, the end.
        let ends: Vec<usize> = (0..=first_step).chain([last - 1, last]).collect();
        let stage = |index: usize| {
            let (from, to) = (ends[index], ends[index + 1]);
            let (seconds, cpu_s) = between(from, to);
            let peaks = self.marks[from + 1..=to].iter().map(|mark| mark.peak_bytes);
            let (name, tflop) = (stages[index].name, operations[index] / 1e12);
            Stage { name, seconds, cpu_s, tflop, peak_bytes: peaks.max().flatten() }
        };
        let (total_s, total_cpu_s) = between(0, last);
        let steps = first_step..last - 1;
        let made = (0..stages.len()).filter(|index| self.order.includes(*index));
        Run {
            total_s,
            total_cpu_s,
            stages: made.map(stage).collect(),
            steps_s: steps.map(|step| between(step, step + 1).0).collect(),
        }
    }
}

impl StepObserver for Stopwatch<'_> {
    fn on_step(&mut self, progress: StepProgress) -> ControlFlow<()> {
        self.mark();
        let steps = self.order.steps();
        match self.marks.len() - 1 {
            ended if ended < steps => self.tell(ended, None),
            _ if progress.step < progress.total_steps && self.order.includes(steps) => {
                self.tell(steps, Some((progress.step + 1, progress.total_steps)));
            }
            _ => self.tell(steps + 1, None),
        }
        ControlFlow::Continue(())
    }
}
