//! The lines of a file, one at a time.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;

use crate::jobs::JobStoreError;
use crate::jobs::batches::Content;
use crate::service::{MemoryError, MemoryShare, RequestMemory};

/// How often a line is held while it is taken apart.
const COPIES: usize = 2;

/// The lines of a file that are not blank.
pub(super) struct InputLines {
    content: Content<'static>,
    /// What came and belongs to the next line.
    rest: Bytes,
    number: u64,
    max_bytes: usize,
    memory: RequestMemory,
}

/// A line.
pub(super) enum Line {
    Whole(WholeLine),
    /// One that is longer than a request may be.
    TooLong {
        number: u64,
    },
}

/// A line with the memory that it takes.
pub(super) struct WholeLine {
    /// Its place in the file, from 1.
    pub(super) number: u64,
    pub(super) bytes: Bytes,
    pub(super) memory: MemoryShare,
}

impl Line {
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Whole(line) => line.number,
            Self::TooLong { number } => *number,
        }
    }
}

/// What has come of a line.
struct Collected {
    bytes: BytesMut,
    memory: MemoryShare,
    is_too_long: bool,
}

impl InputLines {
    /// Those of `content`, none of them longer than `max_bytes`.
    pub(super) fn new(content: Content<'static>, max_bytes: usize, memory: RequestMemory) -> Self {
        Self { content, rest: Bytes::new(), number: 0, max_bytes, memory }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, JobStoreError> {
        while let Some(line) = self.next_of_all().await? {
            let is_blank = matches!(&line, Line::Whole(line) if line.bytes.trim_ascii().is_empty());
            if !is_blank {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// The next line, a blank one, too.
    async fn next_of_all(&mut self) -> Result<Option<Line>, JobStoreError> {
        let memory = self.memory.share();
        let mut line = Collected { bytes: BytesMut::new(), memory, is_too_long: false };
        let mut has_begun = false;
        loop {
            if self.rest.is_empty() {
                match self.content.try_next().await? {
                    Some(piece) => self.rest = piece,
                    None if has_begun => break,
                    None => return Ok(None),
                }
                continue;
            }
            has_begun = true;
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            let part = self.rest.split_to(end.map_or(self.rest.len(), |at| at + 1));
            line.add(&part, self.max_bytes).await;
            if end.is_some() {
                break;
            }
        }
        self.number += 1;
        let number = self.number;
        if line.is_too_long {
            return Ok(Some(Line::TooLong { number }));
        }
        let mut bytes = line.bytes.freeze();
        if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            // The mark that some editors put before a text.
            bytes = bytes.slice(3..);
        }
        Ok(Some(Line::Whole(WholeLine { number, bytes, memory: line.memory })))
    }
}

impl Collected {
    /// Takes a part in, once there is memory for it.
    async fn add(&mut self, part: &[u8], max_bytes: usize) {
        let bytes = self.bytes.len() + part.len();
        if self.is_too_long || bytes > max_bytes || !self.has_memory(bytes * COPIES).await {
            self.is_too_long = true;
            self.bytes = BytesMut::new();
            self.memory.shrink_to(0);
            return;
        }
        self.bytes.extend_from_slice(part);
    }

    /// Waits for so much; `false` if there never will be.
    async fn has_memory(&mut self, bytes: usize) -> bool {
        loop {
            match self.memory.grow_to(bytes).await {
                Ok(()) => return true,
                Err(MemoryError::NotInTime) => {}
                Err(MemoryError::NeverFits { .. }) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{StreamExt, stream};

    use super::*;

    async fn lines_of(text: &'static str, piece: usize) -> Vec<(u64, Option<String>)> {
        let pieces = text.as_bytes().chunks(piece).map(|piece| Ok(Bytes::from_static(piece)));
        let memory = RequestMemory::new(1 << 20, Duration::from_secs(1));
        let mut lines = InputLines::new(stream::iter(pieces).boxed(), 10, memory.clone());
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(match line {
                Line::Whole(line) => {
                    assert!(line.memory.bytes() >= line.bytes.len());
                    let text = String::from_utf8(line.bytes.to_vec()).unwrap();
                    (line.number, Some(text.trim().to_owned()))
                }
                Line::TooLong { number } => (number, None),
            });
        }
        assert_eq!(memory.free_bytes(), 1 << 20);
        found
    }

    #[tokio::test]
    async fn lines_are_numbered_in_whatever_pieces_they_come_and_long_ones_are_not_kept() {
        let text = "\u{feff}one\r\n\n  \nfour\na line that is too long\nsix";
        let some = |text: &str| Some(text.to_owned());
        let expected = [(1, some("one")), (4, some("four")), (5, None), (6, some("six"))];

        for piece in [1, 2, 3, 7, 100] {
            assert_eq!(lines_of(text, piece).await, expected, "{piece}");
        }
        assert_eq!(lines_of("\n\n", 1).await, []);
        assert_eq!(lines_of("", 1).await, []);
    }
}
