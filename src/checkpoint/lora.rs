//! LoRA files: low-rank changes of a component's weights, added while it loads.
//!
//! [`Lora::open`] reads a file in any of the styles that are published for this
//! family: diffusers and PEFT (`transformer.X.lora_A.weight`), lightx2v
//! (`X.lora_down.weight`, `X.alpha`) and Kohya (`lora_unet_X_with_underscores`).
//! [`Weights::merging`](super::Weights::merging) adds it. A key that is not
//! understood, or that matches no tensor, is a fault: half a LoRA is none.
//!
//! Sources: diffusers 0.42.1, `_convert_non_diffusers_qwen_lora_to_diffusers`;
//! PEFT 0.18, `LoraLayer` (scaling).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use serde_json::Value;

use super::tensor_files::TensorFiles;
use super::{CheckpointError, Snapshot};

/// What precedes a module's name, by style.
const PREFIXES: &[&str] = &[
    "base_model.model.",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "lora_unet_",
];

/// Metadata key under which diffusers saves PEFT's configuration.
const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// How many keys a message lists before it only counts.
const LISTED_KEYS: usize = 10;

/// The changes of one file.
pub struct Lora {
    file: String,
    /// How strongly it acts.
    scale: f64,
    tensors: TensorFiles,
    /// By the module's name with underscores for dots: the one form that every
    /// style can be brought to.
    modules: BTreeMap<String, Module>,
}

/// The change of one module: up · down · alpha / rank.
#[derive(Default)]
struct Module {
    /// (rank, inputs).
    down: Option<String>,
    /// (outputs, rank).
    up: Option<String>,
    /// Key of the number that the file has for it.
    alpha: Option<String>,
    /// What PEFT's configuration has for it.
    configured: Option<Scaling>,
}

/// How PEFT scales a module.
#[derive(Clone, Copy)]
struct Scaling {
    alpha: f64,
    /// Divide by the rank's root instead of the rank.
    by_root: bool,
}

/// A key's last part.
enum Part {
    Down,
    Up,
    Alpha,
}

impl Lora {
    /// Reads the safetensors file `path`, to act with strength `scale`.
    ///
    /// # Errors
    /// [`CheckpointError`] if there is no such file, it is not a safetensors file,
    /// or it has keys that are no part of a LoRA.
    pub fn open(path: &Path, scale: f64) -> Result<Self, CheckpointError> {
        let file = path.display().to_string();
        let malformed = |reason: String| CheckpointError::Malformed { file: file.clone(), reason };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| malformed("is no file".to_owned()))?;
        let (tensors, metadata) = TensorFiles::open_one(&Snapshot::Directory(folder), &name)?;
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut strangers = Vec::new();
        for key in tensors.names() {
            let Some((module, part)) = split_key(key) else {
                strangers.push(key.clone());
                continue;
            };
            let module = modules.entry(flat_name(&module)).or_default();
            let place = match part {
                Part::Down => &mut module.down,
                Part::Up => &mut module.up,
                Part::Alpha => &mut module.alpha,
            };
            if let Some(other) = place.replace(key.clone()) {
                return Err(malformed(format!("has both {other} and {key}")));
            }
        }
        if !strangers.is_empty() {
            return Err(malformed(format!("has keys of no known LoRA style: {}", list(strangers))));
        }
        let halves = modules.values().filter(|module| module.down.is_none() || module.up.is_none());
        let halves: Vec<String> = halves.filter_map(Module::some_key).collect();
        if !halves.is_empty() {
            return Err(malformed(format!("lacks the other half of {}", list(halves))));
        }
        if modules.is_empty() {
            return Err(malformed("has no tensors".to_owned()));
        }
        if let Some(adapter) = metadata.get(ADAPTER_METADATA) {
            configure(&mut modules, adapter).map_err(malformed)?;
        }
        Ok(Self { file, scale, tensors, modules })
    }

    /// The file's path.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// How many modules it changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// What is to be added to tensor `name` of `shape`, in float32 on the CPU.
    /// `None` if the file does not change it; the inner error says why it cannot.
    pub(super) fn change(
        &self,
        name: &str,
        shape: &[usize],
    ) -> TensorResult<Option<Result<Tensor, String>>> {
        let module = name.strip_suffix(".weight").and_then(|module| {
            let module = self.modules.get(&flat_name(module))?;
            Some((module, module.down.as_deref()?, module.up.as_deref()?))
        });
        let Some((module, down_key, up_key)) = module else {
            return Ok(None);
        };
        let (down, up) = match (self.tensor(down_key)?, self.tensor(up_key)?) {
            (Ok(down), Ok(up)) => (down, up),
            (Err(fault), _) | (_, Err(fault)) => return Ok(Some(Err(fault))),
        };
        let fits = match (up.dims(), down.dims(), shape) {
            ([outputs, rank], [same_rank, inputs], [rows, columns]) => {
                rank == same_rank && (outputs, inputs) == (rows, columns)
            }
            _ => false,
        };
        if !fits {
            let file = &self.file;
            return Ok(Some(Err(format!(
                "{file}: {up_key} {:?} times {down_key} {:?} does not fit {name} {shape:?}",
                up.dims(),
                down.dims()
            ))));
        }
        let rank = down.dim(0)? as f64;
        let scaling = match (&module.alpha, module.configured) {
            (Some(key), _) => match self.tensor(key)? {
                Ok(alpha) => f64::from(alpha.flatten_all()?.get(0)?.to_scalar::<f32>()?) / rank,
                Err(fault) => return Ok(Some(Err(fault))),
            },
            (None, Some(Scaling { alpha, by_root: true })) => alpha / rank.sqrt(),
            (None, Some(Scaling { alpha, by_root: false })) => alpha / rank,
            (None, None) => 1.0,
        };
        Ok(Some(Ok((up.matmul(&down)? * (scaling * self.scale))?)))
    }

    /// The keys of modules that no tensor of `names` belongs to.
    pub(super) fn unmatched<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<String> {
        let known: BTreeSet<String> =
            names.filter_map(|name| name.strip_suffix(".weight").map(flat_name)).collect();
        let strangers = self.modules.iter().filter(|(name, _)| !known.contains(*name));
        let file = &self.file;
        strangers
            .filter_map(|(_, module)| module.some_key())
            .map(|key| format!("{file}: {key} matches no tensor"))
            .collect()
    }

    fn tensor(&self, key: &str) -> TensorResult<Result<Tensor, String>> {
        let file = &self.file;
        match self.tensors.find_any(key) {
            Some(Ok(view)) => Ok(Ok(view.load(&Device::Cpu)?.to_dtype(DType::F32)?)),
            Some(Err(fault)) => Ok(Err(format!("{file}: {fault}"))),
            None => Ok(Err(format!("{file}: {key} is missing"))),
        }
    }
}

