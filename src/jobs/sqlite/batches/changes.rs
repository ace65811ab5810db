//! The changes of files and batches: each one's condition says from where it may be made.

use rusqlite::{Connection, named_params, params};

use super::rows;
use crate::jobs::batches::{
    BatchEnd, BatchFault, BatchId, FileId, FilePurpose, LinePart, NewBatch, NewFile, Place,
    Received, StoredLine,
};
use crate::jobs::error::JobStoreError;
use crate::jobs::record::now_ms;
use crate::jobs::sqlite::rows::written;

pub(super) fn insert_file(
    db: &Connection,
    id: FileId,
    (received, file): (&Received, &NewFile),
) -> Result<(), JobStoreError> {
    let now = now_ms();
    db.execute(
        "INSERT INTO files (id, owner, purpose, name, bytes, created_ms, expires_ms, blob) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            id.to_string(),
            file.owner.as_str(),
            FilePurpose::Batch.name(),
            file.name,
            received.bytes(),
            now,
            now.saturating_add(file.lifetime_ms),
            received.name(),
        ],
    )?;
    Ok(())
}

/// Removes a file, with the lines in it; gives the blobs that are not needed any more.
pub(super) fn remove_file(db: &Connection, id: FileId) -> Result<Vec<String>, JobStoreError> {
    let Some(place) = rows::place(db, id)? else { return Ok(Vec::new()) };
    db.execute("DELETE FROM files WHERE id = ?1", [id.to_string()])?;
    let (batch, part) = match place {
        Place::Whole(blob) => return Ok(vec![blob]),
        Place::Lines { batch, part } => (batch, part),
    };
    let mut statement =
        db.prepare_cached("DELETE FROM batch_lines WHERE batch = ?1 AND part = ?2 RETURNING blob")?;
    let blobs = statement.query_map([batch, part], |row| row.get::<_, Option<String>>(0))?;
    Ok(blobs.filter_map(Result::transpose).collect::<Result<_, _>>()?)
}

pub(super) fn insert_batch(
    db: &Connection,
    id: BatchId,
    batch: &NewBatch,
) -> Result<(), JobStoreError> {
    let now = now_ms();
    db.execute(
        "INSERT INTO batches (id, owner, endpoint, input_file, context, metadata, lifetime_ms, \
         files_lifetime_ms, state, created_ms, due_ms) VALUES (:id, :owner, :endpoint, :input, \
         :context, :metadata, :lifetime, :files_lifetime, 'validating', :now, :due)",
        named_params! {
            ":id": id.to_string(),
            ":owner": batch.owner.as_str(),
            ":endpoint": batch.endpoint,
            ":input": batch.input_file.to_string(),
            ":context": batch.context,
            ":metadata": batch.metadata.as_ref().map(written).transpose()?,
            ":lifetime": batch.lifetime_ms,
            ":files_lifetime": batch.files_lifetime_ms,
            ":now": now,
            ":due": now.saturating_add(batch.window_ms),
        },
    )?;
    Ok(())
}

pub(super) fn begin(db: &Connection, id: BatchId, total: u64) -> Result<bool, JobStoreError> {
    let changed = db.execute(
        "UPDATE batches SET state = 'in_progress', in_progress_ms = ?2, total = ?3 \
         WHERE id = ?1 AND state = 'validating'",
        params![id.to_string(), now_ms(), total],
    )?;
    Ok(changed > 0)
}

pub(super) fn fail(
    db: &Connection,
    id: BatchId,
    faults: &[BatchFault],
) -> Result<bool, JobStoreError> {
    let changed = db.execute(
        "UPDATE batches SET state = 'failed', ended_ms = ?2, faults = ?3 \
         WHERE id = ?1 AND state = 'validating'",
        params![id.to_string(), now_ms(), written(&faults)?],
    )?;
    Ok(changed > 0)
}

