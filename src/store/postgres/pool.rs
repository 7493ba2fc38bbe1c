//! Connections, and what an error says about them.
//!
//! The pools of a store share what the server grants. A pool that is refused another connection goes on with those
//! that it has, and one that has none gets one of its neighbours'. This is not sqlx's pool, because there a caller who
//! is refused knocks again and again while connections of the same pool lie idle, and because it asks a connection
//! whether it lives before it takes it back, for as long as no answer comes.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, Postgres, postgres::PgRow};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, error::Elapsed, sleep_until, timeout, timeout_at},
};

use super::{
    owner_lock,
    session::{NoConnection, Session},
};
use crate::{
    job::Owner,
    store::{Result, StoreError, StoreErrorKind, detached::detached, read::StoreRow as _, sql::Bound},
    sync::lock,
};

/// How long a caller waits for a connection, including the time that connecting takes.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(4);

/// The waits of a caller whom the server refuses.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How much longer than the database's own limit of a statement its answer may take. An answer that is later will not
/// come: a connection that was dropped on its way without a word never ends by itself.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How many times as long as a statement a transaction may take.
const TRANSACTION_ANSWERS: u32 = 4;

/// A connection that was not used for so long is closed, so that other processes can have its place, which wait for it
/// as long as [`ACQUIRE_TIMEOUT`]. A pool's only one stays for longer, because connecting costs more than a statement.
const IDLE: Duration = Duration::from_secs(2);
const IDLE_ALONE: Duration = Duration::from_secs(60);

/// No connection is used for longer, so that servers behind one name get their shares, and a session gives back what
/// it has gathered.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// How long a pool goes on with fewer connections after the server refused one.
const SHORT: Duration = Duration::from_secs(2 * 60);

/// How often at most a shortage is told.
const TOLD: Duration = Duration::from_secs(60);

/// How long a goodbye to the server may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Connections that are opened when they are needed.
///
/// A connection that belongs to a server which restarted, failed over or became read-only can stay open and
/// refuse every write for ever. So an error of that sort condemns all connections that are open by then, and
/// they are closed instead of being used again.
#[derive(Clone)]
pub(super) struct Pool {
    session: Arc<Session>,
    place: usize,
    shelves: Shelves,
    /// One for each connection that may be open. Whoever has one uses an idle connection or opens another.
    permits: Arc<Semaphore>,
    answer_timeout: Duration,
    /// The pool that takes what owners ask, if that is another one.
    of_owners: Option<Arc<Pool>>,
}

/// The connections of all pools of a store, so that one pool can take from another.
#[derive(Clone, Default)]
pub(super) struct Shelves(Arc<Mutex<Vec<Shelf>>>);

/// What a pool has.
#[derive(Default)]
struct Shelf {
    /// Connections stay open while they are idle, however old they are.
    keeps: bool,
    /// The last that was used comes first again, so that those which are not needed grow old.
    idle: Vec<Open>,
    /// How many are open, used or idle.
    open: usize,
    /// Permits that are kept back because the server refused a connection, and since when.
    withheld: usize,
    short_since: Option<Instant>,
    told: Option<Instant>,
    /// The next connection that comes back is closed, for others to have its place.
    owes: bool,
    /// No connection that was open by then is used again.
    condemned: Option<Instant>,
    closed: bool,
}

struct Open {
    connection: PgConnection,
    /// Who asks, as far as the session was told.
    owner: Option<Owner>,
    since: Instant,
    used: Instant,
}

/// A connection in use. It is closed when this is dropped, unless it was given back: so nothing returns to the pool
/// in the middle of an exchange or of a transaction.
struct Lease {
    open: Option<Open>,
    pool: Pool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    /// At most so many connections. Needs a Tokio runtime.
    pub(super) fn new(connections: u32, session: Session, shelves: &Shelves) -> Self {
        let mut all = lock(&shelves.0);
        all.push(Shelf::default());
        Self {
            place: all.len() - 1,
            shelves: shelves.clone(),
            permits: Arc::new(Semaphore::new(connections.max(1) as usize)),
            answer_timeout: session.statement_timeout() + ANSWER_GRACE.min(session.statement_timeout()),
            session: Arc::new(session),
            of_owners: None,
        }
    }

    /// The same pool, which keeps its connections also while they are idle, and however old they are.
    pub(super) fn keeping(self) -> Self {
        self.with_shelf(|shelf| shelf.keeps = true);
        self
    }

    /// The same pool, but for what owners ask: this takes the other one, whose sessions are told who asks. Its role sees
    /// what is that owner's, and nothing before it was told.
    pub(super) fn with_owners_apart(self, pool: Self) -> Self {
        Self { of_owners: Some(Arc::new(pool)), ..self }
    }

