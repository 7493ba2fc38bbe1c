//! Heartbeats of workers, and the jobs of workers that stopped.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{PostgresStore, fetch, read_time};
use crate::{
    job::WorkerId,
    store::{
        Leases, LostJob, StoreError,
        convert::{micros, to_limit, to_u64},
        rows::read_lost,
    },
};

const BEAT: &str = "insert into workers (id, name, started_at, beat_at) values ($1, $2, now(), now())
    on conflict (id) do update set name = excluded.name, beat_at = excluded.beat_at";

const RETIRE: &str = "delete from workers where id = $1";

/// The running jobs among those that a claim `c` took. The offset keeps the planner from joining the other
/// way round: right after many claims, before the statistics know of them, it would compare each job with each.
macro_rules! running_of_claim {
    () => {
        "unnest(c.job_ids) as taken (id)
            cross join lateral (select * from jobs
                where jobs.id = taken.id and worker_id = c.worker_id and state = 'running' offset 0) j"
    };
}
pub(super) use running_of_claim;

/// A job that its worker took more than once is found in several claims.
const LOST: &str = concat!(
    "with c as materialized (
        select worker_id, job_ids from claims where not exists (select 1 from workers w
            where w.id = claims.worker_id and w.beat_at > now() - $1::bigint * interval '1 microsecond'))
    select distinct on (j.started_at, j.id)
        j.id, fence, attempt, spent, request_id, j.started_at, created_at, max_attempts, max_age_ms,
        toolkit, toolkit_version, pinned_by, account, frozen_effect,
        (extract(epoch from now() - created_at) * 1000000)::bigint as age
    from c cross join lateral ",
    running_of_claim!(),
    " order by j.started_at, j.id limit $2"
);

/// Claims of which nothing runs any more are removed by whoever looks, in short rounds.
const FORGET: &str = concat!(
    "with over as (
        delete from claims where id in (
            select c.id from claims c
            where not exists (select 1 from ",
    running_of_claim!(),
    ") for update skip locked)
        returning id),
    forgotten as (
        delete from workers w where beat_at <= now() - $1::bigint * interval '1 microsecond'
            and not exists (select 1 from claims c where c.worker_id = w.id and c.id not in (select id from over))
        returning 1)
    select count(*) from forgotten"
);

#[async_trait]
impl Leases for PostgresStore {
    /// On the hot pool, because a report that takes all other connections must not cost the lease.
    async fn beat(&self, worker: WorkerId, name: &str) -> Result<(), StoreError> {
        fetch(&self.hot, sqlx::query(BEAT).bind(worker.0).bind(name)).await?;
        Ok(())
    }

    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError> {
        fetch(&self.hot, sqlx::query(RETIRE).bind(worker.0)).await?;
        Ok(())
    }

    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>, StoreError> {
        let query = sqlx::query(LOST).bind(micros(lease)).bind(to_limit(limit));
        let lost = fetch(&self.other, query).await?;
        lost.iter().map(|row| Ok(read_lost!(row, read_time, row.try_get("age")?))).collect()
    }

    async fn forget_workers(&self, after: Duration) -> Result<u64, StoreError> {
        match fetch(&self.other, sqlx::query(FORGET).bind(micros(after))).await?.first() {
            Some(row) => Ok(to_u64(row.try_get(0)?)),
            None => Ok(0),
        }
    }
}
