//! Who may ask for what, and how often.
//!
//! [`Access`] is the handle: clones share the keys and limits in force, and what clients
//! have used of them; [`Access::reload`] replaces the former and keeps the latter. [`admit`]
//! stands before OpenAI's endpoints: it looks at the key, its scope, the rate and the requests
//! under way before the body is asked for, and leaves a [`Permit`] with the request, by which
//! the handlers see to the models (`models` of it) and the pictures of a day.

mod admission;
mod keys;
mod ledger;
mod peers;
mod permit;
mod rates;
mod time;

use std::error::Error;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

pub(super) use admission::{HEADERS, Readmission, UsedKey, admit};
pub use keys::{ApiKeys, Expiry, KeyHash, KeyName, NamedKey, Scope, Scopes};
pub use peers::Network;
pub(super) use permit::{Permit, client_of};
pub use rates::Limits;

use super::ApiConfig;
use super::error::ApiError;
use crate::jobs::Owner as JobOwner;
use crate::webhooks::WebhookUrl;
use keys::{KeyRing, given_keys};
use ledger::Ledger;
use peers::Proxies;
use rates::Account;
use time::Time;

/// The keys and limits in force, and what clients have used; clones share all of it.
#[derive(Debug, Clone)]
pub struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rules: RwLock<Arc<Rules>>,
    ledger: Ledger,
    time: Time,
}

impl Access {
    /// The keys and limits of the settings.
    #[must_use]
    pub fn new(config: &ApiConfig) -> Self {
        Self::at(Time::of_the_system(), config)
    }

    fn at(time: Time, config: &ApiConfig) -> Self {
        let ledger = Ledger::new(time.clone());
        let rules = RwLock::new(Arc::new(Rules::new(config, &[], &time)));
        Self(Arc::new(Shared { rules, ledger, time }))
    }

    /// Puts the keys and limits of settings that were read anew in force; what clients of
    /// keys that stay have used stays counted. Requests under way go on by those before.
    /// Settings that could not be read change nothing, and are logged. Other settings than
    /// those of keys and limits are left alone.
    ///
    /// ```no_run
    /// # use diffuser_api::{api::Access, config::{Config, Sources}};
    /// # fn read_again(access: &Access, sources: &Sources) {
    /// access.reload(Config::load(sources).map(|config| config.api));
    /// # }
    /// ```
    pub fn reload<E: Error>(&self, settings: Result<ApiConfig, E>) {
        match settings {
            Ok(config) => {
                let mut rules = self.0.rules.write().unwrap_or_else(PoisonError::into_inner);
                *rules = Arc::new(Rules::new(&config, &rules.keys, &self.0.time));
                let names = rules.keys.iter().filter(|key| key.name().is_some()).count();
                tracing::info!(keys = rules.keys.len(), names, "keys and limits were read anew");
            }
            Err(error) => {
                tracing::error!(%error, "keys and limits stay as they were: the settings are faulty");
            }
        }
    }

