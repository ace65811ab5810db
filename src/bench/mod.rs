//! `diffuser-api bench`: what a picture takes, measured through the pipeline that serves
//! requests, as a table and as JSON.
//!
//! A family gives its pipeline with random weights (`model::benchmark`); here it is made to
//! work, with a watch that is its observer, as a request's client has one.

mod ceiling;
mod progress;
mod report;
mod stopwatch;
mod tables;

use std::path::Path;
use std::time::Instant;

pub use ceiling::{Ceiling, ProductSpeed, ceiling};
pub use report::{BenchmarkReport, Run, Stage};
pub use stopwatch::Work;
pub use tables::{
    KERNEL_HEAD, PICTURE_HEAD, Peak, ceiling_table, estimate_table, kernel_row, operation_table,
    picture_row, table,
};

use crate::checkpoint::Snapshot;
use crate::domain::Steps;
use crate::model::benchmark::{self, Benchmark, BenchmarkError, BenchmarkPlan};
use crate::model::{Unobserved, find_embedded};
use crate::nn::trace::{self, Trace};
use stopwatch::{Order, Stopwatch};

/// Steps of the picture that is traced: they are alike, and so is what they take.
const TRACED_STEPS: usize = 2;

/// The configuration that `name` means.
///
/// # Errors
/// [`BenchmarkError::UnknownConfiguration`] naming those there are.
pub fn configuration(name: &str) -> Result<Snapshot, BenchmarkError> {
    if let Some(published) = benchmark::published(name) {
        return Ok(published?);
    }
    if let Some(snapshot) = find_embedded(name) {
        return Ok(snapshot);
    }
    let folder = Path::new(name);
    if folder.join("model_index.json").is_file() {
        return Ok(Snapshot::Directory(folder.to_owned()));
    }
    Err(BenchmarkError::UnknownConfiguration { name: name.to_owned() })
}

/// Measures what `plan` says, and shows on standard error how far it is.
///
/// # Errors
/// [`BenchmarkError`]: no such device, a faulty configuration, out of memory.
pub fn run(plan: &BenchmarkPlan) -> Result<BenchmarkReport, BenchmarkError> {
    let mut progress = progress::Progress::for_terminal();
    run_telling(plan, &mut |work| progress.tell(work))
}

/// Builds the model with random weights and makes `plan.repeats` pictures, or those
/// parts of them that are wanted. `told` hears what is begun with.
fn run_telling(
    plan: &BenchmarkPlan,
    told: &mut dyn FnMut(Work),
) -> Result<BenchmarkReport, BenchmarkError> {
    let started = Instant::now();
    told(Work::Loading);
    let mut measured = benchmark::load(plan)?;
    let load_s = started.elapsed().as_secs_f64();
    let (dtype, device) = measured.tensor_kind();
    let device = device.clone();
    let loaded_bytes = crate::device::held_memory_bytes(&device);

    let mut peak_bytes = crate::device::peak_memory_bytes(&device);
    let mut runs = Vec::with_capacity(plan.repeats);
    for picture in 1..=plan.repeats {
        let stages = measured.stages();
        let order = Order { picture, pictures: plan.repeats, parts: &plan.parts, stages };
        let mut watch = Stopwatch::start((&device, order), told);
        measured.make(plan.steps, &mut watch)?;
        peak_bytes = peak_bytes.max(watch.stop());
        runs.push(watch.into_run(&measured.operations()));
    }
    if plan.trace {
        told(Work::Trace);
    }
    let trace = plan.trace.then(|| traced(measured.as_mut(), plan.steps)).transpose()?;
    if plan.ceiling {
        told(Work::Ceiling);
    }
    Ok(BenchmarkReport {
        device: crate::device::device_name(&device),
        dtype: measured.loaded().dtype.clone(),
        threads: rayon::current_num_threads(),
        weight_bytes: measured.loaded().weight_bytes,
        loaded_bytes,
        load_s,
        tokens: measured.tokens(),
        ceiling_tflops: plan.ceiling.then(|| ceiling::tflops(&device, dtype)).transpose()?,
        peak_bytes: peak_bytes.max(crate::device::peak_memory_bytes(&device)),
        runs,
        operations: trace.as_ref().map(Trace::operations).unwrap_or_default(),
        trace,
    })
}

/// Where the time of one more picture goes, of `steps` at most.
fn traced(measured: &mut dyn Benchmark, steps: Steps) -> Result<Trace, BenchmarkError> {
    let steps = Steps::new(steps.get().min(TRACED_STEPS) as i64)?;
    let device = measured.tensor_kind().1.clone();
    let (made, trace) = trace::record(&device, || measured.make(steps, &mut Unobserved))?;
    made?;
    Ok(trace)
}

#[cfg(test)]
mod tests;
