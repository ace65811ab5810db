//! LoRA files: low-rank changes of a component's weights, added while it loads, or while
//! its layers compute.
//!
//! [`Lora::open`] reads a file in any of the styles that are published for this
//! family: diffusers and PEFT (`transformer.X.lora_A.weight`), lightx2v
//! (`X.lora_down.weight`, `X.alpha`) and Kohya (`lora_unet_X_with_underscores`).
//! [`Weights::merging`](super::Weights::merging) adds it to weights that are being loaded;
//! [`Lora::layers`] makes of it what layers that are loaded add to their products
//! (`adapters`). A key that is not understood, or that matches nothing, is a fault: half a
//! LoRA is none.
//!
//! A module's strength is alpha over rank: from the file's own numbers, from PEFT's
//! configuration in its header, or from `adapter_config.json` beside it; 1 where nobody
//! says. With elements and a header it is the product, as diffusers makes it.
//!
//! Sources: diffusers 0.42.1, `_convert_non_diffusers_qwen_lora_to_diffusers`,
//! `load_lora_adapter`; PEFT 0.21, `LoraLayer` (scaling).

mod adapter;
mod adapters;
mod files;
mod keys;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::tensor_files::TensorFiles;
use super::{CheckpointError, Snapshot};
use adapter::AdapterConfig;
pub use adapters::{ActiveAdapters, AdapterSlot, Adapters, LowRank};
use keys::{FLAT_PREFIX, Part, flat_name, other_kind, split_key};
pub use layers::LoraLayers;

/// Metadata key under which diffusers saves PEFT's configuration.
const ADAPTER_METADATA: &str = "lora_adapter_metadata";
/// The file in which PEFT saves it.
const ADAPTER_FILE: &str = "adapter_config.json";
/// Which component's configuration is ours, where there are several.
const COMPONENT: &str = "transformer.";

/// What matrices may be stored as.
const MATRIX_FORMATS: [Dtype; 5] =
    [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64, Dtype::F8_E4M3];

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
    config: Option<AdapterConfig>,
}

/// The change of one module: up · down · strength.
#[derive(Default)]
struct Module {
    /// As the file has it.
    name: String,
    /// (rank, inputs).
    down: Option<String>,
    /// (outputs, rank).
    up: Option<String>,
    /// Key of the number that the file has for it.
    alpha_key: Option<String>,
    alpha: Option<f64>,
}

/// The change of one module, in float32 on the CPU.
struct Halves {
    /// (rank, inputs).
    down: Tensor,
    /// (outputs, rank).
    up: Tensor,
    /// The factor of their product.
    strength: f64,
}

impl Lora {
    /// Reads the safetensors file `path`, or the one in the folder `path`, to act with
    /// strength `scale`.
    ///
    /// # Errors
    /// [`CheckpointError`] if there is no such file, it is not a safetensors file,
    /// it has keys that are no part of a LoRA, or is configured in ways that are not
    /// supported.
    pub fn open(path: &Path, scale: f64) -> Result<Self, CheckpointError> {
        let path = files::find(path)?;
        let file = path.display().to_string();
        let malformed = |reason: String| CheckpointError::Malformed { file: file.clone(), reason };
        let folder = Snapshot::Directory(path.parent().unwrap_or(Path::new("")).to_owned());
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| malformed("is no file".to_owned()))?;
        let (tensors, metadata) = TensorFiles::open_one(&folder, &name)?;
        let modules = modules_of(&tensors, &file).map_err(malformed)?;
        let has_alphas = modules.values().any(|module| module.alpha.is_some());
        let config = match header_config(&metadata).map_err(malformed)? {
            Some(config) => Some(config),
            None if has_alphas => None,
            None => config_beside(&folder, &file)?,
        };
        if let Some(config) = &config {
            check_targets(config, &modules, &file).map_err(malformed)?;
        }
        Ok(Self { file, scale, tensors, modules, config })
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

    /// The safetensors file that `path` means: itself, or the one in that folder.
    ///
    /// # Errors
    /// [`CheckpointError`] if a folder has none, or several.
    pub fn file_of(path: &Path) -> Result<PathBuf, CheckpointError> {
        files::find(path)
    }

    /// Whatever else says how strongly the file `path` acts: it need not be there.
    #[must_use]
    pub fn configuration_beside(path: &Path) -> PathBuf {
        path.with_file_name(ADAPTER_FILE)
    }

    /// What is to be added to tensor `name` of `shape`, in float32 on the CPU.
    /// `None` if the file does not change it; the inner error says why it cannot.
    pub(super) fn change(
        &self,
        name: &str,
        shape: &[usize],
    ) -> TensorResult<Option<Result<Tensor, String>>> {
        let Some(dotted) = name.strip_suffix(".weight") else { return Ok(None) };
        Ok(match self.halves(dotted, shape)? {
            None => None,
            Some(Ok(Halves { down, up, strength })) => {
                Some(Ok((up.matmul(&down)? * (strength * self.scale))?))
            }
            Some(Err(fault)) => Some(Err(format!("{}: {fault}", self.file))),
        })
    }

