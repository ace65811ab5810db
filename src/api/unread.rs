//! Bodies that are read to their end, whatever becomes of the request.
//!
//! A server that answers while the client still sends, and then closes, makes
//! the client see a reset connection instead of the answer. And hyper notices
//! that a client has gone only once it has read the whole body.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::stream::{self, Stream, StreamExt};

/// Bytes that are read and thrown away before the connection is given up.
const MAX_DRAINED_BYTES: usize = 128 << 20;

/// How long the client may take to send them.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(10);

/// What a request's body has left. Shared by the handler, which reads it, and
/// [`drain_afterwards`].
#[derive(Clone)]
pub(super) struct UnreadBody(Arc<Mutex<BodyDataStream>>);

impl UnreadBody {
    /// The chunks that are left, for whoever comes first.
    fn chunks(&self) -> impl Stream<Item = Result<axum::body::Bytes, axum::Error>> + use<> {
        let shared = Arc::clone(&self.0);
        stream::poll_fn(move |context| {
            let mut body = shared.lock().unwrap_or_else(PoisonError::into_inner);
            Pin::new(&mut *body).poll_next(context)
        })
    }

    /// Reads what is left and throws it away, within limits.
    pub(super) async fn drain(&self) {
        let mut drained = 0;
        let all = self
            .chunks()
            .take_while(|chunk| {
                drained += chunk.as_ref().map_or(MAX_DRAINED_BYTES, |bytes| bytes.len());
                std::future::ready(drained < MAX_DRAINED_BYTES)
            })
            .for_each(|_chunk| std::future::ready(()));
        // A client that is slower sees a reset connection: its own doing.
        let _ = tokio::time::timeout(MAX_DRAIN_TIME, all).await;
    }
}

/// Middleware: lets the handler read the body, then reads what it left.
/// Handlers find the [`UnreadBody`] in the request's extensions.
pub(super) async fn drain_afterwards(request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let unread = UnreadBody(Arc::new(Mutex::new(body.into_data_stream())));
    let body = Body::from_stream(unread.chunks());
    parts.extensions.insert(unread.clone());
    let response = next.run(Request::from_parts(parts, body)).await;
    unread.drain().await;
    response
}
