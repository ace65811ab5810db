//! A component's `config.json`, read so that no value in it is overlooked.
//!
//! Every key that the reference's class reads must be taken, pinned to the one
//! value that we implement, or named as without effect. What is left over then, the
//! reference ignores, too: [`ConfigFile::finish`] names it in the log, and reports
//! every fault of the file at once. [`ConfigFile::finish_known`] refuses it, for
//! files of our own.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;

/// Keys that say how weights were quantised, in the file of any component.
const QUANTIZATION_KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// The widest that anything in a network may be: products of three widths are numbers.
pub const LARGEST_WIDTH: usize = 1_000_000;
/// How many layers anything in a network may have.
pub const MOST_LAYERS: usize = 1000;
/// How many levels of resolution a network may have.
const MOST_LEVELS: usize = 16;

/// The values of one JSON object that have not been accounted for yet.
#[derive(Debug)]
pub struct ConfigFile {
    file: String,
    /// Path of this object inside the file, such as `vision_config.`.
    path: String,
    values: Map<String, Value>,
    faults: Vec<String>,
    /// What closed sections had left over.
    leftovers: Vec<String>,
}

impl ConfigFile {
    /// Reads `text` as the JSON object of `file`.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`] if it is something else.
    pub fn parse(file: &str, text: &str) -> Result<Self, CheckpointError> {
        let malformed =
            |reason: String| CheckpointError::Malformed { file: file.to_owned(), reason };
        match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Ok(Self::of(file, String::new(), values)),
            Ok(_) => Err(malformed("is not a JSON object".to_owned())),
            Err(error) => Err(malformed(format!("is not JSON: {error}"))),
        }
    }

    fn of(file: &str, path: String, values: Map<String, Value>) -> Self {
        let mut config =
            Self { file: file.to_owned(), path, values, faults: Vec::new(), leftovers: Vec::new() };
        for key in QUANTIZATION_KEYS {
            if let Some(value) = config.values.remove(key).filter(|value| !value.is_null()) {
                let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
                config.faults.push(format!(
                    "{}{key}: the weights are quantised ({method}), which is not supported: take \
                     the checkpoint that they were made from",
                    config.path
                ));
            }
        }
        config
    }

    /// Whether `key` is there with a value other than null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// The value of `key`, which is not taken.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Takes `key`, which must be there.
    pub fn required<T: DeserializeOwned + Default>(&mut self, key: &str) -> T {
        match self.optional(key) {
            Some(value) => value,
            None => {
                self.faults.push(format!("{}{key} is missing", self.path));
                T::default()
            }
        }
    }

    /// Takes `key`, which must be a number from 1 to a million: how wide something is.
    pub fn count(&mut self, key: &str) -> usize {
        self.count_within(key, 1..=LARGEST_WIDTH)
    }

    /// Takes `key`, which must be a number from 1 to a thousand: how many layers
    /// something has.
    pub fn layers(&mut self, key: &str) -> usize {
        self.count_within(key, 1..=MOST_LAYERS)
    }

    /// Takes `key`, which must be there and in `range`; the least of it if it is not.
    pub fn count_within(&mut self, key: &str, range: RangeInclusive<usize>) -> usize {
        let count = self.required(key);
        self.bounded(key, count, &range).unwrap_or(*range.start())
    }

    /// Takes `key`, which must be in `range`, or `default` where it is absent or null.
    pub fn count_or(&mut self, key: &str, default: usize, range: RangeInclusive<usize>) -> usize {
        let count = self.or(key, default);
        self.bounded(key, count, &range).unwrap_or(default)
    }

    /// Takes `key`, which must be in `range`, or `default` where it is absent or null.
    pub fn number_or(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let number = self.or(key, default);
        self.bounded(key, number, &range).unwrap_or(default)
    }

    /// Takes `key`, which must be 1 to 16 elements in `range`; none if it is not.
    pub fn counts(&mut self, key: &str, range: RangeInclusive<usize>) -> Vec<usize> {
        let counts: Vec<usize> = self.required(key);
        if (1..=MOST_LEVELS).contains(&counts.len()) && counts.iter().all(|n| range.contains(n)) {
            return counts;
        }
        let (least, most) = range.into_inner();
        let path = &self.path;
        self.faults.push(format!(
            "{path}{key} is not a list of 1 to {MOST_LEVELS} numbers between {least} and {most}"
        ));
        Vec::new()
    }

    fn bounded<T>(&mut self, key: &str, value: T, range: &RangeInclusive<T>) -> Option<T>
    where
        T: PartialOrd + Display,
    {
        if range.contains(&value) {
            return Some(value);
        }
        let (path, least, most) = (&self.path, range.start(), range.end());
        self.faults.push(format!("{path}{key} = {value} is not between {least} and {most}"));
        None
    }

    /// Takes `key`, or `default` where it is absent or null.
    pub fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// Takes `key`; `None` where it is absent, null or of the wrong type (a fault).
    pub fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.values.remove(key).filter(|value| !value.is_null())?;
        let shown = value.to_string();
        serde_json::from_value(value)
            .map_err(|error| self.faults.push(format!("{}{key} = {shown}: {error}", self.path)))
            .ok()
    }

    /// Takes `key`, which may be absent but not differ from `supported`.
    pub fn only<T: Into<Value>>(&mut self, key: &str, supported: T) {
        let supported = supported.into();
        if let Some(value) = self.values.remove(key).filter(|value| !value.is_null()) {
            let equal = match (value.as_f64(), supported.as_f64()) {
                (Some(left), Some(right)) => left == right,
                _ => value == supported,
            };
            if !equal {
                let path = &self.path;
                self.faults
                    .push(format!("{path}{key} = {value} is not supported, only {supported} is"));
            }
        }
    }

    /// Takes `key`, which may be absent but must be one of `supported`.
    pub fn one_of(&mut self, key: &str, supported: &[&str]) {
        if let Some(value) = self.optional::<String>(key)
            && !supported.contains(&value.as_str())
        {
            let path = &self.path;
            let supported = supported.join(", ");
            self.faults
                .push(format!("{path}{key} = \"{value}\" is not supported, only {supported}"));
        }
    }

    /// Takes `keys` that ask for something that is not implemented, unless they are
    /// null or false.
    pub fn unsupported(&mut self, keys: &[&str]) {
        for key in keys {
            if let Some(value) = self.values.remove(*key).filter(asks_for_something) {
                self.faults.push(format!("{}{key} = {value} is not supported", self.path));
            }
        }
    }

    /// Takes `keys` that do not change what is computed here.
    pub fn inert(&mut self, keys: &[&str]) {
        for key in keys {
            self.values.remove(*key);
        }
    }

    /// Takes the object under `key`; an empty one where it is absent.
    pub fn section(&mut self, key: &str) -> Self {
        let values = self.optional::<Map<String, Value>>(key).unwrap_or_default();
        Self::of(&self.file, format!("{}{key}.", self.path), values)
    }

    /// Takes over what is left of, and was wrong with, a section of this file.
    pub fn close(&mut self, section: Self) {
        let leftovers = section.leftovers();
        self.faults.extend(section.faults);
        self.leftovers.extend(leftovers);
    }

    /// Records a fault that the caller found.
    pub fn fault(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    /// Ends the reading. Keys that nothing has accounted for are named in the log:
    /// the class in the reference does not know them, and ignores them, too.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] with every fault: missing keys, wrong types,
    /// unsupported values.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let leftovers = self.leftovers();
        if !leftovers.is_empty() {
            let keys = leftovers.join(", ");
            tracing::info!(file = self.file, keys, "unknown keys, which have no effect");
        }
        self.end()
    }

    /// Ends the reading of a file of our own, in which an unknown key is a mistake
    /// unless it is null or false.
    ///
    /// # Errors
    /// As [`ConfigFile::finish`], and for keys that nothing has accounted for.
    pub fn finish_known(mut self) -> Result<(), CheckpointError> {
        let leftovers = self.leftovers();
        self.faults.extend(leftovers.iter().map(|leftover| format!("{leftover} is unknown")));
        self.end()
    }

    fn end(self) -> Result<(), CheckpointError> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Config { file: self.file, faults: self.faults })
    }

    /// What nothing has accounted for, here and in closed sections, with its values
    /// where they are short.
    fn leftovers(&self) -> Vec<String> {
        const SHOWN_BYTES: usize = 40;
        let named = |(key, value): (&String, &Value)| {
            let (path, value) = (&self.path, value.to_string());
            let is_short = value.len() <= SHOWN_BYTES;
            if is_short { format!("{path}{key} = {value}") } else { format!("{path}{key}") }
        };
        let own = self
            .values
            .iter()
            .filter(|(key, value)| !key.starts_with('_') && asks_for_something(value))
            .map(named);
        own.chain(self.leftovers.iter().cloned()).collect()
    }
}

