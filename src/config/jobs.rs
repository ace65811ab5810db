//! The settings of jobs, and of the processes that share them.

use std::path::PathBuf;

use super::keys::{self, Key};
use super::{Environment, Fault, Layers};
use crate::api::{BatchesConfig, Role};
use crate::jobs::{JobStoreLocation, JobsConfig};
use crate::pictures::{StoreConfig, StoreLocation};

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

    /// What this process does, which needs jobs that it can share with others.
    pub(super) fn role(&mut self, jobs: &JobsConfig) -> Role {
        let role = self.read(keys::ROLE, Role::CHOICES, |value| value.as_str()?.parse().ok());
        let role = role.unwrap_or_default();
        if role != Role::All && !matches!(jobs.location, JobStoreLocation::Postgres(_)) {
            self.refuse_with(keys::ROLE, "all, or a jobs.store that several processes share");
        }
        role
    }

    /// Where requests and results are of jobs that are shared; `None` if they are not.
    pub(super) fn job_files(
        &mut self,
        jobs: &JobsConfig,
        environment: &Environment,
    ) -> Option<StoreConfig> {
        let location = self.read(keys::JOBS_FILES, StoreLocation::EXPECTED_SHARED, |value| {
            let location = value.as_str()?.parse::<StoreLocation>().ok()?;
            (location != StoreLocation::Memory).then_some(location)
        });
        if !matches!(jobs.location, JobStoreLocation::Postgres(_)) {
            if location.is_some() {
                self.refuse_with(keys::JOBS_FILES, "nothing: jobs.store is not shared");
            }
            return None;
        }
        let Some(location) = location else {
            self.refuse_with(
                keys::JOBS_STORE,
                "jobs.files beside it: where requests and results are",
            );
            return None;
        };
        Some(StoreConfig {
            options: super::pictures::options_of(&location, environment),
            location,
            signed_urls: false,
            lifetime: jobs.lifetime,
            max_bytes: usize::MAX,
            timeout: StoreConfig::TIMEOUT,
        })
    }

    /// Notes that a setting does not go with others.
    fn refuse_with(&mut self, key: Key, expected: &str) {
        let Some(found) = self.find(key) else { return };
        let value = (!key.is_secret()).then(|| super::printed(&found.value));
        self.faults.push(Fault {
            key: key.path.to_owned(),
            value,
            expected: format!("expected {expected}"),
            origin: found.origin,
        });
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
