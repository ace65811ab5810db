//! The changes of a job's state: each one statement, whose condition says who may make it.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::rows;
use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
use crate::jobs::record::{JobFailure, JobRecord, now_ms};
use crate::jobs::store::{Claim, NewJob, Notice, Releasing};

/// Who has the claim may go on.
const BY_CLAIM: &str =
    "id = :id AND claims = :claim AND is_claimed = 1 AND state IN ('queued', 'running')";

/// Adds a row. The request's file is there already.
pub(super) fn insert(db: &Connection, id: JobId, job: &NewJob) -> Result<(), JobStoreError> {
    let names = job.idempotency.as_ref();
    db.execute(
        "INSERT INTO jobs (id, owner, endpoint, model, state, created_ms, seeds, warnings, \
         idempotency_key, digest, request_bytes, is_patient, cost_s, webhook, notice_due_ms) VALUES \
         (:id, :owner, :endpoint, :model, 'queued', :now, :seeds, :warnings, :key, :digest, :bytes, \
         :patient, :cost, :webhook, iif(:webhook IS NULL, NULL, 0))",
        named_params! {
            ":id": id.to_string(),
            ":owner": job.owner.as_str(),
            ":endpoint": job.endpoint,
            ":model": job.model,
            ":now": now_ms(),
            ":seeds": rows::written(&job.seeds)?,
            ":warnings": rows::written(&job.warnings)?,
            ":key": names.map(|names| &names.key),
            ":digest": names.map(|names| &names.digest),
            ":bytes": job.request.len() as u64,
            ":cost": job.cost_s,
            ":patient": job.is_patient,
            ":webhook": job.webhook,
        },
    )?;
    Ok(())
}

/// Takes up the notice that is due for longest, of a job that has ended.
pub(super) fn claim_notice(
    db: &Connection,
    lease_ms: u64,
) -> Result<Option<Notice>, JobStoreError> {
    let now = now_ms();
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET notice_tries = notice_tries + 1, notice_due_ms = :until WHERE id = \
         (SELECT id FROM jobs WHERE notice_due_ms <= :now AND state NOT IN ('queued', 'running') \
         ORDER BY notice_due_ms, id LIMIT 1) RETURNING id, webhook, notice_tries",
    )?;
    let until = now.saturating_add(lease_ms);
    let claimed = statement
        .query_row(named_params! { ":now": now, ":until": until }, |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((id, webhook, tries)) = claimed else { return Ok(None) };
    let job = rows::get(db, parsed(&id)?)?;
    Ok(job.map(|job| Notice { job, webhook, tries }))
}

/// Says when a notice is due again, unless it was taken up anew.
pub(super) fn settle_notice(
    db: &Connection,
    (id, tries): (JobId, u32),
    again_ms: Option<u64>,
) -> Result<(), JobStoreError> {
    db.execute(
        "UPDATE jobs SET notice_due_ms = ?3 WHERE id = ?1 AND notice_tries = ?2",
        params![id.to_string(), tries, again_ms.map(|ms| now_ms().saturating_add(ms))],
    )?;
    Ok(())
}

/// Takes up a job that `rows::next` found.
pub(super) fn claim(db: &Connection, record: &mut JobRecord) -> Result<Claim, JobStoreError> {
    record.claims += 1;
    db.execute(
        "UPDATE jobs SET is_claimed = 1, claims = ?2 WHERE id = ?1",
        params![record.id.to_string(), record.claims],
    )?;
    Ok(Claim { id: record.id, number: record.claims })
}

pub(super) fn begin(db: &Connection, claim: Claim) -> Result<bool, JobStoreError> {
    let sql = format!(
        "UPDATE jobs SET state = 'running', started_ms = :now, tries = tries + 1 \
         WHERE {BY_CLAIM} AND state = 'queued'"
    );
    let changed = db.execute(
        &sql,
        named_params! { ":id": claim.id.to_string(), ":claim": claim.number, ":now": now_ms() },
    )?;
    Ok(changed > 0)
}

/// What is stored of an end.
pub(super) struct End<'a> {
    pub(super) state: &'static str,
    pub(super) failure: Option<&'a JobFailure>,
    /// What is said of the result's file, and how long that is.
    pub(super) result: Option<(String, usize)>,
    /// What the client should know; what it knows already if absent.
    pub(super) warnings: Option<&'a [String]>,
    pub(super) lifetime_ms: u64,
}

pub(super) fn finish(db: &Connection, claim: Claim, end: &End<'_>) -> Result<bool, JobStoreError> {
    let (result, bytes) = end.result.clone().unzip();
    let sql = format!(
        "UPDATE jobs SET tries = tries + (state = 'queued' AND :state = 'succeeded'), started_ms = \
         CASE :state WHEN 'succeeded' THEN coalesce(started_ms, :now) ELSE started_ms END, \
         state = :state, failure = :failure, result = :result, result_bytes = \
         :bytes, warnings = coalesce(:warnings, warnings), request_bytes = 0, is_claimed = 0, ended_ms = :now, \
         expires_ms = :expires WHERE {BY_CLAIM}"
    );
    let now = now_ms();
    let changed = db.execute(
        &sql,
        named_params! {
            ":id": claim.id.to_string(),
            ":claim": claim.number,
            ":state": end.state,
            ":failure": end.failure.map(rows::written).transpose()?,
            ":result": result,
            ":bytes": bytes.unwrap_or_default() as u64,
            ":warnings": end.warnings.map(|warnings| rows::written(&warnings)).transpose()?,
            ":now": now,
            ":expires": now.saturating_add(end.lifetime_ms),
        },
    )?;
    Ok(changed > 0)
}

