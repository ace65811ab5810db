//! What is known of files and batches.

use sqlx::postgres::{PgPool, PgRow};
use sqlx::{AssertSqlSafe, PgExecutor, Row};

use super::super::changes::now_ms;
use super::super::rows::{count, count_or_none, signed};
use crate::jobs::batches::{
    self, BatchId, BatchList, BatchPage, BatchRecord, Columns, FileId, FileList, FileOrder,
    FilePage, FilePurpose, FileRecord, Piece, Place, ROW_BYTES, UNFINISHED,
};
use crate::jobs::error::JobStoreError;
use crate::jobs::record::Owner;
use crate::jobs::store::page_of;

impl Columns for PgRow {
    fn text(&self, column: &'static str) -> Result<Option<String>, JobStoreError> {
        Ok(self.try_get(column)?)
    }

    fn number(&self, column: &'static str) -> Result<Option<u64>, JobStoreError> {
        count_or_none(self, column)
    }
}

/// What all of them take.
pub(in crate::jobs::postgres) async fn bytes(pool: &PgPool) -> Result<u64, JobStoreError> {
    let sql = "SELECT (SELECT coalesce(sum(bytes), 0) FROM diffuser_files)::bigint AS of_files, \
               (SELECT coalesce(sum(line_bytes), 0) FROM diffuser_batches)::bigint AS of_lines, \
               (SELECT count(*) FROM diffuser_files) + (SELECT count(*) FROM diffuser_batches) AS \
               number";
    let row = sqlx::query(sql).fetch_one(pool).await?;
    let of_rows = count(&row, "number")?.saturating_mul(ROW_BYTES);
    let of_content = count(&row, "of_files")?.saturating_add(count(&row, "of_lines")?);
    Ok(of_content.saturating_add(of_rows))
}

/// Those names of objects that no row has.
pub(in crate::jobs::postgres) async fn unknown(
    pool: &PgPool,
    objects: Vec<String>,
) -> Result<Vec<String>, JobStoreError> {
    let sql = "SELECT object FROM unnest($1::text[]) AS swept (object) WHERE NOT EXISTS (SELECT 1 \
               FROM diffuser_files AS file WHERE file.object = swept.object) AND NOT EXISTS \
               (SELECT 1 FROM diffuser_batch_lines AS line WHERE line.object = swept.object)";
    let found = sqlx::query(sql).bind(objects).fetch_all(pool).await?;
    found.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

const FILE: &str = "SELECT id, owner, purpose, name, bytes, created_ms, expires_ms FROM \
                    diffuser_files";

pub(super) async fn file(pool: &PgPool, id: FileId) -> Result<Option<FileRecord>, JobStoreError> {
    let sql = format!("{FILE} WHERE id = $1");
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string());
    query.fetch_optional(pool).await?.as_ref().map(batches::file).transpose()
}

