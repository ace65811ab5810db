//! The tables, which the first process makes that finds none.

use sqlx::postgres::PgPool;
use sqlx::{Executor, Row};

use crate::jobs::error::JobStoreError;

/// What makes each version of the layout of the one before it. A step that was published
/// never changes.
const STEPS: [&str; 3] = [JOBS, NOTICES, BATCHES];

/// The version of the layout.
const VERSION: i64 = STEPS.len() as i64;

/// The number of the lock that those take who look at the layout.
const LAYOUT_LOCK: i64 = 0x6469_6666;

/// Times are the database's: clocks of several machines differ.
const JOBS: &str = "
    CREATE TABLE diffuser_jobs (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        state TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        started_ms BIGINT,
        ended_ms BIGINT,
        expires_ms BIGINT,
        tries BIGINT NOT NULL DEFAULT 0,
        cut_offs BIGINT NOT NULL DEFAULT 0,
        claims BIGINT NOT NULL DEFAULT 0,
        is_claimed BOOLEAN NOT NULL DEFAULT FALSE,
        worker TEXT,
        leased_until TIMESTAMPTZ,
        is_patient BOOLEAN NOT NULL,
        is_attached BOOLEAN NOT NULL,
        attached_until TIMESTAMPTZ,
        came_s DOUBLE PRECISION NOT NULL,
        cost_s DOUBLE PRECISION NOT NULL,
        parts BIGINT NOT NULL DEFAULT 0,
        progress TEXT,
        seeds TEXT NOT NULL,
        warnings TEXT NOT NULL,
        failure TEXT,
        result TEXT,
        idempotency_key TEXT,
        digest TEXT,
        request_bytes BIGINT NOT NULL,
        result_bytes BIGINT NOT NULL DEFAULT 0
    );
    CREATE INDEX diffuser_jobs_waiting ON diffuser_jobs (model, owner, id)
        WHERE state = 'queued' AND NOT is_claimed;
    CREATE INDEX diffuser_jobs_unfinished ON diffuser_jobs (model, owner)
        WHERE state IN ('queued', 'running');
    CREATE INDEX diffuser_jobs_claimed ON diffuser_jobs (worker) WHERE is_claimed;
    CREATE INDEX diffuser_jobs_attached ON diffuser_jobs (attached_until) WHERE is_attached;
    CREATE INDEX diffuser_jobs_by_owner ON diffuser_jobs (owner, id);
    CREATE INDEX diffuser_jobs_by_end ON diffuser_jobs (expires_ms) WHERE expires_ms IS NOT NULL;
    CREATE UNIQUE INDEX diffuser_jobs_by_key ON diffuser_jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE TABLE diffuser_lines (
        model TEXT PRIMARY KEY,
        now_s DOUBLE PRECISION NOT NULL DEFAULT 0
    );
    CREATE TABLE diffuser_shares (
        model TEXT NOT NULL,
        owner TEXT NOT NULL,
        served_until_s DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (model, owner)
    );
    CREATE TABLE diffuser_models (
        worker TEXT NOT NULL,
        model TEXT NOT NULL,
        place BIGINT NOT NULL,
        announcement TEXT NOT NULL,
        seen_at TIMESTAMPTZ NOT NULL,
        PRIMARY KEY (worker, model)
    );
    CREATE TABLE diffuser_layout (version BIGINT NOT NULL);
    INSERT INTO diffuser_layout VALUES (1);
";

const NOTICES: &str = "
    ALTER TABLE diffuser_jobs ADD COLUMN webhook TEXT;
    ALTER TABLE diffuser_jobs ADD COLUMN notice_due_ms BIGINT;
    ALTER TABLE diffuser_jobs ADD COLUMN notice_tries BIGINT NOT NULL DEFAULT 0;
    CREATE INDEX diffuser_jobs_by_notice ON diffuser_jobs (notice_due_ms)
        WHERE notice_due_ms IS NOT NULL;
    INSERT INTO diffuser_layout VALUES (2);
";

const BATCHES: &str = "
    CREATE TABLE diffuser_files (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        purpose TEXT NOT NULL,
        name TEXT NOT NULL,
        bytes BIGINT NOT NULL,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        object TEXT,
        batch TEXT,
        part TEXT
    );
    CREATE INDEX diffuser_files_by_owner ON diffuser_files (owner, id);
    CREATE INDEX diffuser_files_by_end ON diffuser_files (expires_ms);
    CREATE INDEX diffuser_files_by_object ON diffuser_files (object) WHERE object IS NOT NULL;
    CREATE TABLE diffuser_batches (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        input_file TEXT NOT NULL,
        context TEXT NOT NULL,
        metadata TEXT,
        lifetime_ms BIGINT NOT NULL,
        files_lifetime_ms BIGINT NOT NULL,
        state TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        due_ms BIGINT NOT NULL,
        in_progress_ms BIGINT,
        finalizing_ms BIGINT,
        cancelling_ms BIGINT,
        ended_ms BIGINT,
        total BIGINT NOT NULL DEFAULT 0,
        completed BIGINT NOT NULL DEFAULT 0,
        failed BIGINT NOT NULL DEFAULT 0,
        line_bytes BIGINT NOT NULL DEFAULT 0,
        faults TEXT NOT NULL DEFAULT '[]',
        output_file TEXT,
        error_file TEXT,
        driver TEXT,
        driven_until TIMESTAMPTZ
    );
    CREATE INDEX diffuser_batches_by_owner ON diffuser_batches (owner, id);
    CREATE INDEX diffuser_batches_unfinished ON diffuser_batches (owner)
        WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling');
    CREATE INDEX diffuser_batches_by_input ON diffuser_batches (input_file)
        WHERE state IN ('validating', 'in_progress', 'finalizing', 'cancelling');
    CREATE TABLE diffuser_batch_lines (
        batch TEXT NOT NULL,
        number BIGINT NOT NULL,
        part TEXT NOT NULL,
        bytes BIGINT NOT NULL,
        content BYTEA,
        object TEXT,
        PRIMARY KEY (batch, number)
    );
    CREATE INDEX diffuser_batch_lines_by_object ON diffuser_batch_lines (object)
        WHERE object IS NOT NULL;
    INSERT INTO diffuser_layout VALUES (3);
";

/// Makes the tables, or brings them up to this version.
///
/// # Errors
/// [`JobStoreError::Newer`] if a later version of the program made them.
pub(super) async fn prepare(pool: &PgPool) -> Result<(), JobStoreError> {
    let mut transaction = pool.begin().await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LAYOUT_LOCK);
    transaction.execute(lock).await?;
    let is_there: bool = sqlx::query("SELECT to_regclass('diffuser_layout') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?
        .try_get(0)?;
    let found: i64 = if is_there {
        let version = sqlx::query("SELECT max(version) FROM diffuser_layout");
        version.fetch_one(&mut *transaction).await?.try_get(0)?
    } else {
        0
    };
    if found > VERSION {
        return Err(JobStoreError::Newer { found, known: VERSION });
    }
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or_default()) {
        sqlx::raw_sql(*step).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}