/// Puts a job back under a new number, so that its events go on from where they are.
pub(super) fn release(db: &Connection, claim: Claim, why: Releasing) -> Result<(), JobStoreError> {
    let counted = u32::from(why == Releasing::Untried);
    let sql = format!(
        "UPDATE jobs SET tries = tries - (state = 'running') * :uncounted, state = 'queued', \
         is_claimed = 0, claims = claims + 1 WHERE {BY_CLAIM}"
    );
    db.execute(
        &sql,
        named_params! {
            ":id": claim.id.to_string(), ":claim": claim.number, ":uncounted": counted,
        },
    )?;
    Ok(())
}

/// Calls a job off, whoever has it. `false`: it had ended.
pub(super) fn cancel(db: &Connection, id: JobId, lifetime_ms: u64) -> Result<bool, JobStoreError> {
    let now = now_ms();
    let changed = db.execute(
        "UPDATE jobs SET state = 'cancelled', is_claimed = 0, request_bytes = 0, ended_ms = ?2, \
         expires_ms = ?3 WHERE id = ?1 AND state IN ('queued', 'running')",
        params![id.to_string(), now, now.saturating_add(lifetime_ms)],
    )?;
    Ok(changed > 0)
}

/// Fails those that have been tried as often as they may be, and puts back what somebody had
/// who is no more.
pub(super) fn recover(
    db: &Connection,
    (max_tries, lifetime_ms): (u32, u64),
) -> Result<usize, JobStoreError> {
    let now = now_ms();
    let failure = JobFailure::of_server(
        "abandoned",
        format!("The server ended {max_tries} times while it made these pictures."),
    );
    db.execute("UPDATE jobs SET cut_offs = cut_offs + 1 WHERE is_claimed = 1", [])?;
    abandon(db, max_tries, &failure, now.saturating_add(lifetime_ms))?;
    Ok(db.execute(
        "UPDATE jobs SET state = 'queued', is_claimed = 0, claims = claims + 1 \
         WHERE is_claimed = 1",
        [],
    )?)
}

/// How often a job may be cut off that nobody has seen begin: others may be to blame for it,
/// or its model ends the process at once.
pub(super) const CUT_OFFS_OF_A_TRY: u32 = 10;

/// Fails those that nobody runs and that have had all their tries.
pub(super) fn abandon(
    db: &Connection,
    max_tries: u32,
    failure: &JobFailure,
    expires_ms: u64,
) -> Result<(), JobStoreError> {
    db.execute(
        "UPDATE jobs SET state = 'failed', failure = ?2, is_claimed = 0, request_bytes = 0, \
         ended_ms = ?3, expires_ms = ?4 WHERE state IN ('queued', 'running') AND (tries >= ?1 OR \
         cut_offs >= ?5)",
        params![
            max_tries,
            rows::written(failure)?,
            now_ms(),
            expires_ms,
            max_tries.saturating_mul(CUT_OFFS_OF_A_TRY)
        ],
    )?;
    Ok(())
}

/// Fails those that nobody took up in time.
pub(super) fn expire(db: &Connection, lifetime_ms: u64) -> Result<Vec<JobId>, JobStoreError> {
    let now = now_ms();
    let message = "It waited for longer than jobs are kept here.".to_owned();
    let failure = JobFailure::of_server("expired", message);
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET state = 'failed', failure = ?2, request_bytes = 0, ended_ms = ?3, \
         expires_ms = ?4 WHERE state = 'queued' AND is_claimed = 0 AND created_ms < ?1 \
         RETURNING id",
    )?;
    let before = now.saturating_sub(lifetime_ms);
    let expires = now.saturating_add(lifetime_ms);
    let ids = statement
        .query_map(params![before, rows::written(&failure)?, now, expires], |row| {
            row.get::<_, String>(0)
        })?;
    ids.map(|id| parsed(&id?)).collect()
}

/// Forgets the job, if it has ended.
pub(super) fn remove(db: &Connection, id: JobId) -> Result<bool, JobStoreError> {
    let removed = db.execute(
        "DELETE FROM jobs WHERE id = ?1 AND state NOT IN ('queued', 'running')",
        [id.to_string()],
    )?;
    Ok(removed > 0)
}

/// Those whose time is over, with the claim that their results are of.
pub(super) fn outlived(db: &Connection) -> Result<Vec<JobId>, JobStoreError> {
    let mut statement = db.prepare_cached("SELECT id FROM jobs WHERE expires_ms <= ?1")?;
    let ids = statement.query_map([now_ms()], |row| row.get::<_, String>(0))?;
    ids.map(|id| parsed(&id?)).collect()
}

fn parsed(id: &str) -> Result<JobId, JobStoreError> {
    id.parse().map_err(|_| JobStoreError::Damaged(format!("a job is called '{id}'")))
}
