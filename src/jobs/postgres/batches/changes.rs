//! The changes of files and batches: each one's condition says from where it may be made.

use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row};

use super::super::BATCHES;
use super::super::changes::now_ms;
use super::super::rows::{count, signed, written};
use super::rows;
use crate::jobs::batches::{
    BatchEnd, BatchFault, BatchId, FileId, FilePurpose, LinePart, MOST_UNFINISHED, NewBatch,
    NewFile, Place, Received, Removed, StoredLine, UNFINISHED,
};
use crate::jobs::error::JobStoreError;

pub(super) async fn insert_file(
    pool: &PgPool,
    id: FileId,
    (received, file): (&Received, &NewFile),
) -> Result<(), JobStoreError> {
    let sql = concat!(
        "INSERT INTO diffuser_files (id, owner, purpose, name, bytes, created_ms, expires_ms, \
         object) SELECT $1, $2, $3, $4, $5, now_ms, now_ms + $6, $7 FROM (SELECT ",
        now_ms!(),
        " AS now_ms) AS clock"
    );
    let query = sqlx::query(sql)
        .bind(id.to_string())
        .bind(file.owner.as_str())
        .bind(FilePurpose::Batch.name())
        .bind(&file.name)
        .bind(signed(received.bytes()))
        .bind(signed(file.lifetime_ms))
        .bind(received.name());
    query.execute(pool).await?;
    Ok(())
}

/// Removes a file, with the lines in it; tells which objects are not needed any more.
pub(super) async fn remove_file(
    pool: &PgPool,
    id: FileId,
) -> Result<(Removed, Vec<String>), JobStoreError> {
    let mut transaction = pool.begin().await?;
    // A batch that is made of it now waits for the row.
    let lock = sqlx::query("SELECT 1 FROM diffuser_files WHERE id = $1 FOR UPDATE");
    lock.bind(id.to_string()).execute(&mut *transaction).await?;
    let Some(place) = rows::place(&mut *transaction, id).await? else {
        return Ok((Removed::Gone, Vec::new()));
    };
    if is_in_use(&mut transaction, id).await? {
        return Ok((Removed::InUse, Vec::new()));
    }
    let sql = "DELETE FROM diffuser_files WHERE id = $1";
    sqlx::query(sql).bind(id.to_string()).execute(&mut *transaction).await?;
    let objects = match place {
        Place::Whole(object) => vec![object],
        Place::Lines { batch, part } => remove_lines(&mut transaction, &batch, &part).await?,
    };
    transaction.commit().await?;
    Ok((Removed::Gone, objects))
}

/// Whether a batch needs the file yet.
async fn is_in_use(connection: &mut PgConnection, id: FileId) -> Result<bool, JobStoreError> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM diffuser_batches WHERE {UNFINISHED} AND input_file = $1)"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string());
    Ok(query.fetch_one(connection).await?.try_get(0)?)
}

async fn remove_lines(
    connection: &mut PgConnection,
    batch: &str,
    part: &str,
) -> Result<Vec<String>, JobStoreError> {
    let sql = "DELETE FROM diffuser_batch_lines WHERE batch = $1 AND part = $2 RETURNING object";
    let removed = sqlx::query(sql).bind(batch).bind(part).fetch_all(connection).await?;
    let objects = removed.iter().map(|row| row.try_get::<Option<String>, _>(0));
    Ok(objects.filter_map(Result::transpose).collect::<Result<_, _>>()?)
}

