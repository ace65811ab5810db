//! The changes of a job's state: each one statement, whose condition says who may make it,
//! and which tells everybody who listens.

use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row};

use super::rows::{self, columns, signed};
use super::{CHANGES, WORK};
use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
use crate::jobs::record::{JobFailure, JobRecord, Owner};
use crate::jobs::store::{
    Claim, Idempotency, JobLine, JobList, NewJob, Notice, Page, Releasing, page_of,
};

/// Who has the claim may go on.
macro_rules! by_claim {
    () => {
        "id = $1 AND claims = $2 AND is_claimed AND state IN ('queued', 'running')"
    };
}

/// Milliseconds since 1970.
macro_rules! now_ms {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}
pub(super) use now_ms;

/// A statement that changes jobs and tells of each; its rows are those.
pub(super) fn telling(change: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "WITH changed AS ({change} RETURNING id, model, state), told AS (SELECT \
         pg_notify('{CHANGES}', id) FROM changed), work AS (SELECT pg_notify('{WORK}', model) \
         FROM changed WHERE state = 'queued') SELECT id, model, state, (SELECT count(*) FROM \
         told) + (SELECT count(*) FROM work) AS told FROM changed"
    ))
}

pub(super) async fn get(pool: &PgPool, id: JobId) -> Result<Option<JobRecord>, JobStoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM diffuser_jobs WHERE id = $1");
    let found = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool).await?;
    found.as_ref().map(rows::record).transpose()
}

/// The job that its owner calls so, with a digest of what it asks for.
pub(super) async fn named(
    pool: &PgPool,
    owner: &Owner,
    key: &str,
) -> Result<Option<(JobRecord, String)>, JobStoreError> {
    let sql = concat!(
        "SELECT digest, ",
        columns!(),
        " FROM diffuser_jobs WHERE owner = $1 AND idempotency_key = $2"
    );
    let query = sqlx::query(sql).bind(owner.as_str()).bind(key);
    let Some(row) = query.fetch_optional(pool).await? else { return Ok(None) };
    let digest: Option<String> = row.try_get("digest")?;
    Ok(Some((rows::record(&row)?, digest.unwrap_or_default())))
}

pub(super) async fn list(
    pool: &PgPool,
    owner: &Owner,
    page: Page,
) -> Result<JobList, JobStoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM diffuser_jobs WHERE owner = $1 AND NOT is_attached AND ($2::text IS NULL OR id < \
         $2) ORDER BY id DESC LIMIT $3"
    );
    let after = page.after.map(|id| id.to_string());
    let query = sqlx::query(sql).bind(owner.as_str()).bind(after);
    let found = query.bind(signed(page.limit as u64 + 1)).fetch_all(pool).await?;
    let jobs = found.iter().map(rows::record).collect::<Result<Vec<_>, _>>()?;
    let (jobs, has_more) = page_of(jobs, page.limit);
    Ok(JobList { jobs, has_more })
}

/// Adds a row, unless there is one by its owner's name for it. The request is stored already.
pub(super) async fn insert(
    pool: &PgPool,
    (id, job): (JobId, &NewJob),
    lease_s: f64,
) -> Result<bool, JobStoreError> {
    let line = "INSERT INTO diffuser_lines (model) VALUES ($1) ON CONFLICT DO NOTHING";
    sqlx::query(line).bind(&job.model).execute(pool).await?;
    let insert = concat!(
        "INSERT INTO diffuser_jobs (id, owner, endpoint, model, state, created_ms, seeds, \
         warnings, idempotency_key, digest, request_bytes, webhook, notice_due_ms, cost_s, is_patient, \
         is_attached, attached_until, came_s) SELECT $1, $2, $3, $4, 'queued', ",
        now_ms!(),
        ", $5, $6, $7, $8, $9, $14, CASE WHEN $14 IS NULL THEN NULL ELSE 0 END, $10, $13, $11, CASE WHEN $11 THEN clock_timestamp() + make_interval(secs \
         => $12) END, now_s FROM diffuser_lines WHERE model = $4 ON CONFLICT (owner, \
         idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
    );
    let names = job.idempotency.as_ref();
    let (key, digest) = names.map(|Idempotency { key, digest }| (key, digest)).unzip();
    let query = sqlx::query(telling(insert))
        .bind(id.to_string())
        .bind(job.owner.as_str())
        .bind(&job.endpoint)
        .bind(&job.model)
        .bind(rows::written(&job.seeds)?)
        .bind(rows::written(&job.warnings)?)
        .bind(key)
        .bind(digest)
        .bind(signed(job.request.len() as u64))
        .bind(job.cost_s)
        .bind(job.is_attached)
        .bind(lease_s)
        .bind(job.is_patient)
        .bind(&job.webhook);
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// How many have not ended.
pub(super) async fn unfinished(pool: &PgPool) -> Result<u64, JobStoreError> {
    let sql = "SELECT count(*) AS unfinished FROM diffuser_jobs WHERE state IN ('queued', \
               'running')";
    rows::count(&sqlx::query(sql).fetch_one(pool).await?, "unfinished")
}

/// What requests and results take.
pub(super) async fn bytes(pool: &PgPool) -> Result<u64, JobStoreError> {
    let sql = "SELECT coalesce(sum(request_bytes + result_bytes), 0)::bigint AS bytes FROM \
               diffuser_jobs";
    rows::count(&sqlx::query(sql).fetch_one(pool).await?, "bytes")
}

fn by(claim: Claim) -> (String, i64) {
    (claim.id.to_string(), signed(claim.number))
}

pub(super) async fn begin(pool: &PgPool, claim: Claim) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET state = 'running', started_ms = ",
        now_ms!(),
        ", tries = tries + 1 WHERE ",
        by_claim!(),
        " AND state = 'queued'"
    );
    let (id, number) = by(claim);
    let query = sqlx::query(telling(change)).bind(id).bind(number);
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// Notes that a stream has one more part.
pub(super) async fn add_part(
    pool: &PgPool,
    claim: Claim,
    parts: u64,
) -> Result<bool, JobStoreError> {
    let change = concat!("UPDATE diffuser_jobs SET parts = $3 WHERE ", by_claim!());
    let (id, number) = by(claim);
    let query = sqlx::query(telling(change)).bind(id).bind(number).bind(signed(parts));
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// What is stored of an end.
pub(super) struct End<'a> {
    pub(super) state: &'static str,
    pub(super) failure: Option<&'a JobFailure>,
    /// What is said of the result's object, and how long that is.
    pub(super) result: Option<(String, usize)>,
    /// What the client should know; what it knows already if absent.
    pub(super) warnings: Option<&'a [String]>,
    pub(super) lifetime_ms: u64,
}

