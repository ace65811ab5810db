//! Notes when each stage and each step of a picture ended, and tells what begins.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Device;

use super::{Part, Run, STAGES, Stage};
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

/// Marks before the first step: at the start, and after each stage before the steps.
const MARKS_BEFORE_STEPS: usize = 5;
/// The places in [`STAGES`] of the steps and of what follows them.
const STEPS: usize = 4;
const DECODER: usize = 5;

/// Which picture is made.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) picture: usize,
    pub(super) pictures: usize,
    pub(super) parts: &'a [Part],
}

impl Order<'_> {
    /// Whether stage `index` of [`STAGES`] does anything.
    fn includes(&self, index: usize) -> bool {
        let part = match index {
            0 => return true,
            1 => Part::TextEncoder,
            2 => Part::VaeEncoder,
            DECODER => Part::VaeDecoder,
            _ => Part::Transformer,
        };
        self.parts.contains(&part)
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
            (self.told)(Work::Stage { name: STAGES[index], picture, pictures, step });
        }
    }

    /// The run, with the operations of each of [`STAGES`].
    pub(super) fn into_run(self, costs: &[f64; 6]) -> Run {
        let between = |from: usize, to: usize| {
            let (from, to) = (self.marks[from], self.marks[to]);
            (to.instant.duration_since(from.instant).as_secs_f64(), to.cpu_s - from.cpu_s)
        };
        let last = self.marks.len() - 1;
        // The start, four stages, all steps, the end.
        let ends = [0, 1, 2, 3, 4, last - 1, last];
        let stage = |index: usize| {
            let (from, to) = (ends[index], ends[index + 1]);
            let (seconds, cpu_s) = between(from, to);
            let peaks = self.marks[from + 1..=to].iter().map(|mark| mark.peak_bytes);
            let (name, tflop) = (STAGES[index], costs[index] / 1e12);
            Stage { name, seconds, cpu_s, tflop, peak_bytes: peaks.max().flatten() }
        };
        let (total_s, total_cpu_s) = between(0, last);
        let steps = MARKS_BEFORE_STEPS - 1..last - 1;
        let made = (0..STAGES.len()).filter(|index| self.order.includes(*index));
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
        match self.marks.len() {
            ended @ 0..MARKS_BEFORE_STEPS => self.tell(ended - 1, None),
            _ if progress.step < progress.total_steps && self.order.includes(STEPS) => {
                self.tell(STEPS, Some((progress.step + 1, progress.total_steps)));
            }
            _ => self.tell(DECODER, None),
        }
        ControlFlow::Continue(())
    }
}
