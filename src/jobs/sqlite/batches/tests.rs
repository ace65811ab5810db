//! The promises of batches, held against both kinds of the store.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::*;
use crate::jobs::batches::{
    BatchState, FileOrder, FilePurpose, LONGEST_IN_ROW, LineCounts, LinePart,
};
use crate::jobs::{JobStore, JobStoreLocation, JobsConfig, Wanted};

fn on_disk(folder: &Path) -> JobsConfig {
    JobsConfig {
        location: JobStoreLocation::within(folder),
        max_tries: 3,
        lifetime: Duration::from_secs(3600),
        capacity: 5,
        max_bytes: 100_000,
    }
}

fn owner() -> Owner {
    Owner::of("test", b"a")
}

fn both(folder: &Path) -> [EmbeddedStore; 2] {
    let config = on_disk(folder);
    let memory = JobsConfig { location: JobStoreLocation::Memory, ..config.clone() };
    [config, memory].map(|config| EmbeddedStore::open(&config).unwrap())
}

fn pieces(texts: &[&'static str]) -> Content<'static> {
    let pieces: Vec<_> = texts.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect();
    stream::iter(pieces).boxed()
}

fn new_file(lifetime_ms: u64) -> NewFile {
    NewFile { owner: owner(), name: "in.jsonl".to_owned(), lifetime_ms }
}

async fn kept(store: &EmbeddedStore, texts: &[&'static str]) -> FileRecord {
    let received = store.receive(pieces(texts)).await.unwrap();
    store.keep(received, new_file(3_600_000)).await.unwrap()
}

async fn text_of(store: &EmbeddedStore, id: FileId) -> Option<String> {
    let content = store.content(id).await.unwrap()?;
    let whole: Vec<Bytes> = content.try_collect().await.unwrap();
    Some(String::from_utf8(whole.concat()).unwrap())
}

fn new_batch(input_file: FileId) -> NewBatch {
    NewBatch {
        owner: owner(),
        endpoint: "/v1/images/edits".to_owned(),
        input_file,
        context: "{}".to_owned(),
        metadata: None,
        window_ms: 3_600_000,
        lifetime_ms: 3_600_000,
        files_lifetime_ms: 3_600_000,
    }
}

/// A batch of three lines, under way.
async fn begun(store: &EmbeddedStore) -> BatchId {
    let file = kept(store, &["1\n2\n3\n"]).await;
    let id = store.create_batch(new_batch(file.id)).await.unwrap().id;
    assert!(store.begin_batch(id, 3).await.unwrap());
    id
}

fn line(number: u64, part: LinePart, content: impl Into<Bytes>) -> SettledLine {
    SettledLine { number, part, content: content.into() }
}

async fn seen(store: &EmbeddedStore, id: BatchId) -> BatchRecord {
    store.batch(id).await.unwrap().unwrap()
}

fn blobs_in(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("jobs.batches")).unwrap().count()
}

#[tokio::test]
async fn a_file_comes_in_pieces_and_is_there_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    for store in both(folder.path()) {
        let file = kept(&store, &["one\n", "two\n"]).await;

        assert_eq!((file.bytes, file.purpose), (8, FilePurpose::Batch));
        assert_eq!(store.file(file.id).await.unwrap(), Some(file.clone()));
        assert_eq!(text_of(&store, file.id).await.unwrap(), "one\ntwo\n");
        assert_eq!(store.remove_file(file.id).await.unwrap(), Removed::Gone);
        assert_eq!(store.file(file.id).await.unwrap(), None);
        assert!(text_of(&store, file.id).await.is_none());
    }
    assert_eq!(blobs_in(folder.path()), 0);
}

#[tokio::test]
async fn content_that_becomes_no_file_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for store in both(folder.path()) {
        drop(store.receive(pieces(&["abandoned"])).await.unwrap());
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err(JobStoreError::BrokenOff)]);
        let error = store.receive(broken.boxed()).await.err().unwrap();
        assert!(matches!(error, JobStoreError::BrokenOff), "{error}");
        // A client that leaves drops the future.
        let never = stream::iter([Ok(Bytes::from_static(b"x"))]).chain(stream::pending());
        let receiving = store.receive(never.boxed());
        tokio::time::timeout(Duration::from_millis(50), receiving).await.err().unwrap();
    }
    assert_eq!(blobs_in(folder.path()), 0);
}

