//! The sources of settings, laid one over the other. Each value keeps the name
//! of the source that it came from.

use std::collections::BTreeMap;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::environment::Environment;
use super::error::Fault;
use super::keys::{CONFIG_FILE_VARIABLE, KEYS, Key, nearest};

/// The compiled-in settings: the commented file that users read.
const DEFAULT_FILE: &str = include_str!("../../config/default.toml");

/// Where a value from [`DEFAULT_FILE`] says that it comes from.
const DEFAULT_ORIGIN: &str = "built-in default";

/// Settings of the original system that mean nothing here: the value that
/// changes nothing, and why no other can be had.
const RETIRED: &[(&str, &str, &str)] = &[(
    "DIFFUSER_WORKERS",
    "1",
    "expected 1, or nothing: one process owns the model; start another server for more",
)];

/// All layers given so far, and the faults found in them.
pub(super) struct Layers {
    figment: Figment,
    /// What is said of single models, by their names.
    sections: BTreeMap<String, Vec<OwnSetting>>,
    /// Lists of keys, each with its source.
    pub(super) key_tables: Vec<Found>,
    pub(super) faults: Vec<Fault>,
}

/// A setting of one model: what it is in place of.
#[derive(Clone)]
struct OwnSetting {
    path: String,
    value: Value,
    origin: String,
}

/// Where keys stand in the configuration file.
pub(super) const KEY_TABLES: &str = "keys.key";

/// The section of single models.
const MODELS: &str = "models";
/// What may be said of a single model besides what is in `[model]`.
const FILES: &str = "files";
const SECTIONS_OF_MODELS: [&str; 3] = ["defaults", "capabilities", "quality"];

/// A value with the name of its source.
pub(super) struct Found {
    pub(super) value: Value,
    pub(super) origin: String,
}

/// One value from one source, as figment takes it.
struct Setting<'a> {
    path: &'a str,
    value: Value,
    origin: String,
}

impl Provider for Setting<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(self.path, self.value.clone());
        let dict = nested.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

impl Layers {
    fn over(figment: Figment) -> Self {
        let (sections, key_tables) = (BTreeMap::new(), Vec::new());
        Self { figment, sections, key_tables, faults: Vec::new() }
    }

    /// The compiled-in defaults.
    pub(super) fn defaults() -> Self {
        let mut layers = Self::over(Figment::new());
        layers.add_toml(DEFAULT_FILE, DEFAULT_ORIGIN);
        layers
    }

