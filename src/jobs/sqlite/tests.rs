//! The promises, held against both kinds of the store.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::jobs::record::JobState;

fn config_of(location: JobStoreLocation) -> JobsConfig {
    JobsConfig {
        location,
        max_tries: 3,
        lifetime: Duration::from_secs(3600),
        capacity: 5,
        max_bytes: 1000,
    }
}

fn on_disk(folder: &Path) -> JobsConfig {
    config_of(JobStoreLocation::within(folder))
}

fn in_memory() -> EmbeddedStore {
    EmbeddedStore::open(&config_of(JobStoreLocation::Memory)).unwrap()
}

fn owner(name: &str) -> Owner {
    Owner::of("test", name.as_bytes())
}

fn job_of(who: &str) -> NewJob {
    NewJob {
        webhook: None,
        owner: owner(who),
        endpoint: "edits".to_owned(),
        model: "tiny".to_owned(),
        seeds: vec![1, 2],
        warnings: vec!["first".to_owned()],
        idempotency: None,
        is_patient: false,
        request: Bytes::from_static(b"the request"),
        cost_s: 1.5,
        is_attached: false,
    }
}

fn result() -> JobResult {
    JobResult {
        media_type: "image/png".to_owned(),
        notes: vec![("x".to_owned(), "y".to_owned())],
        body: Bytes::from_static(b"the picture"),
    }
}

fn success() -> Outcome {
    Outcome::Succeeded(result(), vec!["second".to_owned()])
}

async fn accepted(store: &EmbeddedStore, job: NewJob) -> JobId {
    match store.create(job).await.unwrap() {
        Created::New(record) => record.id,
        other @ (Created::Same(_) | Created::Other(_)) => panic!("{other:?}"),
    }
}

async fn seen(store: &EmbeddedStore, id: JobId) -> JobRecord {
    store.get(id).await.unwrap().unwrap()
}

async fn taken(store: &EmbeddedStore) -> Claimed {
    store.claim(&Wanted::default()).await.unwrap().unwrap()
}

fn files_of(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("jobs.files")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_job_is_accepted_taken_up_begun_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    for store in [in_memory(), EmbeddedStore::open(&on_disk(folder.path())).unwrap()] {
        let id = accepted(&store, job_of("a")).await;
        let second = accepted(&store, job_of("a")).await;
        assert_eq!((seen(&store, id).await.ahead, seen(&store, second).await.ahead), (0, 1));

        let Claimed { claim, record } = taken(&store).await;
        assert_eq!((record.id, record.request_bytes), (id, 11));
        assert_eq!(store.request(id).await.unwrap(), "the request");
        assert_eq!(seen(&store, id).await.state, JobState::Queued, "its model has not begun");
        assert!(store.begin(claim).await.unwrap());
        let at = JobProgress { picture: 1, pictures: 2, step: 3, total: 4, left_ms: None };
        store.progress(claim, at);
        let running = seen(&store, id).await;
        assert_eq!((running.state, running.progress), (JobState::Running, Some(at)));
        assert_eq!(running.tries, 1);

        assert!(store.finish(claim, success()).await.unwrap());

        let ended = seen(&store, id).await;
        assert_eq!((ended.request_bytes, ended.result_bytes), (0, 11));
        assert_eq!((ended.state, ended.seeds), (JobState::Succeeded, vec![1, 2]));
        assert_eq!(ended.warnings, ["second"]);
        assert_eq!(store.result(id).await.unwrap(), Some(result()));
        assert_eq!(store.result(second).await.unwrap(), None);
    }
    let files = files_of(folder.path());
    assert_eq!(files.len(), 2, "a request and a result: {files:?}");
}

#[tokio::test]
async fn a_result_is_written_once_and_by_whoever_has_the_claim() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();
    let id = accepted(&store, job_of("a")).await;
    let late = taken(&store).await.claim;
    store.begin(late).await.unwrap();
    let before = seen(&store, id).await.event_number();
    store.release(late, Releasing::Untried).await.unwrap();
    let released = seen(&store, id).await;
    assert_eq!(released.tries, 0);
    assert!(released.event_number() > before, "whoever follows it hears of it");
    let holder = taken(&store).await.claim;

    assert!(!store.begin(late).await.unwrap());
    assert!(!store.finish(late, success()).await.unwrap());
    assert_eq!(seen(&store, id).await.state, JobState::Queued);
    assert!(store.finish(holder, success()).await.unwrap());
    let failure = JobFailure::of_server("x", "too late".to_owned());
    assert!(!store.finish(holder, Outcome::Failed(failure)).await.unwrap());

    let ended = seen(&store, id).await;
    assert_eq!((ended.state, ended.tries), (JobState::Succeeded, 1), "seen to begin or not");
    assert_eq!(files_of(folder.path()).len(), 1, "that of the holder");
    assert_eq!(store.result(id).await.unwrap(), Some(result()));
}

