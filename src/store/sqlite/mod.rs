//! The store in one SQLite file, for one machine with modest needs.
//!
//! There is one writer connection. Every batch is one `BEGIN IMMEDIATE` transaction in a task of its
//! own, so that a dropped future cannot leave a transaction open, and so that no transaction fails
//! because it read before it wrote. Other processes may use the same file: they wait for each other.
//!
//! Times are microseconds of the given clock, read after the write lock was taken.
//!
//! A batch is written with one statement per row. One statement for the whole batch would cost less per row, but
//! either way the disk is waited for once a batch, and so the same statements serve one job and many.
//!
//! A limit is written `limit +{limit}`. Of a bare `?2` the query planner looks at the value, so that SQLite would
//! prepare the statement again each time one is bound; the sign hides it
//! (<https://www.sqlite.org/optoverview.html>).

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sqlx::{
    Sqlite, SqlitePool, Transaction,
    error::DatabaseError as _,
    sqlite::{
        SqliteConnectOptions, SqliteConnection, SqliteError, SqliteJournalMode, SqlitePoolOptions,
        SqliteSynchronous,
    },
};
use tokio::time::Instant;

use super::{
    Result, Statement, Store, StoreError, StoreErrorKind,
    detached::detached,
    sql::{Bound, all_statements},
};
use crate::clock::SharedClock;

mod admin;
mod audit;
mod checks;
mod claims;
mod connections;
mod finishes;
mod fragments;
mod history;
mod job_control;
mod jobs;
mod leases;
mod pins;
mod publications;
mod rejections;

/// How long a write waits for the write of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The result code of a file that another process is writing to, and how long to wait then.
const BUSY: &str = "5";
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How long a caller waits for a connection; writers wait here for each other.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

const READERS: u32 = 4;

#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database file; it is created by the first use. Not on a network file system.
    pub path: PathBuf,
    pub clock: SharedClock,
}

#[derive(Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    reader: SqlitePool,
    clock: SharedClock,
    path: Arc<PathBuf>,
}

impl SqliteStore {
    /// A store that opens its file with the first call. Needs a Tokio runtime.
    ///
    /// # Errors
    /// None today; the signature is that of every backend.
    pub fn new(options: SqliteOptions) -> Result<Self> {
        let SqliteOptions { path, clock } = options;
        let file = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full);
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        // The journal mode stays with the file, so only the writer sets it; a reader that came first
        // would contend for the switch.
        let writer = pool(1).connect_lazy_with(file.clone().journal_mode(SqliteJournalMode::Wal));
        let reader = pool(READERS).connect_lazy_with(file.pragma("query_only", "on"));
        Ok(Self { writer, reader, clock, path: Arc::new(path) })
    }

    pub fn statements() -> impl Iterator<Item = &'static Statement> {
        all_statements!()
    }

    /// Runs `work` in one write transaction, with the time at which the lock was taken.
    async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (writer, clock) = (self.writer.clone(), Arc::clone(&self.clock));
        detached(async move {
            let mut transaction = begin(&writer).await?;
            let answer = work(&mut transaction, clock.now().as_microsecond()).await;
            match answer {
                Ok(answer) => transaction.commit().await.map(|()| answer).map_err(StoreError::from),
                Err(error) => {
                    transaction.rollback().await?;
                    Err(error)
                }
            }
        })
        .await
    }

    /// Runs one statement that writes, and returns how many rows it changed.
    async fn write_one(&self, statement: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static) -> Result<u64> {
        self.write(move |db, now| {
            let statement = statement(now);
            Box::pin(async move { Ok(statement.execute(db).await?.rows_affected()) })
        })
        .await
    }

    /// Runs a statement that writes for each of these, and returns which of them changed anything.
    async fn write_each<T: Send + Sync + 'static>(
        &self,
        batch: Vec<T>,
        statement: impl Fn(&T, i64) -> Bound<Sqlite> + Send + Sync + 'static,
    ) -> Result<Vec<bool>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut changed = Vec::with_capacity(batch.len());
                for item in &batch {
                    changed.push(statement(item, now).execute(&mut *db).await?.rows_affected() > 0);
                }
                Ok(changed)
            })
        })
        .await
    }

    fn now_micros(&self) -> i64 {
        self.clock.now().as_microsecond()
    }
}

/// Begins a write. Processes that open a new file together meet where its journal mode is switched, and
/// there SQLite gives up at once, whatever the busy timeout is.
async fn begin(writer: &SqlitePool) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match writer.begin_with("BEGIN IMMEDIATE").await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(BUSY) && Instant::now() < deadline =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            begun => return begun,
        }
    }
}

impl Store for SqliteStore {}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Sorts an error by its primary result code (<https://www.sqlite.org/rescode.html>).
pub(super) fn kind_of(error: &SqliteError) -> StoreErrorKind {
    kind_of_code(error.code().and_then(|code| code.parse().ok()).unwrap_or(0))
}

/// What says nothing about the values that were sent must not be `Data`: a good job would be rejected for it.
fn kind_of_code(extended: i32) -> StoreErrorKind {
    match extended & 0xff {
        // PERM, READONLY, CANTOPEN, AUTH
        3 | 8 | 14 | 23 => StoreErrorKind::Access,
        // CORRUPT, NOTADB
        11 | 26 => StoreErrorKind::Corrupt,
        // TOOBIG, CONSTRAINT, MISMATCH, RANGE
        18 | 19 | 20 | 25 => StoreErrorKind::Data,
        // ERROR: the statement does not fit the schema
        1 => StoreErrorKind::Schema,
        _ => StoreErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_makes_sqlite_prepare_a_statement_again() {
        for Statement { text, .. } in SqliteStore::statements() {
            assert!(!text.contains("limit ?"), "{text}");
        }
        assert!(SqliteStore::statements().any(|statement| statement.text.contains("limit +?")));
    }

    #[test]
    fn a_condition_of_the_database_is_never_taken_for_a_fault_of_the_data() {
        for (code, condition) in [
            (5, "busy"),
            (261, "busy with recovery"),
            (6, "locked"),
            (7, "out of memory"),
            (9, "interrupted"),
            (10, "an I/O error"),
            (778, "an I/O error while writing"),
            (13, "disk full"),
            (17, "the schema changed meanwhile"),
            (0, "nothing is known"),
        ] {
            assert_eq!(kind_of_code(code), StoreErrorKind::Unavailable, "{code}: {condition}");
        }
        assert_eq!(kind_of_code(8), StoreErrorKind::Access, "read-only");
        assert_eq!(kind_of_code(18), StoreErrorKind::Data, "too big");
    }
}