    /// The same as two matrices in `dtype` on the CPU, for a product beside the tensor's own.
    pub(super) fn low_rank(
        &self,
        name: &str,
        (outputs, inputs): (usize, usize),
        dtype: DType,
    ) -> TensorResult<Option<Result<LowRank, String>>> {
        let Some(dotted) = name.strip_suffix(".weight") else { return Ok(None) };
        Ok(match self.halves(dotted, &[outputs, inputs])? {
            None => None,
            Some(Ok(Halves { down, up, strength })) => {
                let (down, up) = (down.to_dtype(dtype)?, up.to_dtype(dtype)?);
                Some(Ok(LowRank { down, up, factor: strength * self.scale }))
            }
            Some(Err(fault)) => Some(Err(format!("{}: {fault}", self.file))),
        })
    }

    /// What the file has for the module called `dotted`, whose weight has `shape`.
    fn halves(
        &self,
        dotted: &str,
        shape: &[usize],
    ) -> TensorResult<Option<Result<Halves, String>>> {
        let keys = self
            .modules
            .get(&flat_name(dotted))
            .and_then(|module| Some((module, module.down.as_deref()?, module.up.as_deref()?)));
        let Some((module, down_key, up_key)) = keys else {
            return Ok(None);
        };
        match self.config.as_ref().map_or(Ok(true), |config| config.changes(dotted)) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(fault) => return Ok(Some(Err(fault))),
        }
        let (down, up) = match (self.matrix(down_key)?, self.matrix(up_key)?) {
            (Ok(down), Ok(up)) => (down, up),
            (Err(fault), _) | (_, Err(fault)) => return Ok(Some(Err(fault))),
        };
        if !fits(&up, &down, shape) {
            let (up, down) = (up.dims(), down.dims());
            return Ok(Some(Err(format!(
                "{up_key} {up:?} times {down_key} {down:?} does not fit {dotted}.weight {shape:?}"
            ))));
        }
        let strength = self.strength(dotted, module, down.dim(0)?);
        Ok(Some(strength.map(|strength| Halves { down, up, strength })))
    }

    /// The factor of up · down for the module called `dotted`.
    fn strength(&self, dotted: &str, module: &Module, rank: usize) -> Result<f64, String> {
        let configured = self.config.as_ref().map(|config| config.scaling(dotted, rank));
        let own = module.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        Ok(own * configured.transpose()?.unwrap_or(1.0))
    }

    /// The keys of modules that no tensor of `names` belongs to.
    pub(super) fn unmatched<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<String> {
        let keys = self.unknown_keys(names.filter_map(|name| name.strip_suffix(".weight")));
        let file = &self.file;
        keys.into_iter().map(|key| format!("{file}: {key} matches no tensor")).collect()
    }

    /// A key of each module that is none of `dotted`.
    fn unknown_keys<'a>(&self, dotted: impl Iterator<Item = &'a str>) -> Vec<String> {
        let known: BTreeSet<String> = dotted.map(flat_name).collect();
        let unknown = self.modules.iter().filter(|(name, _)| !known.contains(*name));
        unknown.filter_map(|(_, module)| module.some_key()).collect()
    }

    fn matrix(&self, key: &str) -> TensorResult<Result<Tensor, String>> {
        match self.tensors.find_of(key, &MATRIX_FORMATS) {
            Some(Ok(view)) => Ok(Ok(view.load(&Device::Cpu)?.to_dtype(DType::F32)?)),
            Some(Err(fault)) => Ok(Err(fault)),
            None => Ok(Err(format!("{key} is missing"))),
        }
    }
}

impl Module {
    fn some_key(&self) -> Option<String> {
        self.down.clone().or(self.up.clone()).or(self.alpha_key.clone())
    }

    /// Kohya's names, without dots, are known only once they are matched.
    fn has_dotted_name(&self) -> bool {
        self.some_key().is_none_or(|key| !key.starts_with(FLAT_PREFIX))
    }

    fn place_of(&mut self, part: Part) -> &mut Option<String> {
        match part {
            Part::Down => &mut self.down,
            Part::Up => &mut self.up,
            Part::Alpha => &mut self.alpha_key,
        }
    }
}

fn fits(up: &Tensor, down: &Tensor, shape: &[usize]) -> bool {
    match (up.dims(), down.dims(), shape) {
        ([outputs, rank], [same_rank, inputs], [rows, columns]) => {
            *rank > 0 && rank == same_rank && (outputs, inputs) == (rows, columns)
        }
        _ => false,
    }
}

