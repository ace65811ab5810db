//! What is in files, on its way in and out: never all of it in memory.

use std::sync::Arc;

use futures::{TryFutureExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

use super::super::{Inner, in_time};
use super::rows;
use crate::jobs::batches::{Content, LINES, Place, Received, Room, joined};
use crate::jobs::error::JobStoreError;
use crate::jobs::objects::{Objects, file_name, in_time as object_in_time};

/// Bytes of a part of an object; services take none that are smaller.
const PART: usize = 5 << 20;
/// Parts that are on their way at a time.
const PARTS: usize = 2;

/// What is in memory of content that comes in: those parts, and the next one.
pub(super) const UPLOAD_BYTES: usize = PART * (PARTS + 1);

/// Takes content in under a name of its own.
pub(super) async fn receive(
    inner: &Inner,
    mut content: Content<'_>,
) -> Result<Received, JobStoreError> {
    let mut room = in_time(super::room(inner)).await?;
    let mut upload = Upload::new(&inner.objects);
    while let Some(piece) = content.try_next().await? {
        upload.write(piece, &mut room).await?;
    }
    upload.finish().await
}

/// An object that comes in. Dropped, it is called off.
pub(super) struct Upload {
    objects: Objects,
    name: String,
    bytes: u64,
    /// There until it is finished.
    writer: Option<BufWriter>,
}

impl Upload {
    pub(super) fn new(objects: &Objects) -> Self {
        let (objects, name) = (objects.clone(), file_name());
        let path = Path::from(name.as_str());
        let writer = BufWriter::with_capacity(Arc::clone(&objects.0), path, PART);
        let writer = Some(writer.with_max_concurrency(PARTS));
        Self { objects, name, bytes: 0, writer }
    }

    pub(super) async fn write(
        &mut self,
        piece: bytes::Bytes,
        room: &mut Room,
    ) -> Result<(), JobStoreError> {
        room.take(piece.len() as u64)?;
        self.bytes += piece.len() as u64;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        object_in_time(&self.name, writer.put(piece)).await
    }

    /// Whoever leaves now leaves an object, which is removed by then.
    pub(super) async fn finish(mut self) -> Result<Received, JobStoreError> {
        let (objects, name, bytes) = (self.objects.clone(), self.name.clone(), self.bytes);
        let writer = self.writer.take();
        let finishing = tokio::spawn(async move {
            let received = Received::new(name.clone(), bytes, remover(objects));
            if let Some(mut writer) = writer {
                object_in_time(&name, writer.shutdown().map_err(failed)).await?;
            }
            Ok(received)
        });
        finishing.await?
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut writer), Ok(runtime)) = (self.writer.take(), Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(error) = writer.abort().await {
                    tracing::warn!(%error, "an upload was not called off");
                }
            });
        }
    }
}

fn failed(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "an upload", source: error.into() }
}

/// Removes an object while the runtime goes on with other things.
fn remover(objects: Objects) -> impl FnOnce(&str) + Send + Sync + 'static {
    let runtime = Handle::current();
    move |name| {
        let name = name.to_owned();
        runtime.spawn(async move { objects.remove(&name).await });
    }
}

/// The content at `place`.
pub(super) fn of(inner: &Arc<Inner>, place: Place) -> Content<'static> {
    let (batch, part) = match place {
        Place::Whole(name) => return inner.objects.stream(&name),
        Place::Lines { batch, part } => (batch, part),
    };
    let (pool, objects) = (inner.pool.clone(), inner.objects.clone());
    let page = move |after| {
        let (pool, batch, part) = (pool.clone(), batch.clone(), part.clone());
        async move { in_time(rows::lines(&pool, (&batch, &part), after, LINES)).await }
    };
    joined(page, move |name| objects.stream(name))
}