    /// Adds the settings of the file at `path`, which must be there.
    pub(super) fn add_file(&mut self, path: &Path, named_by: &str) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.add_toml(&text, &format!("file {}", path.display())),
            Err(error) => self.faults.push(Fault {
                key: "configuration file".to_owned(),
                value: Some(format!("'{}': {error}", path.display())),
                expected: "expected a file that can be read".to_owned(),
                origin: named_by.to_owned(),
            }),
        }
    }

    fn add_toml(&mut self, text: &str, origin: &str) {
        match <Toml as Format>::from_str::<Dict>(text) {
            Ok(dict) => self.add_dict("", dict, origin),
            Err(error) => {
                let report = error.to_string();
                let place = report.lines().next().unwrap_or_default();
                self.faults.push(Fault {
                    key: "configuration file".to_owned(),
                    value: Some(format!("{place}: {}", error.message())),
                    expected: "expected TOML".to_owned(),
                    origin: origin.to_owned(),
                });
            }
        }
    }

    /// Adds the known settings below `prefix`; the others are faults.
    fn add_dict(&mut self, prefix: &str, dict: Dict, origin: &str) {
        for (name, value) in dict {
            if prefix.is_empty() && name == MODELS {
                self.add_models(value, origin);
                continue;
            }
            let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            if path == KEY_TABLES {
                self.key_tables.push(Found { value, origin: origin.to_owned() });
                continue;
            }
            let within = format!("{path}.");
            let is_section = KEYS.iter().any(|key| key.path.starts_with(&within));
            if KEYS.iter().any(|key| key.path == path) {
                self.add(&path, value, origin.to_owned());
            } else if is_section {
                match value.into_dict() {
                    Some(section) => self.add_dict(&path, section, origin),
                    None => {
                        self.refuse(path, "expected a section: [name], then its settings", origin)
                    }
                }
            } else {
                let meant = nearest(&path, KEYS.iter().map(|key| key.path));
                self.refuse(path, &unknown("setting", meant), origin);
            }
        }
    }

    /// Adds the sections of single models.
    fn add_models(&mut self, value: Value, origin: &str) {
        let models = value.into_dict();
        let Some(models) = models else {
            let expected = "expected sections: [models.NAME], then its settings";
            return self.refuse(MODELS.to_owned(), expected, origin);
        };
        for (name, value) in models {
            match value.into_dict() {
                Some(settings) => self.add_model(&name, settings, origin),
                None => {
                    let expected = "expected a section: [models.NAME], then its settings";
                    self.refuse(format!("{MODELS}.{name}"), expected, origin);
                }
            }
        }
    }

    fn add_model(&mut self, name: &str, settings: Dict, origin: &str) {
        let mut own = Vec::new();
        for (key, value) in settings {
            // [models.NAME.files] stands for [model.files], the others for sections of their own.
            let section = if key == FILES { format!("model.{key}") } else { key.clone() };
            if (key == FILES || SECTIONS_OF_MODELS.contains(&key.as_str()))
                && let Some(inner) = value.clone().into_dict()
            {
                let named = |(name, value)| (format!("{section}.{name}"), value);
                own.extend(inner.into_iter().map(named));
            } else {
                own.push((format!("model.{key}"), value));
            }
        }
        let section = self.sections.entry(name.to_owned()).or_default();
        let mut unknown_paths = Vec::new();
        for (path, value) in own {
            if KEYS.iter().any(|key| key.path == path && key.is_of_a_model()) {
                section.push(OwnSetting { path, value, origin: origin.to_owned() });
            } else {
                unknown_paths.push(path);
            }
        }
        for path in unknown_paths {
            let own = path.strip_prefix("model.").unwrap_or(&path);
            let known = KEYS.iter().filter(|key| key.is_of_a_model());
            let meant = nearest(&path, known.map(|key| key.path));
            let meant = meant.map(|meant| meant.strip_prefix("model.").unwrap_or(meant));
            self.refuse(format!("{MODELS}.{name}.{own}"), &unknown("setting", meant), origin);
        }
    }

    /// The names of the models that have sections of their own.
    pub(super) fn sections(&self) -> Vec<String> {
        self.sections.keys().cloned().collect()
    }

    /// What `name`'s section says of `key`.
    pub(super) fn says_itself(&self, name: &str, key: Key) -> bool {
        let section = self.sections.get(name).into_iter().flatten();
        section.into_iter().any(|setting| setting.path == key.path)
    }

    /// The layers with `name`'s own settings on top, and no faults.
    pub(super) fn of_model(&self, name: &str) -> Self {
        let mut layers = Self::over(self.figment.clone());
        for OwnSetting { path, value, origin } in self.sections.get(name).into_iter().flatten() {
            layers.add(path, value.clone(), format!("{origin}, section {MODELS}.{name}"));
        }
        layers
    }

    /// Adds the variables of `environment` that are settings. Others that bear
    /// our prefix are faults: a misspelt one would else be lost in silence.
    pub(super) fn add_environment(&mut self, environment: &Environment) {
        for key in KEYS {
            for variable in [key.alias, Some(key.variable)].into_iter().flatten() {
                if let Some(text) = environment.get(variable)
                    && (key.may_be_empty() || !text.is_empty())
                    && !is_service_link(variable, text)
                {
                    self.add(key.path, Value::from(text), origin_variable(variable));
                }
            }
        }
        for (name, text) in environment.iter() {
            if let Some((_, harmless, reason)) = RETIRED.iter().find(|(old, ..)| *old == name) {
                if text != *harmless && !text.is_empty() {
                    self.refuse(name.to_owned(), reason, &origin_variable(name));
                }
            } else if is_ours(name) && !is_known(name) && !is_service_link(name, text) {
                let meant = nearest(name, known_variables());
                self.refuse(name.to_owned(), &unknown("variable", meant), "environment");
            }
        }
    }

    /// Adds what the flag of `key` says.
    pub(super) fn add_flag(&mut self, key: Key, text: Option<&str>) {
        if let (Some(flag), Some(text)) = (key.flag, text) {
            self.add(key.path, Value::from(text), format!("flag {flag}"));
        }
    }

    /// The topmost value of `key`.
    pub(super) fn find(&self, key: Key) -> Option<Found> {
        let value = self.figment.find_value(key.path).ok()?;
        let metadata = self.figment.get_metadata(value.tag());
        let origin = metadata.map_or("unknown source", |metadata| &metadata.name);
        Some(Found { origin: origin.to_owned(), value })
    }

    pub(super) fn add(&mut self, path: &str, value: Value, origin: String) {
        let setting = Setting { path, value, origin };
        self.figment = std::mem::take(&mut self.figment).merge(setting);
    }

    fn refuse(&mut self, key: String, expected: &str, origin: &str) {
        self.faults.push(Fault {
            key,
            value: None,
            expected: expected.to_owned(),
            origin: origin.to_owned(),
        });
    }
}

fn origin_variable(name: &str) -> String {
    format!("environment variable {name}")
}

pub(super) fn unknown(kind: &str, meant: Option<&str>) -> String {
    match meant {
        Some(meant) => format!("no such {kind}; did you mean {meant}?"),
        None => format!("no such {kind}; --help lists them all"),
    }
}

/// Names that may be set, in the environment.
fn known_variables() -> impl Iterator<Item = &'static str> + Clone {
    KEYS.iter()
        .flat_map(|key| [Some(key.variable), key.alias])
        .flatten()
        .chain([CONFIG_FILE_VARIABLE])
}

fn is_known(name: &str) -> bool {
    known_variables().any(|known| known == name)
}

fn is_ours(name: &str) -> bool {
    name.starts_with("DIFFUSER_") || name.starts_with("MODEL_CAP_SUPPORTS_")
}

/// Whether Kubernetes set this variable, for a Service whose name begins with
/// "diffuser": such as `DIFFUSER_API_SERVICE_HOST`, or `DIFFUSER_PORT` with the
/// value `tcp://10.0.0.7:8000`. Nobody meant those as settings.
fn is_service_link(name: &str, text: &str) -> bool {
    let is_address = text.starts_with("tcp://") || text.starts_with("udp://");
    let is_part_of_address =
        ["_TCP_ADDR", "_TCP_PORT", "_TCP_PROTO"].iter().any(|end| name.ends_with(end));
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || is_part_of_address
        || (is_address && name.contains("_PORT"))
}
