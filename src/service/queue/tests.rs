//! The lines without models.

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::domain::{ImageRequest, Prompt, Seed, Task};
use crate::service::RequestMemory;
use crate::service::worker::{Answer, Previews};

/// Who asks in these tests: everybody.
const CLIENT: Client = Client::NOBODY;

fn job(seed: u64) -> (Job, Answer) {
    let prompt = Prompt::new("a cat").unwrap();
    let request =
        ImageRequest { seed: Seed::new(seed), ..ImageRequest::new(Task::Generate, prompt) };
    let (reply, answer) = oneshot::channel();
    let previews = Previews { count: 0, to: mpsc::unbounded_channel().0 };
    let memory = RequestMemory::new(0, Duration::ZERO).share();
    let span = tracing::Span::none();
    let work = Work::NONE;
    let told = Default::default();
    (Job { model: 0, request, work, previews, reply, memory, span, told }, answer)
}

/// A queue before one model with one thread.
fn queue(capacity: usize) -> Arc<Queue> {
    Arc::new(Queue::new(capacity, 1, &[vec![0]]))
}

fn join(queue: &Arc<Queue>, job: Job) -> Result<Place, ServiceError> {
    queue.join(job, CLIENT, Work::NONE)
}

/// What the thread of a queue gets that has every model at hand.
fn take(queue: &Arc<Queue>, at_rest: fn()) -> Option<(u64, Running)> {
    match queue.take(0, None, |_| Some(0.0), at_rest) {
        Next::Job(job, running) => Some((job.request.seed.get(), running)),
        Next::Command(_) | Next::Nothing | Next::End => None,
    }
}

fn next(queue: &Arc<Queue>) -> (u64, Running) {
    take(queue, || {}).unwrap()
}

#[test]
fn who_leaves_is_not_served_and_gives_the_place_to_another() {
    let queue = queue(1);
    let first = join(&queue, job(1).0).unwrap();
    let second = join(&queue, job(2).0).unwrap();
    assert!(matches!(
        join(&queue, job(3).0),
        Err(ServiceError::Busy { waiting: 1, retry_after_s: 5 })
    ));

    drop(first);
    let third = join(&queue, job(3).0).unwrap();

    let (seed, running) = next(&queue);
    assert_eq!(seed, 2);
    // One runs, one waits: there is no room.
    assert!(join(&queue, job(4).0).is_err());
    // What runs has no place in the line any more: the seat is free once it has ended.
    drop(second);
    assert!(join(&queue, job(4).0).is_err());
    drop(running);
    let fourth = join(&queue, job(4).0).unwrap();
    assert_eq!((next(&queue).0, next(&queue).0), (3, 4));
    drop((third, fourth));
    let empty = Length { waiting: 0, running: 0, is_open: true, is_hosted: true, threads: 1 };
    assert_eq!(queue.length(), empty);
}

#[test]
fn who_finds_no_place_is_told_to_come_back_after_as_long_as_jobs_take() {
    let mut state = Line::default();
    let after = |line: &Line| line.retry_after_s();

    assert_eq!(after(&state), 5);
    state.note(0.01);
    assert_eq!(after(&state), 1);
    state.note(40.0);
    // Three quarters of what was usual, one of the last.
    assert_eq!(after(&state), 11);
    state.note(10_000.0);
    assert_eq!(after(&state), 60);
}

#[test]
fn only_jobs_that_were_made_to_their_end_say_how_long_jobs_take() {
    let queue = queue(0);
    let usual = || queue.lock().lines[0].usual_s.is_some();
    for finishes in [false, true] {
        let _place = join(&queue, job(1).0).unwrap();
        let (_, running) = next(&queue);
        if finishes {
            running.finished(Work::NONE);
        }
        drop(running);

        assert_eq!(usual(), finishes);
    }
}

#[test]
fn a_closed_line_refuses_who_waits_and_who_comes() {
    let queue = queue(8);
    let (waiting, mut answer) = job(1);
    let _place = join(&queue, waiting).unwrap();

    queue.close();

    assert!(matches!(answer.try_recv().unwrap(), Err(ServiceError::ShuttingDown)));
    assert!(matches!(join(&queue, job(2).0), Err(ServiceError::ShuttingDown)));
    assert!(take(&queue, || {}).is_none());
}

#[test]
fn a_deserted_line_drops_who_waits_and_refuses_who_comes() {
    let queue = queue(8);
    let (waiting, mut answer) = job(1);
    let _place = join(&queue, waiting).unwrap();

    queue.desert(0, &[0]);

    assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    assert!(matches!(join(&queue, job(2).0), Err(ServiceError::WorkerGone)));
}

#[test]
fn who_wants_a_job_rests_once_and_gets_the_next_that_comes() {
    static RESTS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let count = || RESTS.load(std::sync::atomic::Ordering::SeqCst);
    let queue = queue(8);
    let taker = Arc::clone(&queue);
    let taken = std::thread::spawn(move || {
        let rest = || {
            RESTS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        take(&taker, rest).map(|(seed, _)| seed)
    });
    while count() == 0 {
        std::thread::yield_now();
    }

    let _place = join(&queue, job(7).0).unwrap();

    assert_eq!((taken.join().unwrap(), count()), (Some(7), 1));
}

#[test]
fn a_thread_takes_jobs_of_its_models_only_and_a_full_line_keeps_no_other_model_from_work() {
    let queue = Arc::new(Queue::new(1, 2, &[vec![0], vec![1]]));
    let of_model = |model, seed| Job { model, ..job(seed).0 };
    let _first = join(&queue, of_model(0, 1)).unwrap();
    let _second = join(&queue, of_model(0, 2)).unwrap();
    assert!(join(&queue, of_model(0, 3)).is_err());
    let _other = join(&queue, of_model(1, 4)).unwrap();

    let own = |model: usize| (model == 1).then_some(0.0);
    let Next::Job(job, _running) = queue.take(1, None, own, || {}) else { panic!() };

    assert_eq!(job.request.seed.get(), 4);
    let soon = Some(Instant::now());
    assert!(matches!(queue.take(1, soon, own, || {}), Next::Nothing));
}

#[test]
fn a_model_with_two_threads_has_a_place_more_and_outlives_one_of_them() {
    let queue = Arc::new(Queue::new(1, 1, &[vec![0], vec![0]]));
    let places: Vec<_> = (0..3).map(|seed| join(&queue, job(seed).0).unwrap()).collect();
    assert!(join(&queue, job(3).0).is_err());

    queue.desert(1, &[0]);

    assert_eq!(queue.length().waiting, 3);
    drop(places);
    let _place = join(&queue, job(4).0).unwrap();
    assert_eq!(next(&queue).0, 4);
    queue.desert(0, &[0]);
    assert!(matches!(join(&queue, job(5).0), Err(ServiceError::WorkerGone)));
    assert!(!queue.length().is_hosted);
}

#[test]
fn what_a_thread_is_told_to_do_comes_before_the_next_job() {
    let queue = queue(8);
    let _place = join(&queue, job(1).0).unwrap();
    let (reply, _answer) = oneshot::channel();
    queue.command(0, Command { model: 0, action: Action::Unload, reply }).unwrap();

    let first = queue.take(0, None, |_| Some(0.0), || {});

    assert!(matches!(first, Next::Command(Command { action: Action::Unload, .. })));
    assert_eq!(next(&queue).0, 1);
}
