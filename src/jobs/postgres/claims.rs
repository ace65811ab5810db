//! Which job is next: small before big, fair between owners, and nobody waits for ever.
//!
//! The order is that of one process's lines (weighted fair queueing: Demers, Keshav and
//! Shenker 1989) with what it needs in tables: virtual time by model, and until when an owner
//! has been given its share of a model. Time is counted in seconds of work, as jobs' costs
//! are. A job that is small goes first; one that came long ago has an earlier end than what
//! comes now, however small that is. Claims on jobs of one model come one after another: each
//! locks the row of its line.

use sqlx::postgres::PgPool;
use sqlx::{Connection, Row};

use super::changes::telling;
use super::rows::{self, columns, signed};
use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
use crate::jobs::record::JobRecord;
use crate::jobs::store::Wanted;

/// How long jobs wait before a worker loads another model for them: less, and a fleet spends
/// its time loading (docs/scaling.md).
const PATIENCE_MS: i64 = 120_000;

/// Who takes up jobs, and for how long it has them unless it says more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taker<'a> {
    pub(super) worker: &'a str,
    pub(super) lease_s: f64,
}

/// Takes up the next job that `wanted` names: of models that are loaded first.
pub(super) async fn next(
    pool: &PgPool,
    wanted: &Wanted,
    taker: Taker<'_>,
) -> Result<Option<JobRecord>, JobStoreError> {
    for model in with_work(pool, wanted).await? {
        if let Some(record) = next_of(pool, &model, taker).await? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// The models for which jobs wait, the one first whose oldest job has waited longest; those
/// that would have to be loaded come last, and only if theirs have waited for long.
async fn with_work(pool: &PgPool, wanted: &Wanted) -> Result<Vec<String>, JobStoreError> {
    let sql = concat!(
        "SELECT model FROM diffuser_jobs WHERE state = 'queued' AND NOT is_claimed AND (model = \
         ANY($1) OR model = ANY($2)) GROUP BY model HAVING model = ANY($1) OR min(created_ms) < ",
        super::changes::now_ms!(),
        " - $3 ORDER BY model = ANY($1) DESC, min(created_ms)"
    );
    let query = sqlx::query(sql).bind(&wanted.loaded).bind(&wanted.loadable).bind(PATIENCE_MS);
    let found = query.fetch_all(pool).await?;
    found.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The job of each owner that would end earliest had it come alone, and of these the one that
/// would end earliest had each owner its own share of the workers; patient ones come last.
const HEAD: &str = "
    SELECT head.id, head.owner, head.came_s, head.cost_s
    FROM (
        SELECT DISTINCT ON (owner) id, owner, is_patient, came_s, cost_s FROM diffuser_jobs
        WHERE model = $1 AND state = 'queued' AND NOT is_claimed
        ORDER BY owner, is_patient, came_s + cost_s, id
    ) AS head
    LEFT JOIN diffuser_shares AS share ON share.model = $1 AND share.owner = head.owner
    ORDER BY head.is_patient, greatest(head.came_s, coalesce(share.served_until_s, 0)) + head.cost_s, head.id
    LIMIT 1";

async fn next_of(
    pool: &PgPool,
    model: &str,
    taker: Taker<'_>,
) -> Result<Option<JobRecord>, JobStoreError> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    let line = "SELECT now_s FROM diffuser_lines WHERE model = $1 FOR UPDATE";
    sqlx::query(line).bind(model).fetch_optional(&mut *transaction).await?;
    let head = sqlx::query(HEAD).bind(model).fetch_optional(&mut *transaction).await?;
    let Some(head) = head else { return Ok(None) };
    let id: String = head.try_get("id")?;
    let claim = "UPDATE diffuser_jobs SET is_claimed = TRUE, claims = claims + 1, worker = $2, \
                 leased_until = clock_timestamp() + make_interval(secs => $3) WHERE id = $1 AND \
                 state = 'queued' AND NOT is_claimed";
    let query = sqlx::query(telling(claim)).bind(&id).bind(taker.worker).bind(taker.lease_s);
    if query.fetch_optional(&mut *transaction).await?.is_none() {
        // It was called off in between: the next look finds another.
        return Ok(None);
    }
    let share = "WITH busy AS (SELECT count(DISTINCT owner) AS owners FROM diffuser_jobs WHERE \
                 model = $1 AND state IN ('queued', 'running')), line AS (UPDATE diffuser_lines \
                 SET now_s = now_s + $4 / greatest((SELECT owners FROM busy), 1) WHERE model = $1) \
                 INSERT INTO diffuser_shares VALUES ($1, $2, $3 + $4) ON CONFLICT (model, owner) \
                 DO UPDATE SET served_until_s = greatest(diffuser_shares.served_until_s, $3) + $4";
    let (came_s, cost_s): (f64, f64) = (head.try_get("came_s")?, head.try_get("cost_s")?);
    let owner: String = head.try_get("owner")?;
    let query = sqlx::query(share).bind(model).bind(owner).bind(came_s).bind(cost_s);
    query.execute(&mut *transaction).await?;
    let record = concat!("SELECT ", columns!(), " FROM diffuser_jobs WHERE id = $1");
    let row = sqlx::query(record).bind(id).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some(rows::record(&row)?))
}

/// Forgets shares that are behind their owners.
pub(super) async fn forget_shares(pool: &PgPool) -> Result<(), JobStoreError> {
    let sql = "DELETE FROM diffuser_shares AS share USING diffuser_lines AS line WHERE line.model \
               = share.model AND share.served_until_s <= line.now_s";
    sqlx::query(sql).execute(pool).await?;
    Ok(())
}

/// Says that the holder of these claims still has them: those that it has.
pub(super) async fn renew(
    pool: &PgPool,
    claims: &[(JobId, u64)],
    lease_s: f64,
) -> Result<Vec<JobId>, JobStoreError> {
    let (ids, numbers): (Vec<String>, Vec<i64>) =
        claims.iter().map(|(id, number)| (id.to_string(), signed(*number))).unzip();
    let sql = "UPDATE diffuser_jobs AS job SET leased_until = clock_timestamp() + \
               make_interval(secs => $3) FROM unnest($1::text[], $2::bigint[]) AS mine (id, \
               number) WHERE job.id = mine.id AND job.claims = mine.number AND job.is_claimed \
               RETURNING job.id";
    let found = sqlx::query(sql).bind(ids).bind(numbers).bind(lease_s).fetch_all(pool).await?;
    super::changes::ids(&found)
}
