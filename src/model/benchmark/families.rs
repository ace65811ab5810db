//! The families that can be measured, and which one a configuration is of.

use super::family::{BenchmarkFamily, with_placeholders, with_random_weights};
use super::{Benchmark, BenchmarkError, BenchmarkPlan, Estimate};
use crate::checkpoint::Snapshot;
use crate::model::{LoadError, qwen_image};

/// All of them: one line a family.
const FAMILIES: &[&dyn BenchmarkFamily] = &[&qwen_image::benchmark::QwenImage];

/// The names of published configurations.
#[must_use]
pub fn published_names() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.published_names()).collect()
}

/// The published configuration called `name`, if there is one.
#[must_use]
pub fn published(name: &str) -> Option<Result<Snapshot, LoadError>> {
    FAMILIES.iter().find_map(|family| family.published(name))
}

/// The pipeline of `plan` with random weights, on the device that `plan` names.
///
/// # Errors
/// [`BenchmarkError`]: no such device, a faulty configuration, out of memory.
pub fn load(plan: &BenchmarkPlan) -> Result<Box<dyn Benchmark>, BenchmarkError> {
    let family = family_of(&plan.snapshot)?;
    with_random_weights(family, plan, |context| {
        let benchmark = family.load(context, plan)?;
        context.device.synchronize()?;
        Ok(benchmark)
    })
}

/// Counts what `plan` takes, without making any weight.
///
/// # Errors
/// [`BenchmarkError`]: a faulty configuration, or a request that it cannot serve.
pub fn estimate(plan: &BenchmarkPlan) -> Result<Estimate, BenchmarkError> {
    let family = family_of(&plan.snapshot)?;
    with_placeholders(family, plan, |context| family.estimate(context, plan))
}

fn family_of(snapshot: &Snapshot) -> Result<&'static dyn BenchmarkFamily, LoadError> {
    let mut index = snapshot.config("model_index.json").map_err(LoadError::from)?;
    let class_name: String = index.required("_class_name");
    let is_its = |family: &&&dyn BenchmarkFamily| family.class_names().contains(&&*class_name);
    FAMILIES.iter().find(is_its).copied().ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|family| family.class_names()).collect();
        LoadError::UnknownModel {
            id: snapshot.name(),
            reason: format!("no benchmark has '{class_name}'; there are {}", known.join(", ")),
        }
    })
}
