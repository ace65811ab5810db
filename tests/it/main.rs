//! All integration tests, in one binary: each binary would link the world again.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails here, and says what it measured"
)]

mod absurd_numbers;
mod access;
mod batches;
mod bench;
mod capabilities;
mod checkpoint;
mod config_models;
mod config_sources;
mod convert;
mod device_memory;
mod disagreement;
mod full_size_files;
mod golden_components;
mod golden_http;
mod golden_stable_diffusion;
mod http_clients;
mod http_docs;
mod http_edits;
mod http_errors;
mod http_files;
mod http_images;
mod http_memory;
mod http_meta;
mod http_peers;
mod http_pictures;
mod http_routes;
mod http_stored;
mod http_tuning;
mod http_wire;
mod hub_download;
mod hub_files;
mod interruption;
mod jobs;
mod layers;
mod lifecycle;
mod lora;
mod lora_of_layers;
mod lora_requests;
#[cfg(target_os = "linux")]
mod memory_limits;
mod metrics;
mod pictures;
mod plan;
mod playground;
mod pool;
mod progress;
mod queue;
mod realtime;
mod regions;
mod resaved;
mod sizes;
mod support;
mod threads;
#[cfg(unix)]
mod traces;
mod webhooks;
mod weight_files;
