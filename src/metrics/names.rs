//! The one table of names, with what each means.

use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(super) const HTTP_REQUESTS: &str = "diffuser_http_requests_total";
pub(super) const HTTP_DURATION: &str = "diffuser_http_request_duration_seconds";
pub(super) const ERRORS: &str = "diffuser_errors_total";
pub(super) const QUEUE_DEPTH: &str = "diffuser_queue_depth";
pub(super) const JOBS_WAITING: &str = "diffuser_jobs_waiting";
pub(super) const JOBS_RUNNING: &str = "diffuser_jobs_running";
pub(super) const JOBS_OLDEST: &str = "diffuser_jobs_oldest_age_seconds";
pub(super) const JOBS_WORK: &str = "diffuser_jobs_waiting_work_seconds";
pub(super) const QUEUE_WAIT: &str = "diffuser_queue_wait_seconds";
pub(super) const RUNNING: &str = "diffuser_running_requests";
pub(super) const STEP_DURATION: &str = "diffuser_step_duration_seconds";
pub(super) const STAGE_DURATION: &str = "diffuser_stage_duration_seconds";
pub(super) const IMAGES: &str = "diffuser_images_total";
pub(super) const PIXELS: &str = "diffuser_pixels_total";
pub(super) const CANCELLATIONS: &str = "diffuser_cancellations_total";
pub(super) const MODEL_LOADED: &str = "diffuser_model_loaded";
pub(super) const MODEL_LOAD: &str = "diffuser_model_load_seconds";
pub(super) const MODEL_LOADS: &str = "diffuser_model_loads_total";
pub(super) const MODEL_UNLOADS: &str = "diffuser_model_unloads_total";
pub(super) const DEVICE_MEMORY: &str = "diffuser_device_memory_bytes";
pub(super) const REQUEST_MEMORY: &str = "diffuser_request_memory_bytes";
pub(super) const CACHE_HITS: &str = "diffuser_cache_hits_total";
pub(super) const CACHE_MISSES: &str = "diffuser_cache_misses_total";
pub(super) const BUILD_INFO: &str = "diffuser_build_info";
pub(super) const START_TIME: &str = "process_start_time_seconds";
pub(super) const RESIDENT_MEMORY: &str = "process_resident_memory_bytes";
pub(super) const OPEN_FILES: &str = "process_open_fds";
pub(super) const MAX_FILES: &str = "process_max_fds";
// What routers read: vLLM's names, which have colons.
pub(super) const VLLM_WAITING: &str = "vllm:num_requests_waiting";
pub(super) const VLLM_RUNNING: &str = "vllm:num_requests_running";
pub(super) const VLLM_LORAS: &str = "vllm:lora_requests_info";

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

const TABLE: &[(&str, Kind, Unit, &str)] = &[
    (
        HTTP_REQUESTS,
        Counter,
        Unit::Count,
        "Requests by method, route and status; 499: the client left",
    ),
    (
        HTTP_DURATION,
        Histogram,
        Unit::Seconds,
        "From a request's head to its answer, or to a stream's end",
    ),
    (
        ERRORS,
        Counter,
        Unit::Count,
        "Errors by the code that clients read; internal: a fault of the server",
    ),
    (QUEUE_DEPTH, Gauge, Unit::Count, "Requests that wait for a model"),
    (JOBS_WAITING, Gauge, Unit::Count, "Jobs in the store that wait, of all who share it"),
    (JOBS_RUNNING, Gauge, Unit::Count, "Jobs in the store whose model is at work"),
    (JOBS_OLDEST, Gauge, Unit::Seconds, "How long the oldest of the waiting jobs has waited"),
    (JOBS_WORK, Gauge, Unit::Seconds, "Work of the waiting jobs, as far as it was estimated"),
    (QUEUE_WAIT, Histogram, Unit::Seconds, "How long requests waited for their turn"),
    (RUNNING, Gauge, Unit::Count, "Requests that a model works on, or is loaded for"),
    (
        STEP_DURATION,
        Histogram,
        Unit::Seconds,
        "Denoising steps, of pictures that are made together at once",
    ),
    (
        STAGE_DURATION,
        Histogram,
        Unit::Seconds,
        "Stages of requests, all pictures of a request together",
    ),
    (IMAGES, Counter, Unit::Count, "Pictures in replies"),
    (PIXELS, Counter, Unit::Count, "Pixels of the pictures in replies"),
    (
        CANCELLATIONS,
        Counter,
        Unit::Count,
        "Jobs called off: the client left, or the deadline passed",
    ),
    (MODEL_LOADED, Gauge, Unit::Count, "Whether a model is loaded: 1 or 0"),
    (MODEL_LOAD, Histogram, Unit::Seconds, "How long loading models took"),
    (MODEL_LOADS, Counter, Unit::Count, "How loading models ended: loaded or failed"),
    (
        MODEL_UNLOADS,
        Counter,
        Unit::Count,
        "Models that made room, were idle, or were told to leave",
    ),
    (
        DEVICE_MEMORY,
        Gauge,
        Unit::Bytes,
        "Memory of devices: free, total, and weights of loaded models",
    ),
    (REQUEST_MEMORY, Gauge, Unit::Bytes, "What requests hold together, and may hold"),
    (CACHE_HITS, Counter, Unit::Count, "Results that were kept from an earlier request"),
    (CACHE_MISSES, Counter, Unit::Count, "Results that had to be made"),
    (BUILD_INFO, Gauge, Unit::Count, "Always 1; the version is a label"),
    (START_TIME, Gauge, Unit::Seconds, "When the process started, in seconds since 1970"),
    (RESIDENT_MEMORY, Gauge, Unit::Bytes, "Memory of the process"),
    (OPEN_FILES, Gauge, Unit::Count, "Descriptors that are open"),
    (MAX_FILES, Gauge, Unit::Count, "Descriptors that may be open"),
    (VLLM_WAITING, Gauge, Unit::Count, "For routers: as diffuser_queue_depth"),
    (VLLM_RUNNING, Gauge, Unit::Count, "For routers: as diffuser_running_requests"),
    (
        VLLM_LORAS,
        Gauge,
        Unit::Count,
        "For routers: LoRAs in use and waited for; the value is the time",
    ),
];

/// Tells the current recorder what each is.
pub(super) fn describe() {
    for (name, kind, unit, meaning) in TABLE {
        match kind {
            Counter => describe_counter!(*name, *unit, *meaning),
            Gauge => describe_gauge!(*name, *unit, *meaning),
            Histogram => describe_histogram!(*name, *unit, *meaning),
        }
    }
}
