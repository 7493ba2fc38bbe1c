//! Heartbeats of workers, and the jobs of workers that stopped.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
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

statements! { Sqlite:
    take_task(task: &str, worker: Uuid, lease: i64, now: i64) = "insert into tasks (name, worker_id, held_until)
    values ({task}, {worker}, {now} + {lease})
    on conflict (name) do update set worker_id = excluded.worker_id, held_until = excluded.held_until
        where tasks.worker_id = excluded.worker_id or tasks.held_until <= {now}";

    leave_task(task: &str, worker: Uuid) = "delete from tasks where name = {task} and worker_id = {worker}";

    beat(worker: Uuid, name: &str, lease_ms: Option<i64>, build: &str, now: i64) =
    "insert into workers (id, name, started_at, beat_at, lease_ms, build)
    values ({worker}, {name}, {now}, {now}, {lease_ms}, {build})
    on conflict (id) do update set name = excluded.name, beat_at = excluded.beat_at, lease_ms = excluded.lease_ms,
        build = excluded.build";

    workers(now: i64) = "select id, name, build, started_at, beat_at, lease_ms, {now} - beat_at as silent_for
    from workers order by started_at, id";

    running_of_workers() = "select worker_id, queue, count(*) as jobs from jobs where state = 'running'
    group by worker_id, queue order by worker_id, queue";

    live_builds(lease: i64, now: i64) = "select count(distinct coalesce(build, '')) as builds from workers
    where beat_at > {now} - coalesce(lease_ms * 1000, {lease})";

    retire(worker: Uuid) = "delete from workers where id = {worker}";

    lost(lease: i64, now: i64, limit: i64) = "select id, request_id, started_at, max_attempts, max_age_ms, {receipt}
    from jobs where state = 'running'
        and not exists (select 1 from workers where workers.id = jobs.worker_id
            and beat_at > {now} - coalesce(lease_ms * 1000, {lease}))
    order by started_at limit +{limit}";

    running(worker: Uuid, now: i64, limit: i64) = "select id, request_id, started_at, max_attempts, max_age_ms, {receipt}
    from jobs where state = 'running' and worker_id = {worker} order by started_at limit +{limit}";

    forget(after: i64, now: i64) = "delete from workers where beat_at <= {now} - max({after}, coalesce(lease_ms * 1000, 0))
    and not exists (select 1 from jobs where worker_id = workers.id and state = 'running')";
}

#[async_trait]
impl Leases for SqliteStore {
    async fn take_task(&self, task: Task, worker: WorkerId, lease: Duration) -> Result<bool> {
        let (task, lease) = (task.as_str(), micros(lease));
        Ok(self.write_one(move |now| sql::take_task(task, worker.0, lease, now)).await? > 0)
    }

    async fn leave_task(&self, task: Task, worker: WorkerId) -> Result<()> {
        let task = task.as_str();
        self.write_one(move |_| sql::leave_task(task, worker.0)).await.map(drop)
    }

    async fn beat(&self, worker: WorkerId, name: &str, lease: Duration) -> Result<()> {
        let name = name.to_owned();
        let lease_ms = to_millis(Some(lease));
        self.write_one(move |now| sql::beat(worker.0, &name, lease_ms, &build(), now)).await.map(drop)
    }

    async fn workers(&self) -> Result<Vec<WorkerView>> {
        let workers = self.reader.fetch(sql::workers(self.now_micros())).await?;
        WorkerView::all(&workers, &self.reader.fetch(sql::running_of_workers()).await?)
    }

    async fn live_builds(&self, lease: Duration) -> Result<u64> {
        let query = sql::live_builds(micros(lease), self.now_micros());
        self.reader.fetch_one(query).await?.total("builds")
    }

    async fn retire(&self, worker: WorkerId) -> Result<()> {
        self.write_one(move |_| sql::retire(worker.0)).await.map(drop)
    }

    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>> {
        let query = sql::lost(micros(lease), self.now_micros(), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, rows::lost))
    }

    async fn running_jobs(&self, worker: WorkerId, limit: usize) -> Result<Vec<LostJob>> {
        let query = sql::running(worker.0, self.now_micros(), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, rows::lost))
    }

    async fn forget_workers(&self, after: Duration) -> Result<u64> {
        self.write_one(move |now| sql::forget(micros(after), now)).await
    }
}
