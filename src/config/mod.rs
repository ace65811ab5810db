//! Settings, from four layers: compiled-in defaults, a file, the environment and
//! flags; each overrides those before it.
//!
//! ```
//! use diffuser_api::config::{Config, Environment, Flags, Sources};
//!
//! let sources = Sources {
//!     environment: Environment::from_iter([("DIFFUSER_PORT", "9000")]),
//!     flags: Flags { host: Some("0.0.0.0".to_owned()), ..Flags::default() },
//! };
//! let config = Config::load(&sources).expect("both values are fine");
//!
//! assert_eq!((config.listen.host.as_str(), config.listen.port), ("0.0.0.0", 9000));
//! ```
//!
//! `config/default.toml` documents every setting and is what gets compiled in.
//! [`KEYS`] is the one table of their names. Faults are reported all at once.
//! This is the only module that reads the environment; nothing below it does.

mod access;
mod environment;
mod error;
mod jobs;
mod keys;
mod layers;
mod models;
mod pictures;
mod telemetry;
mod values;
mod webhooks;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;

pub use access::parse_key_file;
pub use environment::Environment;
pub use error::{ConfigError, Fault};
pub use keys::{CONFIG_FILE_VARIABLE, KEYS, Key};
pub use models::ModelSettings;

use crate::api::{ApiConfig, ApiKeys, MetricsAddress, PeerLimits, PngCompression, Role};
use crate::domain::{GuidanceScale, Steps};
use crate::hub::HubConfig;
use crate::pictures::StoreConfig;
use crate::requests::DefaultResponseFormat;
use crate::service::{Budget, ServiceConfig};
use crate::telemetry::{LogFormat, TracesConfig};
use layers::Layers;

/// All settings of the server, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The HTTP side.
    pub api: ApiConfig,
    /// Where requests and results of jobs are that several processes share, if they do.
    pub job_files: Option<StoreConfig>,
    /// Where to listen.
    pub listen: ListenConfig,
    /// The queue.
    pub service: ServiceConfig,
    /// The models, the default one first; there is one at least.
    pub models: Vec<ModelSettings>,
    /// Threads that compute on a CPU; without it: as many as the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Where weights come from.
    pub hub: HubConfig,
    /// What to do between loading and listening.
    pub warmup: WarmupConfig,
    /// What is logged, in `tracing`'s syntax.
    pub log_filter: String,
    /// How that is written.
    pub log_format: LogFormat,
    /// Where traces go; without it there are none.
    pub traces: Option<TracesConfig>,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// Address or host name, such as `127.0.0.1`, `::1` or `localhost`.
    pub host: String,
    /// Port; 0 takes any that is free.
    pub port: u16,
}

/// What to do between loading and listening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmupConfig {
    /// Whether to make one picture first, so that no client pays for it.
    pub enabled: bool,
    /// The picture to edit for it; a plain one if absent.
    pub image_path: Option<PathBuf>,
}

/// Where settings come from, besides the compiled-in defaults.
#[derive(Clone, Default)]
pub struct Sources {
    /// The environment.
    pub environment: Environment,
    /// The flags.
    pub flags: Flags,
}

/// Flags as they were typed: unchecked, so that their faults are reported along
/// with the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`: the configuration file.
    pub config: Option<PathBuf>,
    /// `--model`, perhaps several times
    pub models: Vec<String>,
    /// `--device`
    pub device: Option<String>,
    /// `--dtype`
    pub dtype: Option<String>,
    /// `--threads`
    pub threads: Option<String>,
    /// `--host`
    pub host: Option<String>,
    /// `--port`
    pub port: Option<String>,
    /// `--role`
    pub role: Option<String>,
}

impl Config {
    /// Lays the sources over the defaults and checks every value.
    ///
    /// # Errors
    /// [`ConfigError`] lists every fault: values out of range or of the wrong
    /// kind, unknown settings and variables, a file that cannot be read.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut layers = layers_of(sources);

        let (listen, api) = (layers.listen(), layers.api(&sources.environment));
        let mut api = api;
        layers.check_webhooks_of(&api.named_keys, &api.webhooks);
        let job_files = layers.job_files(&api.jobs, &sources.environment);
        if let Some(files) = job_files.as_ref().filter(|_| api.role != Role::All) {
            api.picture_store.share(files);
        }
        let config = Self {
            job_files,
            listen,
            models: layers.models(&sources.flags.models),
            threads: layers.threads(),
            service: layers.service(),
            warmup: layers.warmup(),
            log_filter: layers.log_filter(),
            log_format: layers.log_format(),
            traces: layers.traces(&sources.environment, &api),
            api,
            hub: sources.environment.hub(&mut layers.faults),
        };

