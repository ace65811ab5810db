//! A component's `config.json`, read so that no value in it is overlooked.
//!
//! Every key must be taken, pinned to the one value that we implement, or named
//! as without effect. [`ConfigFile::finish`] then refuses what is left over and
//! reports every fault of the file at once.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;

/// The values of one JSON object that have not been accounted for yet.
#[derive(Debug)]
pub struct ConfigFile {
    file: String,
    /// Path of this object inside the file, such as `vision_config.`.
    path: String,
    values: Map<String, Value>,
    faults: Vec<String>,
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
            Ok(Value::Object(values)) => {
                Ok(Self { file: file.to_owned(), path: String::new(), values, faults: Vec::new() })
            }
            Ok(_) => Err(malformed("is not a JSON object".to_owned())),
            Err(error) => Err(malformed(format!("is not JSON: {error}"))),
        }
    }

    /// Whether `key` is there with a value other than null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
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

    /// Takes `key`, which must be a number from 1 to a million: how many or how
    /// wide something is.
    pub fn count(&mut self, key: &str) -> usize {
        const LARGEST: usize = 1_000_000;
        let count: usize = self.required(key);
        if (1..=LARGEST).contains(&count) {
            return count;
        }
        self.faults.push(format!("{}{key} = {count} is not between 1 and {LARGEST}", self.path));
        1
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

    /// Takes `keys` that do not change what is computed here.
    pub fn inert(&mut self, keys: &[&str]) {
        for key in keys {
            self.values.remove(*key);
        }
    }

    /// Takes the object under `key`; an empty one where it is absent.
    pub fn section(&mut self, key: &str) -> Self {
        let values = self.optional::<Map<String, Value>>(key).unwrap_or_default();
        Self {
            file: self.file.clone(),
            path: format!("{}{key}.", self.path),
            values,
            faults: Vec::new(),
        }
    }

    /// Takes over what is left of, and was wrong with, a section of this file.
    pub fn close(&mut self, section: Self) {
        let leftovers = section.leftovers();
        self.faults.extend(section.faults);
        self.faults.extend(leftovers);
    }

    /// Records a fault that the caller found.
    pub fn fault(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] with every fault: missing keys, wrong types,
    /// unsupported values, and keys that nothing has accounted for. An unknown
    /// key that is null or false asks for nothing and passes.
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        let leftovers = self.leftovers();
        self.faults.extend(leftovers);
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Config { file: self.file, faults: self.faults })
    }

    fn leftovers(&self) -> Vec<String> {
        let asks_for_something = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        self.values
            .iter()
            .filter(|(key, value)| !key.starts_with('_') && asks_for_something(value))
            .map(|(key, value)| {
                let path = &self.path;
                format!("{path}{key} = {value} is unknown, and might change what is computed")
            })
            .collect()
    }
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
        let text = r#"{"act": "gelu", "layers": "three", "novel": 7, "inner": {"deep": 1}}"#;
        let mut config = ConfigFile::parse("a/config.json", text).unwrap();

        config.only("act", "silu");
        let _: usize = config.required("layers");
        let _: usize = config.required("width");
        let inner = config.section("inner");
        config.close(inner);
        let faults = faults(config.finish());

        for expected in ["act", "layers", "width", "novel", "inner.deep"] {
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        }
    }
}