#[tokio::test]
async fn files_are_listed_page_by_page_either_way() {
    let folder = tempfile::tempdir().unwrap();
    let [store, _] = both(folder.path());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kept(&store, &["x"]).await.id);
    }
    let page = async |after, order, purpose| {
        let page = FilePage { limit: 2, after, order, purpose };
        let list = store.files(&owner(), page).await.unwrap();
        (list.files.iter().map(|file| file.id).collect::<Vec<_>>(), list.has_more)
    };
    let (latest, first) = (FileOrder::Latest, FileOrder::First);

    assert_eq!(page(None, latest, None).await, (vec![ids[2], ids[1]], true));
    assert_eq!(page(Some(ids[1]), latest, None).await, (vec![ids[0]], false));
    assert_eq!(page(Some(ids[0]), first, None).await, (vec![ids[1], ids[2]], false));
    assert_eq!(page(None, latest, Some(FilePurpose::BatchOutput)).await, (vec![], false));
    let others = FilePage { limit: 2, after: None, order: latest, purpose: None };
    assert!(store.files(&Owner::of("test", b"b"), others).await.unwrap().files.is_empty());
}

#[tokio::test]
async fn a_line_is_settled_once_and_its_batch_ends_once_with_its_files() {
    let folder = tempfile::tempdir().unwrap();
    for store in both(folder.path()) {
        let id = begun(&store).await;
        let long = format!("{}\n", "x".repeat(2 * LONGEST_IN_ROW));
        let late = vec![line(3, LinePart::Output, long.clone())];
        store.settle(id, late.clone()).await.unwrap();
        let rest = vec![line(2, LinePart::Error, "bad\n"), line(1, LinePart::Output, "one\n")];
        assert!(!store.finalize(id).await.unwrap(), "two are missing");
        store.settle(id, rest).await.unwrap();
        store.settle(id, late.clone()).await.unwrap();
        store.settle(id, vec![line(2, LinePart::Output, "again\n")]).await.unwrap();
        assert_eq!(store.settled(id).await.unwrap(), [1, 2, 3]);

        assert!(!store.end_batch(id, BatchEnd::Completed).await.unwrap(), "it is in progress");
        assert!(store.finalize(id).await.unwrap());
        assert!(store.end_batch(id, BatchEnd::Completed).await.unwrap());
        assert!(!store.end_batch(id, BatchEnd::Completed).await.unwrap());
        store.settle(id, late).await.unwrap();

        let batch = seen(&store, id).await;
        assert_eq!(batch.state, BatchState::Completed);
        assert_eq!(batch.counts, LineCounts { total: 3, completed: 2, failed: 1 });
        let (output, error) = (batch.output_file.unwrap(), batch.error_file.unwrap());
        assert_eq!(text_of(&store, output).await.unwrap(), format!("one\n{long}"));
        assert_eq!(text_of(&store, error).await.unwrap(), "bad\n");
        let file = store.file(output).await.unwrap().unwrap();
        assert_eq!((file.bytes, file.purpose), (4 + long.len() as u64, FilePurpose::BatchOutput));
        store.remove_file(output).await.unwrap();
        assert_eq!(text_of(&store, error).await.unwrap(), "bad\n");
    }
    assert_eq!(blobs_in(folder.path()), 1, "what came in");
}

#[tokio::test]
async fn a_batch_goes_only_where_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let [store, _] = both(folder.path());
    let id = begun(&store).await;
    assert!(!store.begin_batch(id, 3).await.unwrap());
    assert!(!store.fail_batch(id, Vec::new()).await.unwrap());
    assert!(!store.end_batch(id, BatchEnd::Cancelled).await.unwrap());
    assert!(!store.end_batch(id, BatchEnd::Expired).await.unwrap(), "lines are missing");
    assert_eq!(store.unfinished().await.unwrap(), [id]);

    assert!(store.cancel_batch(id).await.unwrap());
    assert!(!store.cancel_batch(id).await.unwrap());
    let rest = [1, 2, 3].map(|number| line(number, LinePart::Error, "cancelled\n"));
    store.settle(id, rest.to_vec()).await.unwrap();
    assert!(store.end_batch(id, BatchEnd::Cancelled).await.unwrap());

    let batch = seen(&store, id).await;
    assert_eq!((batch.state, batch.output_file), (BatchState::Cancelled, None));
    assert!(store.unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_stays_while_its_batch_needs_it_and_both_are_forgotten_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let [store, _] = both(folder.path());
    let received = store.receive(pieces(&["1\n"])).await.unwrap();
    let file = store.keep(received, new_file(0)).await.unwrap();
    let new = NewBatch { lifetime_ms: 0, files_lifetime_ms: 0, ..new_batch(file.id) };
    let id = store.create_batch(new).await.unwrap().id;
    store.begin_batch(id, 1).await.unwrap();

    store.clean_batches().await.unwrap();
    assert_eq!(store.remove_file(file.id).await.unwrap(), Removed::InUse);
    assert!(store.file(file.id).await.unwrap().is_some());

    let long = "x".repeat(2 * LONGEST_IN_ROW);
    store.settle(id, vec![line(1, LinePart::Output, long)]).await.unwrap();
    store.finalize(id).await.unwrap();
    store.end_batch(id, BatchEnd::Completed).await.unwrap();
    let output = seen(&store, id).await.output_file.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.clean_batches().await.unwrap();

    assert_eq!(store.file(file.id).await.unwrap(), None);
    assert_eq!(store.file(output).await.unwrap(), None);
    assert_eq!(store.batch(id).await.unwrap(), None);
    assert_eq!(blobs_in(folder.path()), 0);
}

