//! Requests that wait for the model: a bounded line, from which whoever waits may leave.
//!
//! A [`Place`] belongs to the one who waits: dropped, it takes the job out of the line, with
//! its pictures. A job that runs takes a place, too, until its [`Running`] is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::ServiceError;
use super::worker::Job;

/// The line of one model. The service and the thread of the model share it.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something has changed for a thread that wants a job.
    changed: Condvar,
    /// How many may wait.
    pub(super) capacity: usize,
}

struct State {
    waiting: VecDeque<(u64, Job)>,
    running: usize,
    /// The number of the next job.
    next: u64,
    /// How long jobs have taken lately, in seconds.
    usual_s: Option<f64>,
    doors: Doors,
}

/// What a client is told that comes before any job has ended.
const UNKNOWN_S: f64 = 5.0;
/// Clients of OpenAI do not wait longer.
const MOST_S: f64 = 60.0;
/// The share of the last job in what is usual.
const LATEST: f64 = 0.25;

impl State {
    /// Seconds until a place may be free: as long as a job takes.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 60")]
    fn retry_after_s(&self) -> u8 {
        self.usual_s.unwrap_or(UNKNOWN_S).ceil().clamp(1.0, MOST_S) as u8
    }

    fn note(&mut self, seconds: f64) {
        let before = self.usual_s.unwrap_or(seconds);
        self.usual_s = Some(before + LATEST * (seconds - before));
    }
}

/// Whether jobs may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doors {
    Open,
    /// The service was shut down.
    Closed,
    /// The thread of the model has ended.
    Deserted,
}

