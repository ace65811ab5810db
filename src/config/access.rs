//! Who may ask for what: keys with names, limits, trusted proxies, origins of pages.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use super::keys::{self, Key, nearest};
use super::layers::{Found, KEY_TABLES, Layers, unknown};
use super::{ConfigError, Fault, printed, values, whole_number};
use crate::api::{CorsOrigins, Expiry, KeyName, Limits, NamedKey, Network, Scope, Scopes};
use crate::webhooks::WebhookUrl;

/// The most that a limit can be.
const MOST: i64 = 1_000_000_000;

/// What a key may say of itself.
const FIELDS: [&str; 9] = [
    "name",
    "sha256",
    "scopes",
    "expires",
    "models",
    "requests_per_minute",
    "concurrent_requests",
    "pictures_per_day",
    "webhook_url",
];

/// The keys in the text of a file of keys.
///
/// # Errors
/// [`ConfigError`] lists every fault, with `origin`.
pub fn parse_key_file(text: &str, origin: &str) -> Result<Vec<NamedKey>, ConfigError> {
    let mut faults = Vec::new();
    let tables = tables_of(text, origin, &mut faults);
    let keys = keys_of(&tables, &mut faults);
    if faults.is_empty() { Ok(keys) } else { Err(ConfigError { faults }) }
}

impl Layers {
    pub(super) fn named_keys(&mut self) -> Vec<NamedKey> {
        let mut tables = std::mem::take(&mut self.key_tables);
        tables.extend(self.key_file());
        keys_of(&tables, &mut self.faults)
    }

    /// What the file of keys says, if there is one.
    fn key_file(&mut self) -> Vec<Found> {
        let path = self
            .read(keys::KEYS_FILE, "the path of a file", |value| Some(value.as_str()?.to_owned()));
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            return Vec::new();
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => tables_of(&text, &format!("file {path}"), &mut self.faults),
            Err(error) => {
                let expected = format!("a file that can be read ({error})");
                self.read(keys::KEYS_FILE, &expected, |_| None::<()>);
                Vec::new()
            }
        }
    }

    pub(super) fn limits(&mut self) -> Limits {
        let mut limit = |key: Key| self.integer(key, 1, MOST).and_then(NonZeroU32::new);
        Limits {
            requests_per_minute: limit(keys::REQUESTS_PER_MINUTE),
            concurrent_requests: limit(keys::CONCURRENT_REQUESTS),
            pictures_per_day: limit(keys::PICTURES_PER_DAY),
        }
    }

    pub(super) fn trusted_proxies(&mut self) -> Vec<Network> {
        let mut networks = Vec::new();
        for text in self.names(keys::TRUSTED_PROXIES) {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(_) => {
                    let expected = "addresses, or ranges such as 10.0.0.0/8";
                    self.refuse_entry(keys::TRUSTED_PROXIES, &text, expected);
                }
            }
        }
        networks
    }

    pub(super) fn cors_origins(&mut self) -> CorsOrigins {
        let names = self.names(keys::CORS_ORIGINS);
        if names.iter().any(|name| name == "*") {
            return CorsOrigins::Any;
        }
        for name in names.iter().filter(|name| !is_origin(name)) {
            let expected = "*, or origins such as https://images.example.org";
            self.refuse_entry(keys::CORS_ORIGINS, name, expected);
        }
        CorsOrigins::These(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }
}

/// Whether `text` is what browsers send as the origin of a page.
fn is_origin(text: &str) -> bool {
    text == "null" || (values::is_web_origin(text) && text.matches('/').count() == 2)
}

/// The lists of keys in a file of keys.
fn tables_of(text: &str, origin: &str, faults: &mut Vec<Fault>) -> Vec<Found> {
    let mut refuse = |key: &str, expected: String| {
        let (key, origin) = (key.to_owned(), origin.to_owned());
        faults.push(Fault { key, value: None, expected, origin });
    };
    let dict = match <Toml as Format>::from_str::<Dict>(text) {
        Ok(dict) => dict,
        Err(error) => {
            // The report's other lines show the text, in which a key may stand.
            let report = error.to_string();
            let place = report.lines().next().unwrap_or_default();
            refuse("keys.file", format!("expected TOML: {place}"));
            return Vec::new();
        }
    };
    let mut tables = Vec::new();
    for (name, value) in dict {
        if name == "key" {
            tables.push(Found { value, origin: origin.to_owned() });
        } else {
            refuse(&name, "expected nothing but tables that begin with [[key]]".to_owned());
        }
    }
    tables
}

/// The keys in lists of tables; of no two are the names or the texts the same.
fn keys_of(lists: &[Found], faults: &mut Vec<Fault>) -> Vec<NamedKey> {
    let mut keys: Vec<NamedKey> = Vec::new();
    let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
    for Found { value, origin } in lists {
        let Some(tables) = value.as_array() else {
            let expected = "expected tables that begin with [[keys.key]]".to_owned();
            let (key, origin) = (KEY_TABLES.to_owned(), origin.clone());
            faults.push(Fault { key, value: None, expected, origin });
            continue;
        };
        for (number, table) in (1..).zip(tables) {
            let mut table = KeyTable::new(table, number, origin);
            if let Some(key) = table.key() {
                if !names.insert(key.name.clone()) {
                    table.refuse("name", None, "a name that no other key has");
                }
                if !hashes.insert(key.hash) {
                    table.refuse("sha256", None, "another hash than that of the key before");
                }
                keys.push(key);
            }
            faults.append(&mut table.faults);
        }
    }
    keys
}

