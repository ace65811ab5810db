//! Requests, results and parts of streams as objects, which several processes reach: in a
//! folder that they share, or in a bucket.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::error::JobStoreError;
use super::id::JobId;

/// How long one object may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The objects of all jobs.
#[derive(Debug, Clone)]
pub(super) struct Objects(pub(super) Arc<dyn ObjectStore>);

/// The request of a job. Names begin with what is random in them: buckets are split by that.
pub(super) fn request_name(id: JobId) -> String {
    format!("{}.request", scattered(id))
}

/// The result of one claim: what comes too late replaces nothing, and what is written again
/// takes no more room.
pub(super) fn result_name(id: JobId, claim: u64) -> String {
    format!("{}.{claim}.result", scattered(id))
}

/// A part of the stream of one claim.
pub(super) fn part_name(id: JobId, claim: u64, index: u64) -> String {
    format!("{}.{claim}.{index}.part", scattered(id))
}

fn scattered(id: JobId) -> String {
    let id = id.to_string();
    format!("{}/{id}", &id[id.len() - 3..])
}

impl Objects {
    /// Writes an object whole.
    pub(super) async fn write(&self, name: &str, content: Bytes) -> Result<(), JobStoreError> {
        let path = Path::from(name);
        in_time(name, self.0.put(&path, PutPayload::from(content))).await.map(drop)
    }

    pub(super) async fn read(&self, name: &str) -> Result<Bytes, JobStoreError> {
        let path = Path::from(name);
        in_time(name, async { self.0.get(&path).await?.bytes().await }).await
    }

    /// Removes an object that nobody needs; if that fails, it is swept up when it is old.
    pub(super) async fn remove(&self, name: &str) {
        let path = Path::from(name);
        match in_time(name, self.0.delete(&path)).await {
            Ok(())
            | Err(JobStoreError::Object { error: object_store::Error::NotFound { .. }, .. }) => {}
            Err(error) => tracing::warn!(%error, "an object of a job was not removed"),
        }
    }

    /// Removes what is older than `age`.
    pub(super) async fn sweep(&self, age: Duration) -> Result<(), JobStoreError> {
        let before = std::time::SystemTime::now() - age;
        let mut listed = self.0.list(None);
        while let Some(object) = listed.next().await {
            let object = object.map_err(|error| of("objects of jobs", error))?;
            if std::time::SystemTime::from(object.last_modified) < before {
                self.remove(object.location.as_ref()).await;
            }
        }
        Ok(())
    }
}

async fn in_time<T>(
    name: &str,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, JobStoreError> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.map_err(|_| JobStoreError::NotInTime)?.map_err(|error| of(name, error))
}

fn of(name: &str, error: object_store::Error) -> JobStoreError {
    JobStoreError::Object { name: name.to_owned(), error }
}
