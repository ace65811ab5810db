//! The environment: the one place where the process's own is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::Fault;
use super::keys::Key;
use super::values::parse_boolean;
use crate::hub::HubConfig;

/// Environment variables: the process's own, or a test's.
///
/// Has no `Debug`: secrets live here.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Environment {
    /// The variables of this process. Bytes that are not Unicode are replaced,
    /// and show up as such where a value is refused.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect()
    }

    /// The value of the variable `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of `name`, unless it is empty.
    pub(super) fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// What is said of one setting.
    pub(super) fn of_setting(&self, key: Key) -> Self {
        let names = [Some(key.variable), key.alias].into_iter().flatten();
        names.filter_map(|name| Some((name, self.get(name)?))).collect()
    }

    /// All variables, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Where the hub is, by the variables that Hugging Face's own tools read:
    /// `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`
    /// and `HF_HUB_OFFLINE`.
    pub(super) fn hub(&self, faults: &mut Vec<Fault>) -> HubConfig {
        let home = self.hub_home();
        let cache = self
            .non_empty("HF_HUB_CACHE")
            .map_or_else(|| home.join("hub"), |path| self.expand(path));
        HubConfig {
            endpoint: self.hub_endpoint(faults),
            cache,
            token: self.hub_token(&home),
            offline: self.hub_offline(faults),
        }
    }

    /// `HF_HOME`, else `huggingface` in the user's cache folder. Without a home
    /// folder the cache is below the working one.
    fn hub_home(&self) -> PathBuf {
        if let Some(home) = self.non_empty("HF_HOME") {
            return self.expand(home);
        }
        let cache =
            self.non_empty("XDG_CACHE_HOME").map_or_else(|| self.expand("~/.cache"), PathBuf::from);
        cache.join("huggingface")
    }

    /// Replaces a `~` in front by the home folder.
    fn expand(&self, path: &str) -> PathBuf {
        let home = self.non_empty("HOME").or_else(|| self.non_empty("USERPROFILE")).unwrap_or(".");
        match path.strip_prefix("~/") {
            Some(rest) => Path::new(home).join(rest),
            None => PathBuf::from(path),
        }
    }

    fn hub_endpoint(&self, faults: &mut Vec<Fault>) -> String {
        let endpoint =
            self.non_empty("HF_ENDPOINT").unwrap_or("https://huggingface.co").trim_end_matches('/');
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            faults.push(Fault {
                key: "HF_ENDPOINT".to_owned(),
                value: Some(format!("'{endpoint}'")),
                expected: "expected an address that starts with https:// or http://".to_owned(),
                origin: "environment variable HF_ENDPOINT".to_owned(),
            });
        }
        endpoint.to_owned()
    }

    fn hub_token(&self, home: &Path) -> Option<String> {
        if let Some(token) = self.non_empty("HF_TOKEN") {
            return Some(token.trim().to_owned());
        }
        let path = self
            .non_empty("HF_TOKEN_PATH")
            .map_or_else(|| home.join("token"), |path| self.expand(path));
        // Without a readable token file one is simply not logged in.
        let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
        (!token.is_empty()).then_some(token)
    }

    fn hub_offline(&self, faults: &mut Vec<Fault>) -> bool {
        let Some(text) = self.non_empty("HF_HUB_OFFLINE") else {
            return false;
        };
        parse_boolean(text).unwrap_or_else(|| {
            faults.push(Fault {
                key: "HF_HUB_OFFLINE".to_owned(),
                value: Some(format!("'{text}'")),
                expected: "expected true or false".to_owned(),
                origin: "environment variable HF_HUB_OFFLINE".to_owned(),
            });
            false
        })
    }
}
