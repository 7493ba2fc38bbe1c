//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    bounds::MAX_BATCH_BYTES,
    job::JobId,
    store::{
        Due, JobView, MAX_UNCLAIMED_WAIT, Publications, Result,
        columns::spec_of,
        convert::{micros, to_duration, to_limit},
        read::{StoreRow as _, if_readable},
        rows,
        sql::statements,
    },
};

statements! { Sqlite:
    /// Which priorities have anything due, so that a look that finds nothing is one statement.
    due_priorities(now: i64) = "select p as priority from {priorities}
    where exists (select 1 from jobs where due_at is not null and priority = p and due_at <= {now}) order by p desc";

    /// One range of the index for each priority; a single ordered scan would walk past everything that
    /// is not due yet.
    due(priority: i16, now: i64, limit: i64) = "select {read spec}, state, published from jobs
    where due_at is not null and priority = {priority} and due_at <= {now} order by due_at limit +{limit}";

    /// How many of those rows fit into so many bytes, which is known without reading them.
    due_sizes(priority: i16, now: i64, limit: i64, room: i64) = "select count(*) as found,
        count(*) filter (where total <= {room}) as fitting, coalesce(max(total) filter (where total <= {room}), 0) as bytes
    from (select sum(bytes) over (order by due_at rows unbounded preceding) as total from (
        select due_at, coalesce(octet_length(arguments), 0) + coalesce(octet_length(text), 0) as bytes from jobs
        where due_at is not null and priority = {priority} and due_at <= {now} order by due_at limit +{limit}))";

    publish(id: Uuid, due_at: i64) = "update jobs set
        state = 'available', due_at = {due_at}, published = min(published, 2147483646) + 1
    where id = {id} and due_at is not null";

    defer(id: Uuid, due_at: i64) = "update jobs set due_at = {due_at}, published = max(0, published - 1)
    where id = {id} and state = 'available'";

    republish_all(now: i64) = "update jobs set due_at = {now}, published = 0
    where due_at is not null and state = 'available'";

    next_due() = "select min((select min(due_at) from jobs where due_at is not null and priority = p)) as due_at
    from {priorities}";

    replies(now: i64, limit: i64) = "select {job}, result from jobs
    where reply_due_at is not null and reply_due_at <= {now} order by reply_due_at limit +{limit}";

    replies_sizes(now: i64, limit: i64, room: i64) = "select count(*) filter (where total <= {room}) as fitting
    from (select sum(bytes) over (order by reply_due_at rows unbounded preceding) as total from (
        select reply_due_at, coalesce(octet_length(arguments), 0) + coalesce(octet_length(text), 0)
            + coalesce(octet_length(result), 0) as bytes from jobs
        where reply_due_at is not null and reply_due_at <= {now} order by reply_due_at limit +{limit}))";

    offer_reply(id: Uuid, reply_due_at: i64) = "update jobs set reply_due_at = {reply_due_at}
    where id = {id} and reply_due_at is not null";

    replied(id: Uuid) = "update jobs set reply_due_at = null, reply_refusals = 0
    where id = {id} and reply_due_at is not null";

    reply_refusals(id: Uuid) = "select reply_refusals from jobs where id = {id} and reply_due_at is not null";

    /// On the connection that writes: another number whenever another process has committed a write.
    data_version() = "pragma data_version";

    put_off_reply(id: Uuid, reply_due_at: i64) = "update jobs set
        reply_due_at = {reply_due_at}, reply_refusals = reply_refusals + 1
    where id = {id}";
}

/// How often a watch looks whether another process has written. A look takes some ten microseconds and reads no file that
/// is not in memory.
const WATCH_EVERY: Duration = Duration::from_millis(20);

/// After so many doublings every wait has reached its ceiling.
const MAX_DOUBLINGS: u32 = 20;