pub(super) async fn files(
    pool: &PgPool,
    owner: &Owner,
    page: FilePage,
) -> Result<FileList, JobStoreError> {
    let (beyond, direction) = match page.order {
        FileOrder::Latest => ("<", "DESC"),
        FileOrder::First => (">", "ASC"),
    };
    let sql = format!(
        "{FILE} WHERE owner = $1 AND ($2::text IS NULL OR id {beyond} $2) AND ($3::text IS NULL OR \
         purpose = $3) ORDER BY id {direction} LIMIT $4"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(owner.as_str())
        .bind(page.after.map(|id| id.to_string()))
        .bind(page.purpose.map(FilePurpose::name))
        .bind(one_more_than(page.limit));
    let found = query.fetch_all(pool).await?;
    let files = found.iter().map(batches::file).collect::<Result<Vec<_>, _>>()?;
    let (files, has_more) = page_of(files, page.limit);
    Ok(FileList { files, has_more })
}

fn one_more_than(limit: usize) -> i64 {
    signed((limit as u64).saturating_add(1))
}

/// Where the content of a file is.
pub(super) async fn place(
    executor: impl PgExecutor<'_>,
    id: FileId,
) -> Result<Option<Place>, JobStoreError> {
    let sql = "SELECT object, batch, part FROM diffuser_files WHERE id = $1";
    let Some(row) = sqlx::query(sql).bind(id.to_string()).fetch_optional(executor).await? else {
        return Ok(None);
    };
    let object: Option<String> = row.try_get("object")?;
    Ok(Some(match object {
        Some(object) => Place::Whole(object),
        None => Place::Lines { batch: row.try_get("batch")?, part: row.try_get("part")? },
    }))
}

/// So many lines of a part behind line `after`, each with its number.
pub(super) async fn lines(
    pool: &PgPool,
    (batch, part): (&str, &str),
    after: u64,
    limit: u32,
) -> Result<Vec<(u64, Piece)>, JobStoreError> {
    let sql = "SELECT number, content, object FROM diffuser_batch_lines WHERE batch = $1 AND part \
               = $2 AND number > $3 ORDER BY number LIMIT $4";
    let query = sqlx::query(sql).bind(batch).bind(part).bind(signed(after)).bind(i64::from(limit));
    let piece = |row: &PgRow| {
        let object: Option<String> = row.try_get("object")?;
        let piece = match object {
            Some(object) => Piece::Elsewhere(object),
            None => Piece::InRow(row.try_get("content")?),
        };
        Ok((count(row, "number")?, piece))
    };
    query.fetch_all(pool).await?.iter().map(piece).collect()
}

/// Files whose time is over and that no batch needs.
pub(super) async fn outlived_files(pool: &PgPool) -> Result<Vec<FileId>, JobStoreError> {
    let now = now_ms!();
    let sql = format!(
        "SELECT id FROM diffuser_files AS file WHERE expires_ms <= {now} AND NOT EXISTS (SELECT 1 \
         FROM diffuser_batches WHERE {UNFINISHED} AND input_file = file.id)"
    );
    let found = sqlx::query(AssertSqlSafe(sql)).fetch_all(pool).await?;
    found.iter().map(|row| batches::name(row, "id")).collect()
}

pub(super) async fn settled(pool: &PgPool, id: BatchId) -> Result<Vec<u64>, JobStoreError> {
    let sql = "SELECT number FROM diffuser_batch_lines WHERE batch = $1 ORDER BY number";
    let found = sqlx::query(sql).bind(id.to_string()).fetch_all(pool).await?;
    found.iter().map(|row| count(row, "number")).collect()
}

/// Named one by one: a later version of the layout may have more, while this program runs.
const BATCH: &str = "SELECT id, owner, endpoint, input_file, context, metadata, state, created_ms, \
                     due_ms, in_progress_ms, finalizing_ms, cancelling_ms, ended_ms, total, \
                     completed, failed, faults, output_file, error_file FROM diffuser_batches";

pub(super) async fn batch(
    pool: &PgPool,
    id: BatchId,
) -> Result<Option<BatchRecord>, JobStoreError> {
    let sql = format!("{BATCH} WHERE id = $1");
    let found = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string()).fetch_optional(pool).await?;
    found.as_ref().map(batches::batch).transpose()
}

pub(super) async fn batches(
    pool: &PgPool,
    owner: &Owner,
    page: BatchPage,
) -> Result<BatchList, JobStoreError> {
    let sql = format!(
        "{BATCH} WHERE owner = $1 AND ($2::text IS NULL OR id < $2) ORDER BY id DESC LIMIT $3"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(owner.as_str())
        .bind(page.after.map(|id| id.to_string()))
        .bind(one_more_than(page.limit));
    let found = query.fetch_all(pool).await?;
    let batches = found.iter().map(batches::batch).collect::<Result<Vec<_>, _>>()?;
    let (batches, has_more) = page_of(batches, page.limit);
    Ok(BatchList { batches, has_more })
}
