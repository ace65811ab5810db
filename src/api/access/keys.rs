//! Keys: what a client shows to say who it is, and what each of them is good for.
//!
//! Of a key only its hash is kept. [`KeyRing`] holds what a request shows against every one
//! of them, in a time that does not depend on which is right.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use axum::http::{HeaderMap, header};
use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, Utc};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::rates::Limits;
use crate::webhooks::WebhookUrl;

/// The keys of which a client must have one; without any, nobody is asked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = KeyHash> {
        self.0.iter().map(|key| KeyHash::of(key))
    }
}

impl fmt::Debug for ApiKeys {
    /// Prints how many there are, never the keys.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ApiKeys({})", self.0.len())
    }
}

/// SHA-256 of a key's text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of `key`.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for KeyHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    /// Not the hash: that of a short key can be turned back.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyHash")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits")]
pub struct NoHash;

impl FromStr for KeyHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        let digits: Vec<u8> = text
            .chars()
            .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or(NoHash)?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if digits.len() != 64 {
            return Err(NoHash);
        }
        bytes.try_into().map(Self).map_err(|_| NoHash)
    }
}

/// What a key may be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Asking for pictures, and which models there are.
    Images,
    /// Loading and unloading models, and all of [`Scope::Images`].
    Admin,
    /// Reading the metrics.
    Metrics,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Images, Self::Admin, Self::Metrics];

    /// As settings write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// A text that is no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected images, admin or metrics")]
pub struct NoScope;

impl FromStr for Scope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or(NoScope)
    }
}

/// What a key is good for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// These; administrators may ask for pictures, too.
    #[must_use]
    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Self {
        let mut scopes: BTreeSet<Scope> = scopes.into_iter().collect();
        if scopes.contains(&Scope::Admin) {
            scopes.insert(Scope::Images);
        }
        Self(scopes)
    }

    /// Whether `scope` is one of them.
    #[must_use]
    pub fn contain(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }
}

/// From when on a key is not good any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(DateTime<Utc>);

impl Expiry {
    /// The ways to write it.
    pub const EXPECTED: &str =
        "a date such as 2027-01-31 (its beginning, in UTC), or a time such as 2027-01-31T18:00:00Z";

    pub(super) fn is_past(self, now: DateTime<Utc>) -> bool {
        now >= self.0
    }
}

/// As RFC 3339 has it.
impl fmt::Display for Expiry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

/// A text that is neither a date nor a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", Expiry::EXPECTED)]
pub struct NoTime;

impl FromStr for Expiry {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self(time.to_utc()));
        }
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| NoTime)?;
        Ok(Self(date.and_time(NaiveTime::MIN).and_utc()))
    }
}

/// The name of a key: what logs say instead of the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl KeyName {
    /// The longest, in characters.
    pub const MAX_LENGTH: usize = 64;
    /// The ways to write it.
    pub const EXPECTED: &str = "1 to 64 letters, digits and . _ - @";

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no name of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", KeyName::EXPECTED)]
pub struct NoKeyName;

impl FromStr for KeyName {
    type Err = NoKeyName;

    fn from_str(text: &str) -> Result<Self, NoKeyName> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        let is_name = (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_plain);
        is_name.then(|| Self(text.to_owned())).ok_or(NoKeyName)
    }
}

/// A key with a name, and what it is good for.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedKey {
    /// What logs call it.
    pub name: KeyName,
    /// Of its text.
    pub hash: KeyHash,
    /// What it is good for.
    pub scopes: Scopes,
    /// From when on it is not good any more.
    pub expires: Option<Expiry>,
    /// The models that it may use, by any of their names, some with `*` at their end for
    /// all that begin so; without it: all.
    pub models: Option<Vec<String>>,
    /// How much it may ask for.
    pub limits: Limits,
    /// Who is told of its jobs, if not whom the server tells.
    pub webhook: Option<WebhookUrl>,
}

/// Finds the key that somebody shows.
#[derive(Debug, Default)]
pub(super) struct KeyRing(Vec<KeyHash>);

impl KeyRing {
    pub(super) fn new(hashes: Vec<KeyHash>) -> Self {
        Self(hashes)
    }

