//! The database: how it is opened, locked, and laid out.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::jobs::error::JobStoreError;

/// The version of the layout.
const VERSION: i64 = LAYOUTS.len() as i64;

/// How long a reader from outside, such as a backup, may hold the database.
const PATIENCE: Duration = Duration::from_secs(10);

const LAYOUT: &str = "
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

/// What came with version 2.
const SECOND: &str = "
    ALTER TABLE jobs ADD COLUMN cost_s REAL NOT NULL DEFAULT 0;
    PRAGMA user_version = 2;
";

/// What makes a database of each version from the one before.
const LAYOUTS: [&str; 2] = [LAYOUT, SECOND];

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
    if found < VERSION {
        let transaction = connection.transaction()?;
        for layout in LAYOUTS.iter().skip(usize::try_from(found).unwrap_or_default()) {
            transaction.execute_batch(layout)?;
        }
        transaction.commit()?;
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_each_earlier_version_keeps_its_jobs() {
        for version in 1..LAYOUTS.len() {
            let connection = Connection::open_in_memory().unwrap();
            for layout in &LAYOUTS[..version] {
                connection.execute_batch(layout).unwrap();
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
