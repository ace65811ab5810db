//! The one table of settings: where each stands in the file, in the environment
//! and among the flags. Reading, the help text and the tests all go by it.

/// One setting and the names it goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Section and name in the configuration file, such as `server.port`.
    pub path: &'static str,
    /// The environment variable that sets it.
    pub variable: &'static str,
    /// A second variable that sets it, where an older one is in use.
    pub alias: Option<&'static str>,
    /// The flag that sets it.
    pub flag: Option<&'static str>,
    /// What it is, in a few words.
    pub help: &'static str,
}

macro_rules! keys {
    ($($name:ident: $path:literal, $variable:literal $(or $alias:literal)? $(flag $flag:literal)?, $help:literal;)*) => {
        $(pub(super) const $name: Key = Key {
            path: $path,
            variable: $variable,
            alias: [$(Some($alias),)? None][0],
            flag: [$(Some($flag),)? None][0],
            help: $help,
        };)*

        /// Every setting, in the order of the configuration file.
        pub const KEYS: &[Key] = &[$($name),*];
    };
}

keys! {
    HOST: "server.host", "DIFFUSER_HOST" flag "--host", "address to listen on";
    PORT: "server.port", "DIFFUSER_PORT" flag "--port", "port to listen on";
    ROLE: "server.role", "DIFFUSER_ROLE" flag "--role", "all, gateway or worker";
    API_PREFIX: "server.api_prefix", "DIFFUSER_API_PREFIX", "path before /images/edits";
    APP_NAME: "server.app_name", "DIFFUSER_APP_NAME", "name shown at /";
    APP_VERSION: "server.app_version", "DIFFUSER_APP_VERSION", "version shown at /";
    MAX_UPLOAD_BYTES: "server.max_upload_bytes", "DIFFUSER_MAX_UPLOAD_BYTES", "largest request body";
    REQUEST_MEMORY_BYTES: "server.request_memory_bytes", "DIFFUSER_REQUEST_MEMORY_BYTES", "memory of all requests together";
    MEMORY_TIMEOUT: "server.memory_timeout_s", "DIFFUSER_MEMORY_TIMEOUT_S", "seconds that a request waits for memory";
    MAX_IMAGE_BYTES: "server.max_image_bytes", "DIFFUSER_MAX_IMAGE_BYTES", "largest file of an input picture";
    MAX_IMAGE_PIXELS: "server.max_image_pixels", "DIFFUSER_MAX_IMAGE_PIXELS", "largest input picture";
    LOADING_WAIT: "server.loading_wait_s", "DIFFUSER_LOADING_WAIT_S", "seconds that a request waits for models at the start";
    MAX_REQUEST_PIXELS: "server.max_request_pixels", "DIFFUSER_MAX_REQUEST_PIXELS", "all input pictures of a request";
    MAX_PARTS: "server.max_parts", "DIFFUSER_MAX_PARTS", "fields of a request";
    UPLOAD_TIMEOUT: "server.upload_timeout_s", "DIFFUSER_UPLOAD_TIMEOUT_S", "seconds that a request may take to arrive";
    REQUEST_TIMEOUT: "server.request_timeout_s", "DIFFUSER_REQUEST_TIMEOUT_S", "seconds that a request may take in all";
    HEADER_TIMEOUT: "server.header_timeout_s", "DIFFUSER_HEADER_TIMEOUT_S", "seconds for the head of a request";
    IDLE_TIMEOUT: "server.idle_timeout_s", "DIFFUSER_IDLE_TIMEOUT_S", "seconds that an idle connection is kept";
    BODY_TIMEOUT: "server.body_timeout_s", "DIFFUSER_BODY_TIMEOUT_S", "seconds without a byte of a request's body";
    WRITE_TIMEOUT: "server.write_timeout_s", "DIFFUSER_WRITE_TIMEOUT_S", "seconds in which a client takes nothing";
    MAX_CONNECTIONS: "server.max_connections", "DIFFUSER_MAX_CONNECTIONS", "connections at a time";
    GRACE: "server.grace_s", "DIFFUSER_GRACE_S", "seconds from SIGTERM to the end";
    ADMIN_KEYS: "server.admin_keys", "DIFFUSER_ADMIN_KEYS", "keys that may load and unload models";
    API_KEYS: "server.api_keys", "DIFFUSER_API_KEYS", "keys of which a client must have one";
    PUBLIC_URL: "server.public_url", "DIFFUSER_PUBLIC_URL", "origin in the addresses of pictures";
    TRUST_FORWARDED: "server.trust_forwarded_headers", "DIFFUSER_TRUST_FORWARDED_HEADERS", "believe X-Forwarded-Host and -Proto";
    TRUSTED_PROXIES: "server.trusted_proxies", "DIFFUSER_TRUSTED_PROXIES", "proxies whose X-Forwarded-For is believed";
    CORS_ORIGINS: "server.cors_origins", "DIFFUSER_CORS_ORIGINS", "origins whose pages may call";
    DATA_DIR: "server.data_dir", "DIFFUSER_DATA_DIR", "folder of what outlives the process";
    PLAYGROUND: "server.playground", "DIFFUSER_PLAYGROUND", "a page to play with, for browsers at /";
    WRITE_PROMPTS: "server.write_prompts", "DIFFUSER_WRITE_PROMPTS", "pictures carry their prompt, too";

    KEYS_FILE: "keys.file", "DIFFUSER_KEYS_FILE", "file of keys with names";

    REQUESTS_PER_MINUTE: "limits.requests_per_minute", "DIFFUSER_LIMITS_REQUESTS_PER_MINUTE", "requests in a minute, by address";
    CONCURRENT_REQUESTS: "limits.concurrent_requests", "DIFFUSER_LIMITS_CONCURRENT_REQUESTS", "requests at a time, by address";
    PICTURES_PER_DAY: "limits.pictures_per_day", "DIFFUSER_LIMITS_PICTURES_PER_DAY", "pictures in a day, by address";

    RESPONSE_FORMAT: "pictures.response_format", "DIFFUSER_RESPONSE_FORMAT", "auto, b64_json or url where a request names none";
    STORE: "pictures.store", "DIFFUSER_PICTURES_STORE", "memory, file:///PATH, s3://, gs:// or az://BUCKET/PREFIX";
    SIGNED_URLS: "pictures.signed_urls", "DIFFUSER_PICTURES_SIGNED_URLS", "addresses of the bucket's own, which it signs";
    STORE_LIFETIME: "pictures.lifetime_s", "DIFFUSER_PICTURES_LIFETIME_S", "seconds that a picture by url is kept";
    STORE_BYTES: "pictures.max_bytes", "DIFFUSER_PICTURES_MAX_BYTES", "bytes of all pictures by url";
    PNG_COMPRESSION: "pictures.png_compression", "DIFFUSER_PNG_COMPRESSION", "fast, balanced or best";

    MODEL_ID: "model.id", "DIFFUSER_MODEL_ID" flag "--model", "embedded model, folder, file or repository";
    MODEL_NAME: "model.name", "DIFFUSER_MODEL_NAME", "the name that clients see";
    MODEL_ALIASES: "model.aliases", "DIFFUSER_MODEL_ALIASES", "other names that clients may use";
    VARIANT: "model.variant", "DIFFUSER_MODEL_VARIANT", "published checkpoint that its files are of, if they do not tell";
    FILE_TRANSFORMER: "model.files.transformer", "DIFFUSER_FILES_TRANSFORMER", "file of the transformer";
    FILE_TEXT_ENCODER: "model.files.text_encoder", "DIFFUSER_FILES_TEXT_ENCODER", "file of the text encoder";
    FILE_MMPROJ: "model.files.mmproj", "DIFFUSER_FILES_MMPROJ", "file of its vision tower";
    FILE_VAE: "model.files.vae", "DIFFUSER_FILES_VAE", "file of the autoencoder";
    FILE_BASE: "model.files.base", "DIFFUSER_FILES_BASE", "published checkpoint or folder for all else";
    MODEL_REVISION: "model.revision", "DIFFUSER_MODEL_REVISION", "commit, tag or branch on the hub";
    LORA: "model.lora", "DIFFUSER_LORA", "LoRA files that are merged into the model";
    LORA_DIR: "model.lora_dir", "DIFFUSER_LORA_DIR", "folder of the LoRAs that requests may name";
    DEVICE: "model.device", "DIFFUSER_DEVICE" flag "--device", "auto, cpu, cuda, cuda:N or metal; several make replicas";
    DTYPE: "model.dtype", "DIFFUSER_TORCH_DTYPE" flag "--dtype", "auto, float32, bfloat16, float16, fp8, fp8-weights or q8_0";
    THREADS: "model.threads", "DIFFUSER_THREADS" or "RAYON_NUM_THREADS" flag "--threads", "threads that compute on a CPU";
    MEMORY: "model.memory", "DIFFUSER_MEMORY", "auto, resident, offload or stream";
    MEMORY_LIMIT: "model.memory_limit", "DIFFUSER_MEMORY_LIMIT", "bytes that it may take, or a share such as 50%";
    CACHE_BYTES: "model.cache_bytes", "DIFFUSER_CACHE_BYTES", "bytes of encoded pictures and prompts";
    FP8_ALL_LAYERS: "model.fp8_all_layers", "DIFFUSER_FP8_ALL_LAYERS", "false spares layers that lose most by fp8";
    EXACT_TIMESTEPS: "model.exact_timesteps", "DIFFUSER_EXACT_TIMESTEPS", "false rounds them as diffusers does";
    PRELOAD: "model.preload", "DIFFUSER_PRELOAD", "load at the start, not when first asked for";
    HEALTH_DIGEST: "model.health_digest", "DIFFUSER_HEALTH_DIGEST", "the picture of /health/deep, by its SHA-256";
    KEEP_ALIVE: "model.keep_alive_s", "DIFFUSER_KEEP_ALIVE_S", "idle seconds before unloading; -1 for ever";
    IMAGE_AREA: "model.image_area", "DIFFUSER_IMAGE_AREA", "pixels of a picture for the VAE";
    CONDITION_AREA: "model.condition_area", "DIFFUSER_CONDITION_AREA", "pixels of a picture for the encoder";

    STEPS: "defaults.num_inference_steps", "DIFFUSER_DEFAULT_NUM_INFERENCE_STEPS", "steps of a request that names none";
    TRUE_CFG_SCALE: "defaults.true_cfg_scale", "DIFFUSER_DEFAULT_TRUE_CFG_SCALE", "true CFG of such a request";
    GUIDANCE_SCALE: "defaults.guidance_scale", "DIFFUSER_DEFAULT_GUIDANCE_SCALE", "its guidance embedding";
    NEGATIVE_PROMPT: "defaults.negative_prompt", "DIFFUSER_DEFAULT_NEGATIVE_PROMPT", "its negative prompt, taken as it is";

    TEXT_TO_IMAGE: "capabilities.text_to_image", "DIFFUSER_MODEL_CAP_SUPPORTS_TEXT_TO_IMAGE" or "MODEL_CAP_SUPPORTS_TEXT_TO_IMAGE", "false switches generations off";
    IMAGE_EDIT: "capabilities.image_edit", "DIFFUSER_MODEL_CAP_SUPPORTS_IMAGE_EDIT" or "MODEL_CAP_SUPPORTS_IMAGE_EDIT", "false switches edits off";
    IMAGE_VARIATION: "capabilities.image_variation", "DIFFUSER_MODEL_CAP_SUPPORTS_IMAGE_VARIATION" or "MODEL_CAP_SUPPORTS_IMAGE_VARIATION", "false switches variations off";
    INPAINTING: "capabilities.inpainting", "DIFFUSER_MODEL_CAP_SUPPORTS_INPAINTING" or "MODEL_CAP_SUPPORTS_INPAINTING", "false switches inpainting off";
    MASK: "capabilities.mask", "DIFFUSER_MODEL_CAP_SUPPORTS_MASK" or "MODEL_CAP_SUPPORTS_MASK", "false switches masks off";

    LOW_STEPS: "quality.low_num_inference_steps", "DIFFUSER_QUALITY_LOW_NUM_INFERENCE_STEPS", "steps of quality low";
    LOW_GUIDANCE: "quality.low_guidance", "DIFFUSER_QUALITY_LOW_GUIDANCE", "guidance of quality low";
    LOW_LORAS: "quality.low_loras", "DIFFUSER_QUALITY_LOW_LORAS", "LoRAs of that folder for quality low";
    LOW_SHIFT: "quality.low_schedule_shift", "DIFFUSER_QUALITY_LOW_SCHEDULE_SHIFT", "the schedule that goes with them";
    MEDIUM_STEPS: "quality.medium_num_inference_steps", "DIFFUSER_QUALITY_MEDIUM_NUM_INFERENCE_STEPS", "steps of quality medium";
    MEDIUM_GUIDANCE: "quality.medium_guidance", "DIFFUSER_QUALITY_MEDIUM_GUIDANCE", "guidance of quality medium";
    HIGH_STEPS: "quality.high_num_inference_steps", "DIFFUSER_QUALITY_HIGH_NUM_INFERENCE_STEPS", "steps of quality high";
    HIGH_GUIDANCE: "quality.high_guidance", "DIFFUSER_QUALITY_HIGH_GUIDANCE", "guidance of quality high";

    DEFAULT_MODEL: "pool.default", "DIFFUSER_DEFAULT_MODEL", "the model of requests that name none";
    POOL_MEMORY: "pool.memory_bytes", "DIFFUSER_POOL_MEMORY_BYTES", "bytes of all models on a device";
    MAX_LOADED: "pool.max_loaded", "DIFFUSER_POOL_MAX_LOADED", "models on a device at a time";

    QUEUE_CAPACITY: "queue.capacity", "DIFFUSER_QUEUE_CAPACITY", "requests that may wait for a model";

    JOBS_STORE: "jobs.store", "DIFFUSER_JOBS_STORE", "memory, sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE";
    JOBS_FILES: "jobs.files", "DIFFUSER_JOBS_FILES", "file:///PATH, s3://, gs:// or az://BUCKET/PREFIX, of all who share the jobs";
    JOBS_MAX_TRIES: "jobs.max_tries", "DIFFUSER_JOBS_MAX_TRIES", "tries of a job during which the process ends";
    JOBS_LIFETIME: "jobs.lifetime_s", "DIFFUSER_JOBS_LIFETIME_S", "seconds that a job is kept that has ended";
    JOBS_CAPACITY: "jobs.capacity", "DIFFUSER_JOBS_CAPACITY", "jobs that may wait or run";
    JOBS_BYTES: "jobs.max_bytes", "DIFFUSER_JOBS_MAX_BYTES", "bytes of all requests and results of jobs";

    BATCHES_FILE_BYTES: "batches.max_file_bytes", "DIFFUSER_BATCHES_MAX_FILE_BYTES", "largest file of requests";
    BATCHES_REQUESTS: "batches.max_requests", "DIFFUSER_BATCHES_MAX_REQUESTS", "requests of a batch";
    BATCHES_IN_FLIGHT: "batches.in_flight", "DIFFUSER_BATCHES_IN_FLIGHT", "requests of all batches that are under way";
    BATCHES_LIFETIME: "batches.lifetime_s", "DIFFUSER_BATCHES_LIFETIME_S", "seconds that files are kept, and batches that have ended";
    WEBHOOK_URL: "webhook.url", "DIFFUSER_WEBHOOK_URL", "who is told of jobs that have ended";
    WEBHOOK_SECRET: "webhook.secret", "DIFFUSER_WEBHOOK_SECRET", "whsec_…, by which the receiver knows us";
    WEBHOOK_ALLOW_REQUESTS: "webhook.allow_requests", "DIFFUSER_WEBHOOK_ALLOW_REQUESTS", "requests may say who is told";
    WEBHOOK_ALLOW_PRIVATE: "webhook.allow_private", "DIFFUSER_WEBHOOK_ALLOW_PRIVATE", "also without TLS, and in private networks";

    WARMUP_ENABLED: "warmup.enabled", "DIFFUSER_ENABLE_WARMUP", "make one picture before listening";
    WARMUP_IMAGE_PATH: "warmup.image_path", "DIFFUSER_WARMUP_IMAGE_PATH", "picture for it";

    METRICS_ENABLED: "metrics.enabled", "DIFFUSER_METRICS", "false: nothing is counted, and no /metrics";
    METRICS_PORT: "metrics.port", "DIFFUSER_METRICS_PORT", "a port for /metrics alone; 0 takes any that is free";
    METRICS_HOST: "metrics.host", "DIFFUSER_METRICS_HOST", "address for that port, if it is not the server's";

    LOG_FILTER: "log.filter", "DIFFUSER_LOG_FILTER" or "RUST_LOG", "what is logged, such as info";
    LOG_FORMAT: "log.format", "DIFFUSER_LOG_FORMAT", "text, or json: an object a line";
    LOG_ACCESS: "log.access", "DIFFUSER_LOG_ACCESS", "false: of requests only failures are logged";

    TRACES_ENDPOINT: "traces.endpoint", "DIFFUSER_TRACES_ENDPOINT" or "OTEL_EXPORTER_OTLP_ENDPOINT", "the OpenTelemetry collector that gets traces";
    TRACES_SAMPLE_RATIO: "traces.sample_ratio", "DIFFUSER_TRACES_SAMPLE_RATIO", "the share of requests that are traced, 0 to 1";
}

