//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
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
    due(priority: i16, now: i64, limit: i64) = "select id, state, published,
        coalesce(octet_length(arguments), 0) + coalesce(octet_length(text), 0) as bytes from jobs
    where due_at is not null and priority = {priority} and due_at <= {now} order by due_at limit +{limit}";

    spec(id: Uuid) = "select {read spec} from jobs where id = {id}";

    publish(id: Uuid, due_at: i64) = "update jobs set
        state = 'available', due_at = {due_at}, published = min(published, 2147483646) + 1
    where id = {id} and due_at is not null";

    defer(id: Uuid, due_at: i64) = "update jobs set due_at = {due_at}, published = max(0, published - 1)
    where id = {id} and state = 'available'";

    republish_all(now: i64) = "update jobs set due_at = {now}, published = 0
    where due_at is not null and state = 'available'";

    next_due() = "select min((select min(due_at) from jobs where due_at is not null and priority = p)) as due_at
    from {priorities}";

    replies(now: i64, limit: i64) = "select id,
        coalesce(octet_length(arguments), 0) + coalesce(octet_length(text), 0) + coalesce(octet_length(result), 0) as bytes
    from jobs where reply_due_at is not null and reply_due_at <= {now} order by reply_due_at limit +{limit}";

    reply(id: Uuid) = "select {job}, result from jobs where id = {id}";

    offer_reply(id: Uuid, reply_due_at: i64) = "update jobs set reply_due_at = {reply_due_at}
    where id = {id} and reply_due_at is not null";

    replied(id: Uuid) = "update jobs set reply_due_at = null, reply_refusals = 0
    where id = {id} and reply_due_at is not null";

    reply_refusals(id: Uuid) = "select reply_refusals from jobs where id = {id} and reply_due_at is not null";

    put_off_reply(id: Uuid, reply_due_at: i64) = "update jobs set
        reply_due_at = {reply_due_at}, reply_refusals = reply_refusals + 1
    where id = {id}";
}

/// After so many doublings every wait has reached its ceiling.
const MAX_DOUBLINGS: u32 = 20;

#[async_trait]
impl Publications for SqliteStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let (mut taken, mut page) = (Vec::new(), PageBytes::default());
                'page: for found in sql::due_priorities(now).fetch_all(&mut *db).await? {
                    let room = to_limit(limit.saturating_sub(taken.len()));
                    if room == 0 {
                        break;
                    }
                    let due = sql::due(found.read("priority")?, now, room);
                    for row in due.fetch_all(&mut *db).await? {
                        if !page.fits(row.total("bytes")?) {
                            break 'page;
                        }
                        let id: Uuid = row.read("id")?;
                        let spec = spec_of(&sql::spec(id).fetch_one(&mut *db).await?);
                        let doublings = row.count("published")?.min(MAX_DOUBLINGS);
                        let wait = unclaimed_after.saturating_mul(1 << doublings).min(MAX_UNCLAIMED_WAIT);
                        sql::publish(id, now + micros(wait)).execute(&mut *db).await?;
                        let due =
                            spec.and_then(|spec| Ok(Due { spec: Arc::new(spec), was: row.parse("state")? }));
                        taken.extend(if_readable(&row, due));
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
                let (mut taken, mut page) = (Vec::new(), PageBytes::default());
                for row in sql::replies(now, to_limit(limit)).fetch_all(&mut *db).await? {
                    if !page.fits(row.total("bytes")?) {
                        break;
                    }
                    let id: Uuid = row.read("id")?;
                    let job = rows::job(&sql::reply(id).fetch_one(&mut *db).await?);
                    sql::offer_reply(id, now + micros(again_after)).execute(&mut *db).await?;
                    taken.extend(if_readable(&row, job));
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

/// What the rows of a page contain so far, in bytes.
#[derive(Default)]
struct PageBytes(Option<u64>);

impl PageBytes {
    /// Whether one more row of this size belongs to the page, as the first always does.
    fn fits(&mut self, bytes: u64) -> bool {
        let total = self.0.map_or(bytes, |total| total.saturating_add(bytes));
        let fits = self.0.is_none() || total <= MAX_BATCH_BYTES as u64;
        self.0 = Some(total);
        fits
    }
}
