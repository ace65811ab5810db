//! Requests that wait for their models: bounded lines, from which whoever waits may leave.
//!
//! A [`Place`] belongs to the one who waits: dropped, it takes the job out of its line, with
//! its pictures. A job that runs takes a place, too, until its [`Running`] is dropped. Each
//! model has a line of its own; a thread takes from those of the models that it hosts, in
//! the [`Order`] of all.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::Span;

use super::ServiceError;
use super::order::{Client, Order, Ticket};
use super::pace::{Pace, Work};
use super::worker::Job;
use crate::domain::RequestLoras;
use crate::telemetry::spans;

/// The lines of all models. The service and the threads of the models share them.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something has changed for a thread that wants a job.
    changed: Condvar,
    /// How many may wait for a model.
    pub(super) capacity: usize,
}

struct State {
    waiting: Vec<Waiting>,
    lines: Vec<Line>,
    /// What each thread is told to do besides.
    commands: Vec<VecDeque<Command>>,
    order: Order,
    /// The number of the next job.
    next: u64,
    is_open: bool,
}

struct Waiting {
    number: u64,
    ticket: Ticket,
    job: Job,
    since: Instant,
    /// Its wait, as a stage of its request; over with this.
    _stage: Span,
}

/// Who runs.
struct Seat {
    /// The number of the job.
    number: u64,
    client: Client,
    loras: RequestLoras,
}

/// What is known of one model's jobs.
#[derive(Default)]
struct Line {
    waiting: usize,
    /// Whose jobs run.
    running: Vec<Seat>,
    pace: Pace,
    /// How long jobs have taken lately, in seconds.
    usual_s: Option<f64>,
    /// Threads that serve it.
    hosts: usize,
}

/// What a client is told that comes before any job has ended.
const UNKNOWN_S: f64 = 5.0;
/// Clients of OpenAI do not wait longer.
const MOST_S: f64 = 60.0;
/// The share of the last job in what is usual.
const LATEST: f64 = 0.25;

impl Line {
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

/// What a thread is told to do with one of its models.
pub(super) struct Command {
    pub(super) model: usize,
    pub(super) action: Action,
    pub(super) reply: oneshot::Sender<Result<(), ServiceError>>,
}

/// What can be done with a model besides asking it for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Load,
    Unload,
}

/// What a thread is to do next.
pub(super) enum Next {
    Job(Box<Job>, Running),
    Command(Command),
    /// Nothing came in time.
    Nothing,
    /// The lines were closed.
    End,
}

/// How long the lines are, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) is_open: bool,
    /// Whether every model has a thread.
    pub(super) is_hosted: bool,
    /// How many threads there were at the start.
    pub(super) threads: usize,
}

/// How long the line of one model is, and what is used there.
#[derive(Debug, Clone, Default)]
pub(super) struct LineState {
    pub(super) waiting: usize,
    pub(super) running: usize,
    /// Names of LoRAs, some perhaps twice.
    pub(super) waiting_loras: Vec<String>,
    pub(super) running_loras: Vec<String>,
}

impl Queue {
    /// Lines with `capacity` places for each model; `hosted`: the models of each thread.
    pub(super) fn new(capacity: usize, models: usize, hosted: &[Vec<usize>]) -> Self {
        let mut lines: Vec<Line> = (0..models).map(|_| Line::default()).collect();
        for model in hosted.iter().flatten() {
            lines[*model].hosts += 1;
        }
        let state = State {
            waiting: Vec::new(),
            lines,
            commands: hosted.iter().map(|_| VecDeque::new()).collect(),
            order: Order::default(),
            next: 0,
            is_open: true,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity }
    }

    /// Puts a job into the line of its model.
    ///
    /// # Errors
    /// `Busy` if the line is full, `ShuttingDown` if it was closed, `WorkerGone` if nobody
    /// will ever take a job from it.
    pub(super) fn join(
        self: &Arc<Self>,
        job: Job,
        client: Client,
        work: Work,
    ) -> Result<Place, ServiceError> {
        let mut state = self.lock();
        state.check_open(job.model)?;
        let line = &mut state.lines[job.model];
        // As many more than may wait as run at a time: the next to run.
        if line.waiting + line.running.len() >= self.capacity + line.hosts {
            let retry_after_s = line.retry_after_s();
            return Err(ServiceError::Busy { waiting: self.capacity, retry_after_s });
        }
        line.waiting += 1;
        let cost_s = line.pace.estimate_s(work);
        let ticket = state.order.ticket(client, cost_s);
        let number = state.next;
        state.next += 1;
        let (since, _stage) = (Instant::now(), spans::stage(spans::QUEUE));
        state.waiting.push(Waiting { number, ticket, job, since, _stage });
        drop(state);
        self.changed.notify_all();
        Ok(Place { queue: Arc::clone(self), number })
    }

