//! Requests, results, parts of streams, files and lines of batches as objects, which several
//! processes reach: in a folder that they share, or in a bucket.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use uuid::Uuid;

use super::batches::{BatchId, Content};
use super::error::JobStoreError;
use super::id::JobId;

/// How long one object may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ends of names of objects that are kept for as long as a row names them.
const KEPT: [&str; 2] = [".file", ".line"];

/// Names that a database is asked about at a time.
const NAMES: usize = 500;

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

/// What is in a file: another name each time.
pub(super) fn file_name() -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("{}/{id}.file", &id[id.len() - 3..])
}

/// What is in a line of a batch: another name each time.
pub(super) fn line_name(batch: BatchId, number: u64) -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("{}/{batch}.{number}.{id}.line", &id[id.len() - 3..])
}

/// Whether an object is kept for as long as a row names it.
fn is_kept(name: &str) -> bool {
    KEPT.iter().any(|end| name.ends_with(end))
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

    /// What is in an object, piece by piece.
    pub(super) fn stream(&self, name: &str) -> Content<'static> {
        let (objects, name) = (Arc::clone(&self.0), name.to_owned());
        let opening = async move {
            let path = Path::from(name.as_str());
            let found = in_time(&name, objects.get(&path)).await?;
            Ok::<_, JobStoreError>(found.into_stream().map_err(move |error| of(&name, error)))
        };
        stream::once(opening).try_flatten().boxed()
    }

    /// Removes objects that nobody needs, some at a time.
    pub(super) async fn remove_all(&self, names: Vec<String>) {
        let paths = stream::iter(names.into_iter().map(|name| Ok(Path::from(name))));
        let mut removed = self.0.delete_stream(paths.boxed());
        while let Some(done) = removed.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!(%error, "an object of a batch was not removed"),
            }
        }
    }

    /// Removes what is older than `ages` say, of what `unknown` finds no row among names that
    /// are kept.
    pub(super) async fn sweep<F>(
        &self,
        ages: SweepingAges,
        unknown: impl Fn(Vec<String>) -> F,
    ) -> Result<(), JobStoreError>
    where
        F: Future<Output = Result<Vec<String>, JobStoreError>>,
    {
        let now = std::time::SystemTime::now();
        let mut asked = Vec::new();
        let mut listed = self.0.list(None);
        while let Some(object) = listed.next().await {
            let object = object.map_err(|error| of("objects of jobs", error))?;
            let (name, made) = (object.location.as_ref(), object.last_modified.into());
            let age = now.duration_since(made).unwrap_or_default();
            if is_kept(name) {
                asked.extend((age > ages.unnamed).then(|| name.to_owned()));
            } else if age > ages.passing {
                self.remove(name).await;
            }
            if asked.len() >= NAMES {
                self.remove_all(unknown(std::mem::take(&mut asked)).await?).await;
            }
        }
        self.remove_all(unknown(asked).await?).await;
        Ok(())
    }
}

/// How old objects are that are swept up.
#[derive(Debug, Clone, Copy)]
pub(super) struct SweepingAges {
    /// Those that belong to a job.
    pub(super) passing: Duration,
    /// Those that are kept for as long as a row names them, and that none does.
    pub(super) unnamed: Duration,
}

pub(super) async fn in_time<T>(
    name: &str,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, JobStoreError> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.map_err(|_| JobStoreError::NotInTime)?.map_err(|error| of(name, error))
}

fn of(name: &str, error: object_store::Error) -> JobStoreError {
    JobStoreError::Object { name: name.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    async fn left(objects: &Objects) -> Vec<String> {
        let listed = objects.0.list(None).map_ok(|object| object.location.to_string());
        let mut names: Vec<String> = listed.try_collect().await.unwrap();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_a_row_names_is_not_swept_up_however_old_it_is() {
        let objects = Objects(Arc::new(InMemory::new()));
        let kept = [file_name(), line_name(BatchId::new(), 7)];
        let strays = [file_name(), line_name(BatchId::new(), 7), request_name(JobId::new())];
        for name in kept.iter().chain(&strays) {
            objects.write(name, Bytes::from_static(b"x")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let unknown = |names: Vec<String>| {
            let unknown = names.into_iter().filter(|name| !kept.contains(name)).collect();
            async { Ok(unknown) }
        };
        let (now, never) = (Duration::ZERO, Duration::from_secs(3600));

        objects.sweep(SweepingAges { passing: never, unnamed: never }, unknown).await.unwrap();
        assert_eq!(left(&objects).await.len(), 5, "all are young");
        objects.sweep(SweepingAges { passing: never, unnamed: now }, unknown).await.unwrap();
        assert_eq!(left(&objects).await.len(), 3, "a request is not asked about");
        objects.sweep(SweepingAges { passing: now, unnamed: now }, unknown).await.unwrap();

        let mut expected = kept.to_vec();
        expected.sort();
        assert_eq!(left(&objects).await, expected);
    }

    #[tokio::test]
    async fn an_object_is_read_piece_by_piece_and_one_that_is_lost_says_so() {
        let objects = Objects(Arc::new(InMemory::new()));
        let name = file_name();
        objects.write(&name, Bytes::from_static(b"content")).await.unwrap();

        let pieces: Vec<Bytes> = objects.stream(&name).try_collect().await.unwrap();
        assert_eq!(pieces.concat(), b"content");
        objects.remove_all(vec![name.clone(), file_name()]).await;
        let error = objects.stream(&name).try_next().await.unwrap_err();
        assert!(error.is_for_want_of_file(), "{error}");
    }
}
