//! The settings of webhooks.

use super::keys::{self, Key};
use super::layers::KEY_TABLES;
use super::{Fault, Layers};
use crate::api::NamedKey;
use crate::webhooks::{WebhookConfig, WebhookSecret, WebhookUrl};

/// What an address must be.
const URL: &str = "an address such as https://example.org/hook; without TLS, or in a private \
                   network, with webhook.allow_private";

impl Layers {
    pub(super) fn webhooks(&mut self) -> WebhookConfig {
        let allow_private = self.boolean(keys::WEBHOOK_ALLOW_PRIVATE).unwrap_or_default();
        let config = WebhookConfig {
            url: self.read(keys::WEBHOOK_URL, URL, |value| {
                WebhookUrl::parse(value.as_str()?, allow_private).ok()
            }),
            secret: self.read(keys::WEBHOOK_SECRET, WebhookSecret::EXPECTED, |value| {
                value.as_str()?.parse().ok()
            }),
            allow_requests: self.boolean(keys::WEBHOOK_ALLOW_REQUESTS).unwrap_or_default(),
            allow_private,
            ..WebhookConfig::default()
        };
        if config.url.is_some() {
            self.need_secret(keys::WEBHOOK_URL.path, &config);
        } else if config.allow_requests {
            self.need_secret(keys::WEBHOOK_ALLOW_REQUESTS.path, &config);
        }
        config
    }

    /// Notes which addresses of keys may not be used.
    pub(super) fn check_webhooks_of(&mut self, keys: &[NamedKey], config: &WebhookConfig) {
        for key in keys {
            let Some(url) = &key.webhook else { continue };
            let name = format!("{KEY_TABLES}[{}].webhook_url", key.name.as_str());
            if url.check(config.allow_private).is_err() {
                let (key, expected) = (name.clone(), format!("expected {URL}"));
                let origin = "the settings of keys".to_owned();
                self.faults.push(Fault { key, value: None, expected, origin });
            }
            self.need_secret(&name, config);
        }
    }

    /// Notes that there is nothing to sign with, if a secret is not there, and not faulty either.
    fn need_secret(&mut self, for_what: &str, config: &WebhookConfig) {
        let key: Key = keys::WEBHOOK_SECRET;
        let is_told = self.faults.iter().any(|fault| fault.key == key.path);
        if config.secret.is_none() && !is_told {
            self.faults.push(Fault {
                key: key.path.to_owned(),
                value: None,
                expected: format!("expected {}: '{for_what}' needs one", WebhookSecret::EXPECTED),
                origin: "nowhere".to_owned(),
            });
        }
    }
}
