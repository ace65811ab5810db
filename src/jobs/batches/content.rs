//! Where content is, how much of it may come, and how lines become one.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::store::Content;
use crate::jobs::error::JobStoreError;

/// Lines that are looked up at a time.
pub(in crate::jobs) const LINES: u32 = 64;

/// Where the content of a file is.
pub(in crate::jobs) enum Place {
    /// Under this name.
    Whole(String),
    /// In the lines of this part of a batch.
    Lines { batch: String, part: String },
}

/// Where the content of a line is.
pub(in crate::jobs) enum Piece {
    InRow(Vec<u8>),
    /// Under this name.
    Elsewhere(String),
}

/// How much may come in at most.
#[derive(Debug, Clone, Copy)]
pub(in crate::jobs) struct Room {
    left: u64,
    max_bytes: u64,
}

impl Room {
    /// What is left of `max_bytes` where so many are `taken`.
    pub(in crate::jobs) fn new(max_bytes: u64, taken: u64) -> Self {
        Self { left: max_bytes.saturating_sub(taken), max_bytes }
    }

    /// # Errors
    /// [`JobStoreError::NoRoom`].
    pub(in crate::jobs) fn take(&mut self, bytes: u64) -> Result<(), JobStoreError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(JobStoreError::NoRoom { max_bytes: self.max_bytes })?;
        Ok(())
    }
}

/// Lines one after another, page by page: `page` gives those behind a number, in their order,
/// and `open` what is not in the row.
pub(in crate::jobs) fn joined<F>(
    page: impl Fn(u64) -> F + Send + 'static,
    open: impl Fn(&str) -> Content<'static> + Send + 'static,
) -> Content<'static>
where
    F: Future<Output = Result<Vec<(u64, Piece)>, JobStoreError>> + Send,
{
    let pages = stream::try_unfold((page, 0), |(page, after)| async move {
        let found = page(after).await?;
        let last = found.last().map(|(number, _)| *number);
        let pieces =
            stream::iter(found.into_iter().map(|(_, piece)| Ok::<_, JobStoreError>(piece)));
        Ok::<_, JobStoreError>(last.map(|last| (pieces, (page, last))))
    });
    let opened = pages.try_flatten().map_ok(move |piece| match piece {
        Piece::InRow(content) => stream::once(async { Ok(content.into()) }).boxed(),
        Piece::Elsewhere(name) => open(&name),
    });
    opened.try_flatten().boxed()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn lines_of_all_pages_come_in_their_order_wherever_they_are() {
        let page = |after: u64| async move {
            let numbers = (1..=5).filter(|number| *number > after).take(2);
            let piece = |number: u64| match number % 2 {
                0 => (number, Piece::Elsewhere(format!("{number}"))),
                _ => (number, Piece::InRow(format!("in row {number}\n").into_bytes())),
            };
            Ok(numbers.map(piece).collect())
        };
        let open = |name: &str| {
            let halves = ["else".to_owned(), format!("where {name}\n")];
            stream::iter(halves.map(|half| Ok(Bytes::from(half)))).boxed()
        };

        let all: Vec<Bytes> = joined(page, open).try_collect().await.unwrap();

        let text = String::from_utf8(all.concat()).unwrap();
        assert_eq!(text, "in row 1\nelsewhere 2\nin row 3\nelsewhere 4\nin row 5\n");
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_read_ends_the_content() {
        let page = |after: u64| async move {
            match after {
                0 => Ok(vec![(7, Piece::InRow(vec![b'x']))]),
                _ => Err(JobStoreError::NotInTime),
            }
        };
        let mut content = joined(page, |_| stream::empty().boxed());

        assert_eq!(content.next().await.unwrap().unwrap(), "x");
        assert!(matches!(content.next().await, Some(Err(JobStoreError::NotInTime))));
        assert!(content.next().await.is_none());
    }

    #[test]
    fn no_more_comes_in_than_there_is_room_for() {
        let mut room = Room::new(10, 4);

        assert!(room.take(6).is_ok() && room.take(0).is_ok());
        assert!(matches!(room.take(1), Err(JobStoreError::NoRoom { max_bytes: 10 })));
        assert!(Room::new(10, 11).take(1).is_err());
    }
}
