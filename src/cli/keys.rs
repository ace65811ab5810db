//! Arguments of `keys`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::keys::{Expiry, KeyName, Limits, NewKey, Scope};

/// Arguments of `keys`.
#[derive(Debug, Clone, Args)]
pub struct KeysArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What can be done with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it, once; print what the configuration is to say of it, or append
    /// that to a file of keys
    New(NewKeyArgs),
    /// Print the hash of a key that stands on standard input
    Hash,
}

/// Arguments of `keys new`.
#[derive(Debug, Clone, Args)]
pub struct NewKeyArgs {
    /// What logs call it: letters, digits and . _ - @
    #[arg(value_name = "NAME")]
    name: KeyName,

    /// What it is for: images, admin or metrics; several times for several
    #[arg(long = "scope", value_name = "SCOPE", default_value = "images")]
    scopes: Vec<Scope>,

    /// Until when it is good: a date (its beginning, in UTC), or a time such as
    /// 2027-01-31T18:00:00Z
    #[arg(long, value_name = "DATE")]
    expires: Option<Expiry>,

    /// The models that it may use, between commas; one that ends with * is for all that begin so
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models: Vec<String>,

    /// Requests in a minute
    #[arg(long, value_name = "COUNT")]
    requests_per_minute: Option<NonZeroU32>,

    /// Requests at a time
    #[arg(long, value_name = "COUNT")]
    concurrent_requests: Option<NonZeroU32>,

    /// Pictures in a day
    #[arg(long, value_name = "COUNT")]
    pictures_per_day: Option<NonZeroU32>,

    /// File of keys (keys.file of the settings) to which it is added
    #[arg(long, value_name = "KEYS.toml")]
    pub file: Option<PathBuf>,
}

impl NewKeyArgs {
    /// The key that is to be made.
    #[must_use]
    pub fn key(&self) -> NewKey {
        NewKey {
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            expires: self.expires,
            models: self.models.clone(),
            limits: Limits {
                requests_per_minute: self.requests_per_minute,
                concurrent_requests: self.concurrent_requests,
                pictures_per_day: self.pictures_per_day,
            },
        }
    }
}
