//! Heartbeats of workers, and the jobs of workers that stopped.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::WorkerId,
    store::{
        Leases, LostJob, Result, Task, WorkerView, build,
        convert::{micros, to_limit, to_millis},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
    },
};

statements! { Postgres:
    take_task(task: &str, worker: Uuid, lease: i64) = "insert into tasks (name, worker_id, held_until)
    values ({task}, {worker}, now() + {lease}::bigint * interval '1 microsecond')
    on conflict (name) do update set worker_id = excluded.worker_id, held_until = excluded.held_until
        where tasks.worker_id = excluded.worker_id or tasks.held_until <= now()
    returning name";

    leave_task(task: &str, worker: Uuid) = "delete from tasks where name = {task} and worker_id = {worker}";

    beat(worker: Uuid, name: &str, lease_ms: Option<i64>, build: &str) =
    "insert into workers (id, name, started_at, beat_at, lease_ms, build)
    values ({worker}, {name}, now(), now(), {lease_ms}, {build})
    on conflict (id) do update set name = excluded.name, beat_at = excluded.beat_at, lease_ms = excluded.lease_ms,
        build = excluded.build";

    workers() = "select id, name, build, started_at, beat_at, lease_ms,
        (extract(epoch from now() - beat_at) * 1000000)::bigint as silent_for
    from workers order by started_at, id";

    running_of_workers() = "select j.worker_id, j.queue, count(distinct j.id) as jobs
    from claims c cross join lateral {running_of_claim} group by j.worker_id, j.queue order by j.worker_id, j.queue";

    live_builds(lease: i64) = "select count(distinct coalesce(build, '')) as builds from workers w
    where w.beat_at > now() - coalesce(w.lease_ms * 1000, {lease}::bigint) * interval '1 microsecond'";

    retire(worker: Uuid) = "delete from workers where id = {worker}";

    /// A job that its worker took more than once is found in several claims.
    lost(lease: i64, limit: i64) = "with c as materialized (
        select worker_id, job_ids from claims where not exists (select 1 from workers w
            where w.id = claims.worker_id
                and w.beat_at > now() - coalesce(w.lease_ms * 1000, {lease}::bigint) * interval '1 microsecond'))
    select distinct on (j.started_at, j.id)
        j.id, j.request_id, j.started_at, j.max_attempts, j.max_age_ms, {receipt of j}
    from c cross join lateral {running_of_claim} order by j.started_at, j.id limit {limit}";

    running(worker: Uuid, limit: i64) = "with c as materialized (
        select worker_id, job_ids from claims where worker_id = {worker})
    select distinct on (j.started_at, j.id)
        j.id, j.request_id, j.started_at, j.max_attempts, j.max_age_ms, {receipt of j}
    from c cross join lateral {running_of_claim} order by j.started_at, j.id limit {limit}";

    /// Claims of which nothing runs any more are removed by whoever looks, so many at once.
    forget(after: i64, claims: i64) = "with over as (
        delete from claims where id in (
            select c.id from claims c
            where not exists (select 1 from {running_of_claim}) limit {claims} for update skip locked)
        returning id),
    forgotten as (
        delete from workers where id in (
            select w.id from workers w
            where beat_at <= now() - greatest(lease_ms * 1000, {after}::bigint) * interval '1 microsecond'
                and not exists (select 1 from claims c where c.worker_id = w.id and c.id not in (select id from over))
            for update skip locked)
        returning 1)
    select (select count(*) from over) as claims, (select count(*) from forgotten) as workers";
}

/// How many claims one statement forgets, so that a backlog of them is not one long transaction.
const FORGET_CLAIMS: i64 = 5_000;

#[async_trait]
impl Leases for PostgresStore {
    /// On a connection of its own, because nothing that takes all the others must cost the lease.
    async fn take_task(&self, task: Task, worker: WorkerId, lease: Duration) -> Result<bool> {
        let query = sql::take_task(task.as_str(), worker.0, micros(lease));
        Ok(self.other.fetch_first(query).await?.is_some())
    }

    async fn leave_task(&self, task: Task, worker: WorkerId) -> Result<()> {
        self.other.fetch(sql::leave_task(task.as_str(), worker.0)).await.map(drop)
    }

    async fn beat(&self, worker: WorkerId, name: &str, lease: Duration) -> Result<()> {
        self.beat.fetch(sql::beat(worker.0, name, to_millis(Some(lease)), &build())).await.map(drop)
    }

    async fn workers(&self) -> Result<Vec<WorkerView>> {
        let workers = self.other.fetch(sql::workers()).await?;
        WorkerView::all(&workers, &self.other.fetch(sql::running_of_workers()).await?)
    }

    async fn live_builds(&self, lease: Duration) -> Result<u64> {
        self.other.fetch_total(sql::live_builds(micros(lease)), "builds").await
    }

    async fn retire(&self, worker: WorkerId) -> Result<()> {
        self.beat.fetch(sql::retire(worker.0)).await.map(drop)
    }

    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>> {
        let lost = self.other.fetch(sql::lost(micros(lease), to_limit(limit))).await?;
        Ok(readable(&lost, rows::lost))
    }

    async fn running_jobs(&self, worker: WorkerId, limit: usize) -> Result<Vec<LostJob>> {
        let running = self.other.fetch(sql::running(worker.0, to_limit(limit))).await?;
        Ok(readable(&running, rows::lost))
    }

    async fn forget_workers(&self, after: Duration) -> Result<u64> {
        let mut workers = 0;
        loop {
            let forgotten = self.other.fetch_first(sql::forget(micros(after), FORGET_CLAIMS)).await?;
            let Some(forgotten) = forgotten else { return Ok(workers) };
            workers += forgotten.total("workers")?;
            if forgotten.read::<i64>("claims")? < FORGET_CLAIMS {
                return Ok(workers);
            }
        }
    }
}
