//! The settings of stored pictures, with what the environment says of a bucket.

use super::Layers;
use super::environment::Environment;
use super::error::Fault;
use super::keys::{self, Key};
use crate::pictures::{StoreConfig, StoreLocation, StoreOptions};

impl Layers {
    pub(super) fn pictures(&mut self, environment: &Environment) -> StoreConfig {
        let location = self.read(keys::STORE, StoreLocation::EXPECTED, |value| {
            value.as_str()?.parse::<StoreLocation>().ok()
        });
        let config = StoreConfig {
            options: location.as_ref().map(|at| options_of(at, environment)).unwrap_or_default(),
            location: location.unwrap_or(StoreLocation::Memory),
            signed_urls: self.boolean(keys::SIGNED_URLS).unwrap_or_default(),
            lifetime: self.seconds(keys::STORE_LIFETIME),
            max_bytes: self.integer(keys::STORE_BYTES, 1, 1 << 40).unwrap_or_default(),
            timeout: StoreConfig::TIMEOUT,
        };
        self.refuse_signatures(&config);
        config
    }

    /// Notes addresses that nobody signs, or not for so long.
    fn refuse_signatures(&mut self, config: &StoreConfig) {
        if !config.signed_urls {
            return;
        }
        if !config.location.signs() {
            self.refuse_value(
                keys::SIGNED_URLS,
                "false: pictures.store is no bucket, which would sign",
            );
        } else if config.lifetime > StoreConfig::LONGEST_SIGNED {
            let days = StoreConfig::LONGEST_SIGNED.as_secs();
            let expected = format!("{days} at most: no bucket signs an address for longer");
            self.refuse_value(keys::STORE_LIFETIME, &expected);
        }
    }

    fn refuse_value(&mut self, key: Key, expected: &str) {
        let Some(found) = self.find(key) else { return };
        self.faults.push(Fault {
            key: key.path.to_owned(),
            value: Some(super::printed(&found.value)),
            expected: format!("expected {expected}"),
            origin: found.origin,
        });
    }
}

/// What the environment says of the service of a bucket.
pub(super) fn options_of(location: &StoreLocation, environment: &Environment) -> StoreOptions {
    let StoreLocation::Bucket { service, .. } = location else { return StoreOptions::default() };
    let prefix = service.variable_prefix();
    let variables =
        environment.iter().filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    StoreOptions(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
