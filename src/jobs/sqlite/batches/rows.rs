//! Rows of files and batches as records.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use crate::jobs::batches::{
    self as batches, BatchId, BatchList, BatchPage, BatchRecord, Columns, FileId, FileList,
    FileOrder, FilePage, FilePurpose, FileRecord, Piece, Place, UNFINISHED,
};
use crate::jobs::error::JobStoreError;
use crate::jobs::record::{Owner, now_ms};
use crate::jobs::store::page_of;

/// What all of them take, with `row_bytes` for each.
pub(super) fn bytes(db: &Connection, row_bytes: u64) -> rusqlite::Result<u64> {
    let sum = |sql: &str| -> rusqlite::Result<(u64, u64)> {
        db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    };
    let (files, of_files) = sum("SELECT count(*), coalesce(sum(bytes), 0) FROM files")?;
    let (batches, of_lines) = sum("SELECT count(*), coalesce(sum(line_bytes), 0) FROM batches")?;
    let of_rows = files.saturating_add(batches).saturating_mul(row_bytes);
    Ok(of_files.saturating_add(of_lines).saturating_add(of_rows))
}

/// All blobs that rows name.
pub(super) fn blobs(db: &Connection) -> Result<HashSet<String>, JobStoreError> {
    let sql = "SELECT blob FROM files WHERE blob IS NOT NULL UNION ALL \
               SELECT blob FROM batch_lines WHERE blob IS NOT NULL";
    let mut statement = db.prepare(sql)?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

const FILE: &str = "SELECT id, owner, purpose, name, bytes, created_ms, expires_ms FROM files";

pub(super) fn file(db: &Connection, id: FileId) -> Result<Option<FileRecord>, JobStoreError> {
    let mut statement = db.prepare_cached(&format!("{FILE} WHERE id = ?1"))?;
    statement.query_row([id.to_string()], |row| Ok(batches::file(row))).optional()?.transpose()
}

pub(super) fn files(
    db: &Connection,
    owner: &Owner,
    page: FilePage,
) -> Result<FileList, JobStoreError> {
    let (beyond, direction) = match page.order {
        FileOrder::Latest => ("<", "DESC"),
        FileOrder::First => (">", "ASC"),
    };
    let sql = format!(
        "{FILE} WHERE owner = :owner AND (:after IS NULL OR id {beyond} :after) AND \
         (:purpose IS NULL OR purpose = :purpose) ORDER BY id {direction} LIMIT :limit"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(named_params! {
        ":owner": owner.as_str(),
        ":after": page.after.map(|id| id.to_string()),
        ":purpose": page.purpose.map(FilePurpose::name),
        ":limit": one_more_than(page.limit),
    })?;
    let mut files = Vec::new();
    while let Some(row) = rows.next()? {
        files.push(batches::file(row)?);
    }
    let (files, has_more) = page_of(files, page.limit);
    Ok(FileList { files, has_more })
}

fn one_more_than(limit: usize) -> i64 {
    i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX)
}

pub(super) fn place(db: &Connection, id: FileId) -> Result<Option<Place>, JobStoreError> {
    let sql = "SELECT blob, batch, part FROM files WHERE id = ?1";
    let found = db.query_row(sql, [id.to_string()], |row| {
        let blob: Option<String> = row.get(0)?;
        Ok(match blob {
            Some(blob) => Place::Whole(blob),
            None => Place::Lines { batch: row.get(1)?, part: row.get(2)? },
        })
    });
    Ok(found.optional()?)
}

/// So many lines of a part behind line `after`, each with its number.
pub(super) fn lines(
    db: &Connection,
    (batch, part): (&str, &str),
    after: u64,
    limit: u32,
) -> Result<Vec<(u64, Piece)>, JobStoreError> {
    let mut statement = db.prepare_cached(
        "SELECT number, content, blob FROM batch_lines WHERE batch = ?1 AND part = ?2 AND \
         number > ?3 ORDER BY number LIMIT ?4",
    )?;
    let lines = statement.query_map(params![batch, part, after, limit], |row| {
        let blob: Option<String> = row.get(2)?;
        let piece = match blob {
            Some(blob) => Piece::Elsewhere(blob),
            None => Piece::InRow(row.get(1)?),
        };
        Ok((row.get(0)?, piece))
    })?;
    Ok(lines.collect::<Result<_, _>>()?)
}

/// Whether a batch needs the file yet.
pub(super) fn is_in_use(db: &Connection, id: FileId) -> Result<bool, JobStoreError> {
    let sql =
        format!("SELECT EXISTS(SELECT 1 FROM batches WHERE {UNFINISHED} AND input_file = ?1)");
    Ok(db.query_row(&sql, [id.to_string()], |row| row.get(0))?)
}

/// Files whose time is over and that no batch needs.
pub(super) fn outlived_files(db: &Connection) -> Result<Vec<FileId>, JobStoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT id FROM files WHERE expires_ms <= ?1 AND NOT EXISTS \
         (SELECT 1 FROM batches WHERE {UNFINISHED} AND input_file = files.id)"
    ))?;
    let mut rows = statement.query([now_ms()])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(batches::name(row, "id")?);
    }
    Ok(ids)
}

pub(super) fn unfinished(db: &Connection) -> Result<Vec<BatchId>, JobStoreError> {
    let sql = format!("SELECT id FROM batches WHERE {UNFINISHED} ORDER BY id");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(batches::name(row, "id")?);
    }
    Ok(ids)
}

pub(super) fn unfinished_of(db: &Connection, owner: &Owner) -> Result<u64, JobStoreError> {
    let sql = format!("SELECT count(*) FROM batches WHERE owner = ?1 AND {UNFINISHED}");
    Ok(db.query_row(&sql, [owner.as_str()], |row| row.get(0))?)
}

pub(super) fn settled(db: &Connection, id: BatchId) -> Result<Vec<u64>, JobStoreError> {
    let mut statement =
        db.prepare_cached("SELECT number FROM batch_lines WHERE batch = ?1 ORDER BY number")?;
    let numbers = statement.query_map([id.to_string()], |row| row.get(0))?;
    Ok(numbers.collect::<Result<_, _>>()?)
}

pub(super) fn batch(db: &Connection, id: BatchId) -> Result<Option<BatchRecord>, JobStoreError> {
    let mut statement = db.prepare_cached("SELECT * FROM batches WHERE id = ?1")?;
    statement.query_row([id.to_string()], |row| Ok(batches::batch(row))).optional()?.transpose()
}

pub(super) fn batches(
    db: &Connection,
    owner: &Owner,
    page: BatchPage,
) -> Result<BatchList, JobStoreError> {
    let mut statement = db.prepare_cached(
        "SELECT * FROM batches WHERE owner = ?1 AND (?2 IS NULL OR id < ?2) \
         ORDER BY id DESC LIMIT ?3",
    )?;
    let after = page.after.map(|id| id.to_string());
    let mut rows = statement.query(params![owner.as_str(), after, one_more_than(page.limit)])?;
    let mut batches = Vec::new();
    while let Some(row) = rows.next()? {
        batches.push(batches::batch(row)?);
    }
    let (batches, has_more) = page_of(batches, page.limit);
    Ok(BatchList { batches, has_more })
}

impl Columns for Row<'_> {
    fn text(&self, column: &'static str) -> Result<Option<String>, JobStoreError> {
        Ok(self.get(column)?)
    }

    fn number(&self, column: &'static str) -> Result<Option<u64>, JobStoreError> {
        Ok(self.get(column)?)
    }
}
