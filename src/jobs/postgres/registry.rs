//! Which workers there are, and what they say of their models.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::MODELS;
use crate::jobs::error::JobStoreError;
use crate::jobs::fleet::AnnouncedModel;

/// A worker that has said nothing for so long is no more.
const SILENCE: Duration = Duration::from_secs(30);

/// Says which models a worker has, in its order; those that it had before it has no more.
pub(super) async fn announce(
    pool: &PgPool,
    worker: &str,
    models: &[(String, String)],
) -> Result<(), JobStoreError> {
    let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
    let texts: Vec<&str> = models.iter().map(|(_, text)| text.as_str()).collect();
    let mut transaction = pool.begin().await?;
    let gone = "DELETE FROM diffuser_models WHERE worker = $1 AND NOT model = ANY($2)";
    sqlx::query(gone).bind(worker).bind(&names).execute(&mut *transaction).await?;
    let sql = "WITH before AS (SELECT model, announcement FROM diffuser_models WHERE worker = $1), \
               written AS (INSERT INTO diffuser_models SELECT $1, model, place, announcement, \
               clock_timestamp() FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS new \
               (model, announcement, place) ON CONFLICT (worker, model) DO UPDATE SET seen_at = \
               excluded.seen_at, place = excluded.place, announcement = excluded.announcement \
               RETURNING model, announcement) SELECT count(*) FROM written LEFT JOIN before USING \
               (model, announcement) WHERE before.model IS NULL";
    let query = sqlx::query(sql).bind(worker).bind(&names).bind(&texts);
    let news: i64 = query.fetch_one(&mut *transaction).await?.try_get(0)?;
    if news > 0 {
        let tell = "SELECT pg_notify($1, $2)";
        sqlx::query(tell).bind(MODELS).bind(worker).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// Says that a worker is no more. What it has said of its models stays known.
pub(super) async fn leave(pool: &PgPool, worker: &str) -> Result<(), JobStoreError> {
    let sql = "WITH left_now AS (UPDATE diffuser_models SET seen_at = '-infinity' WHERE worker = \
               $1 RETURNING model) SELECT pg_notify($2, $1) FROM (SELECT count(*) FROM left_now) \
               AS all_of_them";
    sqlx::query(sql).bind(worker).bind(MODELS).execute(pool).await?;
    Ok(())
}

/// All models that were ever announced and not taken back, as was said of each last; those of
/// the longest list come first.
pub(super) async fn models(pool: &PgPool) -> Result<Vec<AnnouncedModel>, JobStoreError> {
    let sql = "SELECT model, (array_agg(announcement ORDER BY seen_at DESC))[1] AS announcement, \
               count(*) FILTER (WHERE seen_at > clock_timestamp() - make_interval(secs => $1)) AS \
               workers FROM diffuser_models GROUP BY model ORDER BY min(place), model";
    let found = sqlx::query(sql).bind(SILENCE.as_secs_f64()).fetch_all(pool).await?;
    let model = |row: &sqlx::postgres::PgRow| {
        Ok(AnnouncedModel {
            name: row.try_get("model")?,
            announcement: row.try_get("announcement")?,
            workers: super::rows::count(row, "workers")?,
        })
    };
    found.iter().map(model).collect()
}

/// Forgets workers that are no more, but for the last word on each model.
pub(super) async fn forget(pool: &PgPool, age: Duration) -> Result<(), JobStoreError> {
    let sql = "DELETE FROM diffuser_models AS old WHERE seen_at < clock_timestamp() - \
               make_interval(secs => $1) AND EXISTS (SELECT 1 FROM diffuser_models AS newer WHERE \
               newer.model = old.model AND newer.worker <> old.worker AND newer.seen_at > \
               old.seen_at)";
    sqlx::query(sql).bind(age.as_secs_f64()).execute(pool).await?;
    Ok(())
}
