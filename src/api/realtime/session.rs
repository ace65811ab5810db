//! A WebSocket from its opening to its end.
//!
//! What is asked for runs in tasks of its own, which end with the session: whoever leaves
//! calls off what is not in the background. They hand their messages to one [`Outbox`] of few
//! places: a client that reads slowly makes them wait, and steps pass untold meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::asked::{Asker, follow};
use super::messages::{ClientMessage, Misunderstood, PreviewKind, ServerMessage, preview_message};
use super::socket::{Meter, Metered};
use crate::api::error::ApiError;
use crate::api::peer::{Activity, UnderWay};
use crate::domain::{FaultKind, ValidationError};
use crate::service::{MemoryShare, ServiceError};

pub(super) type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// Requests and followed jobs that are open at a time: as many as a page shows, and no more
/// finished pictures than that wait for a client that does not read.
pub(super) const MOST_OPEN: usize = 16;
/// Messages on their way to the socket.
const OUTBOX_PLACES: usize = 4;
/// What of a message is looked at on the runtime.
const SMALL_BYTES: usize = 64 << 10;
/// How long a peer may take to read why the connection ends, and to say that it has.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How much of what it still sends is read meanwhile.
const DRAINED_BYTES: u64 = 128 << 20;

/// The way to the client.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Message>);

impl Outbox {
    /// Waits until there is room. A client that has gone needs no message.
    pub(super) async fn send(&self, text: String) {
        let _ = self.0.send(Message::text(text)).await;
    }

    /// Sends it if there is room.
    pub(super) fn offer(&self, text: String) {
        let _ = self.0.try_send(Message::text(text));
    }

    /// Sends an unfinished picture, an `ImageEvent` as JSON.
    pub(super) async fn show(&self, kind: PreviewKind, id: &str, event: Arc<str>) {
        let id = id.to_owned();
        let writing = tokio::task::spawn_blocking(move || preview_message(kind, &id, &event));
        if let Ok(Ok(text)) = writing.await {
            self.send(text).await;
        }
    }

    fn ping(&self) {
        let _ = self.0.try_send(Message::Ping(Bytes::new()));
    }
}

/// What stands behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    Job,
}

/// What is open, by its name.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<String, (Kind, AbortHandle)>>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Kind, AbortHandle)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is open under a name, until its end or until it is called off.
pub(super) struct Slot {
    pub(super) id: String,
    open: Open,
    _place: OwnedSemaphorePermit,
    _under_way: UnderWay,
}

impl Slot {
    /// Ends it, if nobody has yet: of a request its client hears one end. Of its task alone:
    /// once it was called off, another may have its name.
    pub(super) fn end(&self) -> bool {
        let mut open = self.open.lock();
        let is_own = open.get(&self.id).is_some_and(|(_, task)| task.id() == tokio::task::id());
        is_own && open.remove(&self.id).is_some()
    }
}

/// How a session ends.
enum Ending {
    /// The peer has gone, or said that it goes.
    Left,
    /// It is told why.
    Told(CloseCode, &'static str),
}

/// Serves `socket` until its peer leaves, does what it may not, or `activity` is to end.
pub(super) async fn run(socket: Socket, meter: Meter, asker: Asker, activity: Arc<Activity>) {
    let (mut sink, mut stream) = socket.split();
    let (outbox, messages) = mpsc::channel(OUTBOX_PLACES);
    let session = Session {
        asker,
        meter,
        activity,
        outbox: Outbox(outbox),
        open: Open::default(),
        places: Arc::new(Semaphore::new(MOST_OPEN)),
        tasks: JoinSet::new(),
        is_closing: false,
    };
    let ending = {
        let mut writing = Box::pin(write(&mut sink, messages));
        let ending = tokio::select! {
            ending = session.read(&mut stream) => ending,
            () = &mut writing => Ending::Left,
        };
        if let Ending::Told(..) = ending {
            // What was said before the end is sent before it.
            let _ = tokio::time::timeout(LAST_WORDS, writing).await;
        }
        ending
    };
    let Ok(socket) = sink.reunite(stream) else { return };
    let _ = tokio::time::timeout(LAST_WORDS, close(socket, ending)).await;
}

async fn write(sink: &mut SplitSink<Socket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = sink.send(message).await {
            tracing::debug!(%error, "a WebSocket takes nothing more");
            return;
        }
    }
}

