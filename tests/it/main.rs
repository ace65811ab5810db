//! All integration tests, in one binary: each binary would link the world again.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails here")]

mod checkpoint;
mod config_sources;
mod golden_components;
mod golden_pipeline;
mod http_edits;
mod http_errors;
mod http_meta;
mod hub_download;
mod queue;
mod support;
