//! What every database says of files and batches in the same words.

use std::str::FromStr;

use super::id::FileId;
use super::record::{BatchRecord, BatchState, BatchTimes, FilePurpose, FileRecord, LineCounts};
use super::store::{BatchEnd, LinePart, SettledLine};
use crate::jobs::error::JobStoreError;
use crate::jobs::json;
use crate::jobs::record::Owner;

/// Batches of an owner that may not have ended.
pub(in crate::jobs) const MOST_UNFINISHED: usize = 100;

/// The longest line that lies in its row, in bytes.
pub(in crate::jobs) const LONGEST_IN_ROW: usize = 4 << 10;

/// What a file or a batch takes at least, in bytes: many empty ones take room, too.
pub(in crate::jobs) const ROW_BYTES: u64 = 1 << 10;

/// Batches that have not ended, as a condition.
pub(in crate::jobs) const UNFINISHED: &str =
    "state IN ('validating', 'in_progress', 'finalizing', 'cancelling')";

impl LinePart {
    pub(in crate::jobs) const ALL: [Self; 2] = [Self::Output, Self::Error];

    /// As databases call it.
    pub(in crate::jobs) fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}

impl BatchEnd {
    /// Where a batch must be that ends so, as a condition.
    pub(in crate::jobs) fn from(self) -> &'static str {
        match self {
            Self::Completed => "state = 'finalizing'",
            Self::Expired => "state IN ('validating', 'in_progress')",
            Self::Cancelled => "state = 'cancelling'",
        }
    }

    /// Where it is then.
    pub(in crate::jobs) fn state(self) -> BatchState {
        match self {
            Self::Completed => BatchState::Completed,
            Self::Expired => BatchState::Expired,
            Self::Cancelled => BatchState::Cancelled,
        }
    }
}

/// A line as its row has it.
pub(in crate::jobs) struct StoredLine {
    pub(in crate::jobs) line: SettledLine,
    /// Where its content is, if not in the row.
    pub(in crate::jobs) place: Option<String>,
}

impl StoredLine {
    /// Whether the line is too long for its row.
    pub(in crate::jobs) fn needs_place(line: &SettledLine) -> bool {
        line.content.len() > LONGEST_IN_ROW
    }

    /// What stands in the row.
    pub(in crate::jobs) fn in_row(&self) -> Option<&[u8]> {
        self.place.is_none().then_some(&self.line.content[..])
    }
}

/// A row, whatever database it is of.
pub(in crate::jobs) trait Columns {
    /// What is in the column, if it is not empty.
    fn text(&self, column: &'static str) -> Result<Option<String>, JobStoreError>;

    /// The number in the column, if there is one.
    fn number(&self, column: &'static str) -> Result<Option<u64>, JobStoreError>;
}

fn text(row: &impl Columns, column: &'static str) -> Result<String, JobStoreError> {
    row.text(column)?.ok_or_else(|| missing(column))
}

fn number(row: &impl Columns, column: &'static str) -> Result<u64, JobStoreError> {
    row.number(column)?.ok_or_else(|| missing(column))
}

fn missing(column: &str) -> JobStoreError {
    JobStoreError::Damaged(format!("a file or a batch has no {column}"))
}

/// The name in a column.
pub(in crate::jobs) fn name<T: FromStr>(
    row: &impl Columns,
    column: &'static str,
) -> Result<T, JobStoreError> {
    named(text(row, column)?)
}

fn named<T: FromStr>(text: String) -> Result<T, JobStoreError> {
    let damaged = |_| JobStoreError::Damaged(format!("a file or a batch is called '{text}'"));
    text.parse().map_err(damaged)
}

/// The row of a file as its record.
pub(in crate::jobs) fn file(row: &impl Columns) -> Result<FileRecord, JobStoreError> {
    let purpose = text(row, "purpose")?;
    let purpose = FilePurpose::ALL.into_iter().find(|known| known.name() == purpose);
    Ok(FileRecord {
        id: name(row, "id")?,
        owner: Owner::stored(text(row, "owner")?),
        purpose: purpose.ok_or_else(|| missing("purpose"))?,
        name: text(row, "name")?,
        bytes: number(row, "bytes")?,
        created_ms: number(row, "created_ms")?,
        expires_ms: number(row, "expires_ms")?,
    })
}

/// The row of a batch as its record.
pub(in crate::jobs) fn batch(row: &impl Columns) -> Result<BatchRecord, JobStoreError> {
    let state = text(row, "state")?;
    let state = BatchState::ALL.into_iter().find(|known| known.name() == state);
    let file = |column| row.text(column)?.map(named::<FileId>).transpose();
    Ok(BatchRecord {
        id: name(row, "id")?,
        owner: Owner::stored(text(row, "owner")?),
        endpoint: text(row, "endpoint")?,
        input_file: name(row, "input_file")?,
        context: text(row, "context")?,
        metadata: row.text("metadata")?.as_deref().map(json::read).transpose()?,
        state: state.ok_or_else(|| missing("state"))?,
        times: BatchTimes {
            created_ms: number(row, "created_ms")?,
            due_ms: number(row, "due_ms")?,
            in_progress_ms: row.number("in_progress_ms")?,
            finalizing_ms: row.number("finalizing_ms")?,
            cancelling_ms: row.number("cancelling_ms")?,
            ended_ms: row.number("ended_ms")?,
        },
        counts: LineCounts {
            total: number(row, "total")?,
            completed: number(row, "completed")?,
            failed: number(row, "failed")?,
        },
        faults: json::read(&text(row, "faults")?)?,
        output_file: file("output_file")?,
        error_file: file("error_file")?,
    })
}