fn asks_for_something(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(result: Result<(), CheckpointError>) -> Vec<String> {
        match result {
            Err(CheckpointError::Config { faults, .. }) => faults,
            other => panic!("expected configuration faults, got {other:?}"),
        }
    }

    #[test]
    fn a_file_whose_keys_are_all_accounted_for_passes() {
        let text = r#"{"_class_name": "X", "layers": 3, "act": "silu", "scale": 1, "note": "n", "new": false}"#;
        let mut config = ConfigFile::parse("a/config.json", text).unwrap();

        assert_eq!(config.required::<usize>("layers"), 3);
        config.only("act", "silu");
        config.only("scale", 1.0);
        config.inert(&["note", "absent"]);
        assert_eq!(config.or("eps", 1e-6), 1e-6);

        config.finish().unwrap();
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let text = r#"{"act": "gelu", "layers": "three", "kind": "x", "extra": 7,
            "inner": {"deep": 1, "quantization_config": {"quant_method": "bitsandbytes"}}}"#;
        let mut config = ConfigFile::parse("a/config.json", text).unwrap();

        config.only("act", "silu");
        let _: usize = config.required("layers");
        let _: usize = config.required("width");
        config.one_of("kind", &["y", "z"]);
        config.unsupported(&["extra", "absent"]);
        let mut inner = config.section("inner");
        inner.only("deep", 2);
        config.close(inner);
        let faults = faults(config.finish());

        for expected in ["act", "layers", "width", "kind", "extra", "inner.deep", "bitsandbytes"] {
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        }
    }

    #[test]
    fn numbers_out_of_their_bounds_are_named_with_them_and_replaced() {
        let text = r#"{"width": 1000001, "depth": 1001, "eps": 1e308, "offset": 9, "group": 0,
            "levels": [1, 99], "none": [], "inner": {"size": 7}}"#;
        let mut config = ConfigFile::parse("a/config.json", text).unwrap();

        assert_eq!((config.count("width"), config.layers("depth")), (1, 1));
        assert_eq!(config.number_or("eps", 0.5, 0.0..=1.0), 0.5);
        assert_eq!(config.count_or("offset", 2, 0..=8), 2);
        assert_eq!(config.count_or("group", 2, 1..=8), 2);
        assert!(config.counts("levels", 1..=98).is_empty());
        assert!(config.counts("none", 1..=98).is_empty());
        let mut inner = config.section("inner");
        assert_eq!(inner.count_within("size", 8..=9), 8);
        config.close(inner);

        let faults = faults(config.finish());
        for expected in [
            "width = 1000001 is not between 1 and 1000000",
            "depth = 1001 is not between 1 and 1000",
            "offset = 9 is not between 0 and 8",
            "inner.size = 7 is not between 8 and 9",
        ] {
            assert!(faults.iter().any(|fault| fault == expected), "{expected}: {faults:?}");
        }
        assert_eq!(faults.len(), 8);
    }

    #[test]
    fn an_unknown_key_stops_the_load_in_a_file_of_our_own_alone() {
        let text = r#"{"novel": 7, "off": false, "none": null, "_note": 1, "inner": {"deep": 1}}"#;
        let read = || {
            let mut config = ConfigFile::parse("a/config.json", text).unwrap();
            let inner = config.section("inner");
            config.close(inner);
            config
        };

        assert_eq!(read().leftovers(), ["novel = 7", "inner.deep = 1"]);
        read().finish().unwrap();
        let faults = faults(read().finish_known());
        assert_eq!(faults, ["novel = 7 is unknown", "inner.deep = 1 is unknown"]);
    }
}