/// Says why, and waits for the peer to have read it.
async fn close(mut socket: Socket, ending: Ending) {
    match ending {
        Ending::Left => {
            // Its own goodbye is answered by then.
            let _ = socket.flush().await;
        }
        Ending::Told(code, reason) => {
            let frame = CloseFrame { code, reason: reason.into() };
            if socket.close(Some(frame)).await.is_ok() {
                socket.get_mut().drain(DRAINED_BYTES).await;
            }
        }
    }
}

struct Session {
    asker: Asker,
    meter: Meter,
    activity: Arc<Activity>,
    outbox: Outbox,
    open: Open,
    places: Arc<Semaphore>,
    tasks: JoinSet<()>,
    /// Whether it ends once nothing is open.
    is_closing: bool,
}

impl Session {
    async fn read(mut self, stream: &mut SplitStream<Socket>) -> Ending {
        let created = ServerMessage::Created {
            max_message_bytes: self.asker.state.config.max_upload_bytes,
            max_open: MOST_OPEN,
        };
        self.outbox.send(created.written()).await;
        let silence = self.asker.state.config.peers.idle_timeout;
        let mut beat = tokio::time::interval((silence / 6).max(Duration::from_millis(1)));
        let activity = Arc::clone(&self.activity);
        let closing = activity.closing();
        tokio::pin!(closing);
        loop {
            let ending = tokio::select! {
                message = stream.next() => self.receive(message).await,
                _ = beat.tick() => self.beat(silence),
                () = &mut closing, if !self.is_closing => {
                    self.is_closing = true;
                    None
                }
                Some(_) = self.tasks.join_next() => None,
            };
            if let Some(ending) = ending {
                return ending;
            }
            if self.is_closing && self.tasks.is_empty() {
                return Ending::Told(CloseCode::Away, "the server ends this connection");
            }
        }
    }

    async fn receive(&mut self, message: Option<Result<Message, Error>>) -> Option<Ending> {
        match message {
            Some(Ok(Message::Text(text))) => {
                let text = Bytes::from(text);
                let memory = self.meter.take(text.len());
                let memory = memory.unwrap_or_else(|| self.asker.state.requests.memory.share());
                self.heed(text, memory).await;
                None
            }
            Some(Ok(Message::Binary(bytes))) => {
                drop(self.meter.take(bytes.len()));
                let message = "Messages are JSON in text frames; pictures are data URLs in it.";
                self.refuse(None, &ApiError::Malformed(message.to_owned())).await;
                None
            }
            Some(Ok(Message::Ping(bytes) | Message::Pong(bytes))) => {
                self.meter.pass(bytes.len());
                None
            }
            Some(Ok(Message::Close(_) | Message::Frame(_))) | None => Some(Ending::Left),
            Some(Err(error)) => Some(self.ending_of(&error)),
        }
    }

    fn ending_of(&self, error: &Error) -> Ending {
        tracing::debug!(%error, "a WebSocket cannot be read");
        #[expect(clippy::wildcard_enum_match_arm, reason = "all others mean the same")]
        match error {
            Error::Capacity(_) => Ending::Told(CloseCode::Size, "the message is too large"),
            Error::Utf8(_) => Ending::Told(CloseCode::Invalid, "the text is not UTF-8"),
            Error::Io(_) if self.meter.is_refused() => {
                Ending::Told(CloseCode::Again, "the memory for requests is taken")
            }
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ending::Left,
            Error::Protocol(_) => Ending::Told(CloseCode::Protocol, "no frame of RFC 6455"),
            _ => Ending::Left,
        }
    }

    /// Looks whether the peer is there.
    fn beat(&self, silence: Duration) -> Option<Ending> {
        let config = &self.asker.state.config;
        if self.meter.is_stalled(&config.peers, config.upload_timeout) {
            return Some(Ending::Told(CloseCode::Policy, "the message took too long to arrive"));
        }
        let silent = self.meter.last_byte().elapsed();
        if silent > silence {
            return Some(Ending::Told(CloseCode::Policy, "no sign of life"));
        }
        if silent > silence / 3 {
            self.outbox.ping();
        }
        None
    }

