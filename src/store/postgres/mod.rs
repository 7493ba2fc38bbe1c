//! The store in PostgreSQL 15 or newer.
//!
//! Claims and finishes are single statements over arrays, which commit by themselves, so that there
//! is nothing to roll back; what they leave over (known jobs, conflicts, late results) pays for
//! further statements. Every write runs in a task of its own: a dropped future never leaves a
//! connection in the middle of an exchange.
//!
//! There are two pools, so that reports and lists cannot keep claims and finishes waiting. Times are
//! the server's.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Row,
    postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgPoolOptions, PgRow},
    query::Query,
};

use super::{StoreError, StoreErrorKind, detached};

mod admin;
mod auditing;
mod connecting;
mod desk;
mod jobs;
mod leases;
mod pins;
mod rejections;
mod relaying;
mod verifying;

/// How long a caller waits for a connection, including the time that connecting takes.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long an attempt may take to find out why no connection could be had.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// After this the server ends a session that stopped in the middle of a transaction.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// Where the database is, and how much of it to use.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database?...`
    pub url: SecretString,
    /// Connections for claims, finishes and heartbeats.
    pub hot_connections: u32,
    /// Connections for everything else.
    pub other_connections: u32,
    /// What the server's activity view shows.
    pub application_name: String,
    /// The server gives up on a statement after this; migrations are exempt.
    pub statement_timeout: Duration,
}

/// The store in PostgreSQL.
#[derive(Clone)]
pub struct PostgresStore {
    hot: PgPool,
    other: PgPool,
    /// For migrations, which may take longer than any statement.
    patient: PgConnectOptions,
}

impl PostgresStore {
    /// A store that connects with the first call. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`StoreErrorKind::Access`] when the URL cannot be understood.
    pub fn new(options: PostgresOptions) -> Result<Self, StoreError> {
        let PostgresOptions { url, hot_connections, other_connections, application_name, statement_timeout } =
            options;
        // The reason is dropped, because it can quote a part of the URL.
        let parsed: PgConnectOptions = url.expose_secret().parse().map_err(|_| {
            StoreError::new(
                StoreErrorKind::Access,
                "the database URL cannot be understood; it looks like `postgres://user:password@host:5432/database`",
            )
        })?;
        let patient = parsed.application_name(&application_name).disable_statement_logging();
        let limited = patient.clone().options([
            ("statement_timeout", format!("{}ms", statement_timeout.as_millis())),
            ("idle_in_transaction_session_timeout", format!("{}ms", IDLE_IN_TRANSACTION.as_millis())),
        ]);
        // Statements of the hot path address rows by their keys. A plan that was made while the
        // tables were empty would read them whole, and would be kept until statistics catch up.
        let keyed = limited.clone().options([
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
        ]);
        // Optional filters need plans that know which are given.
        let planned = limited.options([("plan_cache_mode", "force_custom_plan")]);
        let pool = |connections: u32, options| {
            PgPoolOptions::new()
                .max_connections(connections.max(1))
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .connect_lazy_with(options)
        };
        Ok(Self { hot: pool(hot_connections, keyed), other: pool(other_connections, planned), patient })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("hot", &self.hot.size())
            .field("other", &self.other.size())
            .finish_non_exhaustive()
    }
}

type Bound = Query<'static, sqlx::Postgres, PgArguments>;

/// Executes one statement in a task of its own.
async fn rows(pool: &PgPool, query: Bound) -> Result<Vec<PgRow>, StoreError> {
    let pool = pool.clone();
    detached(async move {
        let answer = match query.fetch_all(&pool).await {
            Err(sqlx::Error::PoolTimedOut) => Err(why_timed_out(&pool).await),
            answer => answer,
        };
        answer.map_err(|error| {
            if is_broken(&error) {
                // A server that restarted has ended the idle connections too; without this each
                // would fail one more call.
                while let Some(connection) = pool.try_acquire() {
                    drop(connection.detach());
                }
            }
            StoreError::from(error)
        })
    })
    .await
}

/// A pool that cannot connect only says that the time is over; one attempt of our own says why.
async fn why_timed_out(pool: &PgPool) -> sqlx::Error {
    let options = pool.connect_options();
    match tokio::time::timeout(CAUSE_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Err(cause)) => cause,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

/// Reads an optional instant.
fn time(row: &PgRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let time: Option<jiff_sqlx::Timestamp> = row.try_get(column)?;
    Ok(time.map(jiff_sqlx::Timestamp::to_jiff))
}

/// An instant as it is sent.
fn at(time: Timestamp) -> jiff_sqlx::Timestamp {
    time.into()
}

/// Sorts an error by its SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(super) fn kind_of(error: &PgDatabaseError) -> StoreErrorKind {
    let code = error.code();
    match code {
        "42P01" | "42703" | "42883" | "3F000" => return StoreErrorKind::Schema,
        "42501" | "3D000" => return StoreErrorKind::Access,
        // Limits of what one value or one statement may be.
        "54000" | "54001" | "54011" | "54023" => return StoreErrorKind::Data,
        _ => {}
    }
    match code.get(..2) {
        Some("22" | "23") => StoreErrorKind::Data,
        Some("28") => StoreErrorKind::Access,
        Some("42") => StoreErrorKind::Schema,
        Some("XX") => StoreErrorKind::Corrupt,
        _ => StoreErrorKind::Unavailable,
    }
}