pub(super) fn finalize(db: &Connection, id: BatchId) -> Result<bool, JobStoreError> {
    let changed = db.execute(
        "UPDATE batches SET state = 'finalizing', finalizing_ms = ?2 \
         WHERE id = ?1 AND state = 'in_progress' AND completed + failed = total",
        params![id.to_string(), now_ms()],
    )?;
    Ok(changed > 0)
}

pub(super) fn cancel(db: &Connection, id: BatchId) -> Result<bool, JobStoreError> {
    let changed = db.execute(
        "UPDATE batches SET state = 'cancelling', cancelling_ms = ?2 \
         WHERE id = ?1 AND state IN ('validating', 'in_progress')",
        params![id.to_string(), now_ms()],
    )?;
    Ok(changed > 0)
}

/// Settles lines; gives the blobs of those that were settled before, or come too late.
pub(super) fn settle(
    db: &Connection,
    id: BatchId,
    lines: &[StoredLine],
) -> Result<Vec<String>, JobStoreError> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO batch_lines (batch, number, part, bytes, content, blob) \
         SELECT :batch, :number, :part, :bytes, :content, :blob WHERE EXISTS \
         (SELECT 1 FROM batches WHERE id = :batch AND state IN ('in_progress', 'cancelling'))",
    )?;
    let mut count = db.prepare_cached(
        "UPDATE batches SET completed = completed + (?2 = 'output'), failed = failed + \
         (?2 = 'error'), line_bytes = line_bytes + ?3 WHERE id = ?1",
    )?;
    let mut discarded = Vec::new();
    for stored in lines {
        let StoredLine { line, place: blob } = stored;
        let (part, bytes) = (line.part.name(), line.content.len() as u64);
        let content = stored.in_row();
        let inserted = insert.execute(named_params! {
            ":batch": id.to_string(),
            ":number": line.number,
            ":part": part,
            ":bytes": bytes,
            ":content": content,
            ":blob": blob,
        })?;
        if inserted > 0 {
            count.execute(params![id.to_string(), part, bytes])?;
        } else {
            discarded.extend(blob.clone());
        }
    }
    Ok(discarded)
}

/// Ends a batch and makes files of its lines.
pub(super) fn end(db: &Connection, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError> {
    let (from, to) = (end.from(), end.state().name());
    let sql = format!(
        "UPDATE batches SET state = ?2, ended_ms = ?3, line_bytes = 0 \
         WHERE id = ?1 AND {from} AND completed + failed = total"
    );
    if db.execute(&sql, params![id.to_string(), to, now_ms()])? == 0 {
        return Ok(false);
    }
    for part in LinePart::ALL {
        make_file(db, id, part)?;
    }
    Ok(true)
}

/// Makes a file of the lines of a part, if there are any.
fn make_file(db: &Connection, id: BatchId, part: LinePart) -> Result<(), JobStoreError> {
    let (batch, part) = (id.to_string(), part.name());
    let sql = "SELECT sum(bytes) FROM batch_lines WHERE batch = ?1 AND part = ?2";
    let bytes: Option<u64> = db.query_row(sql, [&batch, part], |row| row.get(0))?;
    let Some(bytes) = bytes else { return Ok(()) };
    let file = FileId::new().to_string();
    db.execute(
        "INSERT INTO files (id, owner, purpose, name, bytes, created_ms, expires_ms, batch, part) \
         SELECT ?1, owner, ?2, ?3, ?4, ?5, ?5 + files_lifetime_ms, id, ?6 \
         FROM batches WHERE id = ?7",
        params![
            file,
            FilePurpose::BatchOutput.name(),
            format!("{batch}_{part}.jsonl"),
            bytes,
            now_ms(),
            part,
            batch
        ],
    )?;
    db.execute(&format!("UPDATE batches SET {part}_file = ?2 WHERE id = ?1"), [batch, file])?;
    Ok(())
}

/// Forgets batches that have ended long ago.
pub(super) fn forget_batches(db: &Connection) -> Result<(), JobStoreError> {
    db.execute("DELETE FROM batches WHERE ended_ms + lifetime_ms <= ?1", [now_ms()])?;
    Ok(())
}
