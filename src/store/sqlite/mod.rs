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

use std::{fmt, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use sqlx::{
    Sqlite,
    error::DatabaseError as _,
    sqlite::{SqliteConnection, SqliteError},
};

use self::{events::Recorder, pool::Pool};
use super::{
    Result, Statement, Store, StoreErrorKind,
    detached::detached,
    sql::{Bound, all_statements},
};
use crate::clock::SharedClock;

mod access_keys;
mod actions;
mod admin;
mod answers;
mod audit;
mod batch_items;
mod batches;
mod callbacks;
mod changes;
mod checks;
mod claims;
mod connections;
mod events;
mod finishes;
mod fragments;
mod history;
mod job_control;
mod job_inbox;
mod job_lists;
mod jobs;
mod leases;
mod pauses;
mod pins;
mod pool;
mod publications;
mod rejections;
mod retention;

#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// The database file, which the first migration creates. Not on a network file system.
    pub path: PathBuf,
    pub clock: SharedClock,
    /// Whether what this store writes is recorded as [`events`](super::Events).
    pub records_events: bool,
}

#[derive(Clone)]
pub struct SqliteStore {
    writer: Pool,
    reader: Pool,
    clock: SharedClock,
    path: Arc<PathBuf>,
    recorder: Recorder,
}

impl SqliteStore {
    /// A store that opens its file with the first call. Needs a Tokio runtime.
    pub fn new(options: SqliteOptions) -> Self {
        let SqliteOptions { path, clock, records_events } = options;
        let path = Arc::new(path);
        Self {
            writer: Pool::writer(&path),
            reader: Pool::reader(&path),
            clock,
            path,
            recorder: Recorder(records_events),
        }
    }

    pub fn statements() -> impl Iterator<Item = &'static Statement> {
        all_statements!(batch_items)
    }

    /// Runs `work` in one write transaction in a task of its own, with the time at which the lock was taken.
    async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (writer, clock) = (self.writer.clone(), Arc::clone(&self.clock));
        detached(async move { writer.transaction(&clock, work).await }).await
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

impl Store for SqliteStore {}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Sorts an error by its primary result code (<https://www.sqlite.org/rescode.html>).
pub(super) fn kind_of(error: &SqliteError) -> StoreErrorKind {
    kind_of_code(error.code().and_then(|code| code.parse().ok()).unwrap_or(0), error.message())
}

/// What says nothing about the values that were sent must not be `Data`: a good job would be rejected for it.
fn kind_of_code(extended: i32, message: &str) -> StoreErrorKind {
    match extended & 0xff {
        // PERM, READONLY, CANTOPEN, AUTH, NOTADB
        3 | 8 | 14 | 23 | 26 => StoreErrorKind::Access,
        // CORRUPT
        11 => StoreErrorKind::Corrupt,
        // TOOBIG, CONSTRAINT, MISMATCH, RANGE
        18 | 19 | 20 | 25 => StoreErrorKind::Data,
        // ERROR stands for much; these say that the statement does not fit the schema.
        1 if ["no such table", "no such column", "has no column", "already exists"]
            .iter()
            .any(|sort| message.contains(sort)) =>
        {
            StoreErrorKind::Schema
        }
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
            (1, "cannot rollback - no transaction is active"),
            (17, "the schema changed meanwhile"),
            (0, "nothing is known"),
        ] {
            assert_eq!(kind_of_code(code, condition), StoreErrorKind::Unavailable, "{code}: {condition}");
        }
        for (code, message, kind) in [
            (8, "attempt to write a readonly database", StoreErrorKind::Access),
            (26, "file is not a database", StoreErrorKind::Access),
            (18, "string or blob too big", StoreErrorKind::Data),
            (1, "no such table: jobs", StoreErrorKind::Schema),
            (1, "table jobs has no column named later", StoreErrorKind::Schema),
        ] {
            assert_eq!(kind_of_code(code, message), kind, "{code}: {message}");
        }
    }
}