        match layers.faults {
            faults if faults.is_empty() => Ok(config),
            faults => Err(ConfigError { faults }),
        }
    }
}

/// Where the hub is, for commands that need no other setting.
///
/// # Errors
/// [`ConfigError`] lists the faulty `HF_*` variables.
pub fn load_hub(environment: &Environment) -> Result<HubConfig, ConfigError> {
    let mut faults = Vec::new();
    let hub = environment.hub(&mut faults);
    if faults.is_empty() { Ok(hub) } else { Err(ConfigError { faults }) }
}

/// How many threads compute on a CPU, for commands that need no other setting: what the
/// flag says, or the environment.
///
/// # Errors
/// [`ConfigError`] if that is no number of threads.
pub fn load_threads(
    environment: &Environment,
    flag: Option<&str>,
) -> Result<Option<NonZeroUsize>, ConfigError> {
    let mut layers = Layers::defaults();
    layers.add_environment(&environment.of_setting(keys::THREADS));
    layers.add_flag(keys::THREADS, flag);
    let threads = layers.threads();
    match layers.faults {
        faults if faults.is_empty() => Ok(threads),
        faults => Err(ConfigError { faults }),
    }
}

fn layers_of(sources: &Sources) -> Layers {
    let mut layers = Layers::defaults();
    let named_by_variable = sources.environment.non_empty(CONFIG_FILE_VARIABLE);
    if let Some(path) = &sources.flags.config {
        layers.add_file(path, "flag --config");
    } else if let Some(path) = named_by_variable {
        let origin = format!("environment variable {CONFIG_FILE_VARIABLE}");
        layers.add_file(path.as_ref(), &origin);
    }
    layers.add_environment(&sources.environment);
    for (key, text) in [
        (keys::DEVICE, &sources.flags.device),
        (keys::DTYPE, &sources.flags.dtype),
        (keys::THREADS, &sources.flags.threads),
        (keys::HOST, &sources.flags.host),
        (keys::PORT, &sources.flags.port),
        (keys::ROLE, &sources.flags.role),
    ] {
        layers.add_flag(key, text.as_deref());
    }
    layers
}

/// The sections. Where a value is faulty a stand-in fills its place: the fault
/// is noted, so the stand-in never leaves [`Config::load`].
impl Layers {
    fn listen(&mut self) -> ListenConfig {
        ListenConfig {
            host: self.host(keys::HOST).unwrap_or_default(),
            port: self.integer(keys::PORT, 0, 65_535).unwrap_or_default(),
        }
    }

    /// A name or an address; those of IPv6 also in brackets.
    fn host(&mut self, key: Key) -> Option<String> {
        self.name(key).as_deref().map(without_brackets)
    }

