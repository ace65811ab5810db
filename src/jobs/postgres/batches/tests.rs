//! What needs no database: content on its way in. All else is held against a real one by
//! `tests/operations/fleet`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::content::Upload;
use crate::jobs::batches::Room;
use crate::jobs::error::JobStoreError;
use crate::jobs::objects::Objects;

/// Objects in memory, and how many uploads in parts are under way: services keep the parts of
/// those that nobody calls off.
#[derive(Debug, Default)]
struct Counting {
    objects: InMemory,
    under_way: Arc<AtomicUsize>,
}

impl fmt::Display for Counting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(formatter)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, to: &Path, what: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(to, what, how).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.objects.put_multipart_opts(to, how).await?;
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Counted { upload, under_way: Arc::clone(&self.under_way) }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(from, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, how).await
    }
}

#[derive(Debug)]
struct Counted {
    upload: Box<dyn MultipartUpload>,
    under_way: Arc<AtomicUsize>,
}

#[async_trait]
impl MultipartUpload for Counted {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.upload.put_part(part)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.upload.abort().await
    }
}

/// The objects, and how many uploads are under way.
fn counting() -> (Objects, Arc<AtomicUsize>) {
    let store = Counting::default();
    let under_way = Arc::clone(&store.under_way);
    (Objects(Arc::new(store)), under_way)
}

/// How many objects there are, and how many uploads under way.
async fn left(objects: &Objects, under_way: &AtomicUsize) -> (usize, usize) {
    let listed: Vec<ObjectMeta> = objects.0.list(None).try_collect().await.unwrap();
    (listed.len(), under_way.load(Ordering::Relaxed))
}

async fn until_left(objects: &Objects, under_way: &AtomicUsize, expected: (usize, usize)) {
    for _ in 0..200 {
        if left(objects, under_way).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left(objects, under_way).await, expected);
}

async fn send(upload: &mut Upload, pieces: usize) {
    let mut room = Room::new(u64::MAX, 0);
    for _ in 0..pieces {
        upload.write(Bytes::from(vec![7; 1 << 20]), &mut room).await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_is_whole_and_is_removed_unless_it_is_kept() {
    let (objects, under_way) = counting();
    for pieces in [0, 1, 12] {
        let mut upload = Upload::new(&objects);
        send(&mut upload, pieces).await;
        let received = upload.finish().await.unwrap();
        assert_eq!(received.bytes(), (pieces as u64) << 20);
        let whole: Vec<Bytes> = objects.stream(received.name()).try_collect().await.unwrap();
        assert!(whole.concat() == vec![7; pieces << 20]);

        drop(received);

        until_left(&objects, &under_way, (0, 0)).await;
    }
    let received = Upload::new(&objects).finish().await.unwrap();
    received.keep();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(left(&objects, &under_way).await, (1, 0));
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_called_off() {
    let (objects, under_way) = counting();
    let mut upload = Upload::new(&objects);
    send(&mut upload, 12).await;
    assert_eq!(left(&objects, &under_way).await, (0, 1));

    drop(upload);

    until_left(&objects, &under_way, (0, 0)).await;
}

#[tokio::test]
async fn what_has_no_room_is_refused_while_it_comes() {
    let (objects, _) = counting();
    let mut upload = Upload::new(&objects);
    let mut room = Room::new(10, 5);
    let piece = Bytes::from_static(b"four");

    upload.write(piece.clone(), &mut room).await.unwrap();
    let refused = upload.write(piece, &mut room).await.unwrap_err();

    assert!(matches!(refused, JobStoreError::NoRoom { max_bytes: 10 }), "{refused}");
}
