//! A model that is put together from files: GGUF, ComfyUI's sets, all in one.
//!
//! What a file is follows from its content ([`contents`]), which checkpoint its transformer
//! is of from a mark, its name or the settings ([`which`]). Configurations and tokenizer
//! come from that checkpoint, whose small files are in the program ([`published`]).

mod component;
mod contents;
mod folders;
mod inspection;
mod missing;
mod which;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_source::{LocalFile, LocalFiles};
use super::qwen_image::variant::{Shown, Variant};
use super::{LoadError, ModelConfig, published};
use crate::checkpoint::{CheckpointError, ComponentFile, FileListing, FileSet, Snapshot};
pub(super) use component::{ComponentError, ComponentSource, find_component};
pub use inspection::{Inspection, inspect};
pub use missing::{MissingPart, missing_parts};

use contents::{Found, Kind};
pub(super) use contents::{TEXT_ENCODER, TRANSFORMER, VAE, ZERO_COND_MARK};
use which::Which;

/// The transformer's configuration, and what of it no other file has.
const TRANSFORMER_CONFIG: &str = "transformer/config.json";

/// A component in a file.
#[derive(Debug, Clone)]
struct Candidate {
    path: PathBuf,
    found: Found,
}

/// What a model is put together from.
#[derive(Debug, Default)]
struct Parts {
    candidates: Vec<Candidate>,
}

/// The model that the settings' files and the file `id` make up, and its name. What no file
/// is named for is looked for beside those that are, and in the repositories that they are of.
///
/// # Errors
/// [`LoadError`] says what is missing, or what a file is instead.
pub(super) fn from_choices(
    files: &LocalFiles,
    id: Option<&LocalFile>,
    config: &ModelConfig,
    base_of: impl FnOnce(&str) -> Result<Snapshot, LoadError>,
) -> Result<(Snapshot, String), LoadError> {
    let named = [
        (&files.transformer, "model.files.transformer", TRANSFORMER),
        (&files.text_encoder, "model.files.text_encoder", TEXT_ENCODER),
        (&files.mmproj, "model.files.mmproj", TEXT_ENCODER),
        (&files.vae, "model.files.vae", VAE),
    ];
    let mut parts = Parts::default();
    for (file, setting, component) in named {
        let Some(LocalFile { path, .. }) = file else { continue };
        let found: Vec<Candidate> =
            candidates(path)?.into_iter().filter(|one| one.found.component == component).collect();
        if found.is_empty() {
            let reason = format!("{} has no {component} in it", path.display());
            return Err(LoadError::Setting { setting, reason });
        }
        parts.candidates.extend(found);
    }
    if let Some(LocalFile { path, .. }) = id {
        parts.add_rest(candidates(path)?);
        check_transformer(&parts, path)?;
    }
    let files: Vec<&LocalFile> =
        named.iter().filter_map(|(file, ..)| file.as_ref()).chain(id).collect();
    parts.add_missing(&folders::around(&files));
    parts.assembled(config, base_of)
}

/// Refuses the file `path` as a model of which nothing else is a transformer.
fn check_transformer(parts: &Parts, path: &Path) -> Result<(), LoadError> {
    if parts.transformer().is_some() {
        return Ok(());
    }
    let of_path = parts.candidates.iter().find(|one| one.path == path);
    let component = of_path.map_or("", |one| one.found.component);
    let reason = format!(
        "it is the {component} of a model: give the file of the transformer, or name each \
         under [model.files]"
    );
    Err(LoadError::UnknownModel { id: path.display().to_string(), reason })
}

/// The model whose files lie in the folder `path` or where ComfyUI has them below it, and its
/// name; nothing, if there is no transformer.
///
/// # Errors
/// As [`from_choices`], or if there are several.
pub(super) fn from_folder(
    path: &Path,
    config: &ModelConfig,
    base_of: impl FnOnce(&str) -> Result<Snapshot, LoadError>,
) -> Result<Option<(Snapshot, String)>, LoadError> {
    let mut parts = Parts::default();
    parts.add_readable(&folders::inside(path));
    if parts.transformer().is_none() {
        return Ok(None);
    }
    parts.assembled(config, base_of).map(Some)
}

/// The components in the file `path`.
fn candidates(path: &Path) -> Result<Vec<Candidate>, LoadError> {
    let listing = FileListing::open(path)?;
    let malformed =
        |reason| CheckpointError::Malformed { file: path.display().to_string(), reason };
    let found = contents::components(&listing).map_err(malformed)?;
    Ok(found.into_iter().map(|found| Candidate { path: path.to_owned(), found }).collect())
}

