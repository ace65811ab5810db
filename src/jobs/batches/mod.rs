//! Batches: many requests in one file, their results in another.
//!
//! A file comes in whole and then is a [`FileRecord`] with content. A batch names such a file;
//! each of its lines becomes a job, and what the job came to becomes a line of an output file,
//! or of an error file. What is promised of a batch from the moment
//! [`BatchStore::create_batch`] has returned:
//!
//! 1. Its record says what is to be done next, whoever does it: no process needs to remember.
//! 2. Each line is settled once. [`BatchStore::settle`] discards what comes for a line that
//!    has its result, and whatever comes for a batch that has ended.
//! 3. A batch has ended when all its lines are settled, and ends once.
//! 4. The files of a batch that has ended are made of its settled lines, in their order, in
//!    the same step that ends it.
//!
//! A store of several processes gives each batch to one of them at a time, for as long as that
//! one is there. If two see to it nevertheless, promise 2 holds: it does no harm.
//!
//! What is in a line is no matter of this module: lines are bytes.

mod content;
mod id;
mod record;
mod store;
mod stored;

pub(in crate::jobs) use content::{LINES, Piece, Place, Room, joined};
pub use id::{BatchId, FileId};
pub use record::{
    BatchFault, BatchRecord, BatchState, BatchTimes, FilePurpose, FileRecord, LineCounts,
};
pub use store::{
    BatchEnd, BatchList, BatchPage, BatchStore, Content, FileList, FileOrder, FilePage, LinePart,
    NewBatch, NewFile, Received, Removed, SettledLine,
};
#[cfg(test)]
pub(in crate::jobs) use stored::LONGEST_IN_ROW;
pub(in crate::jobs) use stored::{
    Columns, MOST_UNFINISHED, ROW_BYTES, StoredLine, UNFINISHED, batch, file, name,
};
