//! The database: how it is opened, locked, and laid out.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::jobs::error::JobStoreError;

/// What makes each version of the layout of the one before it. A step that was published
/// never changes.
pub(super) const STEPS: [&str; 4] = [JOBS, BATCHES, COSTS, NOTICES];

/// The version of the layout.
const VERSION: i64 = STEPS.len() as i64;

/// How long a reader from outside, such as a backup, may hold the database.
const PATIENCE: Duration = Duration::from_secs(10);

const JOBS: &str = "
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        state TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        started_ms INTEGER,
        ended_ms INTEGER,
        expires_ms INTEGER,
        tries INTEGER NOT NULL DEFAULT 0,
        cut_offs INTEGER NOT NULL DEFAULT 0,
        claims INTEGER NOT NULL DEFAULT 0,
        is_claimed INTEGER NOT NULL DEFAULT 0,
        seeds TEXT NOT NULL,
        warnings TEXT NOT NULL,
        failure TEXT,
        result TEXT,
        idempotency_key TEXT,
        digest TEXT,
        request_bytes INTEGER NOT NULL,
        result_bytes INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_state ON jobs (state, id);
    CREATE INDEX jobs_by_owner ON jobs (owner, id);
    CREATE INDEX jobs_by_claim ON jobs (is_claimed, owner);
    CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    PRAGMA user_version = 1;
";

const BATCHES: &str = "
    ALTER TABLE jobs ADD COLUMN is_patient INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE files (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        purpose TEXT NOT NULL,
        name TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        blob TEXT,
        batch TEXT,
        part TEXT
    ) WITHOUT ROWID;
    CREATE INDEX files_by_owner ON files (owner, id);
    CREATE INDEX files_by_end ON files (expires_ms);
    CREATE TABLE batches (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        input_file TEXT NOT NULL,
        context TEXT NOT NULL,
        metadata TEXT,
        lifetime_ms INTEGER NOT NULL,
        files_lifetime_ms INTEGER NOT NULL,
        state TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        due_ms INTEGER NOT NULL,
        in_progress_ms INTEGER,
        finalizing_ms INTEGER,
        cancelling_ms INTEGER,
        ended_ms INTEGER,
        total INTEGER NOT NULL DEFAULT 0,
        completed INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        line_bytes INTEGER NOT NULL DEFAULT 0,
        faults TEXT NOT NULL DEFAULT '[]',
        output_file TEXT,
        error_file TEXT
    ) WITHOUT ROWID;
    CREATE INDEX batches_by_owner ON batches (owner, id);
    CREATE INDEX batches_by_state ON batches (state, id);
    CREATE TABLE batch_lines (
        batch TEXT NOT NULL,
        number INTEGER NOT NULL,
        part TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        content BLOB,
        blob TEXT,
        PRIMARY KEY (batch, number)
    );
    PRAGMA user_version = 2;
";

const COSTS: &str = "
    ALTER TABLE jobs ADD COLUMN cost_s REAL NOT NULL DEFAULT 0;
    PRAGMA user_version = 3;
";

const NOTICES: &str = "
    ALTER TABLE jobs ADD COLUMN webhook TEXT;
    ALTER TABLE jobs ADD COLUMN notice_due_ms INTEGER;
    ALTER TABLE jobs ADD COLUMN notice_tries INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX jobs_by_notice ON jobs (notice_due_ms) WHERE notice_due_ms IS NOT NULL;
    PRAGMA user_version = 4;
";

/// Opens the database in `file`, for this process alone. The lock lasts as long as the file
/// that is returned.
pub(super) fn open(file: &Path) -> Result<(Connection, File), JobStoreError> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| JobStoreError::File { path, error }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let lock_path = file.with_extension("lock");
    let lock = File::options().create(true).write(true).truncate(false).open(&lock_path);
    let lock = lock.map_err(failed(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(JobStoreError::InUse { path: file.into() }),
        Err(TryLockError::Error(error)) => return Err(failed(&lock_path)(error)),
    }
    Ok((prepared(Connection::open(file)?)?, lock))
}

/// One that ends with its connection.
pub(super) fn in_memory() -> Result<Connection, JobStoreError> {
    prepared(Connection::open_in_memory()?)
}

fn prepared(mut connection: Connection) -> Result<Connection, JobStoreError> {
    connection.busy_timeout(PATIENCE)?;
    // What was committed is on the disk, also when the power fails.
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > VERSION {
        return Err(JobStoreError::Newer { found, known: VERSION });
    }
    let done = usize::try_from(found).unwrap_or_default();
    for step in STEPS.iter().skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.commit()?;
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_each_earlier_version_keeps_its_jobs() {
        for version in 1..STEPS.len() {
            let connection = Connection::open_in_memory().unwrap();
            for step in &STEPS[..version] {
                connection.execute_batch(step).unwrap();
            }
            let job = "INSERT INTO jobs (id, owner, endpoint, model, state, created_ms, seeds, \
                       warnings, request_bytes) VALUES ('a', '', '', '', 'queued', 1, '[]', '[]', 0)";
            connection.execute(job, []).unwrap();

            let connection = prepared(connection).unwrap();

            let row = "SELECT cost_s FROM jobs WHERE id = 'a'";
            let cost_s: f64 = connection.query_row(row, [], |row| row.get(0)).unwrap();
            let pragma = "PRAGMA user_version";
            let found: i64 = connection.query_row(pragma, [], |row| row.get(0)).unwrap();
            assert_eq!((cost_s, found), (0.0, VERSION), "from {version}");
        }
    }
}
