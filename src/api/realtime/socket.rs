//! What a WebSocket's messages are read from: no more of them than there is memory for.
//!
//! The WebSocket holds a message until it is whole. Here, below it, what has come of one is
//! counted, and from some size on not read any further before the budget of all requests has
//! room for it: the peer waits, as with the body of a request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use crate::api::peer::PeerLimits;
use crate::service::{MemoryError, MemoryShare, RequestMemory};

/// How much is read at a time.
pub(super) const READ_BYTES: usize = 64 << 10;
/// What a connection may hold of messages that are not whole without asking for memory.
const FREE_BYTES: usize = 2 * READ_BYTES;
/// In what steps memory is taken, in bytes.
const STEP: usize = 1 << 20;
/// Bytes of a masked control frame before its own (RFC 6455, 5.2).
const CONTROL_HEADER: usize = 6;
/// How often a message is held while it is taken apart: as it came, and its texts.
pub(super) const COPIES: usize = 2;

/// A socket that counts what comes.
pub(super) struct Metered<S> {
    stream: S,
    meter: Meter,
}

/// What has come of messages that are not whole; clones share it.
#[derive(Clone)]
pub(super) struct Meter(Arc<Mutex<Arrived>>);

struct Arrived {
    bytes: usize,
    /// Since when it takes memory.
    since: Instant,
    last_byte: Instant,
    memory: Memory,
}

enum Memory {
    Held(MemoryShare),
    Asking(BoxFuture<'static, Result<MemoryShare, MemoryError>>),
    Refused,
}

impl Meter {
    pub(super) fn new(budget: &RequestMemory) -> Self {
        let now = Instant::now();
        let memory = Memory::Held(budget.share());
        Self(Arc::new(Mutex::new(Arrived { bytes: 0, since: now, last_byte: now, memory })))
    }

    /// A message of `length` is whole: its share, if it needed one so far.
    pub(super) fn take(&self, length: usize) -> Option<MemoryShare> {
        let mut arrived = self.lock();
        // What is left has not been looked at, or was the frames' own.
        arrived.bytes = arrived.bytes.saturating_sub(length).min(READ_BYTES);
        let Memory::Held(share) = &mut arrived.memory else { return None };
        Some(share.split(usize::MAX))
    }

    /// A control frame of `length` was read, with its header and mask: a message may be there in
    /// part, and what it takes stays counted.
    pub(super) fn pass(&self, length: usize) {
        let mut arrived = self.lock();
        arrived.bytes = arrived.bytes.saturating_sub(length + CONTROL_HEADER);
    }

    /// Whether the budget has had no room for a message.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.lock().memory, Memory::Refused)
    }

    pub(super) fn last_byte(&self) -> Instant {
        self.lock().last_byte
    }

    /// Whether a message that takes memory does not come on.
    pub(super) fn is_stalled(&self, limits: &PeerLimits, upload: std::time::Duration) -> bool {
        let arrived = self.lock();
        let is_large = arrived.bytes > FREE_BYTES;
        let is_late = arrived.last_byte.elapsed() > limits.body_timeout;
        is_large && (is_late || arrived.since.elapsed() > upload)
    }

    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrived {
    fn note(&mut self, bytes: usize) {
        self.last_byte = Instant::now();
        if self.bytes <= FREE_BYTES {
            self.since = self.last_byte;
        }
        self.bytes += bytes;
    }

    /// Waits until there is memory for what comes next.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.memory {
                Memory::Refused => return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into())),
                Memory::Held(share) => {
                    if self.bytes <= FREE_BYTES + share.bytes() / COPIES {
                        return Poll::Ready(Ok(()));
                    }
                    let (mut share, bytes) = (share.split(usize::MAX), self.bytes + STEP);
                    let asking = async move { share.grow_to(bytes * COPIES).await.map(|()| share) };
                    self.memory = Memory::Asking(Box::pin(asking));
                }
                Memory::Asking(asking) => match asking.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(share)) => self.memory = Memory::Held(share),
                    Poll::Ready(Err(_)) => self.memory = Memory::Refused,
                },
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Metered<S> {
    pub(super) fn new(stream: S, meter: Meter) -> Self {
        Self { stream, meter }
    }

    /// Sends nothing more, for which the peer waits (RFC 6455, 7.1.1), and throws away what it
    /// still sends, up to `bytes`: a socket that is closed with something unread is reset, and
    /// the peer does not read why.
    pub(super) async fn drain(&mut self, bytes: u64) {
        // A peer that has gone needs no end.
        let _ = self.stream.shutdown().await;
        let mut rest = (&mut self.stream).take(bytes);
        // Of no interest any more, whatever it is.
        let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.meter.lock().poll_room(context))?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.meter.lock().note(read);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn meter() -> Meter {
        Meter::new(&RequestMemory::new(64 << 20, Duration::from_secs(1)))
    }

    #[tokio::test]
    async fn whoever_is_told_of_the_end_reads_it_at_once() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut metered = Metered::new(ours, meter());
        let draining = tokio::spawn(async move { metered.drain(1024).await });

        let read = tokio::time::timeout(Duration::from_secs(10), theirs.read(&mut [0; 8])).await;

        assert_eq!(read.expect("the end comes before ours is closed").unwrap(), 0);
        drop(theirs);
        draining.await.unwrap();
    }

    #[test]
    fn a_ping_amid_a_message_leaves_what_has_come_of_it() {
        let meter = meter();
        meter.lock().note(3 << 20);
        let since = meter.lock().since;
        meter.lock().note(4 + CONTROL_HEADER);

        meter.pass(4);

        assert_eq!(meter.lock().bytes, 3 << 20);
        meter.lock().note(1);
        assert_eq!(meter.lock().since, since, "it is the same message");
    }
}
