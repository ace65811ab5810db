//! Rows of the database as records.

use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::jobs::error::JobStoreError;
use crate::jobs::id::JobId;
pub(super) use crate::jobs::json::{read, written};
use crate::jobs::record::{JobProgress, JobRecord, JobState, Owner};

/// What a record is made of.
macro_rules! columns {
    () => {
        "id, owner, endpoint, model, state, created_ms, started_ms, ended_ms, expires_ms, tries, \
         claims, parts, progress, is_patient, is_attached, seeds, warnings, failure, request_bytes, result_bytes, CASE \
         state WHEN 'queued' THEN (SELECT count(*) FROM diffuser_jobs AS earlier WHERE \
         earlier.state = 'queued' AND earlier.model = diffuser_jobs.model AND earlier.id < \
         diffuser_jobs.id) ELSE 0 END AS ahead"
    };
}
pub(super) use columns;

pub(super) fn record(row: &PgRow) -> Result<JobRecord, JobStoreError> {
    let (state, failure): (String, Option<String>) =
        (row.try_get("state")?, row.try_get("failure")?);
    let progress: Option<String> = row.try_get("progress")?;
    Ok(JobRecord {
        id: id(row.try_get("id")?)?,
        owner: Owner::stored(row.try_get("owner")?),
        endpoint: row.try_get("endpoint")?,
        model: row.try_get("model")?,
        state: state_of(&state)?,
        created_ms: count(row, "created_ms")?,
        started_ms: count_or_none(row, "started_ms")?,
        ended_ms: count_or_none(row, "ended_ms")?,
        expires_ms: count_or_none(row, "expires_ms")?,
        tries: u32::try_from(count(row, "tries")?).unwrap_or(u32::MAX),
        claims: count(row, "claims")?,
        ahead: count(row, "ahead")?,
        progress: progress.as_deref().map(read::<JobProgress>).transpose()?,
        seeds: read(&row.try_get::<String, _>("seeds")?)?,
        warnings: read(&row.try_get::<String, _>("warnings")?)?,
        failure: failure.as_deref().map(read).transpose()?,
        is_patient: row.try_get("is_patient")?,
        is_attached: row.try_get("is_attached")?,
        parts: count(row, "parts")?,
        request_bytes: count(row, "request_bytes")?,
        result_bytes: count(row, "result_bytes")?,
    })
}

/// A number that is none below zero.
pub(super) fn count(row: &PgRow, column: &'static str) -> Result<u64, JobStoreError> {
    Ok(count_or_none(row, column)?.unwrap_or_default())
}

/// The same, if there is one.
pub(super) fn count_or_none(
    row: &PgRow,
    column: &'static str,
) -> Result<Option<u64>, JobStoreError> {
    let found: Option<i64> = row.try_get(column)?;
    Ok(found.map(|number| u64::try_from(number).unwrap_or_default()))
}

pub(super) fn id(text: String) -> Result<JobId, JobStoreError> {
    text.parse().map_err(|_| JobStoreError::Damaged(format!("a job is called '{text}'")))
}

fn state_of(name: &str) -> Result<JobState, JobStoreError> {
    let state = JobState::ALL.into_iter().find(|state| state.name() == name);
    state.ok_or_else(|| JobStoreError::Damaged(format!("a job is '{name}'")))
}

/// As the database stores it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