/// Accepts a batch that `driver` sees to, unless its owner has too many.
pub(super) async fn insert_batch(
    pool: &PgPool,
    (id, batch): (BatchId, &NewBatch),
    (driver, lease_s): (&str, f64),
) -> Result<(), JobStoreError> {
    let mut transaction = pool.begin().await?;
    // One batch of an owner after another, and none of a file that is being removed.
    let turn = "SELECT pg_advisory_xact_lock(hashtextextended('diffuser_batches' || $1, 0))";
    sqlx::query(turn).bind(batch.owner.as_str()).execute(&mut *transaction).await?;
    let input = "SELECT 1 FROM diffuser_files WHERE id = $1 FOR SHARE";
    sqlx::query(input).bind(batch.input_file.to_string()).execute(&mut *transaction).await?;
    let sql = format!("SELECT count(*) FROM diffuser_batches WHERE owner = $1 AND {UNFINISHED}");
    let unfinished = sqlx::query(AssertSqlSafe(sql)).bind(batch.owner.as_str());
    let unfinished: i64 = unfinished.fetch_one(&mut *transaction).await?.try_get(0)?;
    if unfinished >= signed(MOST_UNFINISHED as u64) {
        return Err(JobStoreError::TooManyBatches { most: MOST_UNFINISHED });
    }
    let sql = concat!(
        "INSERT INTO diffuser_batches (id, owner, endpoint, input_file, context, metadata, \
         lifetime_ms, files_lifetime_ms, state, created_ms, due_ms, driver, driven_until) SELECT \
         $1, $2, $3, $4, $5, $6, $7, $8, 'validating', now_ms, now_ms + $9, $10, \
         clock_timestamp() + make_interval(secs => $11) FROM (SELECT ",
        now_ms!(),
        " AS now_ms) AS clock"
    );
    let query = sqlx::query(sql)
        .bind(id.to_string())
        .bind(batch.owner.as_str())
        .bind(&batch.endpoint)
        .bind(batch.input_file.to_string())
        .bind(&batch.context)
        .bind(batch.metadata.as_ref().map(written).transpose()?)
        .bind(signed(batch.lifetime_ms))
        .bind(signed(batch.files_lifetime_ms))
        .bind(signed(batch.window_ms))
        .bind(driver)
        .bind(lease_s);
    query.execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

pub(super) async fn begin(pool: &PgPool, id: BatchId, total: u64) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_batches SET state = 'in_progress', total = $2, in_progress_ms = ",
        now_ms!(),
        " WHERE id = $1 AND state = 'validating'"
    );
    let query = sqlx::query(change).bind(id.to_string()).bind(signed(total));
    Ok(query.execute(pool).await?.rows_affected() > 0)
}

pub(super) async fn fail(
    pool: &PgPool,
    id: BatchId,
    faults: &[BatchFault],
) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_batches SET state = 'failed', faults = $2, ended_ms = ",
        now_ms!(),
        " WHERE id = $1 AND state = 'validating'"
    );
    let query = sqlx::query(change).bind(id.to_string()).bind(written(&faults)?);
    Ok(query.execute(pool).await?.rows_affected() > 0)
}

pub(super) async fn finalize(pool: &PgPool, id: BatchId) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_batches SET state = 'finalizing', finalizing_ms = ",
        now_ms!(),
        " WHERE id = $1 AND state = 'in_progress' AND completed + failed = total"
    );
    let query = sqlx::query(change).bind(id.to_string());
    Ok(query.execute(pool).await?.rows_affected() > 0)
}