    /// Whether anybody may ask for pictures.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.rules().ask_for(Scope::Images)
    }

    /// Refuses those who are no administrators. Without keys for them there are none: whoever
    /// can reach the server could else have its models unloaded.
    ///
    /// # Errors
    /// [`ApiError::NotForAll`], or that the key has expired.
    pub(super) fn check_administrator(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let rules = self.rules();
        let there_are_keys = rules.keys.iter().any(|key| key.scopes.contain(Scope::Admin));
        let key = rules.key_for(headers, Scope::Admin);
        let key = key.filter(|key| key.scopes.contain(Scope::Admin));
        let key = key.ok_or(ApiError::NotForAll { there_are_keys })?;
        self.check_expiry(key)
    }

    /// Refuses those who may not read the metrics: anybody may where no key is for that.
    fn check_metrics(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let rules = self.rules();
        if !rules.ask_for(Scope::Metrics) {
            return Ok(());
        }
        let key = rules.key_for(headers, Scope::Metrics).ok_or(ApiError::Unauthorised)?;
        if !key.scopes.contain(Scope::Metrics) {
            return Err(ApiError::MissingScope { scope: Scope::Metrics.name() });
        }
        self.check_expiry(key)
    }

    /// What the owner of jobs may do that nobody is connected for: by its key, if that is in
    /// force; else as an address that is not known yet.
    pub(super) fn permit_of(&self, owner: &JobOwner) -> Permit {
        let rules = self.rules();
        match rules.keys.iter().find(|key| key.job_owner() == *owner) {
            Some(key) => Permit::of_key(key),
            None => {
                let account = Account::new(self.0.time.clone());
                Permit::of_unknown(owner.clone(), account, rules.limits)
            }
        }
    }

    fn check_expiry(&self, key: &Key) -> Result<(), ApiError> {
        let is_past = key.expires.is_some_and(|expires| expires.is_past(self.0.time.utc()));
        if is_past { Err(ApiError::ExpiredKey) } else { Ok(()) }
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.0.rules.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Middleware for the metrics' route: lets those through who may read them.
pub(super) async fn require_metrics(
    State(access): State<Access>,
    request: Request,
    next: Next,
) -> Response {
    match access.check_metrics(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The keys and limits of one reading of the settings.
#[derive(Debug)]
struct Rules {
    ring: KeyRing,
    /// In the order of the ring.
    keys: Vec<Arc<Key>>,
    /// For whoever comes without a key.
    limits: Limits,
    proxies: Proxies,
}

/// A key in force.
#[derive(Debug)]
struct Key {
    hash: KeyHash,
    owner: Owner,
    scopes: Scopes,
    expires: Option<Expiry>,
    models: Option<Vec<String>>,
    limits: Limits,
    webhook: Option<WebhookUrl>,
    account: Arc<Account>,
}

/// Whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Named(KeyName),
    /// One of `server.api_keys`.
    Client,
    /// One of `server.admin_keys`: with these alone anybody may ask for pictures.
    Administrator,
}

impl Key {
    fn name(&self) -> Option<&KeyName> {
        match &self.owner {
            Owner::Named(name) => Some(name),
            Owner::Client | Owner::Administrator => None,
        }
    }

    /// Whose jobs are this one's: of a key with a name, also once it is another key.
    fn job_owner(&self) -> JobOwner {
        match self.name() {
            Some(name) => JobOwner::of("name", name.as_str().as_bytes()),
            None => JobOwner::of("key", self.hash.to_string().as_bytes()),
        }
    }

    /// Whether what this one has used is what `other` has.
    fn continues(&self, other: &Self) -> bool {
        match (self.name(), other.name()) {
            (None, None) => self.hash == other.hash,
            (one, another) => one == another,
        }
    }
}

impl Rules {
    /// Those of `config`; keys that are among `before` keep their accounts.
    fn new(config: &ApiConfig, before: &[Arc<Key>], time: &Time) -> Self {
        let unnamed = |owner: Owner, scope| {
            move |hash| Key {
                hash,
                owner: owner.clone(),
                scopes: Scopes::of([scope]),
                expires: None,
                models: None,
                limits: Limits::default(),
                webhook: None,
                account: Account::new(time.clone()),
            }
        };
        let named = config.named_keys.iter().map(|key| Key {
            hash: key.hash,
            owner: Owner::Named(key.name.clone()),
            scopes: key.scopes.clone(),
            expires: key.expires,
            models: key.models.clone(),
            limits: key.limits,
            webhook: key.webhook.clone(),
            account: Account::new(time.clone()),
        });
        let administrators =
            config.admin_keys.hashes().map(unnamed(Owner::Administrator, Scope::Admin));
        let clients = config.api_keys.hashes().map(unnamed(Owner::Client, Scope::Images));
        // Of one text in several places the last one in the ring is found: what says most.
        let keys = clients.chain(administrators).chain(named).map(|mut key| {
            if let Some(known) = before.iter().find(|known| key.continues(known)) {
                key.account = Arc::clone(&known.account);
            }
            Arc::new(key)
        });
        let keys: Vec<_> = keys.collect();
        Self {
            ring: KeyRing::new(keys.iter().map(|key| key.hash).collect()),
            keys,
            limits: config.limits,
            proxies: Proxies::of(config),
        }
    }

    /// Whether somebody who wants this must have a key: once there is one for it, also if
    /// that has expired.
    fn ask_for(&self, scope: Scope) -> bool {
        let counts = |key: &Arc<Key>| key.owner != Owner::Administrator || scope == Scope::Admin;
        self.keys.iter().any(|key| counts(key) && key.scopes.contain(scope))
    }

    /// The key that a request shows: of several the one that is good for `scope`.
    fn key_for(&self, headers: &HeaderMap, scope: Scope) -> Option<&Arc<Key>> {
        let shown = given_keys(headers).filter_map(|given| self.keys.get(self.ring.find(given)?));
        shown.max_by_key(|key| key.scopes.contain(scope))
    }
}

impl Proxies {
    fn of(config: &ApiConfig) -> Self {
        match config.trusted_proxies.as_slice() {
            [] if config.trust_forwarded_headers => Self::Nearest,
            [] => Self::None,
            networks => Self::Trusted(networks.to_vec()),
        }
    }
}

impl ApiConfig {
    /// Whether a client must have a key.
    pub(super) fn asks_for_keys(&self) -> bool {
        let is_for_pictures = |key: &NamedKey| key.scopes.contain(Scope::Images);
        !self.api_keys.is_empty() || self.named_keys.iter().any(is_for_pictures)
    }
}

#[cfg(test)]
mod tests;