/// The variable that names the configuration file.
pub const CONFIG_FILE_VARIABLE: &str = "DIFFUSER_CONFIG";

impl Key {
    /// Whether a single model may have a value of its own.
    pub(super) fn is_of_a_model(&self) -> bool {
        let section = self.path.split('.').next();
        ["model", "defaults", "capabilities", "quality"].map(Some).contains(&section)
            && *self != THREADS
    }

    /// Whether the empty text is a value of this setting. In the environment it
    /// otherwise means "not set", as compose files write `NAME=` for that.
    pub(super) fn may_be_empty(&self) -> bool {
        [API_PREFIX, NEGATIVE_PROMPT, MODEL_ALIASES, CORS_ORIGINS].contains(self)
    }

    /// Whether its value is nobody's business.
    pub(super) fn is_secret(&self) -> bool {
        [API_KEYS, ADMIN_KEYS, JOBS_STORE, WEBHOOK_URL, WEBHOOK_SECRET].contains(self)
    }
}

/// The name in `known` that `name` was probably meant to be.
pub(super) fn nearest<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let same_last_part = |candidate: &&str| candidate.rsplit('.').next() == name.rsplit('.').next();
    if let Some(elsewhere) = known.clone().find(same_last_part) {
        return Some(elsewhere);
    }
    let (distance, candidate) = known
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= name.len() / 3).then_some(candidate)
}

/// Insertions, deletions and replacements that make `left` into `right`.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, left_character) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right_character) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(left_character != *right_character);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_settings_share_a_name() {
        let paths: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
        let variables: BTreeSet<_> =
            KEYS.iter().flat_map(|key| [Some(key.variable), key.alias]).flatten().collect();
        let aliases = KEYS.iter().filter(|key| key.alias.is_some()).count();

        assert_eq!(paths.len(), KEYS.len());
        assert_eq!(variables.len(), KEYS.len() + aliases);
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour_and_a_strange_one_finds_none() {
        let paths = KEYS.iter().map(|key| key.path);

        assert_eq!(nearest("server.prot", paths.clone()), Some("server.port"));
        assert_eq!(nearest("port", paths.clone()), Some("server.port"));
        assert_eq!(nearest("model.port", paths.clone()), Some("server.port"));
        assert_eq!(nearest("zzzzzzzz", paths), None);
    }

    #[test]
    fn edit_distance_counts_single_letters() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