    /// Has `thread` do something with a model that it hosts.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub(super) fn command(&self, thread: usize, command: Command) -> Result<(), ServiceError> {
        let mut state = self.lock();
        state.check_open(command.model)?;
        state.commands[thread].push_back(command);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// What `thread` is to do next; blocks until there is something, or until `until`.
    /// `loading_s` says of a model whether the thread hosts it, and how long it would take
    /// to load. Calls `at_rest` before it blocks.
    pub(super) fn take(
        self: &Arc<Self>,
        thread: usize,
        until: Option<Instant>,
        loading_s: impl Fn(usize) -> Option<f64>,
        at_rest: fn(),
    ) -> Next {
        let mut state = self.lock();
        let mut has_rested = false;
        loop {
            if let Some(command) = state.commands[thread].pop_front() {
                return Next::Command(command);
            }
            if let Some((number, waited, job)) = state.pop(&loading_s) {
                let running = Running {
                    queue: Arc::clone(self),
                    model: job.model,
                    number,
                    waited,
                    started: Instant::now(),
                };
                return Next::Job(Box::new(job), running);
            }
            if !state.is_open {
                return Next::End;
            }
            if !has_rested {
                has_rested = true;
                drop(state);
                at_rest();
                state = self.lock();
                continue;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(left) if left.is_zero() => return Next::Nothing,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Lets nobody in any more, and tells those who wait.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_open = false;
        let waiting = state.remove(|_| true);
        let commands: Vec<Command> = state.commands.iter_mut().flat_map(std::mem::take).collect();
        drop(state);
        self.changed.notify_all();
        for job in waiting {
            job.refuse();
        }
        for command in commands {
            let _ = command.reply.send(Err(ServiceError::ShuttingDown));
        }
    }

    /// `thread`, which hosts `models`, has ended: those who wait for what nobody else will
    /// serve are dropped, and nobody is let in for it any more.
    pub(super) fn desert(&self, thread: usize, models: &[usize]) {
        let mut state = self.lock();
        for model in models {
            state.lines[*model].hosts -= 1;
        }
        let commands = std::mem::take(&mut state.commands[thread]);
        let hosts: Vec<usize> = state.lines.iter().map(|line| line.hosts).collect();
        let left = state.remove(|model| hosts[model] == 0);
        drop(state);
        drop((commands, left));
        self.changed.notify_all();
    }

    /// What is known of a job for `model` before it joins the line: how much it is, how long
    /// it will take, if such jobs have been measured, and how many wait.
    pub(super) fn outlook(&self, model: usize, work: Work) -> (f64, Option<f64>, usize) {
        let state = self.lock();
        let Line { pace, waiting, .. } = &state.lines[model];
        (pace.estimate_s(work), pace.measured_s(work), *waiting)
    }

    /// How long those take that wait for `model`, in seconds, if such jobs have been measured.
    pub(super) fn waiting_s(&self, model: usize) -> Option<f64> {
        let state = self.lock();
        let pace = &state.lines[model].pace;
        let waiting = state.waiting.iter().filter(|waiting| waiting.job.model == model);
        // From 0: the sum of nothing is -0 by itself.
        waiting
            .map(|waiting| pace.measured_s(waiting.job.work))
            .try_fold(0.0, |sum, s| Some(sum + s?))
    }

    pub(super) fn length(&self) -> Length {
        let state = self.lock();
        Length {
            waiting: state.waiting.len(),
            running: state.lines.iter().map(|line| line.running.len()).sum(),
            is_open: state.is_open,
            is_hosted: state.lines.iter().all(|line| line.hosts > 0),
            threads: state.commands.len(),
        }
    }

    /// The lines, in the order of the models.
    pub(super) fn lines(&self) -> Vec<LineState> {
        let state = self.lock();
        let of_line = |line: &Line| LineState {
            waiting: line.waiting,
            running: line.running.len(),
            running_loras: line.running.iter().flat_map(|seat| names(&seat.loras)).collect(),
            waiting_loras: Vec::new(),
        };
        let mut lines: Vec<LineState> = state.lines.iter().map(of_line).collect();
        for Waiting { job, .. } in &state.waiting {
            lines[job.model].waiting_loras.extend(names(&job.request.loras));
        }
        lines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(loras: &RequestLoras) -> impl Iterator<Item = String> {
    loras.as_slice().iter().map(|lora| lora.name().to_owned())
}

impl State {
    fn check_open(&self, model: usize) -> Result<(), ServiceError> {
        if !self.is_open {
            return Err(ServiceError::ShuttingDown);
        }
        if self.lines[model].hosts == 0 {
            return Err(ServiceError::WorkerGone);
        }
        Ok(())
    }

    /// Takes out the job that is next for a thread: its number, and how long it has waited.
    fn pop(&mut self, loading_s: impl Fn(usize) -> Option<f64>) -> Option<(u64, Duration, Job)> {
        let candidates = self.waiting.iter().enumerate().filter_map(|(index, waiting)| {
            Some((index, &waiting.ticket, loading_s(waiting.job.model)?))
        });
        let index = self.order.next(candidates)?;
        let running = self.lines.iter().flat_map(|line| &line.running).map(|seat| seat.client);
        let waiting = self.waiting.iter().map(|waiting| waiting.ticket.client());
        let clients: BTreeSet<Client> = running.chain(waiting).collect();
        let Waiting { number, ticket, job, since, .. } = self.waiting.remove(index);
        let others = self.waiting.iter_mut().map(|waiting| &mut waiting.ticket);
        self.order.begin(&ticket, others, &clients);
        let line = &mut self.lines[job.model];
        line.waiting -= 1;
        let loras = job.request.loras.clone();
        line.running.push(Seat { number, client: ticket.client(), loras });
        Some((number, since.elapsed(), job))
    }

    /// Takes out the jobs of models that are `meant`.
    fn remove(&mut self, meant: impl Fn(usize) -> bool) -> Vec<Job> {
        let (out, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|waiting| meant(waiting.job.model));
        self.waiting = kept;
        for waiting in &out {
            self.lines[waiting.job.model].waiting -= 1;
        }
        out.into_iter().map(|waiting| waiting.job).collect()
    }

    fn rest_if_idle(&mut self) {
        if self.waiting.is_empty() && self.lines.iter().all(|line| line.running.is_empty()) {
            self.order.rest();
        }
    }
}

/// A place in a line. Dropped, it is free, and its job is called off.
pub(super) struct Place {
    queue: Arc<Queue>,
    number: u64,
}

/// Where a job is in its line, for whoever wants to know.
#[derive(Clone)]
pub struct Position {
    queue: Arc<Queue>,
    number: u64,
}

impl Position {
    /// How many wait for the same model that came before; `None` once it does not wait any
    /// more. Small ones, and those of other clients, may go first.
    #[must_use]
    pub fn ahead(&self) -> Option<usize> {
        let state = self.queue.lock();
        let own = state.waiting.iter().find(|waiting| waiting.number == self.number)?;
        let is_ahead =
            |other: &&Waiting| other.job.model == own.job.model && other.number < self.number;
        Some(state.waiting.iter().filter(is_ahead).count())
    }
}

impl Place {
    pub(super) fn position(&self) -> Position {
        Position { queue: Arc::clone(&self.queue), number: self.number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        let found = state.waiting.iter().position(|waiting| waiting.number == self.number);
        let left = found.map(|index| state.waiting.remove(index).job);
        if let Some(job) = &left {
            state.lines[job.model].waiting -= 1;
            state.rest_if_idle();
        }
        // Its pictures are freed without the lock.
        drop(state);
        drop(left);
    }
}

/// A job that runs. Dropped, its place is free.
pub(super) struct Running {
    queue: Arc<Queue>,
    model: usize,
    number: u64,
    waited: Duration,
    started: Instant,
}

impl Running {
    /// Its model is loaded, if it was not: the work begins.
    pub(super) fn begins(&mut self) {
        self.started = Instant::now();
    }

    /// How long it waited for its turn.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// How long it will take, if such jobs have been measured.
    pub(super) fn expected(&self, work: Work) -> Option<Duration> {
        let seconds = self.queue.lock().lines[self.model].pace.measured_s(work)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Takes note of how long a job took that was made to its end: what is called off, or
    /// fails, says nothing of that.
    pub(super) fn finished(&self, work: Work) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = &mut self.queue.lock().lines[self.model];
        line.note(seconds);
        line.pace.note(work, seconds);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        let running = &mut state.lines[self.model].running;
        running.retain(|seat| seat.number != self.number);
        state.rest_if_idle();
    }
}

#[cfg(test)]
mod tests;