#[tokio::test]
async fn cancelling_wins_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();
    let running = accepted(&store, job_of("a")).await;
    let queued = accepted(&store, job_of("a")).await;
    let claim = taken(&store).await.claim;
    store.begin(claim).await.unwrap();

    for id in [running, queued] {
        assert!(matches!(store.cancel(id).await.unwrap(), Some(Cancelled::Now(_))));
        assert!(matches!(store.cancel(id).await.unwrap(), Some(Cancelled::Ended(_))));
    }

    assert!(!store.finish(claim, success()).await.unwrap());
    store.release(claim, Releasing::Untried).await.unwrap();
    assert_eq!(seen(&store, running).await.state, JobState::Cancelled);
    assert!(store.claim(&Wanted::default()).await.unwrap().is_none());
    assert!(files_of(folder.path()).is_empty());
    store.remove(running).await.unwrap();
    assert_eq!(store.get(running).await.unwrap(), None);
    assert!(store.cancel(running).await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_process_had_that_died_is_tried_again_and_given_up_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = on_disk(folder.path());
    let id = accepted(&EmbeddedStore::open(&config).unwrap(), job_of("a")).await;
    for tries in 1..=3 {
        let store = EmbeddedStore::open(&config).unwrap();
        let before = seen(&store, id).await;
        assert_eq!((before.state, before.tries), (JobState::Queued, tries - 1));
        let claim = taken(&store).await.claim;
        store.begin(claim).await.unwrap();
        assert!(seen(&store, id).await.event_number() > before.event_number());
    }

    let store = EmbeddedStore::open(&config).unwrap();

    let given_up = seen(&store, id).await;
    assert_eq!((given_up.state, given_up.tries), (JobState::Failed, 3));
    assert_eq!(given_up.failure.unwrap().code.as_deref(), Some("abandoned"));
    assert!(store.claim(&Wanted::default()).await.unwrap().is_none());
    assert!(files_of(folder.path()).is_empty());
}

#[tokio::test]
async fn a_job_is_given_up_that_ends_the_process_before_its_model_is_seen_to_begin() {
    let folder = tempfile::tempdir().unwrap();
    let config = on_disk(folder.path());
    let id = accepted(&EmbeddedStore::open(&config).unwrap(), job_of("a")).await;
    for _ in 0..3 * changes::CUT_OFFS_OF_A_TRY {
        taken(&EmbeddedStore::open(&config).unwrap()).await;
    }

    let store = EmbeddedStore::open(&config).unwrap();

    assert_eq!(seen(&store, id).await.failure.unwrap().code.as_deref(), Some("abandoned"));
}

#[tokio::test]
async fn files_that_no_row_knows_are_swept_up() {
    let folder = tempfile::tempdir().unwrap();
    let config = on_disk(folder.path());
    let id = accepted(&EmbeddedStore::open(&config).unwrap(), job_of("a")).await;
    for stray in [request_file(JobId::new()), format!("{id}.1.result"), format!("{id}.part")] {
        std::fs::write(folder.path().join("jobs.files").join(stray), "x").unwrap();
    }

    let store = EmbeddedStore::open(&config).unwrap();

    assert_eq!(files_of(folder.path()), [request_file(id)]);
    assert_eq!(taken(&store).await.record.id, id);
}

#[tokio::test]
async fn a_database_belongs_to_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = on_disk(folder.path());
    let store = EmbeddedStore::open(&config).unwrap();

    let refused = EmbeddedStore::open(&config).unwrap_err();

    assert!(matches!(refused, JobStoreError::InUse { .. }));
    assert!(refused.to_string().starts_with("another process has the jobs of "), "{refused}");
    drop(store);
    EmbeddedStore::open(&config).unwrap();
}

#[tokio::test]
async fn owners_take_turns() {
    let store = in_memory();
    let first = accepted(&store, job_of("a")).await;
    let second = accepted(&store, job_of("a")).await;
    let others = accepted(&store, job_of("b")).await;

    let mut order = Vec::new();
    while let Some(claimed) = store.claim(&Wanted::default()).await.unwrap() {
        order.push(claimed.record.id);
    }

    assert_eq!(order, [first, others, second]);
}

#[tokio::test]
async fn patient_jobs_come_after_all_others() {
    let store = in_memory();
    let patient = || NewJob { is_patient: true, ..job_of("c") };
    let first = accepted(&store, patient()).await;
    let second = accepted(&store, patient()).await;
    let usual = [accepted(&store, job_of("a")).await, accepted(&store, job_of("a")).await];

    let mut order = Vec::new();
    while let Some(claimed) = store.claim(&Wanted::default()).await.unwrap() {
        assert_eq!(claimed.record.is_patient, !usual.contains(&claimed.record.id));
        order.push(claimed.record.id);
    }

    assert_eq!(order, [usual[0], usual[1], first, second]);
}