/// The modules that the file changes, or what is wrong with its keys.
fn modules_of(tensors: &TensorFiles, file: &str) -> Result<BTreeMap<String, Module>, String> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    let mut unknown_keys = Vec::new();
    for key in tensors.names() {
        let Some((name, part)) = split_key(key) else {
            unknown_keys.push(key.clone());
            continue;
        };
        let module = modules.entry(flat_name(&name)).or_default();
        if let Some(other) = module.place_of(part).replace(key.clone()) {
            return Err(format!("has both {other} and {key}"));
        }
        module.name = name;
    }
    refuse_strangers(unknown_keys)?;
    drop_lone_alphas(&mut modules, file);
    let halves = modules.values().filter(|module| module.down.is_none() || module.up.is_none());
    let halves: Vec<String> = halves.filter_map(Module::some_key).collect();
    if !halves.is_empty() {
        return Err(format!("lacks the other half of {}", list(halves)));
    }
    if modules.is_empty() {
        return Err("has no LoRA's tensors".to_owned());
    }
    for module in modules.values_mut() {
        let alpha = module.alpha_key.as_ref().map(|key| tensors.number(key));
        module.alpha = alpha.transpose()?;
    }
    Ok(modules)
}

fn refuse_strangers(unknown_keys: Vec<String>) -> Result<(), String> {
    let Some(kind) = unknown_keys.iter().map(|key| other_kind(key)).max() else {
        return Ok(());
    };
    Err(match kind {
        Some(kind) => format!("holds {kind}, which is not supported: {}", list(unknown_keys)),
        None => format!("has keys of no known LoRA style: {}", list(unknown_keys)),
    })
}

/// Forgets the numbers of modules that the file does not change, as diffusers does.
fn drop_lone_alphas(modules: &mut BTreeMap<String, Module>, file: &str) {
    let before = modules.len();
    modules.retain(|_, module| module.down.is_some() || module.up.is_some());
    let alphas = before - modules.len();
    if alphas > 0 {
        tracing::warn!(file, alphas, "a LoRA has alphas of modules that it does not change");
    }
}

/// PEFT's configuration in the file's header.
fn header_config(metadata: &BTreeMap<String, String>) -> Result<Option<AdapterConfig>, String> {
    let Some(text) = metadata.get(ADAPTER_METADATA) else {
        return Ok(None);
    };
    let values: Value = serde_json::from_str(text)
        .map_err(|error| format!("{ADAPTER_METADATA} is not JSON: {error}"))?;
    let values = values.as_object().ok_or_else(|| format!("{ADAPTER_METADATA} is no object"))?;
    let stripped = |(key, value): (&String, &Value)| {
        key.strip_prefix(COMPONENT).map(|key| (key.to_owned(), value.clone()))
    };
    let ours: Map<String, Value> = values.iter().filter_map(stripped).collect();
    // Without prefixes it is that of the one component.
    let ours = if ours.is_empty() { values } else { &ours };
    if !ours.keys().any(|key| ["r", "lora_alpha", "target_modules"].contains(&key.as_str())) {
        return Ok(None);
    }
    let config = AdapterConfig::parse(ours, ADAPTER_METADATA);
    config.map(Some).map_err(|fault| format!("{fault} ({ADAPTER_METADATA})"))
}

/// PEFT's configuration in the file's folder.
fn config_beside(folder: &Snapshot, file: &str) -> Result<Option<AdapterConfig>, CheckpointError> {
    if !folder.has(ADAPTER_FILE) {
        return Ok(None);
    }
    let path = Path::new(file).with_file_name(ADAPTER_FILE).display().to_string();
    let malformed = |reason| CheckpointError::Malformed { file: path.clone(), reason };
    let text = folder.text(ADAPTER_FILE)?;
    let values: Map<String, Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| malformed(format!("is no JSON object: {error}")))?;
    AdapterConfig::parse(&values, ADAPTER_FILE).map(Some).map_err(malformed)
}

/// Tells of modules that PEFT would not change either, because its configuration
/// leaves them out.
fn check_targets(
    config: &AdapterConfig,
    modules: &BTreeMap<String, Module>,
    file: &str,
) -> Result<(), String> {
    let mut left_out = Vec::new();
    for module in modules.values().filter(|module| module.has_dotted_name()) {
        if !config.changes(&module.name)? {
            left_out.push(module.name.clone());
        }
    }
    if left_out.len() == modules.len() {
        return Err(format!("changes nothing that its target_modules name: {}", list(left_out)));
    }
    if !left_out.is_empty() {
        let modules = list(left_out);
        tracing::warn!(file, modules, "its target_modules leave out what a LoRA has");
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