impl Module {
    fn some_key(&self) -> Option<String> {
        self.down.clone().or(self.up.clone()).or(self.alpha.clone())
    }
}

/// A key's module, without the prefix of its style, and part.
fn split_key(key: &str) -> Option<(String, Part)> {
    const ENDINGS: [(&str, Part); 7] = [
        (".lora_A.weight", Part::Down),
        (".lora_down.weight", Part::Down),
        (".lora.down.weight", Part::Down),
        (".lora_B.weight", Part::Up),
        (".lora_up.weight", Part::Up),
        (".lora.up.weight", Part::Up),
        (".alpha", Part::Alpha),
    ];
    // PEFT names its adapter between the two.
    let key = key.replace(".default.", ".");
    let (module, part) =
        ENDINGS.into_iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, part)))?;
    let mut module = module;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
        module = rest;
    }
    Some((module.to_owned(), part))
}

fn flat_name(module: &str) -> String {
    module.replace('.', "_")
}

/// Takes over the scaling that PEFT's configuration, as JSON, has for modules
/// whose keys say nothing of it.
fn configure(modules: &mut BTreeMap<String, Module>, adapter: &str) -> Result<(), String> {
    let adapter: Value = serde_json::from_str(adapter)
        .map_err(|error| format!("{ADAPTER_METADATA} is not JSON: {error}"))?;
    let value = |key: &str| adapter.get(format!("transformer.{key}")).or(adapter.get(key));
    let is_on = |key: &str| value(key).and_then(Value::as_bool).unwrap_or(false);
    if is_on("use_dora") {
        return Err("is a DoRA, which is not supported".to_owned());
    }
    let Some(alpha) = value("lora_alpha").and_then(Value::as_f64) else {
        return Ok(());
    };
    let by_root = is_on("use_rslora");
    let patterns = value("alpha_pattern").and_then(Value::as_object);
    for (name, module) in modules {
        let own = patterns.into_iter().flatten().find_map(|(pattern, alpha)| {
            let pattern = flat_name(pattern);
            let ends = name == &pattern || name.ends_with(&format!("_{pattern}"));
            ends.then(|| alpha.as_f64()).flatten()
        });
        module.configured = Some(Scaling { alpha: own.unwrap_or(alpha), by_root });
    }
    Ok(())
}

fn list(mut keys: Vec<String>) -> String {
    keys.sort();
    let more = keys.len().saturating_sub(LISTED_KEYS);
    keys.truncate(LISTED_KEYS);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_of_key_names_the_same_module() {
        for key in [
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
            "transformer_blocks.0.attn.to_q.lora_A.default.weight",
            "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
            "diffusion_model.transformer_blocks.0.attn.to_q.lora_down.weight",
            "transformer_blocks.0.attn.to_q.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
            "lora_unet_transformer_blocks_0_attn_to_q.alpha",
        ] {
            let (module, _) = split_key(key).unwrap();
            assert_eq!(flat_name(&module), "transformer_blocks_0_attn_to_q", "{key}");
        }
        for stranger in ["transformer_blocks.0.attn.to_q.diff", "x.lora_B.bias", "x.dora_scale"] {
            assert!(split_key(stranger).is_none(), "{stranger}");
        }
    }
}