/// What the settings say of one key.
struct KeyTable<'a> {
    fields: Dict,
    /// What faults call it: its name, or its place in the list.
    label: String,
    origin: &'a str,
    faults: Vec<Fault>,
}

impl<'a> KeyTable<'a> {
    fn new(value: &Value, number: usize, origin: &'a str) -> Self {
        let fields = value.as_dict().cloned().unwrap_or_default();
        let name = fields.get("name").and_then(Value::as_str);
        let name = name.filter(|name| name.parse::<KeyName>().is_ok());
        let label = name.map_or_else(|| number.to_string(), str::to_owned);
        Self { fields, label, origin, faults: Vec::new() }
    }

    fn refuse(&mut self, field: &str, value: Option<String>, expected: &str) {
        self.faults.push(Fault {
            key: format!("{KEY_TABLES}[{}].{field}", self.label),
            value,
            expected: format!("expected {expected}"),
            origin: self.origin.to_owned(),
        });
    }

    /// The key; `None` if it lacks what each must have.
    fn key(&mut self) -> Option<NamedKey> {
        let unknown_fields: Vec<String> =
            self.fields.keys().filter(|name| !FIELDS.contains(&name.as_str())).cloned().collect();
        for name in unknown_fields {
            let hint = unknown("field of a key", nearest(&name, FIELDS.into_iter()));
            let key = format!("{KEY_TABLES}[{}].{name}", self.label);
            let origin = self.origin.to_owned();
            self.faults.push(Fault { key, value: None, expected: hint, origin });
        }
        let name = self.parsed("name", KeyName::EXPECTED, |value| value.as_str()?.parse().ok());
        let hash = self.hash();
        let scopes = self.scopes();
        let expires =
            self.parsed("expires", Expiry::EXPECTED, |value| text_of(value)?.parse().ok());
        let models = self.parsed("models", "a list of names", texts);
        let mut limit = |field: &str| {
            let expected = format!("a whole number from 1 to {MOST}");
            self.parsed(field, &expected, |value| {
                let number = whole_number(value).filter(|number| (1..=MOST).contains(number))?;
                NonZeroU32::new(u32::try_from(number).ok()?)
            })
        };
        let limits = Limits {
            requests_per_minute: limit("requests_per_minute"),
            concurrent_requests: limit("concurrent_requests"),
            pictures_per_day: limit("pictures_per_day"),
        };
        let webhook = self.webhook();
        for field in ["name", "sha256"] {
            if !self.fields.contains_key(field) {
                self.refuse(field, None, "one");
            }
        }
        let (name, hash) = (name?, hash?);
        Some(NamedKey { name, hash, scopes, expires, models, limits, webhook })
    }

    /// Faults do not show it: it may be the key itself that somebody wrote there.
    fn hash(&mut self) -> Option<crate::api::KeyHash> {
        let value = self.fields.get("sha256")?;
        let hash = value.as_str().and_then(|text| text.parse().ok());
        if hash.is_none() {
            let expected = "the SHA-256 of the key, as `diffuser-api keys hash` prints it";
            self.refuse("sha256", None, expected);
        }
        hash
    }

    /// Whether the settings allow it is looked at with them. Faults do not show it: it may be
    /// a secret.
    fn webhook(&mut self) -> Option<WebhookUrl> {
        let value = self.fields.get("webhook_url")?;
        let url = value.as_str().and_then(|text| WebhookUrl::parse(text, true).ok());
        if url.is_none() {
            self.refuse("webhook_url", None, "an address such as https://example.org/hook");
        }
        url
    }

    fn scopes(&mut self) -> Scopes {
        let expected = "a list of images, admin and metrics that is not empty";
        let scopes = self.parsed("scopes", expected, |value| {
            let names = texts(value)?;
            let scopes = names.iter().map(|name| name.parse::<Scope>().ok());
            let scopes: Vec<Scope> = scopes.collect::<Option<_>>()?;
            (!scopes.is_empty()).then_some(scopes)
        });
        Scopes::of(scopes.unwrap_or_else(|| vec![Scope::Images]))
    }

    fn parsed<T>(
        &mut self,
        field: &str,
        expected: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.fields.get(field)?;
        let parsed = parse(value);
        if parsed.is_none() {
            let value = Some(printed(value));
            self.refuse(field, value, expected);
        }
        parsed
    }
}

/// A list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A text, also of a date that stands without quotes: that is a table of one entry then.
fn text_of(value: &Value) -> Option<&str> {
    let quoted = value.as_str();
    quoted.or_else(|| value.as_dict()?.values().next()?.as_str())
}
