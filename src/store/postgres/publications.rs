//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    bounds::MAX_BATCH_BYTES,
    job::JobId,
    store::{
        Due, JobView, MAX_UNCLAIMED_WAIT, Publications, Result,
        columns::spec_of,
        convert::{micros, to_duration, to_i32, to_limit, uuids},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
    },
};

statements! { Postgres:
    /// One range of the index for each priority; a single ordered scan would walk past everything that
    /// is not due yet. After 20 doublings every wait has reached its ceiling. The size of a value is known only when it
    /// was read and decompressed; so what does not even fit as it is kept on disk is left out before that.
    take_due(limit: i64, bytes: i64, unclaimed_after: i64, max_wait: i64) = "with found as (
        select d.*, row_number() over () as place
        from generate_series(9, 0, -1) as p (priority)
        cross join lateral (
            select id, state as was, arguments, text from jobs
            where due_at is not null and priority = p.priority::smallint and due_at <= now()
            order by due_at limit {limit} for update skip locked) d
        limit {limit}),
    stored as (
        select *, sum(coalesce(pg_column_size(arguments), 0) + coalesce(pg_column_size(text), 0)) over (order by place) as at_least
        from found),
    sized as (
        select id, was, place, sum(coalesce(octet_length(arguments::text), 0) + coalesce(octet_length(text), 0))
            over (order by place) as bytes
        from stored where place = 1 or at_least <= {bytes}),
    due as (select id, was, place from sized where place = 1 or bytes <= {bytes}),
    taken as (
        update jobs j set state = 'available', published = least(j.published, 2147483646) + 1,
            due_at = now() + least({unclaimed_after}::bigint * (1::bigint << least(j.published, 20))::float8, {max_wait}::bigint)
                * interval '1 microsecond'
        from due where j.id = due.id
        returning due.place, due.was, j.*)
    select was, {read spec} from taken order by place";

    /// As the statements about replies, this leaves out what others have locked.
    defer(ids: Vec<Uuid>, after: i64) = "update jobs set due_at = now() + {after}::bigint * interval '1 microsecond',
        published = greatest(0, published - 1)
    where id in (select id from jobs where id = any({ids}) and state = 'available' for no key update skip locked)";

    republish_all() = "with republished as (
        update jobs set due_at = now(), published = 0 where due_at is not null and state = 'available' returning 1)
    select count(*) as jobs from republished";

    next_due() = "select (extract(epoch from min(d.due_at) - now()) * 1000000)::bigint as due_in
    from generate_series(9, 0, -1) as p (priority)
    cross join lateral (
        select due_at from jobs where due_at is not null and priority = p.priority::smallint
        order by due_at limit 1) d";

    /// Bounded in bytes as what is due.
    take_replies(limit: i64, bytes: i64, again_after: i64) = "with found as (
        select d.*, row_number() over () as place
        from (select id, arguments, text, result from jobs where reply_due_at is not null and reply_due_at <= now()
            order by reply_due_at limit {limit} for update skip locked) d),
    stored as (
        select *, sum(coalesce(pg_column_size(arguments), 0) + coalesce(pg_column_size(text), 0)
            + coalesce(pg_column_size(result), 0)) over (order by place) as at_least
        from found),
    sized as (
        select id, place, sum(coalesce(octet_length(arguments::text), 0) + coalesce(octet_length(text), 0)
            + coalesce(octet_length(result::text), 0)) over (order by place) as bytes
        from stored where place = 1 or at_least <= {bytes}),
    due as (select id from sized where place = 1 or bytes <= {bytes}),
    taken as (
        update jobs j set reply_due_at = now() + {again_after}::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning j.*)
    select {job}, result::text as result from taken order by finished_at";

    replied(ids: Vec<Uuid>) = "update jobs set reply_due_at = null, reply_refusals = 0 where id in ({owed})";

    defer_replies(ids: Vec<Uuid>, after: i64) = "update jobs set
        reply_due_at = now() + {after}::bigint * interval '1 microsecond' where id in ({owed})";

    put_off_replies(ids: Vec<Uuid>, first: i64, max_wait: i64, most: i32) = "update jobs j set
        reply_due_at = case when j.reply_refusals + 1 < {most} then now()
            + least({first}::bigint * (1::bigint << least(j.reply_refusals, 20))::float8, {max_wait}::bigint)
            * interval '1 microsecond' end,
        reply_refusals = case when j.reply_refusals + 1 < {most} then j.reply_refusals + 1 else 0 end
    where j.id in ({owed})
    returning j.id, j.reply_due_at is null as given_up";
}

#[async_trait]
impl Publications for PostgresStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>> {
        let (limit, bytes) = (to_limit(limit), to_limit(MAX_BATCH_BYTES));
        let query = sql::take_due(limit, bytes, micros(unclaimed_after), micros(MAX_UNCLAIMED_WAIT));
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
        let query = sql::take_replies(to_limit(limit), to_limit(MAX_BATCH_BYTES), micros(again_after));
        let jobs = self.other.fetch(query).await?;
        Ok(readable(&jobs, rows::job))
    }

    async fn replied(&self, ids: &[JobId]) -> Result<()> {
        self.other.fetch(sql::replied(uuids(ids))).await.map(drop)
    }

    async fn defer_replies(&self, ids: &[JobId], after: Duration) -> Result<()> {
        self.other.fetch(sql::defer_replies(uuids(ids), micros(after))).await.map(drop)
    }

    async fn put_off_replies(&self, ids: &[JobId], first: Duration, most: u32) -> Result<Vec<JobId>> {
        let query = sql::put_off_replies(uuids(ids), micros(first), micros(MAX_UNCLAIMED_WAIT), to_i32(most));
        let mut given_up = Vec::new();
        for row in self.other.fetch(query).await? {
            if row.read("given_up")? {
                given_up.push(JobId(row.read("id")?));
            }
        }
        Ok(given_up)
    }
}
