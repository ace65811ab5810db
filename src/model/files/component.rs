//! One component of a model in a folder or a file, to be written in another format; and
//! whether it has `zero_cond_t`, which is never guessed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::contents::Kind;
use super::{
    Candidate, Parts, candidates, folders, has_vision, is_text, is_vision, stem, which_of,
};
use crate::checkpoint::{CheckpointError, FileSet, Snapshot};
use crate::model::conversion::{Component, ConversionRequest};
use crate::model::location::MODEL_INDEX;
use crate::model::{FileChoices, LoadError, ModelConfig};

/// A component, and where it is.
#[derive(Debug)]
pub(in crate::model) struct ComponentSource {
    pub(in crate::model) snapshot: Snapshot,
    pub(in crate::model) component: Component,
    /// Whether reference pictures are at noise level 0: the transformer's alone.
    pub(in crate::model) has_zero_cond_t: bool,
}

/// Why there is no component to convert.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// There is nothing at the path.
    #[error("there is no file or folder {}", path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// The model is of another family.
    #[error("{}: {class_name} is no pipeline of Qwen-Image", path.display())]
    OtherFamily {
        /// Its folder.
        path: PathBuf,
        /// Its class.
        class_name: String,
    },
    /// The component is not there.
    #[error("{} has no {wanted}{}", path.display(), found.as_deref().unwrap_or(": it has no file of Qwen-Image"))]
    Missing {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        wanted: Component,
        /// What is there.
        found: Option<String>,
    },
    /// Several files may be meant.
    #[error("there are several to choose from: give one of '{paths}'")]
    Several {
        /// The files.
        paths: String,
    },
    /// Several components may be meant.
    #[error("there is no transformer, but several other components: name one with --component")]
    WhichComponent,
    /// What an option says is not so, or has no use.
    #[error("--{option}: {reason}")]
    Option {
        /// The option, or the one that is missing.
        option: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The input cannot be read.
    #[error(transparent)]
    Load(LoadError),
}

impl From<LoadError> for ComponentError {
    /// Settings are options here.
    fn from(error: LoadError) -> Self {
        let LoadError::Setting { setting, reason } = error else { return Self::Load(error) };
        match setting {
            "model.variant" => Self::Option { option: "variant", reason },
            "model.files.base" => Self::Option { option: "base", reason },
            _ => Self::Load(LoadError::Setting { setting, reason }),
        }
    }
}

impl From<CheckpointError> for ComponentError {
    fn from(error: CheckpointError) -> Self {
        Self::Load(error.into())
    }
}

/// Finds the component that `request` asks for.
///
/// # Errors
/// A [`ComponentError`] that says what is there instead, or what is not known.
pub(in crate::model) fn find_component(
    request: &ConversionRequest,
    base_of: impl FnOnce(&str) -> Result<Snapshot, LoadError>,
) -> Result<ComponentSource, ComponentError> {
    let path = &request.input;
    if path.is_dir() && path.join(MODEL_INDEX).is_file() {
        return in_model(request);
    }
    let mut parts = Parts::default();
    if path.is_dir() {
        parts.add_readable(&folders::inside(path));
    } else if path.is_file() {
        parts.candidates = candidates(path)?;
    } else {
        return Err(ComponentError::NoSuchPath { path: path.clone() });
    }
    let component = chosen_component(request, &parts)?;
    let mut chosen = vec![only(&of_component(&parts, component))?];
    if is_text(&chosen[0].found.kind) && !has_vision(&chosen[0].found.kind) {
        chosen.extend(vision_tower(path, &parts)?);
    }
    for one in &chosen {
        tracing::info!(%component, file = %one.path.display(), "weights");
    }
    let has_zero_cond_t =
        component == Component::Transformer && has_zero_cond_t(request, &chosen[0], base_of)?;
    let set = FileSet {
        name: stem(path),
        base: Snapshot::Texts(BTreeMap::new()),
        texts: BTreeMap::new(),
        files: chosen.iter().map(Candidate::as_file).collect(),
    };
    Ok(ComponentSource { snapshot: Snapshot::Set(Arc::new(set)), component, has_zero_cond_t })
}

/// The component of a model in the published layout.
fn in_model(request: &ConversionRequest) -> Result<ComponentSource, ComponentError> {
    let path = &request.input;
    let option = match (&request.variant, &request.base) {
        (Some(_), _) => Some("variant"),
        (None, Some(_)) => Some("base"),
        (None, None) => None,
    };
    if let Some(option) = option {
        let reason = format!("{} has its own configuration: leave it out", path.display());
        return Err(ComponentError::Option { option, reason });
    }
    let snapshot = Snapshot::Directory(path.clone());
    let class_name: String = snapshot.config(MODEL_INDEX)?.required("_class_name");
    if !class_name.starts_with("QwenImage") {
        return Err(ComponentError::OtherFamily { path: path.clone(), class_name });
    }
    let component = request.component.unwrap_or(Component::Transformer);
    let has_zero_cond_t = component == Component::Transformer && configured_zero_cond_t(&snapshot)?;
    Ok(ComponentSource { snapshot, component, has_zero_cond_t })
}