#[async_trait]
impl Publications for SqliteStore {
    async fn watch(&self, wake: &Notify) -> Result<()> {
        // A connection's own writes do not change its number, and this process writes through one. When that is replaced
        // after an error, its number may be another, which wakes somebody in vain.
        let mut last = None;
        loop {
            let now: i64 = self.writer.fetch_one(sql::data_version()).await?.read("data_version")?;
            if last.replace(now).is_some_and(|last| last != now) {
                wake.notify_one();
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let (mut taken, mut room) = (Vec::new(), to_limit(MAX_BATCH_BYTES));
                for due in sql::due_priorities(now).fetch_all(&mut *db).await? {
                    let priority = due.read("priority")?;
                    let wanted = to_limit(limit.saturating_sub(taken.len()));
                    let sizes = sql::due_sizes(priority, now, wanted, room).fetch_one(&mut *db).await?;
                    let (found, fitting): (i64, i64) = (sizes.read("found")?, sizes.read("fitting")?);
                    room -= sizes.read::<i64>("bytes")?;
                    // The first row belongs to the page however large it is.
                    let fitting = fitting.max(i64::from(taken.is_empty()));
                    for row in sql::due(priority, now, fitting).fetch_all(&mut *db).await? {
                        let id: Uuid = row.read("id")?;
                        let doublings = row.count("published")?.min(MAX_DOUBLINGS);
                        let wait = unclaimed_after.saturating_mul(1 << doublings).min(MAX_UNCLAIMED_WAIT);
                        sql::publish(id, now + micros(wait)).execute(&mut *db).await?;
                        let due = spec_of(&row)
                            .and_then(|spec| Ok(Due { spec: Arc::new(spec), was: row.parse("state")? }));
                        taken.extend(if_readable(&row, due));
                    }
                    if fitting < found || taken.len() >= limit {
                        break;
                    }
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<()> {
        let defer = move |id: &JobId, now| sql::defer(id.0, now + micros(after));
        self.write_each(ids.to_vec(), defer).await.map(drop)
    }

    async fn republish_all(&self) -> Result<u64> {
        self.write_one(sql::republish_all).await
    }

    async fn next_due_in(&self) -> Result<Option<Duration>> {
        let next: Option<i64> = self.reader.fetch_one(sql::next_due()).await?.read("due_at")?;
        Ok(next.map(|due_at| to_duration(due_at - self.now_micros())))
    }

    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<JobView>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let sizes = sql::replies_sizes(now, to_limit(limit), to_limit(MAX_BATCH_BYTES));
                let fitting: i64 = sizes.fetch_one(&mut *db).await?.read("fitting")?;
                let mut taken = Vec::new();
                for row in sql::replies(now, fitting.max(1)).fetch_all(&mut *db).await? {
                    sql::offer_reply(row.read("id")?, now + micros(again_after)).execute(&mut *db).await?;
                    taken.extend(if_readable(&row, rows::job(&row)));
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn replied(&self, ids: &[JobId]) -> Result<()> {
        self.write_each(ids.to_vec(), |id, _| sql::replied(id.0)).await.map(drop)
    }

    async fn defer_replies(&self, ids: &[JobId], after: Duration) -> Result<()> {
        let defer = move |id: &JobId, now| sql::offer_reply(id.0, now + micros(after));
        self.write_each(ids.to_vec(), defer).await.map(drop)
    }

    async fn put_off_replies(&self, ids: &[JobId], first: Duration, most: u32) -> Result<Vec<JobId>> {
        let ids = ids.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut given_up = Vec::new();
                for id in ids {
                    let Some(row) = sql::reply_refusals(id.0).fetch_optional(&mut *db).await? else {
                        continue;
                    };
                    let refusals = row.count("reply_refusals")?;
                    if refusals + 1 < most {
                        let wait =
                            first.saturating_mul(1 << refusals.min(MAX_DOUBLINGS)).min(MAX_UNCLAIMED_WAIT);
                        sql::put_off_reply(id.0, now + micros(wait)).execute(&mut *db).await?;
                    } else {
                        sql::replied(id.0).execute(&mut *db).await?;
                        given_up.push(id);
                    }
                }
                Ok(given_up)
            })
        })
        .await
    }
}