    fn api(&mut self, environment: &Environment) -> ApiConfig {
        let jobs = self.jobs();
        ApiConfig {
            app_name: self.name(keys::APP_NAME).unwrap_or_default(),
            app_version: self
                .name(keys::APP_VERSION)
                .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            api_prefix: self.path_prefix(keys::API_PREFIX).unwrap_or_default(),
            max_upload_bytes: self.integer(keys::MAX_UPLOAD_BYTES, 1, 1 << 40).unwrap_or_default(),
            request_memory_bytes: self
                .integer(keys::REQUEST_MEMORY_BYTES, 1 << 20, 1 << 40)
                .unwrap_or_default(),
            memory_timeout: self.seconds(keys::MEMORY_TIMEOUT),
            max_image_bytes: self.integer(keys::MAX_IMAGE_BYTES, 1, 1 << 32).unwrap_or_default(),
            max_image_pixels: self.integer(keys::MAX_IMAGE_PIXELS, 1, 1 << 32).unwrap_or_default(),
            max_request_pixels: self
                .integer(keys::MAX_REQUEST_PIXELS, 1, 1 << 36)
                .unwrap_or_default(),
            max_parts: self.integer(keys::MAX_PARTS, 1, 10_000).unwrap_or_default(),
            peers: self.peers(),
            loading_wait: self.seconds(keys::LOADING_WAIT),
            upload_timeout: self.seconds(keys::UPLOAD_TIMEOUT),
            request_timeout: self
                .integer(keys::REQUEST_TIMEOUT, 1, 1 << 31)
                .map(Duration::from_secs),
            api_keys: ApiKeys::new(self.names(keys::API_KEYS)),
            admin_keys: ApiKeys::new(self.names(keys::ADMIN_KEYS)),
            named_keys: self.named_keys(),
            limits: self.limits(),
            trusted_proxies: self.trusted_proxies(),
            cors_origins: self.cors_origins(),
            model_aliases: self.names(keys::MODEL_ALIASES),
            response_format: self
                .read(keys::RESPONSE_FORMAT, DefaultResponseFormat::CHOICES, |value| {
                    value.as_str()?.parse().ok()
                })
                .unwrap_or(DefaultResponseFormat::ByModelName),
            png_compression: self
                .read(keys::PNG_COMPRESSION, PngCompression::CHOICES, |value| {
                    value.as_str()?.parse().ok()
                })
                .unwrap_or_default(),
            picture_store: self.pictures(environment),
            public_url: self.web_origin(keys::PUBLIC_URL),
            trust_forwarded_headers: self.boolean(keys::TRUST_FORWARDED).unwrap_or_default(),
            write_prompts: self.boolean(keys::WRITE_PROMPTS).unwrap_or_default(),
            playground: self.boolean(keys::PLAYGROUND).unwrap_or_default(),
            metrics: self.metrics_address(),
            access_log: self.boolean(keys::LOG_ACCESS).unwrap_or_default(),
            role: self.role(&jobs),
            jobs,
            webhooks: self.webhooks(),
            batches: self.batches(),
        }
    }

    /// Where `/metrics` is alone, on the server's host if none is set.
    fn metrics_address(&mut self) -> MetricsAddress {
        let host = self.host(keys::METRICS_HOST);
        let port = self.integer(keys::METRICS_PORT, 0, 65_535);
        // If that is faulty, it is told where it is read for itself.
        let of_server = || self.find(keys::HOST)?.value.as_str().map(without_brackets);
        MetricsAddress { host: host.or_else(of_server).unwrap_or_default(), port }
    }

    fn peers(&mut self) -> PeerLimits {
        PeerLimits {
            header_timeout: self.seconds(keys::HEADER_TIMEOUT),
            idle_timeout: self.seconds(keys::IDLE_TIMEOUT),
            body_timeout: self.seconds(keys::BODY_TIMEOUT),
            write_timeout: self.seconds(keys::WRITE_TIMEOUT),
            max_connections: self.integer(keys::MAX_CONNECTIONS, 1, 1_000_000).unwrap_or_default(),
            grace: self.seconds(keys::GRACE),
        }
    }

    /// Notes that one entry of a list is not what is `expected`.
    fn refuse_entry(&mut self, key: Key, entry: &str, expected: &str) {
        let Some(found) = self.find(key) else { return };
        let is_whole = found.value.as_str() == Some(entry);
        let shown = format!("'{}'", ends_of(entry).escape_debug());
        let is_whole = is_whole || entry.len() > LONGEST_ENTRY;
        let value = if is_whole { shown } else { format!("{shown} in {}", printed(&found.value)) };
        self.faults.push(Fault {
            key: key.path.to_owned(),
            value: Some(value),
            expected: format!("expected {expected}"),
            origin: found.origin,
        });
    }

    fn threads(&mut self) -> Option<NonZeroUsize> {
        self.read(keys::THREADS, values::THREADS, values::parse_threads).flatten()
    }

    fn service(&mut self) -> ServiceConfig {
        ServiceConfig {
            queue_capacity: self.integer(keys::QUEUE_CAPACITY, 1, 1_000_000).unwrap_or_default(),
            budget: Budget {
                memory_bytes: self.integer(keys::POOL_MEMORY, 1, 1 << 50),
                max_loaded: self
                    .integer::<usize>(keys::MAX_LOADED, 1, 1000)
                    .and_then(NonZeroUsize::new),
            },
            metrics: self.boolean(keys::METRICS_ENABLED).unwrap_or_default(),
        }
    }

    fn warmup(&mut self) -> WarmupConfig {
        WarmupConfig {
            enabled: self.boolean(keys::WARMUP_ENABLED).unwrap_or_default(),
            image_path: self.name(keys::WARMUP_IMAGE_PATH).map(PathBuf::from),
        }
    }
}