    /// Returns when the connections that are in use came back, and all are closed.
    pub(super) async fn close(&self) {
        if let Some(pool) = &self.of_owners {
            Box::pin(pool.close()).await;
        }
        self.with_shelf(|shelf| shelf.closed = true);
        let idle = self.with_shelf(|shelf| {
            shelf.open -= shelf.idle.len();
            std::mem::take(&mut shelf.idle)
        });
        for open in idle {
            // A server that does not answer has no connection any more when the socket is closed.
            drop(timeout(GOODBYE, open.connection.close()).await);
        }
        // Who waits for a connection from now on is told that there is none; who has one gives it back soon.
        self.permits.close();
        while self.with_shelf(|shelf| shelf.open) > 0 {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }

    /// Executes one statement in a task of its own.
    pub(super) async fn fetch(&self, query: Bound<Postgres>) -> Result<Vec<PgRow>> {
        let (this, owner) = match (&self.of_owners, query.owner()) {
            (Some(pool), Some(owner)) => (Self::clone(pool), Some(owner.clone())),
            _ => (self.clone(), None),
        };
        detached(async move {
            this.answer(query, owner).await.map_err(|error| {
                if is_broken(&error) {
                    this.condemn();
                }
                this.named(error.into())
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
            let mut lease = this.acquire(None).await?;
            let done = async {
                let mut transaction = lease.begin().await?;
                let answer = work(&mut transaction).await?;
                transaction.commit().await?;
                Ok::<T, StoreError>(answer)
            };
            let answer =
                timeout(this.answer_timeout * TRANSACTION_ANSWERS, done).await.map_err(too_late)??;
            lease.give_back();
            Ok(answer)
        });
        answer.await.map_err(|error: StoreError| {
            // Such work is rare enough that connecting anew costs less than telling the causes apart.
            if error.kind() == StoreErrorKind::Unavailable {
                self.condemn();
            }
            self.named(error)
        })
    }

    pub(super) fn address(&self) -> String {
        self.session.address()
    }

    /// The error, with the address of the database where that may be what is wrong.
    pub(super) fn named(&self, error: StoreError) -> StoreError {
        if error.kind().is_of_the_whole_store() { error.at(&self.address()) } else { error }
    }

    async fn answer(&self, query: Bound<Postgres>, owner: Option<Owner>) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut lease = self.acquire(owner.as_ref()).await?;
        if let Some(owner) = owner {
            timeout(self.answer_timeout, lease.tell(owner)).await.map_err(too_late)??;
        }
        let answer = timeout(self.answer_timeout, query.fetch_all(&mut *lease)).await.map_err(too_late)?;
        // After an error that the server reports, the session goes on.
        if answer.as_ref().err().is_none_or(|error| matches!(error, sqlx::Error::Database(_))) {
            lease.give_back();
        }
        answer
    }

    /// A connection that is idle, if there is one then one that was told of this owner, or a new one.
    async fn acquire(&self, owner: Option<&Owner>) -> Result<Lease, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let (mut pause, mut cause) = (FIRST_PAUSE, sqlx::Error::PoolTimedOut);
        loop {
            self.end_shortage();
            let Ok(permit) = timeout_at(deadline, self.permits.clone().acquire_owned()).await else {
                return Err(cause);
            };
            let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
            if let Some(open) = self.take_idle(owner)? {
                return Ok(Lease { open: Some(open), pool: self.clone(), permit: Some(permit) });
            }
            match timeout_at(deadline, self.session.connect()).await {
                Ok(Ok(connection)) => return Ok(self.lease_new(connection, permit)),
                Ok(Err(NoConnection::Refused(error))) => {
                    cause = error;
                    if self.make_do(permit) {
                        continue;
                    }
                }
                Ok(Err(NoConnection::Away(error))) => {
                    cause = error;
                    drop(permit);
                }
                Ok(Err(NoConnection::Other(error))) => return Err(error),
                Err(_) => return Err(cause),
            }
            if Instant::now() + pause >= deadline {
                return Err(cause);
            }
            sleep_until(Instant::now() + pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn lease_new(&self, connection: PgConnection, permit: OwnedSemaphorePermit) -> Lease {
        let now = Instant::now();
        self.with_shelf(|shelf| shelf.open += 1);
        let open = Some(Open { connection, owner: None, since: now, used: now });
        Lease { open, pool: self.clone(), permit: Some(permit) }
    }

    fn take_idle(&self, owner: Option<&Owner>) -> Result<Option<Open>, sqlx::Error> {
        let now = Instant::now();
        let mut shelves = lock(&self.shelves.0);
        for shelf in shelves.iter_mut() {
            shelf.drop_old(now);
        }
        let shelf = &mut shelves[self.place];
        if shelf.closed {
            return Err(sqlx::Error::PoolClosed);
        }
        let known = shelf.idle.iter().rposition(|open| open.owner.as_ref() == owner);
        Ok(match known {
            Some(place) => Some(shelf.idle.remove(place)),
            None => shelf.idle.pop(),
        })
    }

    /// What follows from a refusal: with connections of its own, the pool goes on with fewer than it has, so that
    /// other processes find a place, too, and `true` is returned. Without any, a neighbour gives one up.
    fn make_do(&self, permit: OwnedSemaphorePermit) -> bool {
        let now = Instant::now();
        let mut shelves = lock(&self.shelves.0);
        let open: Vec<usize> = shelves.iter().map(|shelf| shelf.open).collect();
        let shelf = &mut shelves[self.place];
        if open.iter().sum::<usize>() > 0 && shelf.told.is_none_or(|told| now - told > TOLD) {
            shelf.told = Some(now);
            tracing::warn!(
                part = self.session.part(),
                connections = open[self.place],
                "the database grants no more connections, and errand goes on with those that it has: lower \
                 `store.hot_connections` and `store.other_connections`, or raise what limits them (the role's or \
                 the database's CONNECTION LIMIT, the server's max_connections, a pooler's pool size)"
            );
        }
        if shelf.open > 0 {
            shelf.withhold(permit);
            if shelf.open > 1 {
                shelf.give_up_one();
            }
            return true;
        }
        // The pool of heartbeats is the first, and nobody takes from it.
        let neighbour = (1..open.len()).filter(|place| *place != self.place && open[*place] > 0);
        if let Some(neighbour) = neighbour.max_by_key(|place| open[*place]) {
            shelves[neighbour].give_up_one();
        }
        false
    }

    /// Asks for all connections again after a while.
    fn end_shortage(&self) {
        let ended = self.with_shelf(|shelf| match shelf.short_since {
            Some(since) if since.elapsed() > SHORT => {
                shelf.short_since = None;
                std::mem::take(&mut shelf.withheld)
            }
            _ => 0,
        });
        self.permits.add_permits(ended);
    }

    fn condemn(&self) {
        self.with_shelf(|shelf| shelf.condemned = Some(Instant::now()));
    }

    fn with_shelf<T>(&self, work: impl FnOnce(&mut Shelf) -> T) -> T {
        work(&mut lock(&self.shelves.0)[self.place])
    }
}

impl Shelf {
    /// Closes what is condemned, and what nobody needed for a while.
    fn drop_old(&mut self, now: Instant) {
        let (keeps, condemned) = (self.keeps, self.condemned);
        let before = self.idle.len();
        self.idle.retain(|open| {
            (keeps || now - open.since < LIFETIME) && condemned.is_none_or(|moment| open.since > moment)
        });
        self.open -= before - self.idle.len();
        while let Some(eldest) = self.idle.first()
            && !keeps
            && now - eldest.used > if self.open > 1 { IDLE } else { IDLE_ALONE }
        {
            self.idle.remove(0);
            self.open -= 1;
        }
    }

    fn withhold(&mut self, permit: OwnedSemaphorePermit) {
        permit.forget();
        self.withheld += 1;
        self.short_since = Some(Instant::now());
    }

    /// Closes an idle connection, or else the next that comes back.
    fn give_up_one(&mut self) {
        if self.idle.is_empty() {
            self.owes = true;
        } else {
            // The one that was not used for longest.
            self.idle.remove(0);
            self.open -= 1;
        }
    }
}

impl Lease {
    /// Tells the session who asks, unless it is who asked last.
    async fn tell(&mut self, owner: Owner) -> Result<(), sqlx::Error> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.owner.as_ref() != Some(&owner) {
            open.owner = None;
            owner_lock::tell(&mut open.connection, &owner).await?;
            open.owner = Some(owner);
        }
        Ok(())
    }

    fn give_back(mut self) {
        let (Some(mut open), Some(permit)) = (self.open.take(), self.permit.take()) else { return };
        let mut shelves = lock(&self.pool.shelves.0);
        let shelf = &mut shelves[self.pool.place];
        if std::mem::take(&mut shelf.owes) {
            shelf.open -= 1;
            // The last permit stays, so that the pool asks for its share again.
            if shelf.open > 0 {
                shelf.withhold(permit);
            }
        } else if shelf.closed {
            shelf.open -= 1;
        } else {
            open.used = Instant::now();
            shelf.idle.push(open);
            // The permit is free only now, when there is something to take.
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.open.take().is_some() {
            self.pool.with_shelf(|shelf| shelf.open -= 1);
        }
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.open.as_ref().expect("a lease has its connection until it ends").connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.open.as_mut().expect("a lease has its connection until it ends").connection
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("part", &self.session.part()).finish_non_exhaustive()
    }
}

fn too_late(elapsed: Elapsed) -> sqlx::Error {
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
    use sqlx::postgres::PgConnectOptions;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_was_short_of_connections_asks_for_all_of_them_again() {
        let schema = "errand".parse().unwrap();
        let session = Session::new("a test", &PgConnectOptions::new(), &schema, Duration::from_secs(1), &[]);
        let pool = Pool::new(4, session, &Shelves::default());
        for _ in 0..3 {
            let permit = pool.permits.clone().acquire_owned().await.unwrap();
            pool.with_shelf(|shelf| shelf.withhold(permit));
        }
        tokio::time::advance(SHORT - Duration::from_secs(1)).await;
        pool.end_shortage();
        assert_eq!(pool.permits.available_permits(), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        pool.end_shortage();
        assert_eq!(pool.permits.available_permits(), 4);
        pool.end_shortage();
        assert_eq!(pool.permits.available_permits(), 4, "none is given twice");
    }
}
