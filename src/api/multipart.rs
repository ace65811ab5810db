//! Multipart forms to [`Fields`]: the number of parts and their heads are bounded while
//! they arrive.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use futures::stream::{self, Stream};
use multer::{Field, Multipart};

use super::error::ApiError;
use super::incoming::Incoming;
use crate::requests::{Fields, RawValue};

/// Bytes in which the head of a part, or what stands before the first one, must end.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Chunks of any length that a head may take: the parser asks for up to two before it looks
/// at them, and only part of a chunk is the head's.
const HEAD_CHUNKS: usize = 3;

/// While no head is read.
const UNBOUNDED: usize = usize::MAX;

/// How much of a head may still come.
pub(super) struct HeadRoom(AtomicUsize);

impl HeadRoom {
    /// Of a form of which nothing was read.
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(UNBOUNDED))
    }

    fn set(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What ends the reading of a form from within the stream of its chunks.
#[derive(Debug, thiserror::Error)]
#[error("the body was not read to its end")]
pub(super) struct BrokenOff;

/// Reads a form of at most `max_parts` parts, which are separated by `boundary`. One that a
/// client fills with a field per byte of a file (node's client does so with a bare `Buffer`)
/// is refused early.
///
/// # Errors
/// 400 for what is no form, or too large in number or heads; those of [`Incoming`].
pub(super) async fn read(
    incoming: &mut Incoming,
    boundary: &str,
    max_parts: usize,
) -> Result<Fields, ApiError> {
    let head_room = HeadRoom::new();
    let mut failure = None;
    let fields = {
        let chunks = pin!(chunks(incoming, &head_room, &mut failure));
        read_fields(Multipart::new(chunks, boundary), &head_room, max_parts).await
    };
    // What the stream met says more than that it ended.
    failure.map_or(fields, Err)
}

async fn read_fields(
    mut form: Multipart<'_>,
    head_room: &HeadRoom,
    max_parts: usize,
) -> Result<Fields, ApiError> {
    let mut fields = Fields::default();
    let mut count = 0;
    loop {
        let Some(field) = next_part(&mut form, head_room).await? else {
            return Ok(fields);
        };
        count += 1;
        if count > max_parts {
            return Err(ApiError::Malformed(format!(
                "The form has more than {max_parts} fields ('server.max_parts' of this server's \
                 settings). A picture is one file field, not a field per byte."
            )));
        }
        if let Some((name, value)) = read_field(field).await.map_err(explain)? {
            fields.push(name, value);
        }
    }
}

/// The next part, whose head is bounded.
///
/// # Errors
/// 400 for what is no form.
pub(super) async fn next_part<'a>(
    form: &mut Multipart<'a>,
    head_room: &HeadRoom,
) -> Result<Option<Field<'a>>, ApiError> {
    head_room.set(MAX_HEAD_BYTES);
    let field = form.next_field().await.map_err(explain)?;
    head_room.set(UNBOUNDED);
    Ok(field)
}

/// The chunks of the body. The parser asks for all that has arrived before it looks for a
/// head's end: it gets one at a time.
pub(super) fn chunks<'a>(
    incoming: &'a mut Incoming,
    head_room: &'a HeadRoom,
    failure: &'a mut Option<ApiError>,
) -> impl Stream<Item = Result<Bytes, BrokenOff>> + Send + 'a {
    stream::unfold((incoming, failure), move |(incoming, failure)| async move {
        tokio::task::yield_now().await;
        let is_spent = head_room.bytes() == 0;
        let next = if is_spent { Err(head_too_long()) } else { incoming.next().await };
        let item = match next {
            Ok(Some(chunk)) => {
                // Looked at anew: while the chunk was waited for, the head may have ended.
                let room = head_room.bytes();
                if room != UNBOUNDED {
                    let counted = chunk.len().min(MAX_HEAD_BYTES.div_ceil(HEAD_CHUNKS));
                    head_room.set(room.saturating_sub(counted));
                }
                Ok(chunk)
            }
            Ok(None) => return None,
            Err(error) => {
                *failure = Some(error);
                Err(BrokenOff)
            }
        };
        Some((item, (incoming, failure)))
    })
}

