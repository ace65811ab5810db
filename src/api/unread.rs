//! What becomes of a body that nobody reads to its end.
//!
//! A server that answers while the client still sends, and then closes, makes
//! the client see a reset connection instead of the answer. So the rest is read
//! and thrown away, within limits, while the answer is on its way already. Where
//! the client waits to be asked for its body ([`EXPECT`](header::EXPECT)), and nobody
//! did, it is spared sending it. And hyper notices that a client has gone only once
//! it has read the whole body: handlers that take long see to that first.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::stream::{self, Stream, StreamExt};
use tokio::time::Instant;

/// How much is thrown away before the connection is given up.
struct Limits {
    bytes: usize,
    time: Duration,
}

/// For a request that was refused by its head. Most uploads are smaller; clients
/// that read while they send do not come near it.
const REFUSED: Limits = Limits { bytes: 16 << 20, time: Duration::from_secs(5) };

/// For one whose body was wanted, until there was something wrong with it.
const BROKEN_OFF: Limits = Limits { bytes: 128 << 20, time: Duration::from_secs(10) };

/// How far the reading of a body has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Untouched,
    Begun,
    Ended,
}

/// What a request's body has left. Shared by the handler, which reads it, and
/// [`drain_afterwards`].
#[derive(Clone)]
pub(super) struct UnreadBody(Arc<Mutex<Reading>>);

struct Reading {
    body: BodyDataStream,
    progress: Progress,
    /// When the client sent something, or the request began.
    last_chunk: Instant,
}

impl UnreadBody {
    fn new(body: Body) -> Self {
        let progress = if body.is_end_stream() { Progress::Ended } else { Progress::Untouched };
        let body = body.into_data_stream();
        Self(Arc::new(Mutex::new(Reading { body, progress, last_chunk: Instant::now() })))
    }

    /// Completes once the client has sent nothing for so long.
    pub(super) async fn stalled(&self, timeout: Duration) {
        let last_chunk = || self.0.lock().unwrap_or_else(PoisonError::into_inner).last_chunk;
        while last_chunk().elapsed() < timeout {
            tokio::time::sleep_until(last_chunk() + timeout).await;
        }
    }

    fn progress(&self) -> Progress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).progress
    }

    /// The chunks that are left, for whoever comes first.
    fn chunks(&self) -> impl Stream<Item = Result<Bytes, axum::Error>> + use<> {
        let shared = Arc::clone(&self.0);
        stream::poll_fn(move |context| {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.progress == Progress::Ended {
                return Poll::Ready(None);
            }
            let polled = Pin::new(&mut shared.body).poll_next(context);
            let has_ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
            shared.progress = if has_ended { Progress::Ended } else { Progress::Begun };
            if polled.is_ready() {
                shared.last_chunk = Instant::now();
            }
            polled
        })
    }

    /// Reads what is left of a body that is wanted, and throws it away.
    pub(super) async fn drain(&self) {
        self.drain_within(BROKEN_OFF).await;
    }

    async fn drain_within(&self, limits: Limits) {
        let mut drained = 0;
        let all = self
            .chunks()
            .take_while(|chunk| {
                drained += chunk.as_ref().map_or(limits.bytes, Bytes::len);
                std::future::ready(drained < limits.bytes)
            })
            .for_each(|_chunk| std::future::ready(()));
        // A client that is slower sees a reset connection: its own doing.
        let _ = tokio::time::timeout(limits.time, all).await;
    }
}

/// Middleware: lets the handler read the body, and has what it left thrown away
/// while the answer goes out. Handlers find the [`UnreadBody`] in the request's
/// extensions.
pub(super) async fn drain_afterwards(request: Request, next: Next) -> Response {
    let is_waiting_to_send = request.headers().contains_key(header::EXPECT);
    let (mut parts, body) = request.into_parts();
    let unread = UnreadBody::new(body);
    let body = Body::from_stream(unread.chunks());
    parts.extensions.insert(unread.clone());
    let mut response = next.run(Request::from_parts(parts, body)).await;
    let limits = match unread.progress() {
        Progress::Ended => return response,
        Progress::Begun => BROKEN_OFF,
        Progress::Untouched if is_waiting_to_send => {
            // To read would be to ask for it. What follows the head is not known then.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return response;
        }
        // There was nothing wrong with it: the server had no room.
        Progress::Untouched if response.status() == StatusCode::SERVICE_UNAVAILABLE => BROKEN_OFF,
        Progress::Untouched => REFUSED,
    };
    tokio::spawn(async move { unread.drain_within(limits).await });
    response
}