pub(super) async fn finish(
    pool: &PgPool,
    claim: Claim,
    end: &End<'_>,
) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET tries = tries + (state = 'queued' AND $3 = 'succeeded')::int, \
         started_ms = CASE $3 WHEN 'succeeded' THEN coalesce(started_ms, ",
        now_ms!(),
        ") ELSE started_ms END, state = $3, failure = $4, result = $5, result_bytes = $6, warnings \
         = coalesce($7, warnings), request_bytes = 0, is_claimed = FALSE, progress = NULL, \
         ended_ms = ",
        now_ms!(),
        ", expires_ms = ",
        now_ms!(),
        " + $8 WHERE ",
        by_claim!()
    );
    let (id, number) = by(claim);
    let (result, bytes) = end.result.clone().unzip();
    let query = sqlx::query(telling(change))
        .bind(id)
        .bind(number)
        .bind(end.state)
        .bind(end.failure.map(rows::written).transpose()?)
        .bind(result)
        .bind(signed(bytes.unwrap_or_default() as u64))
        .bind(end.warnings.map(|warnings| rows::written(&warnings)).transpose()?)
        .bind(signed(end.lifetime_ms));
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// Puts a job back under a new number, so that its events go on from where they are.
pub(super) async fn release(
    pool: &PgPool,
    claim: Claim,
    why: Releasing,
) -> Result<(), JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET tries = tries - (state = 'running' AND $3)::int, state = \
         'queued', is_claimed = FALSE, parts = 0, progress = NULL, claims = claims + 1 WHERE ",
        by_claim!()
    );
    let (id, number) = by(claim);
    let query = sqlx::query(telling(change)).bind(id).bind(number);
    query.bind(why == Releasing::Untried).fetch_optional(pool).await?;
    Ok(())
}

/// Calls a job off, whoever has it. `false`: it had ended.
pub(super) async fn cancel(
    pool: &PgPool,
    id: JobId,
    lifetime_ms: u64,
) -> Result<bool, JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET state = 'cancelled', is_claimed = FALSE, progress = NULL, \
         request_bytes = 0, ended_ms = ",
        now_ms!(),
        ", expires_ms = ",
        now_ms!(),
        " + $2 WHERE id = $1 AND state IN ('queued', 'running')"
    );
    let query = sqlx::query(telling(change)).bind(id.to_string()).bind(signed(lifetime_ms));
    Ok(query.fetch_optional(pool).await?.is_some())
}

/// How often a job may be cut off that nobody has seen begin: others may be to blame for it,
/// or its model ends the process at once.
const CUT_OFFS_OF_A_TRY: u64 = 10;

/// Fails those that nobody runs and that have had all their tries.
pub(super) async fn abandon(
    connection: &mut PgConnection,
    (max_tries, lifetime_ms): (u32, u64),
    failure: &JobFailure,
) -> Result<(), JobStoreError> {
    let change = concat!(
        "UPDATE diffuser_jobs SET state = 'failed', failure = $2, request_bytes = 0, ended_ms = ",
        now_ms!(),
        ", expires_ms = ",
        now_ms!(),
        " + $3 WHERE state = 'queued' AND NOT is_claimed AND (tries >= $1 OR cut_offs >= $4)"
    );
    let tries = u64::from(max_tries);
    let query = sqlx::query(telling(change))
        .bind(signed(tries))
        .bind(rows::written(failure)?)
        .bind(signed(lifetime_ms))
        .bind(signed(tries * CUT_OFFS_OF_A_TRY));
    query.fetch_all(connection).await?;
    Ok(())
}