fn head_too_long() -> ApiError {
    ApiError::Malformed(format!(
        "Invalid multipart body: the headers of a part take more than {MAX_HEAD_BYTES} bytes."
    ))
}

pub(super) fn explain(error: multer::Error) -> ApiError {
    ApiError::Malformed(format!("Invalid multipart body: {error}."))
}

/// One field of a form; `None` for a file input that was left empty.
async fn read_field(mut field: Field<'_>) -> Result<Option<(String, RawValue)>, multer::Error> {
    let name = field.name().unwrap_or_default().to_owned();
    let file_name = field.file_name().map(str::to_owned);
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    let value = match file_name {
        None => RawValue::Text(bytes.into()),
        // What a browser sends for a file input in which nothing was chosen.
        Some(file_name) if file_name.is_empty() && bytes.is_empty() => return Ok(None),
        Some(_) => RawValue::File(bytes.into()),
    };
    Ok(Some((name, value)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use futures::StreamExt;

    use super::*;
    use crate::service::RequestMemory;

    /// Reads a body that arrives in pieces of `size` bytes.
    async fn read_in_pieces(body: &[u8], size: usize) -> Result<Fields, ApiError> {
        read_with_pauses(body, size, 0).await
    }

    /// The same, with `pauses` before each piece, in which the reader is asked for none.
    async fn read_with_pauses(body: &[u8], size: usize, pauses: usize) -> Result<Fields, ApiError> {
        let pieces: Vec<_> = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let pieces = stream::iter(pieces).then(move |piece| async move {
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
            Ok::<_, BrokenOff>(piece)
        });
        let memory = RequestMemory::new(64 << 20, Duration::from_secs(1)).share();
        let body = Body::from_stream(pieces);
        let mut incoming = Incoming::begin(body, None, 64 << 20, 1, memory).await.unwrap();
        read(&mut incoming, "b", 256).await
    }

    fn part(head: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    #[tokio::test]
    async fn a_form_is_read_in_whatever_pieces_it_arrives() {
        let content = vec![b'x'; 250_000];
        let file = part("name=\"image[]\"; filename=\"a.png\"", &content);
        let body =
            [part("name=\"prompt\"", b"words"), file.repeat(3), b"--b--\r\n".to_vec()].concat();

        for size in [1000, 65_536, 200_000, 10_000_000] {
            let mut fields = read_in_pieces(&body, size).await.unwrap();

            assert_eq!(fields.text("prompt").unwrap().as_deref(), Some("words"));
            let files = fields.take_all(&["image[]"]);
            assert_eq!(files.len(), 3);
            for file in files {
                assert!(matches!(file, RawValue::File(bytes) if bytes == content), "{size}");
            }
        }
    }

    #[tokio::test]
    async fn what_follows_a_head_is_not_counted_as_one_when_it_is_late() {
        let file = part("name=\"image\"; filename=\"a.png\"", &vec![b'x'; 400_000]);
        let body = [file, b"--b--\r\n".to_vec()].concat();

        // The reader has the head, and waits for a piece that it asked for before it looked.
        for (size, pauses) in [(1000, 1), (1000, 3), (20_000, 5), (65_536, 2), (65_536, 7)] {
            let mut fields = read_with_pauses(&body, size, pauses).await.unwrap();

            assert_eq!(fields.take_all(&["image"]).len(), 1, "{size} {pauses}");
        }
    }

    #[tokio::test]
    async fn the_head_of_a_part_has_an_end() {
        let name = "a".repeat(2 << 20);
        for body in [part(&format!("name=\"{name}\""), b"x"), name.clone().into_bytes()] {
            for size in [1000, 65_536, 200_000] {
                let error = read_in_pieces(&body, size).await.unwrap_err();

                assert!(matches!(error, ApiError::Malformed(message) if message.contains("65536")));
            }
        }
    }
}
