//! A request's body on its way in: no more of it than its share of the memory.

use axum::body::{Body, BodyDataStream, Bytes};
use futures::StreamExt;

use super::error::ApiError;
use crate::service::MemoryShare;

/// In what steps a body takes memory that does not say how long it will be, in bytes.
const STEP: usize = 1 << 20;

/// The chunks of a body that is not over its limit.
pub(super) struct Incoming {
    chunks: BodyDataStream,
    received: usize,
    max_bytes: usize,
    /// How often the body is held at a time, while it is read and taken apart.
    copies: usize,
    memory: MemoryShare,
}

impl Incoming {
    /// Waits for the memory of a body that is `declared` to be so long; others take
    /// theirs as they arrive.
    ///
    /// # Errors
    /// 413 for what is over the limit or would never fit, 503 if there is no memory.
    pub(super) async fn begin(
        body: Body,
        declared: Option<usize>,
        max_bytes: usize,
        copies: usize,
        mut memory: MemoryShare,
    ) -> Result<Self, ApiError> {
        if let Some(declared) = declared {
            memory.grow_to(declared.saturating_mul(copies)).await?;
        }
        let chunks = body.into_data_stream();
        Ok(Self { chunks, received: 0, max_bytes, copies, memory })
    }

    /// # Errors
    /// As for [`Self::begin`], and 400 if the body breaks off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Some(chunk) = self.chunks.next().await else {
            return Ok(None);
        };
        let broken = |_| ApiError::Malformed("The request body could not be read.".to_owned());
        let chunk = chunk.map_err(broken)?;
        self.received += chunk.len();
        if self.received > self.max_bytes {
            return Err(ApiError::BodyTooLarge { max_upload_bytes: self.max_bytes });
        }
        if self.received * self.copies > self.memory.bytes() {
            self.memory.grow_to((self.received + STEP) * self.copies).await?;
        }
        Ok(Some(chunk))
    }

    /// The whole body. `declared` is how long it says it is.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) async fn all(&mut self, declared: Option<usize>) -> Result<Vec<u8>, ApiError> {
        let mut whole = Vec::with_capacity(declared.unwrap_or_default().min(self.max_bytes));
        while let Some(chunk) = self.next().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }

    /// The share, once the body has been read.
    pub(super) fn into_memory(self) -> MemoryShare {
        self.memory
    }
}