/// Fails those that nobody took up in time.
pub(super) async fn expire(pool: &PgPool, lifetime_ms: u64) -> Result<Vec<JobId>, JobStoreError> {
    let message = "It waited for longer than jobs are kept here.".to_owned();
    let failure = JobFailure::of_server("expired", message);
    let change = concat!(
        "UPDATE diffuser_jobs SET state = 'failed', failure = $1, request_bytes = 0, ended_ms = ",
        now_ms!(),
        ", expires_ms = ",
        now_ms!(),
        " + $2 WHERE state = 'queued' AND NOT is_claimed AND created_ms < ",
        now_ms!(),
        " - $2"
    );
    let query = sqlx::query(telling(change)).bind(rows::written(&failure)?);
    ids(&query.bind(signed(lifetime_ms)).fetch_all(pool).await?)
}

/// Forgets the job, if it has ended: what is said of its result.
pub(super) async fn remove(pool: &PgPool, id: JobId) -> Result<Option<String>, JobStoreError> {
    let sql = "DELETE FROM diffuser_jobs WHERE id = $1 AND state NOT IN ('queued', 'running') \
               RETURNING result";
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// What is said of a job's result.
pub(super) async fn result(pool: &PgPool, id: JobId) -> Result<Option<String>, JobStoreError> {
    let sql = "SELECT result FROM diffuser_jobs WHERE id = $1";
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(pool).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// Takes up the notice that is due for longest, of a job that has ended.
pub(super) async fn claim_notice(
    pool: &PgPool,
    lease_ms: u64,
) -> Result<Option<Notice>, JobStoreError> {
    let sql = concat!(
        "WITH due AS (SELECT id FROM diffuser_jobs WHERE notice_due_ms <= ",
        now_ms!(),
        " AND state NOT IN ('queued', 'running') ORDER BY notice_due_ms, id LIMIT 1 FOR UPDATE SKIP \
         LOCKED) UPDATE diffuser_jobs SET notice_tries = notice_tries + 1, notice_due_ms = ",
        now_ms!(),
        " + $1 WHERE id = (SELECT id FROM due) RETURNING webhook, notice_tries, ",
        columns!()
    );
    let row = sqlx::query(sql).bind(signed(lease_ms)).fetch_optional(pool).await?;
    let Some(row) = row else { return Ok(None) };
    let Some(webhook) = row.try_get("webhook")? else { return Ok(None) };
    let tries = u32::try_from(rows::count(&row, "notice_tries")?).unwrap_or(u32::MAX);
    Ok(Some(Notice { job: rows::record(&row)?, webhook, tries }))
}

/// Says when a notice is due again, unless it was taken up anew.
pub(super) async fn settle_notice(
    pool: &PgPool,
    (id, tries): (JobId, u32),
    again_ms: Option<u64>,
) -> Result<(), JobStoreError> {
    let sql = concat!(
        "UPDATE diffuser_jobs SET notice_due_ms = ",
        now_ms!(),
        " + $3 WHERE id = $1 AND notice_tries = $2"
    );
    let query = sqlx::query(sql).bind(id.to_string()).bind(i64::from(tries));
    query.bind(again_ms.map(signed)).execute(pool).await?;
    Ok(())
}

/// Those whose time is over.
pub(super) async fn outlived(pool: &PgPool) -> Result<Vec<JobId>, JobStoreError> {
    let sql = concat!("SELECT id FROM diffuser_jobs WHERE expires_ms <= ", now_ms!());
    ids(&sqlx::query(sql).fetch_all(pool).await?)
}

/// What waits and runs of each model.
pub(super) async fn lines(pool: &PgPool) -> Result<Vec<JobLine>, JobStoreError> {
    let sql = concat!(
        "SELECT model, count(*) FILTER (WHERE state = 'queued') AS waiting, count(*) FILTER (WHERE \
         state = 'running') AS running, greatest(coalesce(",
        now_ms!(),
        " - min(created_ms) FILTER (WHERE state = 'queued'), 0), 0) AS oldest_ms, \
         coalesce(sum(cost_s) FILTER (WHERE state = 'queued'), 0) AS work_s FROM diffuser_jobs \
         WHERE state IN ('queued', 'running') GROUP BY model ORDER BY model"
    );
    let line = |row: &PgRow| {
        Ok(JobLine {
            model: row.try_get("model")?,
            waiting: rows::count(row, "waiting")?,
            running: rows::count(row, "running")?,
            oldest_ms: rows::count(row, "oldest_ms")?,
            work_s: row.try_get("work_s")?,
        })
    };
    sqlx::query(sql).fetch_all(pool).await?.iter().map(line).collect()
}

pub(super) fn ids(found: &[PgRow]) -> Result<Vec<JobId>, JobStoreError> {
    found.iter().map(|row| rows::id(row.try_get("id")?)).collect()
}
