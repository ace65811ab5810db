//! Rows of the database as records.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
pub(super) use crate::jobs::json::{read, written};
use crate::jobs::record::{JobRecord, JobState, Owner, now_ms};
use crate::jobs::store::{JobLine, JobList, Page, page_of};

const COLUMNS: &str = "id, owner, endpoint, model, state, created_ms, started_ms, ended_ms, \
     expires_ms, tries, claims, seeds, warnings, failure, request_bytes, \
     result_bytes, is_patient, CASE state WHEN 'queued' THEN \
     (SELECT count(*) FROM jobs AS earlier WHERE earlier.state = 'queued' AND earlier.id < jobs.id) \
     ELSE 0 END AS ahead";

/// The job, without how far it is.
pub(super) fn get(db: &Connection, id: JobId) -> Result<Option<JobRecord>, JobStoreError> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
    one(db, &sql, &[&id.to_string()])
}

/// The job that its owner calls `key`.
pub(super) fn named(
    db: &Connection,
    owner: &Owner,
    key: &str,
) -> Result<Option<(JobRecord, String)>, JobStoreError> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE owner = ?1 AND idempotency_key = ?2");
    let Some(record) = one(db, &sql, &[&owner.as_str(), &key])? else { return Ok(None) };
    let digest: Option<String> =
        db.query_row("SELECT digest FROM jobs WHERE id = ?1", [record.id.to_string()], |row| {
            row.get(0)
        })?;
    Ok(Some((record, digest.unwrap_or_default())))
}

/// The job that is to be taken up next: of the owner who has fewest taken up, the oldest.
/// Patient ones come after all others.
pub(super) fn next(db: &Connection) -> Result<Option<JobRecord>, JobStoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND is_claimed = 0 ORDER BY is_patient, \
         (SELECT count(*) FROM jobs AS taken WHERE taken.is_claimed = 1 AND taken.owner = \
         jobs.owner), id LIMIT 1"
    );
    one(db, &sql, &[])
}

pub(super) fn list(db: &Connection, owner: &Owner, page: Page) -> Result<JobList, JobStoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM jobs WHERE owner = :owner AND (:after IS NULL OR id < :after) \
         ORDER BY id DESC LIMIT :limit"
    );
    let after = page.after.map(|id| id.to_string());
    let limit = i64::try_from(page.limit + 1).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement
        .query(named_params! { ":owner": owner.as_str(), ":after": after, ":limit": limit })?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next()? {
        jobs.push(record(row)?);
    }
    let (jobs, has_more) = page_of(jobs, page.limit);
    Ok(JobList { jobs, has_more })
}

/// What waits and runs of each model.
pub(super) fn lines(db: &Connection) -> Result<Vec<JobLine>, JobStoreError> {
    let mut statement = db.prepare_cached(
        "SELECT model, count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = \
         'running'), coalesce(?1 - min(created_ms) FILTER (WHERE state = 'queued'), 0), \
         coalesce(sum(cost_s) FILTER (WHERE state = 'queued'), 0.0) FROM jobs WHERE state IN \
         ('queued', 'running') GROUP BY model ORDER BY model",
    )?;
    let line = |row: &Row<'_>| {
        Ok(JobLine {
            model: row.get(0)?,
            waiting: row.get(1)?,
            running: row.get(2)?,
            oldest_ms: row.get::<_, i64>(3)?.max(0).unsigned_abs(),
            work_s: row.get(4)?,
        })
    };
    let found = statement.query_map([now_ms()], line)?.collect::<Result<Vec<_>, _>>();
    Ok(found?)
}

fn one(
    db: &Connection,
    sql: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Result<Option<JobRecord>, JobStoreError> {
    let mut statement = db.prepare_cached(sql)?;
    let found = statement.query_row(parameters, |row| Ok(record(row))).optional()?;
    found.transpose()
}

fn record(row: &Row<'_>) -> Result<JobRecord, JobStoreError> {
    let id: String = row.get("id")?;
    let state: String = row.get("state")?;
    let failure: Option<String> = row.get("failure")?;
    Ok(JobRecord {
        id: id.parse().map_err(|_| JobStoreError::Damaged(format!("a job is called '{id}'")))?,
        owner: Owner::stored(row.get("owner")?),
        endpoint: row.get("endpoint")?,
        model: row.get("model")?,
        state: state_of(&state)?,
        created_ms: row.get("created_ms")?,
        started_ms: row.get("started_ms")?,
        ended_ms: row.get("ended_ms")?,
        expires_ms: row.get("expires_ms")?,
        tries: row.get("tries")?,
        claims: row.get("claims")?,
        ahead: row.get("ahead")?,
        is_patient: row.get("is_patient")?,
        progress: None,
        seeds: read(&row.get::<_, String>("seeds")?)?,
        warnings: read(&row.get::<_, String>("warnings")?)?,
        failure: failure.as_deref().map(read).transpose()?,
        is_attached: false,
        parts: 0,
        request_bytes: row.get("request_bytes")?,
        result_bytes: row.get("result_bytes")?,
    })
}

fn state_of(name: &str) -> Result<JobState, JobStoreError> {
    let state = JobState::ALL.into_iter().find(|state| state.name() == name);
    state.ok_or_else(|| JobStoreError::Damaged(format!("a job is '{name}'")))
}