/// Values by kind. `None`: not set, or faulty and noted as such.
impl Layers {
    fn read<T>(
        &mut self,
        key: Key,
        expected: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let found = self.find(key)?;
        let parsed = parse(&found.value);
        if parsed.is_none() {
            self.faults.push(Fault {
                key: key.path.to_owned(),
                value: (!key.is_secret()).then(|| printed(&found.value)),
                expected: format!("expected {expected}"),
                origin: found.origin,
            });
        }
        parsed
    }

    /// A text with something in it.
    fn name(&mut self, key: Key) -> Option<String> {
        self.read(key, "a text that is not blank", |value| {
            let text = value.as_str()?;
            (!text.trim().is_empty()).then(|| text.to_owned())
        })
    }

    /// A list of texts; in the environment they stand between commas.
    fn names(&mut self, key: Key) -> Vec<String> {
        let names = self.read(key, "a list of texts", |value| {
            if let Some(text) = value.as_str() {
                return Some(text.split(',').map(str::to_owned).collect::<Vec<_>>());
            }
            let items = value.as_array()?.iter();
            items.map(|item| item.as_str().map(str::to_owned)).collect()
        });
        let names = names.unwrap_or_default().into_iter().map(|name| name.trim().to_owned());
        names.filter(|name| !name.is_empty()).collect()
    }

    fn seconds(&mut self, key: Key) -> Duration {
        Duration::from_secs(self.integer(key, 1, 1 << 31).unwrap_or_default())
    }

    fn steps(&mut self, key: Key) -> Option<Steps> {
        let expected = format!("a whole number from {} to {}", Steps::MIN, Steps::MAX);
        self.read(key, &expected, |value| Steps::new(whole_number(value)?).ok())
    }

    fn guidance(&mut self, key: Key) -> Option<GuidanceScale> {
        let expected = "a number from 0 to 20";
        self.read(key, expected, |value| GuidanceScale::new(number(value)?).ok())
    }

    /// Scheme and host, perhaps a port.
    fn web_origin(&mut self, key: Key) -> Option<String> {
        self.read(key, "an address such as https://images.example.org", |value| {
            let url = value.as_str()?;
            values::is_web_origin(url).then(|| url.to_owned())
        })
    }

    fn boolean(&mut self, key: Key) -> Option<bool> {
        self.read(key, "true or false", |value| {
            let from_text = || values::parse_boolean(value.as_str()?);
            value.to_bool().or_else(from_text)
        })
    }

    fn integer<T: TryFrom<i64>>(&mut self, key: Key, minimum: i64, maximum: i64) -> Option<T> {
        let expected = format!("a whole number from {minimum} to {maximum}");
        self.read(key, &expected, |value| {
            let number = whole_number(value)?;
            let in_range = (minimum..=maximum).contains(&number);
            in_range.then(|| T::try_from(number).ok()).flatten()
        })
    }

    fn path_prefix(&mut self, key: Key) -> Option<String> {
        let expected = "nothing, or a path such as /v1 with no slash at its end";
        self.read(key, expected, |value| {
            let prefix = value.as_str()?;
            let is_plain = |part: &str| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte))
            };
            let is_path =
                || prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(is_plain));
            (prefix.is_empty() || is_path()).then(|| prefix.to_owned())
        })
    }
}

fn without_brackets(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn whole_number(value: &Value) -> Option<i64> {
    match value.as_str() {
        Some(text) => text.parse().ok(),
        None => value
            .to_i128()
            .or_else(|| value.to_u128()?.try_into().ok())
            .and_then(|number| number.try_into().ok()),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.parse().ok(),
        None => value.to_f64().or_else(|| whole_number(value)?.to_string().parse().ok()),
    }
}

/// Bytes of an entry that is shown whole.
const LONGEST_ENTRY: usize = 300;

/// `text`, or the ends of one that is far too long: what is wrong stands at the end of what
/// may be a long path.
fn ends_of(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.len() <= LONGEST_ENTRY {
        return text.to_owned();
    }
    let letters: Vec<char> = text.chars().collect();
    let end = letters.len().saturating_sub(SHOWN).max(SHOWN.min(letters.len()));
    let (start, end) = (&letters[..SHOWN.min(letters.len())], &letters[end..]);
    start.iter().chain(['…'].iter()).chain(end).collect()
}

/// The value as a message shows it: one line, cut short.
fn printed(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = match value.as_str() {
        Some(text) => format!("'{}'", text.escape_debug()),
        None => serde_json::to_string(value).unwrap_or_default(),
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start}…")
}