#[tokio::test]
async fn files_lines_and_jobs_share_one_room() {
    let folder = tempfile::tempdir().unwrap();
    let config = JobsConfig { max_bytes: 10_000, ..on_disk(folder.path()) };
    let store = EmbeddedStore::open(&config).unwrap();
    let id = begun(&store).await;
    store.settle(id, vec![line(1, LinePart::Output, vec![b'x'; 5_000])]).await.unwrap();

    let large = stream::iter([Ok(Bytes::from(vec![0; 4_000]))]).boxed();
    let refused = store.receive(large).await.err().unwrap();

    assert!(matches!(refused, JobStoreError::NoRoom { max_bytes: 10_000 }), "{refused}");
    let mut kept_files = 0;
    let full = loop {
        let received = match store.receive(pieces(&[])).await {
            Ok(received) => received,
            Err(error) => break error,
        };
        match store.keep(received, new_file(3_600_000)).await {
            Ok(_) => kept_files += 1,
            Err(error) => break error,
        }
        assert!(kept_files < 100, "empty files take room, too");
    };
    assert!(matches!(full, JobStoreError::NoRoom { .. }), "{full}");
    assert_eq!(blobs_in(folder.path()), 2 + kept_files, "what was refused is gone");
}

#[tokio::test]
async fn what_no_row_knows_is_swept_up_and_the_rest_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();
    let id = begun(&store).await;
    let long = "x".repeat(2 * LONGEST_IN_ROW);
    store.settle(id, vec![line(1, LinePart::Output, long)]).await.unwrap();
    for stray in ["a.file", "b.part", "c.line"] {
        std::fs::write(folder.path().join("jobs.batches").join(stray), "x").unwrap();
    }
    drop(store);

    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();

    assert_eq!(blobs_in(folder.path()), 2);
    let batch = seen(&store, id).await;
    assert_eq!((batch.state, batch.counts.completed), (BatchState::InProgress, 1));
    assert_eq!(text_of(&store, batch.input_file).await.unwrap(), "1\n2\n3\n");
}

#[tokio::test]
async fn an_owner_has_so_many_batches_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let config = JobsConfig { max_bytes: 1 << 30, ..on_disk(folder.path()) };
    let store = EmbeddedStore::open(&config).unwrap();
    let file = kept(&store, &["1\n"]).await;
    for _ in 0..MOST_UNFINISHED {
        store.create_batch(new_batch(file.id)).await.unwrap();
    }

    let refused = store.create_batch(new_batch(file.id)).await.unwrap_err();

    assert!(matches!(refused, JobStoreError::TooManyBatches { most: MOST_UNFINISHED }));
    let other = NewBatch { owner: Owner::of("test", b"b"), ..new_batch(file.id) };
    store.create_batch(other).await.unwrap();
    let page = BatchPage { limit: 1000, after: None };
    assert_eq!(store.batches(&owner(), page).await.unwrap().batches.len(), MOST_UNFINISHED);
}

#[tokio::test]
async fn a_database_of_the_first_version_gets_what_it_lacks_and_keeps_its_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let database = Connection::open(folder.path().join("jobs.db")).unwrap();
    database.execute_batch(crate::jobs::sqlite::schema::STEPS[0]).unwrap();
    let id = crate::jobs::JobId::new();
    database
        .execute(
            "INSERT INTO jobs (id, owner, endpoint, model, state, created_ms, seeds, warnings, \
             request_bytes) VALUES (?1, 'x', 'edits', 'tiny', 'queued', 9000000000000, '[7]', \
             '[]', 3)",
            [id.to_string()],
        )
        .unwrap();
    drop(database);

    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();

    let job = store.get(id).await.unwrap().unwrap();
    assert_eq!((job.seeds, job.is_patient), (vec![7], false));
    assert_eq!(store.claim(&Wanted::default()).await.unwrap().unwrap().record.id, id);
    begun(&store).await;
    let version = "PRAGMA user_version";
    let version: i64 = store.0.database().query_row(version, [], |row| row.get(0)).unwrap();
    assert_eq!(version, i64::try_from(crate::jobs::sqlite::schema::STEPS.len()).unwrap());
}
