//! What is in files, on its way in and out: never all of it in memory, but with the store
//! `memory`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::Inner;
use super::rows;
use crate::jobs::batches::{Content, LINES, Place, Received, Room, joined};
use crate::jobs::error::JobStoreError;
use crate::jobs::files::{Files, UNFINISHED, of as failed};

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// Takes content in under a name of its own.
pub(super) async fn receive(
    inner: &Arc<Inner>,
    content: Content<'_>,
) -> Result<Received, JobStoreError> {
    let name = format!("{}.file", uuid::Uuid::new_v4().simple());
    let room = room(inner).await?;
    let Some(path) = inner.blobs.path(&name) else {
        return in_memory(inner, name, (content, room)).await;
    };
    let part = path.with_extension(UNFINISHED);
    let unfinished = Received::new(name.clone(), 0, {
        let part = part.clone();
        // Nothing to do if it never was there.
        move |_| drop(std::fs::remove_file(part))
    });
    let bytes = write(&part, (content, room)).await.map_err(|error| error.of(&part))?;
    let renaming =
        tokio::task::spawn_blocking(move || Files::complete(&part, &path).map_err(failed(&path)));
    renaming.await??;
    unfinished.keep();
    Ok(Received::new(name, bytes, remover(inner)))
}

fn remover(inner: &Arc<Inner>) -> impl FnOnce(&str) + Send + Sync + 'static {
    let inner = Arc::clone(inner);
    move |name| inner.blobs.remove(name)
}

/// Bytes that may come.
async fn room(inner: &Arc<Inner>) -> Result<Room, JobStoreError> {
    let inner = Arc::clone(inner);
    let looking = tokio::task::spawn_blocking(move || inner.room());
    looking.await?
}

/// Why content was not written.
enum Unwritten {
    Store(JobStoreError),
    Disk(std::io::Error),
}

impl Unwritten {
    fn of(self, path: &Path) -> JobStoreError {
        match self {
            Self::Store(error) => error,
            Self::Disk(error) => failed(path)(error),
        }
    }
}

impl From<std::io::Error> for Unwritten {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<JobStoreError> for Unwritten {
    fn from(error: JobStoreError) -> Self {
        Self::Store(error)
    }
}

/// Writes a file; gives how long it is.
async fn write(
    path: &Path,
    (mut content, mut room): (Content<'_>, Room),
) -> Result<u64, Unwritten> {
    let mut file = File::create(path).await?;
    let mut bytes = 0;
    while let Some(piece) = content.try_next().await? {
        room.take(piece.len() as u64)?;
        file.write_all(&piece).await?;
        bytes += piece.len() as u64;
    }
    file.flush().await?;
    file.sync_all().await?;
    Ok(bytes)
}

async fn in_memory(
    inner: &Arc<Inner>,
    name: String,
    (mut content, mut room): (Content<'_>, Room),
) -> Result<Received, JobStoreError> {
    let mut whole = BytesMut::new();
    while let Some(piece) = content.try_next().await? {
        room.take(piece.len() as u64)?;
        whole.extend_from_slice(&piece);
    }
    let whole = whole.freeze();
    inner.blobs.write(&name, &whole)?;
    Ok(Received::new(name, whole.len() as u64, remover(inner)))
}

/// The content at `place`.
pub(super) fn of(inner: &Arc<Inner>, place: Place) -> Content<'static> {
    let (batch, part) = match place {
        Place::Whole(name) => return blob(inner, &name),
        Place::Lines { batch, part } => (batch, part),
    };
    let (looked_at, opened) = (Arc::clone(inner), Arc::clone(inner));
    let page = move |after| {
        let (inner, batch, part) = (Arc::clone(&looked_at), batch.clone(), part.clone());
        async move {
            let looking = move || rows::lines(&inner.database(), (&batch, &part), after, LINES);
            tokio::task::spawn_blocking(looking).await?
        }
    };
    joined(page, move |name| blob(&opened, name))
}

fn blob(inner: &Arc<Inner>, name: &str) -> Content<'static> {
    match inner.blobs.path(name) {
        Some(path) => chunks(path),
        None => {
            let whole = inner.blobs.read(name);
            stream::once(async { whole }).boxed()
        }
    }
}

/// The content of the file at `path`.
fn chunks(path: PathBuf) -> Content<'static> {
    let opening = async move {
        let file = File::open(&path).await.map_err(failed(&path))?;
        Ok::<_, JobStoreError>(stream::try_unfold((file, path), |(mut file, path)| async move {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            let read = file.read_buf(&mut chunk).await.map_err(failed(&path))?;
            let chunk: Bytes = chunk.freeze();
            Ok::<_, JobStoreError>((read > 0).then_some((chunk, (file, path))))
        }))
    };
    stream::once(opening).try_flatten().boxed()
}
