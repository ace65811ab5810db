//! What settings say of jobs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The settings of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobsConfig {
    /// Where they are kept.
    pub location: JobStoreLocation,
    /// How often one is tried during which the process dies.
    pub max_tries: u32,
    /// For how long one is kept that has ended.
    pub lifetime: Duration,
    /// How many may wait or run.
    pub capacity: usize,
    /// What requests and results may take together, in bytes.
    pub max_bytes: u64,
}

/// Where jobs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStoreLocation {
    /// In this process: they end with it.
    Memory,
    /// In a database, with their files beside it.
    Sqlite(PathBuf),
    /// In a database that several processes share.
    Postgres(DatabaseUrl),
}

/// The address of a database, with what is secret in it.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.rsplit_once('@').map_or("", |(_, host)| host);
        write!(formatter, "postgres://…{host}")
    }
}

impl JobStoreLocation {
    /// The ways to write one.
    pub const EXPECTED: &str = "memory, sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE";

    /// Where they are if the settings name a folder for data, and no more.
    #[must_use]
    pub fn within(data_dir: &Path) -> Self {
        Self::Sqlite(data_dir.join("jobs.db"))
    }
}

/// A text that is no location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", JobStoreLocation::EXPECTED)]
pub struct UnknownLocation;

impl FromStr for JobStoreLocation {
    type Err = UnknownLocation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once("://") {
            None if text == "memory" => Ok(Self::Memory),
            Some(("sqlite", file)) if !file.is_empty() && !file.ends_with('/') => {
                Ok(Self::Sqlite(file.into()))
            }
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => {
                Ok(Self::Postgres(DatabaseUrl(text.to_owned())))
            }
            _ => Err(UnknownLocation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_memory_or_the_file_of_a_database() {
        assert_eq!("memory".parse(), Ok(JobStoreLocation::Memory));
        let file = JobStoreLocation::Sqlite("/srv/jobs.db".into());
        assert_eq!("sqlite:///srv/jobs.db".parse(), Ok(file.clone()));
        assert_eq!(JobStoreLocation::within(Path::new("/srv")), file);
        for wrong in ["", "sqlite://", "sqlite:///srv/", "/srv/jobs.db", "postgres://", "Memory"] {
            assert_eq!(wrong.parse::<JobStoreLocation>(), Err(UnknownLocation), "{wrong}");
        }
    }
}