/// How long the line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) is_open: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            running: 0,
            next: 0,
            usual_s: None,
            doors: Doors::Open,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity }
    }

    /// Puts a job at the end of the line.
    ///
    /// # Errors
    /// `Busy` if the line is full, `ShuttingDown` if it was closed, `WorkerGone` if nobody
    /// will ever take a job from it.
    pub(super) fn join(self: &Arc<Self>, job: Job) -> Result<Place, ServiceError> {
        let mut state = self.lock();
        match state.doors {
            Doors::Open => {}
            Doors::Closed => return Err(ServiceError::ShuttingDown),
            Doors::Deserted => return Err(ServiceError::WorkerGone),
        }
        // One more than may wait: the next to run.
        if state.waiting.len() + state.running > self.capacity {
            let retry_after_s = state.retry_after_s();
            return Err(ServiceError::Busy { waiting: self.capacity, retry_after_s });
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, job));
        drop(state);
        self.changed.notify_one();
        Ok(Place { queue: Arc::clone(self), number })
    }

    /// The job that is next; blocks until there is one, and calls `at_rest` before that.
    /// `None` once the line was closed.
    pub(super) fn take(self: &Arc<Self>, at_rest: fn()) -> Option<(Job, Running)> {
        if self.lock().waiting.is_empty() {
            at_rest();
        }
        let mut state = self.lock();
        loop {
            if let Some((_, job)) = state.waiting.pop_front() {
                state.running += 1;
                let running = Running { queue: Arc::clone(self), started: Instant::now() };
                return Some((job, running));
            }
            if state.doors != Doors::Open {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets nobody in any more, and tells those who wait.
    pub(super) fn close(&self) {
        let waiting = self.empty(Doors::Closed);
        for (_, job) in waiting {
            job.refuse();
        }
    }

    /// Lets nobody in any more: nobody will serve them. Those who wait are dropped.
    pub(super) fn desert(&self) {
        self.empty(Doors::Deserted);
    }

    fn empty(&self, doors: Doors) -> VecDeque<(u64, Job)> {
        let mut state = self.lock();
        if state.doors == Doors::Open {
            state.doors = doors;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        waiting
    }

    pub(super) fn length(&self) -> Length {
        let state = self.lock();
        Length {
            waiting: state.waiting.len(),
            running: state.running,
            is_open: state.doors == Doors::Open,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line. Dropped, it is free, and its job is called off.
pub(super) struct Place {
    queue: Arc<Queue>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        let found = state.waiting.iter().position(|(number, _)| *number == self.number);
        let left = found.and_then(|index| state.waiting.remove(index));
        // Its pictures are freed without the lock.
        drop(state);
        drop(left);
    }
}

/// A job that runs. Dropped, its place is free.
pub(super) struct Running {
    queue: Arc<Queue>,
    started: Instant,
}

impl Running {
    /// Takes note of how long a job took that was made to its end: what is called off, or
    /// fails, says nothing of that.
    pub(super) fn finished(&self) {
        self.queue.lock().note(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.lock().running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::domain::{ImageRequest, Prompt, Seed, Task};
    use crate::service::RequestMemory;
    use crate::service::worker::{Answer, Previews};

    fn job(seed: u64) -> (Job, Answer) {
        let prompt = Prompt::new("a cat").unwrap();
        let request =
            ImageRequest { seed: Seed::new(seed), ..ImageRequest::new(Task::Generate, prompt) };
        let (reply, answer) = oneshot::channel();
        let previews = Previews { count: 0, to: mpsc::unbounded_channel().0 };
        let memory = RequestMemory::new(0, Duration::ZERO).share();
        let span = tracing::Span::none();
        (Job { request, previews, reply, memory, span }, answer)
    }

    fn next(queue: &Arc<Queue>) -> (u64, Running) {
        let (job, running) = queue.take(|| {}).unwrap();
        (job.request.seed.get(), running)
    }

    #[test]
    fn who_leaves_is_not_served_and_gives_the_place_to_another() {
        let queue = Arc::new(Queue::new(1));
        let first = queue.join(job(1).0).unwrap();
        let second = queue.join(job(2).0).unwrap();
        assert!(matches!(
            queue.join(job(3).0),
            Err(ServiceError::Busy { waiting: 1, retry_after_s: 5 })
        ));

        drop(first);
        let third = queue.join(job(3).0).unwrap();

        let (seed, running) = next(&queue);
        assert_eq!(seed, 2);
        // One runs, one waits: there is no room.
        assert!(queue.join(job(4).0).is_err());
        // What runs has no place in the line any more: the seat is free once it has ended.
        drop(second);
        assert!(queue.join(job(4).0).is_err());
        drop(running);
        let fourth = queue.join(job(4).0).unwrap();
        assert_eq!((next(&queue).0, next(&queue).0), (3, 4));
        drop((third, fourth));
        assert_eq!(queue.length(), Length { waiting: 0, running: 0, is_open: true });
    }

    #[test]
    fn who_finds_no_place_is_told_to_come_back_after_as_long_as_jobs_take() {
        let mut state = Queue::new(0).state.into_inner().unwrap();
        let after = |state: &State| state.retry_after_s();

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
        let queue = Arc::new(Queue::new(0));
        let usual = || queue.lock().usual_s.is_some();
        for finishes in [false, true] {
            let _place = queue.join(job(1).0).unwrap();
            let (_, running) = next(&queue);
            if finishes {
                running.finished();
            }
            drop(running);

            assert_eq!(usual(), finishes);
        }
    }

    #[test]
    fn a_closed_line_refuses_who_waits_and_who_comes() {
        let queue = Arc::new(Queue::new(8));
        let (waiting, mut answer) = job(1);
        let _place = queue.join(waiting).unwrap();

        queue.close();

        assert!(matches!(answer.try_recv().unwrap(), Err(ServiceError::ShuttingDown)));
        assert!(matches!(queue.join(job(2).0), Err(ServiceError::ShuttingDown)));
        assert!(queue.take(|| {}).is_none());
    }

    #[test]
    fn a_deserted_line_drops_who_waits_and_refuses_who_comes() {
        let queue = Arc::new(Queue::new(8));
        let (waiting, mut answer) = job(1);
        let _place = queue.join(waiting).unwrap();

        queue.desert();

        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(queue.join(job(2).0), Err(ServiceError::WorkerGone)));
    }

    #[test]
    fn who_wants_a_job_rests_once_and_gets_the_next_that_comes() {
        static RESTS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = || RESTS.load(std::sync::atomic::Ordering::SeqCst);
        let queue = Arc::new(Queue::new(8));
        let taker = Arc::clone(&queue);
        let taken = std::thread::spawn(move || {
            let rest = || {
                RESTS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            };
            taker.take(rest).map(|(job, _)| job.request.seed.get())
        });
        while count() == 0 {
            std::thread::yield_now();
        }

        let _place = queue.join(job(7).0).unwrap();

        assert_eq!((taken.join().unwrap(), count()), (Some(7), 1));
    }
}
