//! A connection with a clock: how long a peer may take, and when it is let go.
//!
//! [`TimedStream`] stands between hyper and the socket. While no request is under way,
//! a peer has so long to begin one and so long to finish its head; what it does not
//! take of an answer is not held for it for ever. [`Activity`] is what is known of the
//! connection from outside: whether a request is under way, and how to end it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

/// Where a peer is, without its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PeerAddress(pub(super) std::net::IpAddr);

/// How long peers may take, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// From a connection, or from the first byte of a further request, to the end of the
    /// request's head.
    pub header_timeout: Duration,
    /// From an answer to the next request.
    pub idle_timeout: Duration,
    /// Without a byte of a request's body.
    pub body_timeout: Duration,
    /// Without taking a byte of an answer.
    pub write_timeout: Duration,
    /// Connections at a time.
    pub max_connections: usize,
    /// From being told to stop to stopping, whatever peers do.
    pub grace: Duration,
}

/// Once the server is stopping, a peer that takes nothing of its answer is let go
/// after this time.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a connection from outside.
#[derive(Debug)]
pub(super) struct Activity {
    /// Requests whose answer has not been handed over whole.
    requests: AtomicUsize,
    is_closing: AtomicBool,
    closing: Notify,
    /// Whether the peer speaks something else than HTTP by now, which has a clock of its own.
    is_upgraded: AtomicBool,
    /// When the last request ended, or the connection began.
    idle_since: Mutex<Instant>,
    /// Wakes the connection's task.
    waker: AtomicWaker,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            closing: Notify::new(),
            is_upgraded: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
            waker: AtomicWaker::new(),
        })
    }

    /// Since when no request is under way; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.is_busy()).then_some(since)
    }

    /// Ends the connection as soon as no request is under way.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        // Stored for who waits later.
        self.closing.notify_one();
        self.waker.wake();
    }

    /// Completes once the connection is to end. For one who waits.
    pub(super) async fn closing(&self) {
        if !self.is_closing() {
            self.closing.notified().await;
        }
    }

    /// No further request is waited for.
    fn upgrade(&self) {
        self.is_upgraded.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    fn is_busy(&self) -> bool {
        self.requests.load(Ordering::SeqCst) > 0
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(super) fn on(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(activity))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut since = self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = Instant::now();
        drop(since);
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
        self.0.waker.wake();
    }
}

/// What is done with a connection that HTTP has left to it.
pub(super) type Successor = BoxFuture<'static, ()>;

/// The connection that a request came by. In the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) activity: Arc<Activity>,
    successor: mpsc::Sender<Successor>,
}

impl Connection {
    /// With the end at which its [`Successor`] comes out.
    pub(super) fn new(activity: Arc<Activity>) -> (Self, mpsc::Receiver<Successor>) {
        let (successor, succeeding) = mpsc::channel(1);
        (Self { activity, successor }, succeeding)
    }

    /// Leaves the connection to `successor` once HTTP is done with it. It counts as one as long
    /// as that goes on, and is dropped with it.
    pub(super) fn hand_over(&self, successor: Successor) {
        self.activity.upgrade();
        // There is one at most: HTTP ends with it.
        let _ = self.successor.try_send(successor);
    }
}

/// What a peer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// Nothing: a request is under way.
    Nothing,
    /// The next request.
    Request,
    /// The rest of a request's head.
    Head,
}

/// A socket whose peer is waited for within limits.
pub(super) struct TimedStream {
    stream: TcpStream,
    activity: Arc<Activity>,
    limits: PeerLimits,
    awaited: Awaited,
    reading_until: Pin<Box<Sleep>>,
    /// Set while the peer takes nothing.
    is_write_stuck: bool,
    writing_until: Pin<Box<Sleep>>,
}

impl TimedStream {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, limits: PeerLimits) -> Self {
        let timer = |after| Box::pin(tokio::time::sleep(after));
        Self {
            stream,
            activity,
            limits,
            // From a new connection a request is expected at once.
            awaited: Awaited::Head,
            reading_until: timer(limits.header_timeout),
            is_write_stuck: false,
            writing_until: timer(limits.write_timeout),
        }
    }

    /// What comes of waiting for the peer: an end, if it took too long.
    fn wait_to_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.waker.register(context.waker());
        if self.activity.is_busy() || self.activity.is_upgraded.load(Ordering::SeqCst) {
            self.awaited = Awaited::Nothing;
            return Poll::Pending;
        }
        if self.activity.is_closing() && !self.is_write_stuck {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.awaited == Awaited::Nothing {
            self.await_until(Awaited::Request, self.limits.idle_timeout);
        }
        self.reading_until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn await_until(&mut self, awaited: Awaited, timeout: Duration) {
        self.awaited = awaited;
        self.reading_until.as_mut().reset(Instant::now() + timeout);
    }

    fn wait_to_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.activity.waker.register(context.waker());
        let now = Instant::now();
        if !self.is_write_stuck {
            self.is_write_stuck = true;
            self.writing_until.as_mut().reset(now + self.limits.write_timeout);
        }
        let last = now + LAST_WRITE_TIMEOUT;
        if self.activity.is_closing() && self.writing_until.deadline() > last {
            self.writing_until.as_mut().reset(last);
        }
        self.writing_until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(written) => {
                self.is_write_stuck = false;
                Poll::Ready(written)
            }
            Poll::Pending => self.wait_to_write(context),
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(read) => {
                let has_begun = buffer.filled().len() > before && !self.activity.is_busy();
                if has_begun && self.awaited != Awaited::Head {
                    let timeout = self.limits.header_timeout;
                    self.await_until(Awaited::Head, timeout);
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.wait_to_read(context),
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