impl Parts {
    /// Adds what is in those of `paths` that can be read and hold components.
    fn add_readable(&mut self, paths: &[PathBuf]) {
        for path in paths {
            match candidates(path) {
                Ok(found) => self.candidates.extend(found),
                Err(error) => {
                    let error = error.to_string();
                    tracing::debug!(file = %path.display(), error, "no part of a model");
                }
            }
        }
    }

    /// Adds those components of `paths` that are not there yet.
    fn add_missing(&mut self, paths: &[PathBuf]) {
        let mut beside = Self::default();
        beside.add_readable(paths);
        beside.candidates.retain(|one| !is_transformer(&one.found.kind));
        self.add_rest(beside.candidates);
    }

    /// Adds those components of `found` that are not there yet.
    fn add_rest(&mut self, found: Vec<Candidate>) {
        let has = |kind: fn(&Kind) -> bool| self.candidates.iter().any(|one| kind(&one.found.kind));
        let (has_transformer, has_vision) = (has(is_transformer), has(is_vision));
        let (has_text, has_vae) = (has(is_text), has(is_vae));
        let is_new = |one: &Candidate| match one.found.kind {
            Kind::Transformer { .. } => !has_transformer,
            Kind::VisionTower => !has_vision,
            Kind::TextEncoder { .. } => !has_text,
            Kind::Vae => !has_vae,
        };
        self.candidates.extend(found.into_iter().filter(is_new));
    }

    fn transformer(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|one| one.found.component == TRANSFORMER)
    }

    /// The one of the parts that is of a kind, if any.
    fn only(
        &self,
        is_kind: fn(&Kind) -> bool,
        setting: &'static str,
    ) -> Result<Option<&Candidate>, LoadError> {
        let found: Vec<&Candidate> =
            self.candidates.iter().filter(|one| is_kind(&one.found.kind)).collect();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => {
                let paths = found.iter().map(|one| one.path.display().to_string());
                let paths = paths.collect::<Vec<_>>().join("', '");
                let reason = format!("there are several to choose from: name one of '{paths}'");
                Err(LoadError::Setting { setting, reason })
            }
        }
    }

    /// The checkpoint that the parts make up, and its name.
    fn assembled(
        &self,
        config: &ModelConfig,
        base_of: impl FnOnce(&str) -> Result<Snapshot, LoadError>,
    ) -> Result<(Snapshot, String), LoadError> {
        let transformer = self.only(is_transformer, "model.files.transformer")?;
        let text_encoder = self.only(is_text, "model.files.text_encoder")?;
        let vae = self.only(is_vae, "model.files.vae")?;
        let needs_vision = text_encoder.is_some_and(|one| !has_vision(&one.found.kind));
        let vision = match needs_vision {
            true => self.only(is_vision, "model.files.mmproj")?,
            false => None,
        };
        let which = which_of(config, transformer)?;
        let base = base_of(&which.id)?;
        let needs_vision = needs_vision && shows_pictures(&base)?;
        let has = |component| base.has_weights(component);
        check_complete(&[
            (transformer.is_some() || has(TRANSFORMER), "model.files.transformer", TRANSFORMER),
            (text_encoder.is_some() || has(TEXT_ENCODER), "model.files.text_encoder", TEXT_ENCODER),
            (!needs_vision || vision.is_some(), "model.files.mmproj", "vision tower (mmproj)"),
            (vae.is_some() || has(VAE), "model.files.vae", VAE),
        ])?;
        let chosen: Vec<&Candidate> =
            [transformer, text_encoder, vision, vae].into_iter().flatten().collect();
        let name = chosen.first().map_or(which.id.clone(), |one| stem(&one.path));
        log_choice(&chosen, &which);
        let files = chosen.into_iter().map(Candidate::as_file).collect();
        let texts = texts(transformer, &base)?;
        let set = FileSet { name: name.clone(), base, texts, files };
        Ok((Snapshot::Set(Arc::new(set)), name))
    }
}

impl Candidate {
    fn as_file(&self) -> ComponentFile {
        let Found { component, prefix, naming, .. } = &self.found;
        ComponentFile {
            component,
            path: self.path.clone(),
            naming: *naming,
            prefix: prefix.clone(),
        }
    }
}

fn is_transformer(kind: &Kind) -> bool {
    matches!(kind, Kind::Transformer { .. })
}

fn is_text(kind: &Kind) -> bool {
    matches!(kind, Kind::TextEncoder { .. })
}

