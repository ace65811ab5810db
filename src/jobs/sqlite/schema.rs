//! The database: how it is opened, locked, and laid out.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::jobs::error::JobStoreError;

/// The version of the layout.
const VERSION: i64 = 2;

/// How long a reader from outside, such as a backup, may hold the database.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first layout.
pub(super) const LAYOUT: &str = "
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

/// What has come to the layout since, each to be done at the version before it.
const ADDITIONS: [&str; 1] = ["
    ALTER TABLE jobs ADD COLUMN webhook TEXT;
    ALTER TABLE jobs ADD COLUMN notice_due_ms INTEGER;
    ALTER TABLE jobs ADD COLUMN notice_tries INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX jobs_by_notice ON jobs (notice_due_ms) WHERE notice_due_ms IS NOT NULL;
    PRAGMA user_version = 2;
"];

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
    let steps = std::iter::once(LAYOUT).chain(ADDITIONS);
    for step in steps.skip(usize::try_from(found).unwrap_or_default()) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.commit()?;
    }
    Ok(connection)
}
