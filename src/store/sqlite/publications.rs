//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::JobId,
    store::{
        Due, JobView, MAX_UNCLAIMED_WAIT, Publications, Result,
        columns::spec_of,
        convert::{micros, to_duration, to_limit},
        read::{StoreRow, if_readable},
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

    offer_reply(id: Uuid, reply_due_at: i64) = "update jobs set reply_due_at = {reply_due_at}
    where id = {id} and reply_due_at is not null";

    replied(id: Uuid) = "update jobs set reply_due_at = null where id = {id} and reply_due_at is not null";
}

/// After so many doublings every wait has reached its ceiling.
const MAX_DOUBLINGS: u32 = 20;

#[async_trait]
impl Publications for SqliteStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut taken = Vec::new();
                for found in sql::due_priorities(now).fetch_all(&mut *db).await? {
                    let room = to_limit(limit.saturating_sub(taken.len()));
                    if room == 0 {
                        break;
                    }
                    let due = sql::due(found.read("priority")?, now, room);
                    for row in due.fetch_all(&mut *db).await? {
                        let doublings = row.count("published")?.min(MAX_DOUBLINGS);
                        let wait = unclaimed_after.saturating_mul(1 << doublings).min(MAX_UNCLAIMED_WAIT);
                        sql::publish(row.read("id")?, now + micros(wait)).execute(&mut *db).await?;
                        taken.extend(if_readable(&row, due_of(&row)));
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
                let mut taken = Vec::new();
                for row in sql::replies(now, to_limit(limit)).fetch_all(&mut *db).await? {
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
}

fn due_of(row: &impl StoreRow) -> Result<Due> {
    Ok(Due { spec: Arc::new(spec_of(row)?), was: row.parse("state")? })
}