    /// The place of the key with this text. Every key is compared, and whole: how long that
    /// takes tells nothing about them.
    pub(super) fn find(&self, given: &str) -> Option<usize> {
        let given = KeyHash::of(given);
        let (mut found, mut place) = (Choice::from(0), 0_u64);
        for (index, hash) in (0_u64..).zip(&self.0) {
            let is_same = hash.0.ct_eq(&given.0);
            place.conditional_assign(&index, is_same);
            found |= is_same;
        }
        bool::from(found).then(|| usize::try_from(place).ok()).flatten()
    }
}

/// What stands before a key among the protocols of a WebSocket: pages cannot set other headers.
const KEY_PROTOCOL: &str = "openai-insecure-api-key.";

/// What a request carries as keys: as a bearer, in the header that clients of Azure send, or
/// as pages do that open a WebSocket.
pub(super) fn given_keys(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str());
    let bearer = authorization.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let protocols = protocols.filter_map(|value| value.to_str().ok());
    let protocols = protocols.flat_map(|value| value.split(','));
    let of_page = protocols.filter_map(|protocol| protocol.trim().strip_prefix(KEY_PROTOCOL));
    [bearer, text("api-key")].into_iter().flatten().chain(of_page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_as_bearer_or_in_azures_header() {
        let ring = KeyRing::new(["secret", "other"].map(KeyHash::of).into());
        let found = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            given_keys(&headers).find_map(|given| ring.find(given))
        };

        assert_eq!(found("authorization", "Bearer secret"), Some(0));
        assert_eq!(found("authorization", "bearer other"), Some(1));
        assert_eq!(found("api-key", "secret"), Some(0));
        let protocols = "realtime, openai-insecure-api-key.other";
        assert_eq!(found("sec-websocket-protocol", protocols), Some(1));
        assert_eq!(found("sec-websocket-protocol", "realtime, secret"), None);
        for (name, value) in [
            ("authorization", "secret"),
            ("authorization", "Bearer secre"),
            ("authorization", "Bearer secret2"),
            ("authorization", "Basic secret"),
            ("api-key", ""),
        ] {
            assert_eq!(found(name, value), None, "{value}");
        }
        assert_eq!(given_keys(&HeaderMap::new()).count(), 0);
        assert_eq!(KeyRing::default().find("secret"), None);
    }

    #[test]
    fn a_hash_is_that_of_other_tools_and_reads_what_it_writes() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

        assert_eq!(KeyHash::of("abc").to_string(), abc);
        assert_eq!(abc.to_uppercase().parse(), Ok(KeyHash::of("abc")));
        for wrong in ["", "abc", &abc[..63], &format!("{abc}0"), &abc.replace('b', "g")] {
            assert_eq!(wrong.parse::<KeyHash>(), Err(NoHash), "{wrong}");
        }
    }

    #[test]
    fn administrators_may_ask_for_pictures_and_not_the_other_way_round() {
        let (admin, images) = (Scopes::of([Scope::Admin]), Scopes::of([Scope::Images]));

        assert!(admin.contain(Scope::Images) && !admin.contain(Scope::Metrics));
        assert!(!images.contain(Scope::Admin));
    }

    #[test]
    fn an_expiry_is_a_date_or_a_time_in_some_zone() {
        let is_past = |expiry: &str, now: &str| {
            let now = DateTime::parse_from_rfc3339(now).unwrap().to_utc();
            expiry.parse::<Expiry>().unwrap().is_past(now)
        };

        assert!(!is_past("2027-01-31", "2027-01-30T23:59:59Z"));
        assert!(is_past("2027-01-31", "2027-01-31T00:00:00Z"));
        assert!(!is_past("2027-01-31T12:00:00+02:00", "2027-01-31T09:59:59Z"));
        assert!(is_past("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"));
        for wrong in ["", "soon", "2027-02-30", "31.01.2027", "2027-01-31T12:00:00"] {
            assert_eq!(wrong.parse::<Expiry>(), Err(NoTime), "{wrong}");
        }
    }

    #[test]
    fn nothing_that_is_printed_has_a_key_or_its_hash() {
        let key = NamedKey {
            name: "ann".parse().unwrap(),
            hash: KeyHash::of("secret"),
            scopes: Scopes::of([Scope::Images]),
            expires: None,
            models: None,
            limits: Limits::default(),
            webhook: None,
        };

        let printed = format!("{key:?} {:?}", ApiKeys::new(vec!["secret".to_owned()]));

        assert!(printed.contains("ann") && !printed.contains("secret"), "{printed}");
        assert!(!printed.contains(&KeyHash::of("secret").to_string()[..8]), "{printed}");
    }
}