#[tokio::test]
async fn a_name_stands_for_one_request_of_its_owner() {
    let store = in_memory();
    let named = |who: &str, digest: &str| {
        let (key, digest) = ("k".to_owned(), digest.to_owned());
        NewJob { idempotency: Some(Idempotency { key, digest }), ..job_of(who) }
    };
    let id = accepted(&store, named("a", "1")).await;
    accepted(&store, named("b", "1")).await;

    let again = store.create(named("a", "1")).await.unwrap();
    assert!(matches!(again, Created::Same(record) if record.id == id));
    let other = store.create(named("a", "2")).await.unwrap();
    assert!(matches!(other, Created::Other(record) if record.id == id));
    let found = store.named(&owner("a"), &named("a", "1").idempotency.unwrap()).await.unwrap();
    assert!(matches!(found, Some(Created::Same(record)) if record.id == id));
}

#[tokio::test]
async fn there_is_room_for_so_many_jobs_and_bytes() {
    let store = in_memory();
    let large = NewJob { request: Bytes::from(vec![0; 990]), ..job_of("a") };
    accepted(&store, job_of("a")).await;
    let refused = store.create(large).await.unwrap_err();
    assert!(matches!(refused, JobStoreError::NoRoom { max_bytes: 1000 }), "{refused}");
    for _ in 1..5 {
        accepted(&store, job_of("a")).await;
    }

    let refused = store.create(job_of("a")).await.unwrap_err();

    assert!(matches!(refused, JobStoreError::TooManyJobs { capacity: 5 }), "{refused}");
    let claim = taken(&store).await.claim;
    store.finish(claim, success()).await.unwrap();
    accepted(&store, job_of("a")).await;
}

#[tokio::test]
async fn pages_go_from_the_latest_to_the_first_and_show_only_ones_own() {
    let store = in_memory();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(accepted(&store, job_of("a")).await);
    }
    accepted(&store, job_of("b")).await;
    let page = async |after| {
        let list = store.list(&owner("a"), Page { limit: 2, after }).await.unwrap();
        (list.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), list.has_more)
    };

    assert_eq!(page(None).await, (vec![ids[2], ids[1]], true));
    assert_eq!(page(Some(ids[1])).await, (vec![ids[0]], false));
}

#[tokio::test]
async fn what_has_ended_is_forgotten_in_time_and_what_waits_too_long_fails() {
    let folder = tempfile::tempdir().unwrap();
    let config = JobsConfig { lifetime: Duration::ZERO, ..on_disk(folder.path()) };
    let store = EmbeddedStore::open(&config).unwrap();
    let ended = accepted(&store, job_of("a")).await;
    let claim = taken(&store).await.claim;
    store.finish(claim, success()).await.unwrap();
    let waiting = accepted(&store, job_of("a")).await;
    tokio::time::sleep(Duration::from_millis(5)).await;

    store.clean().await.unwrap();

    assert_eq!(store.get(ended).await.unwrap(), None);
    // It has failed, and its own time is over at once.
    assert_eq!(store.get(waiting).await.unwrap(), None);
    assert!(files_of(folder.path()).is_empty());
}

#[tokio::test]
async fn a_database_of_a_later_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = on_disk(folder.path());
    let store = EmbeddedStore::open(&config).unwrap();
    store.0.database().execute_batch("PRAGMA user_version = 999").unwrap();
    drop(store);

    let refused = EmbeddedStore::open(&config).unwrap_err();

    assert!(matches!(refused, JobStoreError::Newer { found: 999, .. }), "{refused}");
}

#[tokio::test]
async fn lines_tell_what_waits_and_what_runs() {
    let store = in_memory();
    for _ in 0..3 {
        accepted(&store, job_of("a")).await;
    }
    store.begin(taken(&store).await.claim).await.unwrap();

    let lines = store.lines().await.unwrap();

    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((line.model.as_str(), line.waiting, line.running), ("tiny", 2, 1));
    assert_eq!(line.work_s, 3.0);
    assert!(line.oldest_ms < 60_000);
}

#[tokio::test]
async fn a_notice_is_due_once_the_job_has_ended_and_until_it_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();
    let minute = Duration::from_secs(60);
    let told = NewJob { webhook: Some("https://there/".to_owned()), ..job_of("a") };
    let id = accepted(&store, told).await;
    accepted(&store, job_of("b")).await;
    assert!(store.claim_notice(minute).await.unwrap().is_none(), "it has not ended");
    for _ in 0..2 {
        let claim = taken(&store).await.claim;
        store.finish(claim, success()).await.unwrap();
    }

    // Whoever took it up has died, and so has its process.
    let first = store.claim_notice(Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((first.job.id, first.webhook.as_str(), first.tries), (id, "https://there/", 1));
    drop(store);
    let store = EmbeddedStore::open(&on_disk(folder.path())).unwrap();
    let second = store.claim_notice(minute).await.unwrap().unwrap();
    assert_eq!((second.job.id, second.job.state, second.tries), (id, JobState::Succeeded, 2));
    assert!(store.claim_notice(minute).await.unwrap().is_none(), "it is being sent");

    // Who comes late settles nothing.
    store.settle_notice(id, 1, None).await.unwrap();
    store.settle_notice(id, 2, Some(Duration::ZERO)).await.unwrap();
    let third = store.claim_notice(minute).await.unwrap().unwrap();
    store.settle_notice(id, third.tries, None).await.unwrap();
    assert!(store.claim_notice(minute).await.unwrap().is_none());
}