fn has_vision(kind: &Kind) -> bool {
    matches!(kind, Kind::TextEncoder { has_vision: true })
}

fn is_vision(kind: &Kind) -> bool {
    matches!(kind, Kind::VisionTower)
}

fn is_vae(kind: &Kind) -> bool {
    matches!(kind, Kind::Vae)
}

/// Refuses a model that lacks a component.
fn check_complete(components: &[(bool, &'static str, &str)]) -> Result<(), LoadError> {
    let missing = components.iter().find(|(is_there, ..)| !is_there);
    missing.map_or(Ok(()), |(_, setting, component)| {
        let part = MissingPart::of_setting(setting);
        let example = part.map_or_else(String::new, |part| format!(" ({})", part.example()));
        Err(LoadError::Setting {
            setting,
            reason: format!(
                "the model's {component} is missing: put its file into the same folder, name it \
                 in this setting{example}, or name in model.files.base a folder that has it"
            ),
        })
    })
}

/// What the settings say of the base, else what the transformer's file tells.
fn which_of(config: &ModelConfig, transformer: Option<&Candidate>) -> Result<Named, LoadError> {
    if let (Some(base), Some(variant)) = (&config.files.base, &config.variant) {
        return Err(LoadError::Setting {
            setting: "model.variant",
            reason: format!(
                "'{variant}' and model.files.base = '{base}' both say which model it is: keep one"
            ),
        });
    }
    if let Some(id) = config.files.base.clone() {
        return Ok(Named { id, because: "model.files.base says so".to_owned() });
    }
    if let Some(variant) = &config.variant {
        let id = published::full_id(variant).ok_or_else(|| LoadError::Setting {
            setting: "model.variant",
            reason: format!(
                "'{variant}' is no published checkpoint: expected one of '{}'",
                published::ids().join("', '")
            ),
        })?;
        return Ok(Named { id: id.to_owned(), because: "model.variant says so".to_owned() });
    }
    let told = transformer.and_then(|one| which::which(one.found.kind, &one.path));
    if let Some(Which { id, because }) = told {
        return Ok(Named { id: id.to_owned(), because });
    }
    Err(LoadError::Setting {
        setting: "model.variant",
        reason: format!(
            "the files do not tell which model they are of, and made as another one pictures are \
             worse without an error: set it to one of '{}'",
            published::ids().join("', '")
        ),
    })
}

/// The id of the base, and how it was known.
struct Named {
    id: String,
    because: String,
}

/// Whether the pipeline of `base` shows its text encoder pictures.
fn shows_pictures(base: &Snapshot) -> Result<bool, LoadError> {
    let class_name: String = base.config("model_index.json")?.required("_class_name");
    Ok(Variant::of_class(&class_name).is_none_or(|variant| variant.shown != Shown::Nothing))
}

/// Texts in place of the base's: a transformer that is marked has `zero_cond_t`.
fn texts(
    transformer: Option<&Candidate>,
    base: &Snapshot,
) -> Result<BTreeMap<String, String>, LoadError> {
    let is_marked =
        |one: &Candidate| matches!(one.found.kind, Kind::Transformer { is_marked: true, .. });
    if !transformer.is_some_and(is_marked) {
        return Ok(BTreeMap::new());
    }
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        file: TRANSFORMER_CONFIG.to_owned(),
        reason: format!("is no JSON object: {error}"),
    };
    let text = base.text(TRANSFORMER_CONFIG)?;
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(malformed)?;
    config.insert("zero_cond_t".to_owned(), true.into());
    let text = serde_json::to_string(&config).map_err(malformed)?;
    Ok(BTreeMap::from([(TRANSFORMER_CONFIG.to_owned(), text)]))
}

fn log_choice(chosen: &[&Candidate], which: &Named) {
    for one in chosen {
        let (component, file) = (one.found.component, one.path.display());
        tracing::info!(component, %file, "weights");
    }
    tracing::info!(base = which.id, because = which.because, "which model the files are of");
}

/// A file's name without its ending.
fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// Whether `path` is meant as a file of weights: by its ending, or its first bytes.
pub(super) fn is_weights(path: &Path) -> bool {
    folders::has_ending_of_weights(path) || begins_as_gguf(path)
}

fn begins_as_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && &start == b"GGUF"
}

/// The files of weights at `path`: itself, or those of a folder and of ComfyUI's below it.
#[must_use]
pub fn weight_files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { folders::inside(path) } else { vec![path.to_owned()] }
}