/// Calls a batch off, whoever sees to it.
pub(super) async fn cancel(pool: &PgPool, id: BatchId) -> Result<bool, JobStoreError> {
    let now = now_ms!();
    let sql = format!(
        "WITH changed AS (UPDATE diffuser_batches SET state = 'cancelling', cancelling_ms = {now} \
         WHERE id = $1 AND state IN ('validating', 'in_progress') RETURNING id) SELECT \
         pg_notify('{BATCHES}', id) FROM changed"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_string());
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// Settles lines; gives the objects of those that were settled before, or come too late.
pub(super) async fn settle(
    pool: &PgPool,
    id: BatchId,
    lines: &[StoredLine],
) -> Result<Vec<String>, JobStoreError> {
    let mut transaction = pool.begin().await?;
    let sql = "SELECT 1 FROM diffuser_batches WHERE id = $1 AND state IN ('in_progress', \
               'cancelling') FOR UPDATE";
    let open = sqlx::query(sql).bind(id.to_string()).fetch_optional(&mut *transaction).await?;
    let inserted = match open {
        Some(_) => insert_lines(&mut transaction, id, lines).await?,
        None => Vec::new(),
    };
    count_lines(&mut transaction, id, &inserted).await?;
    transaction.commit().await?;
    let is_discarded =
        |stored: &&StoredLine| !inserted.iter().any(|line| line.number == stored.line.number);
    Ok(lines.iter().filter(is_discarded).filter_map(|stored| stored.place.clone()).collect())
}

/// A line that had not been settled before.
struct Inserted {
    number: u64,
    is_output: bool,
    bytes: u64,
}

async fn insert_lines(
    connection: &mut PgConnection,
    id: BatchId,
    lines: &[StoredLine],
) -> Result<Vec<Inserted>, JobStoreError> {
    let sql = "INSERT INTO diffuser_batch_lines (batch, number, part, bytes, content, object) \
               SELECT $1, number, part, bytes, content, object FROM unnest($2::bigint[], \
               $3::text[], $4::bigint[], $5::bytea[], $6::text[]) AS new (number, part, bytes, \
               content, object) ON CONFLICT DO NOTHING RETURNING number, part, bytes";
    let of_lines = || lines.iter().map(|stored| &stored.line);
    let bytes: Vec<i64> = of_lines().map(|line| signed(line.content.len() as u64)).collect();
    let query = sqlx::query(sql)
        .bind(id.to_string())
        .bind(of_lines().map(|line| signed(line.number)).collect::<Vec<_>>())
        .bind(of_lines().map(|line| line.part.name()).collect::<Vec<_>>())
        .bind(bytes)
        .bind(lines.iter().map(StoredLine::in_row).collect::<Vec<_>>())
        .bind(lines.iter().map(|stored| stored.place.as_deref()).collect::<Vec<_>>());
    let inserted = |row: &PgRow| {
        let part: String = row.try_get("part")?;
        let is_output = part == LinePart::Output.name();
        Ok(Inserted { number: count(row, "number")?, is_output, bytes: count(row, "bytes")? })
    };
    query.fetch_all(connection).await?.iter().map(inserted).collect()
}

async fn count_lines(
    connection: &mut PgConnection,
    id: BatchId,
    inserted: &[Inserted],
) -> Result<(), JobStoreError> {
    let completed = inserted.iter().filter(|line| line.is_output).count() as u64;
    let bytes = inserted.iter().map(|line| line.bytes).sum();
    let sql = "UPDATE diffuser_batches SET completed = completed + $2, failed = failed + $3, \
               line_bytes = line_bytes + $4 WHERE id = $1";
    let query = sqlx::query(sql)
        .bind(id.to_string())
        .bind(signed(completed))
        .bind(signed(inserted.len() as u64 - completed))
        .bind(signed(bytes));
    query.execute(connection).await?;
    Ok(())
}

/// Ends a batch and makes files of its lines.
pub(super) async fn end(pool: &PgPool, id: BatchId, end: BatchEnd) -> Result<bool, JobStoreError> {
    let mut transaction = pool.begin().await?;
    let (from, now) = (end.from(), now_ms!());
    let change = format!(
        "UPDATE diffuser_batches SET state = $2, ended_ms = {now}, line_bytes = 0 WHERE id = $1 \
         AND {from} AND completed + failed = total"
    );
    let query = sqlx::query(AssertSqlSafe(change)).bind(id.to_string()).bind(end.state().name());
    if query.execute(&mut *transaction).await?.rows_affected() == 0 {
        return Ok(false);
    }
    for part in LinePart::ALL {
        make_file(&mut transaction, id, part).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Makes a file of the lines of a part, if there are any.
async fn make_file(
    connection: &mut PgConnection,
    id: BatchId,
    part: LinePart,
) -> Result<(), JobStoreError> {
    let (batch, part) = (id.to_string(), part.name());
    let sql = "SELECT sum(bytes)::bigint FROM diffuser_batch_lines WHERE batch = $1 AND part = $2";
    let sum = sqlx::query(sql).bind(&batch).bind(part).fetch_one(&mut *connection).await?;
    let Some(bytes) = sum.try_get::<Option<i64>, _>(0)? else { return Ok(()) };
    let file = FileId::new().to_string();
    let sql = concat!(
        "INSERT INTO diffuser_files (id, owner, purpose, name, bytes, created_ms, expires_ms, \
         batch, part) SELECT $1, owner, $2, $3, $4, now_ms, now_ms + files_lifetime_ms, id, $5 \
         FROM diffuser_batches, (SELECT ",
        now_ms!(),
        " AS now_ms) AS clock WHERE id = $6"
    );
    let query = sqlx::query(sql)
        .bind(&file)
        .bind(FilePurpose::BatchOutput.name())
        .bind(format!("{batch}_{part}.jsonl"))
        .bind(bytes)
        .bind(part)
        .bind(&batch);
    query.execute(&mut *connection).await?;
    let sql = format!("UPDATE diffuser_batches SET {part}_file = $2 WHERE id = $1");
    sqlx::query(AssertSqlSafe(sql)).bind(batch).bind(file).execute(connection).await?;
    Ok(())
}

/// Forgets batches that have ended long ago.
pub(super) async fn forget_batches(pool: &PgPool) -> Result<(), JobStoreError> {
    let sql = concat!("DELETE FROM diffuser_batches WHERE ended_ms + lifetime_ms <= ", now_ms!());
    sqlx::query(sql).execute(pool).await?;
    Ok(())
}
