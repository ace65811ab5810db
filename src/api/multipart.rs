//! Multipart forms to [`Fields`]: the number of parts is bounded while they arrive.

use std::pin::pin;

use axum::body::Bytes;
use futures::stream::{self, Stream};
use multer::{Field, Multipart};

use super::error::ApiError;
use super::fields::{Fields, RawValue};
use super::incoming::Incoming;

/// Fields that a request may have. A form that a client fills with a field per byte
/// of a file (node's client does so with a bare `Buffer`) is refused early.
pub(super) const MAX_FIELDS: usize = 256;

/// What ends the reading of a form from within the stream of its chunks.
#[derive(Debug, thiserror::Error)]
#[error("the body was not read to its end")]
struct BrokenOff;

/// Reads a form whose parts are separated by `boundary`.
///
/// # Errors
/// 400 for what is no form, or has too many fields; those of [`Incoming`].
pub(super) async fn read(incoming: &mut Incoming, boundary: &str) -> Result<Fields, ApiError> {
    let mut failure = None;
    let fields = {
        let chunks = pin!(chunks(incoming, &mut failure));
        read_fields(Multipart::new(chunks, boundary)).await
    };
    // What the stream met says more than that it ended.
    failure.map_or(fields, Err)
}

async fn read_fields(mut form: Multipart<'_>) -> Result<Fields, ApiError> {
    let mut fields = Fields::default();
    let mut count = 0;
    while let Some(field) = form.next_field().await.map_err(explain)? {
        count += 1;
        if count > MAX_FIELDS {
            return Err(ApiError::Malformed(format!(
                "The form has more than {MAX_FIELDS} fields. A picture is one file field, \
                 not a field per byte."
            )));
        }
        if let Some((name, value)) = read_field(field).await.map_err(explain)? {
            fields.push(name, value);
        }
    }
    Ok(fields)
}

/// The chunks of the body.
fn chunks<'a>(
    incoming: &'a mut Incoming,
    failure: &'a mut Option<ApiError>,
) -> impl Stream<Item = Result<Bytes, BrokenOff>> + Send + 'a {
    stream::unfold((incoming, failure), move |(incoming, failure)| async move {
        let item = match incoming.next().await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => return None,
            Err(error) => {
                *failure = Some(error);
                Err(BrokenOff)
            }
        };
        Some((item, (incoming, failure)))
    })
}

fn explain(error: multer::Error) -> ApiError {
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

    use super::*;
    use crate::service::RequestMemory;

    /// Reads a body that arrives in pieces of `size` bytes.
    async fn read_in_pieces(body: &[u8], size: usize) -> Result<Fields, ApiError> {
        let pieces: Vec<_> = body
            .chunks(size)
            .map(|piece| Ok::<_, BrokenOff>(Bytes::copy_from_slice(piece)))
            .collect();
        let body = Body::from_stream(stream::iter(pieces));
        let memory = RequestMemory::new(64 << 20, Duration::from_secs(1)).share();
        let mut incoming = Incoming::begin(body, None, 64 << 20, 1, memory).await.unwrap();
        read(&mut incoming, "b").await
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
}