    /// Does what a message asks for.
    async fn heed(&mut self, text: Bytes, memory: MemoryShare) {
        let (read, memory) = if text.len() <= SMALL_BYTES {
            (ClientMessage::read(&text), memory)
        } else {
            let reading = move || (ClientMessage::read(&text), memory);
            match tokio::task::spawn_blocking(reading).await {
                Ok(read) => read,
                Err(error) => return self.refuse(None, &error.into()).await,
            }
        };
        let (id, done) = match read {
            Err(Misunderstood { id, error }) => (id, Err(*error)),
            Ok(ClientMessage::Create(create)) => {
                let (id, asker) = (create.id.clone(), self.asker.clone());
                let outbox = self.outbox.clone();
                let work = |slot| asker.make(create, memory, (slot, outbox));
                (Some(id.clone()), self.begin(id, Kind::Request, work))
            }
            Ok(ClientMessage::Follow { id, job, last }) => {
                let (asker, outbox) = (self.asker.clone(), self.outbox.clone());
                let work = |slot| follow(asker, (job, last), (slot, outbox));
                (Some(id.clone()), self.begin(id, Kind::Job, work))
            }
            Ok(ClientMessage::Cancel { id }) => {
                let cancelled = ServerMessage::Cancelled { id: &id }.written();
                let done = self.stop(&id, Kind::Request, cancelled).await;
                (Some(id), done)
            }
            Ok(ClientMessage::Unfollow { id }) => {
                let unfollowed = ServerMessage::Unfollowed { id: &id }.written();
                let done = self.stop(&id, Kind::Job, unfollowed).await;
                (Some(id), done)
            }
        };
        if let Err(error) = done {
            self.refuse(id.as_deref(), &error).await;
        }
    }

    /// Has `work` done under a name of the client's.
    fn begin<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        id: String,
        kind: Kind,
        work: impl FnOnce(Slot) -> F,
    ) -> Result<(), ApiError> {
        if self.is_closing {
            return Err(ServiceError::ShuttingDown.into());
        }
        let mut open = self.open.lock();
        if open.contains_key(&id) {
            let message = "Invalid 'id': a request of this connection has it that is not over.";
            return Err(ValidationError::new("id", FaultKind::Invalid, message).into());
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let limit = u32::try_from(MOST_OPEN).unwrap_or(u32::MAX);
        let place = place.map_err(|_| ApiError::TooManyAtOnce { limit })?;
        let slot = Slot {
            id: id.clone(),
            open: self.open.clone(),
            _place: place,
            _under_way: UnderWay::on(&self.activity),
        };
        let task = self.tasks.spawn(work(slot));
        open.insert(id, (kind, task));
        Ok(())
    }

    /// Ends what is open under a name, and says so.
    async fn stop(&self, id: &str, kind: Kind, said: String) -> Result<(), ApiError> {
        let stopped = {
            let mut open = self.open.lock();
            let is_meant = open.get(id).is_some_and(|(of, _)| *of == kind);
            if is_meant { open.remove(id) } else { None }
        };
        let Some((_, task)) = stopped else {
            let message = "Invalid 'id': nothing by this name is open on this connection.";
            return Err(ValidationError::new("id", FaultKind::Invalid, message).into());
        };
        task.abort();
        self.outbox.send(said).await;
        Ok(())
    }

    async fn refuse(&self, id: Option<&str>, error: &ApiError) {
        self.outbox.send(error_message(id, error)).await;
    }
}

/// An error that ends no request.
pub(super) fn error_message(id: Option<&str>, error: &ApiError) -> String {
    let status = error.status().as_u16();
    ServerMessage::Error { id, status, error: error.body().error }.written()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_pass_untold_while_a_client_does_not_read_and_ends_wait_for_it() {
        let (to, mut messages) = mpsc::channel(OUTBOX_PLACES);
        let outbox = Outbox(to);
        for step in 0..100 {
            outbox.offer(step.to_string());
        }
        let waiting = tokio::spawn(async move { outbox.send("the end".to_owned()).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());

        let mut told = Vec::new();
        while let Some(message) = messages.recv().await {
            told.push(message.into_text().unwrap().to_string());
        }

        assert_eq!(told, ["0", "1", "2", "3", "the end"]);
    }
}
