//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::JobId,
    store::{
        Due, JobView, MAX_UNCLAIMED_WAIT, Publications, Result,
        columns::spec_of,
        convert::{micros, to_duration, to_limit, uuids},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
    },
};

statements! { Postgres:
    /// One range of the index for each priority; a single ordered scan would walk past everything that
    /// is not due yet. After 20 doublings every wait has reached its ceiling.
    take_due(limit: i64, unclaimed_after: i64, max_wait: i64) = "with due as (
        select d.id, d.state as was, row_number() over () as place
        from generate_series(9, 0, -1) as p (priority)
        cross join lateral (
            select id, state from jobs
            where due_at is not null and priority = p.priority::smallint and due_at <= now()
            order by due_at limit {limit} for update skip locked) d
        limit {limit}),
    taken as (
        update jobs j set state = 'available', published = least(j.published, 2147483646) + 1,
            due_at = now() + least({unclaimed_after}::bigint * (1::bigint << least(j.published, 20))::float8, {max_wait}::bigint)
                * interval '1 microsecond'
        from due where j.id = due.id
        returning due.place, due.was, j.*)
    select was, {read spec} from taken order by place";

    defer(ids: Vec<Uuid>, after: i64) = "update jobs set due_at = now() + {after}::bigint * interval '1 microsecond',
        published = greatest(0, published - 1)
    where id = any({ids}) and state = 'available'";

    republish_all() = "with republished as (
        update jobs set due_at = now(), published = 0 where due_at is not null and state = 'available' returning 1)
    select count(*) as jobs from republished";

    next_due() = "select (extract(epoch from min(d.due_at) - now()) * 1000000)::bigint as due_in
    from generate_series(9, 0, -1) as p (priority)
    cross join lateral (
        select due_at from jobs where due_at is not null and priority = p.priority::smallint
        order by due_at limit 1) d";

    take_replies(limit: i64, again_after: i64) = "with due as (
        select id from jobs where reply_due_at is not null and reply_due_at <= now()
        order by reply_due_at limit {limit} for update skip locked),
    taken as (
        update jobs j set reply_due_at = now() + {again_after}::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning j.*)
    select {job}, result::text as result from taken order by finished_at";

    replied(ids: Vec<Uuid>) = "update jobs set reply_due_at = null where id = any({ids}) and reply_due_at is not null";
}

#[async_trait]
impl Publications for PostgresStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>> {
        let query = sql::take_due(to_limit(limit), micros(unclaimed_after), micros(MAX_UNCLAIMED_WAIT));
        let due = self.other.fetch(query).await?;
        Ok(readable(&due, |row| Ok(Due { spec: Arc::new(spec_of(row)?), was: row.parse("was")? })))
    }

    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<()> {
        self.other.fetch(sql::defer(uuids(ids), micros(after))).await.map(drop)
    }

    async fn republish_all(&self) -> Result<u64> {
        self.other.fetch_total(sql::republish_all(), "jobs").await
    }

    async fn next_due_in(&self) -> Result<Option<Duration>> {
        let next = self.other.fetch_first(sql::next_due()).await?;
        let next: Option<i64> = next.map_or(Ok(None), |row| row.read("due_in"))?;
        Ok(next.map(to_duration))
    }

    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<JobView>> {
        let jobs = self.other.fetch(sql::take_replies(to_limit(limit), micros(again_after))).await?;
        Ok(readable(&jobs, rows::job))
    }

    async fn replied(&self, ids: &[JobId]) -> Result<()> {
        self.other.fetch(sql::replied(uuids(ids))).await.map(drop)
    }
}