/// What the transformer's configuration says; as diffusers, no, if it does not say.
fn configured_zero_cond_t(snapshot: &Snapshot) -> Result<bool, ComponentError> {
    let mut config = snapshot.config(super::TRANSFORMER_CONFIG)?;
    Ok(config.or("zero_cond_t", false))
}

/// The component that is asked for, else the transformer, else the only one.
fn chosen_component(
    request: &ConversionRequest,
    parts: &Parts,
) -> Result<Component, ComponentError> {
    let has = |component: &Component| !of_component(parts, *component).is_empty();
    let found: Vec<Component> = Component::ALL.into_iter().filter(has).collect();
    let missing = |wanted| {
        let names: Vec<&str> = found.iter().map(|one| one.folder()).collect();
        let found = (!names.is_empty()).then(|| format!(", but the {}", names.join(" and the ")));
        let is_tower = |one: &Candidate| is_vision(&one.found.kind);
        let tower = parts.candidates.iter().any(is_tower).then(|| {
            ", but its vision tower: give the language model's file, with this beside it".to_owned()
        });
        ComponentError::Missing { path: request.input.clone(), wanted, found: found.or(tower) }
    };
    match (request.component, &found[..]) {
        (Some(wanted), found) if !found.contains(&wanted) => Err(missing(wanted)),
        (Some(wanted), _) => Ok(wanted),
        (None, [Component::Transformer, ..]) => Ok(Component::Transformer),
        (None, [only]) => Ok(*only),
        (None, []) => {
            let is_tower = parts.candidates.iter().any(|one| is_vision(&one.found.kind));
            Err(missing(if is_tower { Component::TextEncoder } else { Component::Transformer }))
        }
        (None, _) => Err(ComponentError::WhichComponent),
    }
}

/// The files with the component; vision towers alone are none.
fn of_component(parts: &Parts, component: Component) -> Vec<&Candidate> {
    let is_it =
        |one: &&Candidate| one.found.component == component.folder() && !is_vision(&one.found.kind);
    parts.candidates.iter().filter(is_it).collect()
}

fn only(found: &[&Candidate]) -> Result<Candidate, ComponentError> {
    match found {
        [one] => Ok((*one).clone()),
        several => {
            let paths = several.iter().map(|one| one.path.display().to_string());
            Err(ComponentError::Several { paths: paths.collect::<Vec<_>>().join("', '") })
        }
    }
}

/// The vision tower among `parts`, or beside the file `path`, if there is one.
fn vision_tower(path: &Path, parts: &Parts) -> Result<Option<Candidate>, ComponentError> {
    let mut beside = Parts::default();
    if path.is_file() {
        beside.add_readable(&folders::beside(path));
    }
    let all = parts.candidates.iter().chain(&beside.candidates);
    let found: Vec<&Candidate> = all.filter(|one| is_vision(&one.found.kind)).collect();
    if found.is_empty() {
        tracing::warn!("there is no vision tower beside the language model: it is written alone");
        return Ok(None);
    }
    only(&found).map(Some)
}

/// Whether the transformer has `zero_cond_t`: its mark says so, or the configuration of what
/// the options or its name say it is.
fn has_zero_cond_t(
    request: &ConversionRequest,
    transformer: &Candidate,
    base_of: impl FnOnce(&str) -> Result<Snapshot, LoadError>,
) -> Result<bool, ComponentError> {
    let is_marked = matches!(transformer.found.kind, Kind::Transformer { is_marked: true, .. });
    let option = if request.variant.is_some() { "variant" } else { "base" };
    let is_told = request.variant.is_some() || request.base.is_some();
    if is_marked && !is_told {
        tracing::info!(because = "a tensor of its own marks it", zero_cond_t = true, "which model");
        return Ok(true);
    }
    let config = ModelConfig {
        variant: request.variant.clone(),
        files: FileChoices { base: request.base.clone(), ..FileChoices::default() },
        ..ModelConfig::of(request.input.to_string_lossy())
    };
    let which = which_of(&config, Some(transformer))?;
    let configured = configured_zero_cond_t(&base_of(&which.id)?)?;
    if is_marked && !configured {
        let reason = format!(
            "'{}' has no zero_cond_t, which a tensor of {} says that it has: leave the option out",
            which.id,
            transformer.path.display()
        );
        return Err(ComponentError::Option { option, reason });
    }
    let (id, because) = (which.id, which.because);
    tracing::info!(base = id, because, zero_cond_t = configured, "which model the files are of");
    Ok(configured)
}
