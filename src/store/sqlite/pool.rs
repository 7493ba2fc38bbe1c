//! Connections to the file.

use std::{fs, io, os::unix::fs::OpenOptionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sqlx::{
    Connection as _, Sqlite, SqlitePool,
    pool::PoolConnection,
    sqlite::{
        SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};
use tokio::time::Instant;

use crate::{
    clock::SharedClock,
    store::{Result, StoreError, StoreErrorKind, sql::Bound},
};

/// How long a write waits for the write of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The result code of a file that another process is writing to, and how long to wait then.
const BUSY: &str = "5";
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How long a caller waits for a connection; writers wait here for each other.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

const READERS: u32 = 4;

/// Connections that are opened when they are needed.
///
/// After an error that is not about the values that were sent, such as that of a full disk, the connection is closed.
/// SQLite may have rolled back by itself then, which the driver does not notice, so that it would begin nothing any more.
#[derive(Clone)]
pub(super) struct Pool {
    pool: SqlitePool,
    path: Arc<PathBuf>,
}

impl Pool {
    /// Needs a Tokio runtime.
    pub(super) fn writer(path: &Arc<PathBuf>) -> Self {
        // The journal mode stays with the file, so only the writer sets it; a reader that came first
        // would contend for the switch.
        Self::new(path, 1, file(path).journal_mode(SqliteJournalMode::Wal))
    }

    /// Needs a Tokio runtime.
    pub(super) fn reader(path: &Arc<PathBuf>) -> Self {
        Self::new(path, READERS, file(path).pragma("query_only", "on"))
    }

    fn new(path: &Arc<PathBuf>, connections: u32, options: SqliteConnectOptions) -> Self {
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Self { pool, path: path.clone() }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs one statement that reads.
    pub(super) async fn fetch(&self, query: Bound<Sqlite>) -> Result<Vec<SqliteRow>> {
        let mut connection = self.acquire().await?;
        let answer = query.fetch_all(&mut *connection).await.map_err(StoreError::from);
        put_back(connection, answer.as_ref().err()).await;
        answer
    }

    /// Runs one statement that reads one row at most.
    pub(super) async fn fetch_first(&self, query: Bound<Sqlite>) -> Result<Option<SqliteRow>> {
        Ok(self.fetch(query).await?.into_iter().next())
    }

    /// Runs one statement that always reads a row.
    pub(super) async fn fetch_one(&self, query: Bound<Sqlite>) -> Result<SqliteRow> {
        self.fetch_first(query).await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// Runs `work` in one transaction, with the time at which the lock to write was taken.
    pub(super) async fn transaction<T, W>(&self, clock: &SharedClock, work: W) -> Result<T>
    where
        W: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T>>,
    {
        let mut connection = self.acquire().await?;
        let writing = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let answer = work(&mut transaction, clock.now().as_microsecond()).await;
            match &answer {
                Ok(_) => transaction.commit().await?,
                // After any other error the connection is closed, which undoes what SQLite has not undone yet.
                Err(error) if error.kind() == StoreErrorKind::Data => transaction.rollback().await?,
                Err(_) => {}
            }
            answer
        };
        let answer = writing.await;
        put_back(connection, answer.as_ref().err()).await;
        answer
    }

    /// Processes that open a new file together meet where its journal mode is switched, and there SQLite gives up at
    /// once, whatever the busy timeout is.
    async fn acquire(&self) -> Result<PoolConnection<Sqlite>> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            match self.pool.acquire().await {
                Err(sqlx::Error::Database(error))
                    if error.code().as_deref() == Some(BUSY) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(sqlx::Error::Database(_)) if !self.exists() => {
                    let path = self.path.display();
                    let missing = format!(
                        "the database file {path} does not exist (is its path in DATABASE_URL right?)"
                    );
                    return Err(StoreError::new(StoreErrorKind::Schema, missing));
                }
                acquired => return Ok(acquired?),
            }
        }
    }

    /// Whether the file is there, as far as this process may see it.
    pub(super) fn exists(&self) -> bool {
        self.path.try_exists().unwrap_or(true)
    }

    /// Creates the file if it is missing, for this user alone, because it will hold customers' data. SQLite gives the
    /// files that it makes beside it the same permissions. Nothing else creates it, so that a mistyped path is noticed.
    pub(super) fn create(&self) -> Result<()> {
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.as_path()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                let message = format!(
                    "the database file {} cannot be created; check DATABASE_URL and its folder",
                    self.path.display()
                );
                Err(StoreError::new(StoreErrorKind::Access, message).with_source(error))
            }
            // What is wrong with one that is there SQLite says when it opens it.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Gives the connection back, and closes it after an error that says nothing about the values.
async fn put_back(connection: PoolConnection<Sqlite>, error: Option<&StoreError>) {
    if error.is_some_and(|error| error.kind() != StoreErrorKind::Data) {
        // What cannot be closed properly is closed all the same.
        drop(connection.close().await);
    }
}

fn file(path: &Arc<PathBuf>) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path.as_path())
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .synchronous(SqliteSynchronous::Full)
}
