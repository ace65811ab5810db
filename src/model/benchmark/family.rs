//! What a family implements to be measured, and what its weights are made of then.

use candle_core::{DType, Device};

use super::{Benchmark, BenchmarkError, BenchmarkPlan, Estimate, LayerCounts, Part};
use crate::checkpoint::Snapshot;
use crate::model::loading::{LoadContext, WeightSource};
use crate::model::precision::open_device;
use crate::model::{DtypeChoice, LoadError, ModelConfig};

/// A family of pipelines that can be measured.
pub(in crate::model) trait BenchmarkFamily: Sync {
    /// Its pipeline classes in `model_index.json`.
    fn class_names(&self) -> Vec<&'static str>;

    /// The published configurations that it has at hand.
    fn published_names(&self) -> Vec<&'static str>;

    /// That of this name, if it is one of them.
    fn published(&self, name: &str) -> Option<Result<Snapshot, LoadError>>;

    /// The texts of `snapshot`, with the numbers of layers changed.
    fn with_layers(&self, snapshot: &Snapshot, layers: LayerCounts) -> Result<Snapshot, LoadError>;

    /// The component of a checkpoint that `part` needs.
    fn component(&self, part: Part) -> &'static str;

    /// The pipeline, with the weights of `context`, and what it is asked for.
    fn load(
        &self,
        context: &LoadContext,
        plan: &BenchmarkPlan,
    ) -> Result<Box<dyn Benchmark>, BenchmarkError>;

    /// Counts what `plan` takes.
    fn estimate(
        &self,
        context: &LoadContext,
        plan: &BenchmarkPlan,
    ) -> Result<Estimate, BenchmarkError>;
}

/// What `action` makes of `plan` with random weights of its parts, on its device.
pub(in crate::model) fn with_random_weights<T>(
    family: &dyn BenchmarkFamily,
    plan: &BenchmarkPlan,
    action: impl FnOnce(&LoadContext) -> Result<T, BenchmarkError>,
) -> Result<T, BenchmarkError> {
    let device = open_device(&plan.model)?;
    let dtype = crate::device::dtype(plan.model.dtype, &device);
    let components: Vec<&str> = plan.parts.iter().map(|part| family.component(*part)).collect();
    with_context(family, plan, (WeightSource::Random(&components), device, dtype), action)
}

/// What `action` makes of `plan` without any weight.
pub(super) fn with_placeholders<T>(
    family: &dyn BenchmarkFamily,
    plan: &BenchmarkPlan,
    action: impl FnOnce(&LoadContext) -> Result<T, BenchmarkError>,
) -> Result<T, BenchmarkError> {
    let dtype = match plan.model.dtype {
        // Asked for a GPU, where the rest is in 16 bits.
        DtypeChoice::Fp8 | DtypeChoice::Fp8Weights => DType::BF16,
        choice @ (DtypeChoice::Auto
        | DtypeChoice::Float32
        | DtypeChoice::Bfloat16
        | DtypeChoice::Float16
        | DtypeChoice::Q8_0) => crate::device::dtype(choice, &Device::Cpu),
    };
    with_context(family, plan, (WeightSource::Placeholders, Device::Cpu, dtype), action)
}

fn with_context<T>(
    family: &dyn BenchmarkFamily,
    plan: &BenchmarkPlan,
    (weights, device, dtype): (WeightSource, Device, DType),
    action: impl FnOnce(&LoadContext) -> Result<T, BenchmarkError>,
) -> Result<T, BenchmarkError> {
    let snapshot = &family.with_layers(&plan.snapshot, plan.layers)?;
    let config = &ModelConfig { image_area: Some(plan.size.area()), ..plan.model.clone() };
    action(&LoadContext {
        snapshot,
        config,
        id: "benchmark",
        device,
        dtype,
        weights,
        card_bytes: None,
    })
}
