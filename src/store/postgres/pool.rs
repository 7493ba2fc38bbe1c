//! Connections, and what an error says about them.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use tokio::time::{error::Elapsed, timeout};

use crate::{
    store::{Result, StoreError, StoreErrorKind, detached::detached, read::StoreRow as _, sql::Bound},
    sync::lock,
};

/// How long a caller waits for a connection, including the time that connecting takes.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// How much longer than the database's own limit of a statement its answer may take. An answer that is later will not
/// come: a connection that was dropped on its way without a word never ends by itself.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How many times as long as a statement a transaction may take.
const TRANSACTION_ANSWERS: u32 = 4;

/// How long an attempt may take to find out why no connection could be had.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that are opened when they are needed.
///
/// A connection that belongs to a server which restarted, failed over or became read-only can stay open and
/// refuse every write for ever. So an error of that sort condemns all connections that are open by then, and
/// they are closed instead of being used again.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pool: PgPool,
    condemned: Condemned,
    answer_timeout: Duration,
}

/// The moment before which connections were opened that must not be used again.
#[derive(Debug, Clone, Default)]
struct Condemned(Arc<Mutex<Option<Instant>>>);

impl Condemned {
    fn all_that_are_open(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    fn has_one_of(&self, age: Duration) -> bool {
        let moment = *lock(&self.0);
        moment.is_some_and(|moment| moment.elapsed() <= age)
    }
}

impl Pool {
    /// At most so many connections, of which the database ends statements after `statement_timeout`. Needs a Tokio
    /// runtime.
    pub(super) fn new(connections: u32, options: PgConnectOptions, statement_timeout: Duration) -> Self {
        let condemned = Condemned::default();
        let known = condemned.clone();
        let pool = PgPoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |_, connection| {
                let usable = !known.has_one_of(connection.age);
                Box::pin(std::future::ready(Ok(usable)))
            })
            .connect_lazy_with(options);
        Self { pool, condemned, answer_timeout: statement_timeout + ANSWER_GRACE }
    }

    pub(super) fn size(&self) -> u32 {
        self.pool.size()
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Executes one statement in a task of its own.
    pub(super) async fn fetch(&self, query: Bound<Postgres>) -> Result<Vec<PgRow>> {
        let this = self.clone();
        detached(async move {
            this.answer(query).await.map_err(|error| {
                if is_broken(&error) {
                    this.condemned.all_that_are_open();
                }
                StoreError::from(error)
            })
        })
        .await
    }

    pub(super) async fn fetch_first(&self, query: Bound<Postgres>) -> Result<Option<PgRow>> {
        Ok(self.fetch(query).await?.into_iter().next())
    }

    /// The count in this column of the answer to one statement.
    pub(super) async fn fetch_total(&self, query: Bound<Postgres>, column: &str) -> Result<u64> {
        self.fetch_first(query).await?.map_or(Ok(0), |row| row.total(column))
    }

    /// Does work of several statements in one transaction, in a task of its own.
    pub(super) async fn transaction<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let this = self.clone();
        let answer = detached(async move {
            let mut connection = this.pool.acquire().await?;
            let limit = this.answer_timeout * TRANSACTION_ANSWERS;
            let done = async {
                let mut transaction = connection.begin().await?;
                let answer = work(&mut transaction).await?;
                transaction.commit().await?;
                Ok(answer)
            };
            match timeout(limit, done).await {
                Ok(answer) => answer,
                Err(elapsed) => Err(give_up(connection, elapsed).into()),
            }
        });
        answer.await.inspect_err(|error| {
            // Such work is rare enough that connecting anew costs less than telling the causes apart.
            if error.kind() == StoreErrorKind::Unavailable {
                self.condemned.all_that_are_open();
            }
        })
    }

    async fn answer(&self, query: Bound<Postgres>) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut connection = match self.pool.acquire().await {
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_timed_out().await),
            acquired => acquired?,
        };
        match timeout(self.answer_timeout, query.fetch_all(&mut *connection)).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(give_up(connection, elapsed)),
        }
    }

    /// A pool that cannot connect only says that the time is over; one attempt of our own says why.
    async fn why_timed_out(&self) -> sqlx::Error {
        let options = self.pool.connect_options();
        match timeout(CAUSE_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(Err(cause)) => cause,
            Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
        }
    }
}

/// Takes the connection away from its pool, which would wait for the answer, too, before it used it again.
fn give_up(connection: PoolConnection<Postgres>, elapsed: Elapsed) -> sqlx::Error {
    drop(connection.detach());
    sqlx::Error::Io(elapsed.into())
}

/// Whether the connection, and others like it, may be of no use any more. A session that began while the
/// database was read-only stays so.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code == "25006" || ["08", "57P0"].iter().any(|sort| code.starts_with(sort))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_that_were_open_by_then_are_condemned() {
        let condemned = Condemned::default();
        assert!(!condemned.has_one_of(Duration::MAX), "all is well");
        condemned.all_that_are_open();
        assert!(condemned.has_one_of(Duration::from_secs(3600)));
        std::thread::sleep(Duration::from_millis(1));
        assert!(!condemned.has_one_of(Duration::ZERO), "it was opened afterwards");
    }
}
