//! Which process sees to a batch: one at a time, as long as it says that it is there.

use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Row};

use super::super::{BATCHES, leases::LEASE};
use crate::jobs::batches::{BatchId, UNFINISHED, name};
use crate::jobs::error::JobStoreError;

/// Says that `driver` is there, and gives it all that nobody sees to; these and those that it
/// has, the oldest first.
pub(super) async fn take(pool: &PgPool, driver: &str) -> Result<Vec<BatchId>, JobStoreError> {
    let lease = "driven_until = clock_timestamp() + make_interval(secs => $2)";
    let renewal = format!(
        "UPDATE diffuser_batches SET {lease} WHERE driver = $1 AND {UNFINISHED} RETURNING id"
    );
    let mut ids = changed(pool, renewal, driver).await?;
    let taking = format!(
        "WITH free AS (SELECT id FROM diffuser_batches WHERE {UNFINISHED} AND (driver IS NULL OR \
         driven_until < clock_timestamp()) FOR UPDATE SKIP LOCKED) UPDATE diffuser_batches SET \
         driver = $1, {lease} WHERE id IN (SELECT id FROM free) RETURNING id"
    );
    let taken = changed(pool, taking, driver).await?;
    if !taken.is_empty() {
        tracing::info!(batches = taken.len(), "batches that nobody saw to are taken up");
    }
    ids.extend(taken);
    ids.sort_unstable();
    Ok(ids)
}

async fn changed(pool: &PgPool, sql: String, driver: &str) -> Result<Vec<BatchId>, JobStoreError> {
    let query = sqlx::query(AssertSqlSafe(sql)).bind(driver).bind(LEASE.as_secs_f64());
    query.fetch_all(pool).await?.iter().map(|row| name(row, "id")).collect()
}

/// Whether `driver` sees to the batch.
pub(super) async fn is_given(
    pool: &PgPool,
    driver: &str,
    id: BatchId,
) -> Result<bool, JobStoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM diffuser_batches WHERE id = $1 AND driver = $2)";
    let query = sqlx::query(sql).bind(id.to_string()).bind(driver);
    Ok(query.fetch_one(pool).await?.try_get(0)?)
}

/// Says that `driver` sees to none any more.
pub(super) async fn give_back(pool: &PgPool, driver: &str) -> Result<(), JobStoreError> {
    let sql = format!(
        "WITH left_now AS (UPDATE diffuser_batches SET driver = NULL, driven_until = NULL WHERE \
         driver = $1 AND {UNFINISHED} RETURNING id) SELECT pg_notify('{BATCHES}', id) FROM left_now"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(driver).fetch_all(pool).await?;
    Ok(())
}
