//! Due and unclaimed rows to the queue, and replies to apps.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::{PostgresStore, fetch, read_time};
use crate::{
    job::{JobId, JobSpec},
    store::{
        Due, MAX_UNCLAIMED_WAIT, Publications, Reply, StoreError,
        convert::{micros, parse_column, to_duration, to_limit, to_u64},
        rows::read_job,
    },
};

/// One range of the index for each priority; a single ordered scan would walk past everything that
/// is not due yet. After 20 doublings every wait has reached its ceiling.
const TAKE_DUE: &str = concat!(
    "with due as (
        select d.id, d.state as was, d.due_at as was_due_at, row_number() over () as place
        from generate_series(9, 0, -1) as p (priority)
        cross join lateral (
            select id, state, due_at from jobs
            where due_at is not null and priority = p.priority::smallint and due_at <= now()
            order by due_at limit $1 for update skip locked) d
        limit $1),
    taken as (
        update jobs j set state = 'available', published = least(j.published, 2147483646) + 1,
            due_at = now() + least($2::bigint * (1::bigint << least(j.published, 20))::float8, $3::bigint)
                * interval '1 microsecond'
        from due where j.id = due.id
        returning due.place, due.was, due.was_due_at, j.*)
    select place, was, ",
    super::job_control::job_columns!(),
    ", null::text as result from taken order by place"
);

const DEFER: &str = "update jobs set due_at = now() + $2::bigint * interval '1 microsecond',
        published = greatest(0, published - 1)
    where id = any($1) and state = 'available'";

const REPUBLISH_ALL: &str = "with republished as (
        update jobs set due_at = now(), published = 0 where due_at is not null and state = 'available' returning 1)
    select count(*) from republished";

const NEXT_DUE: &str = "select (extract(epoch from min(d.due_at) - now()) * 1000000)::bigint
    from generate_series(9, 0, -1) as p (priority)
    cross join lateral (
        select due_at from jobs where due_at is not null and priority = p.priority::smallint
        order by due_at limit 1) d";

const TAKE_REPLIES: &str = concat!(
    "with due as (
        select id from jobs where reply_due_at is not null and reply_due_at <= now()
        order by reply_due_at limit $1 for update skip locked),
    taken as (
        update jobs j set reply_due_at = now() + $2::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning j.*)
    select ",
    super::job_control::job_columns!(),
    ", result::text as result from taken order by finished_at"
);

const REPLIED: &str = "update jobs set reply_due_at = null where id = any($1) and reply_due_at is not null";

#[async_trait]
impl Publications for PostgresStore {
    async fn take_due(&self, limit: usize, unclaimed_after: Duration) -> Result<Vec<Due>, StoreError> {
        let query = sqlx::query(TAKE_DUE)
            .bind(to_limit(limit))
            .bind(micros(unclaimed_after))
            .bind(micros(MAX_UNCLAIMED_WAIT));
        fetch(&self.other, query)
            .await?
            .iter()
            .map(|row| {
                let was: String = row.try_get("was")?;
                let spec: Arc<JobSpec> = read_job!(row, read_time).view()?.spec;
                Ok(Due { spec, was: parse_column("state", &was)? })
            })
            .collect()
    }

    async fn defer(&self, ids: &[JobId], after: Duration) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        fetch(&self.other, sqlx::query(DEFER).bind(ids).bind(micros(after))).await?;
        Ok(())
    }

    async fn republish_all(&self) -> Result<u64, StoreError> {
        match fetch(&self.other, sqlx::query(REPUBLISH_ALL)).await?.first() {
            Some(row) => Ok(to_u64(row.try_get(0)?)),
            None => Ok(0),
        }
    }

    async fn next_due_in(&self) -> Result<Option<Duration>, StoreError> {
        let next: Option<i64> = match fetch(&self.other, sqlx::query(NEXT_DUE)).await?.first() {
            Some(row) => row.try_get(0)?,
            None => None,
        };
        Ok(next.map(to_duration))
    }

    async fn take_replies(&self, limit: usize, again_after: Duration) -> Result<Vec<Reply>, StoreError> {
        let query = sqlx::query(TAKE_REPLIES).bind(to_limit(limit)).bind(micros(again_after));
        let jobs = fetch(&self.other, query).await?;
        let jobs = jobs
            .iter()
            .map(|row| read_job!(row, read_time).view())
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(jobs.into_iter().filter_map(Reply::of).collect())
    }

    async fn replied(&self, ids: &[JobId]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        fetch(&self.other, sqlx::query(REPLIED).bind(ids)).await?;
        Ok(())
    }
}
