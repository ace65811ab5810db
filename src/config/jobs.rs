//! The settings of jobs.

use std::path::PathBuf;

use super::Layers;
use super::keys;
use crate::api::BatchesConfig;
use crate::jobs::{JobStoreLocation, JobsConfig};

impl Layers {
    pub(super) fn jobs(&mut self) -> JobsConfig {
        let data_dir = self.name(keys::DATA_DIR).map(PathBuf::from);
        let location = self.read(keys::JOBS_STORE, JobStoreLocation::EXPECTED, |value| {
            value.as_str()?.parse::<JobStoreLocation>().ok()
        });
        let within = |folder: PathBuf| JobStoreLocation::within(&folder);
        JobsConfig {
            location: location.or_else(|| data_dir.map(within)).unwrap_or(JobStoreLocation::Memory),
            max_tries: self.integer(keys::JOBS_MAX_TRIES, 1, 1000).unwrap_or_default(),
            lifetime: self.seconds(keys::JOBS_LIFETIME),
            capacity: self.integer(keys::JOBS_CAPACITY, 1, 1_000_000).unwrap_or_default(),
            max_bytes: self.integer(keys::JOBS_BYTES, 1 << 20, 1 << 50).unwrap_or_default(),
        }
    }

    pub(super) fn batches(&mut self) -> BatchesConfig {
        BatchesConfig {
            max_file_bytes: self.integer(keys::BATCHES_FILE_BYTES, 1, 1 << 40).unwrap_or_default(),
            max_requests: self.integer(keys::BATCHES_REQUESTS, 1, 10_000_000).unwrap_or_default(),
            in_flight: self.integer(keys::BATCHES_IN_FLIGHT, 1, 10_000).unwrap_or_default(),
            lifetime: self.seconds(keys::BATCHES_LIFETIME),
            window: BatchesConfig::WINDOW,
        }
    }
}
