//! Heartbeats of workers, and the jobs of workers that stopped.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::WorkerId,
    store::{
        Leases, LostJob, Result,
        convert::{micros, to_limit},
        read::readable,
        rows,
        sql::statements,
    },
};

statements! { Sqlite:
    beat(worker: Uuid, name: &str, now: i64) = "insert into workers (id, name, started_at, beat_at)
    values ({worker}, {name}, {now}, {now})
    on conflict (id) do update set name = excluded.name, beat_at = excluded.beat_at";

    retire(worker: Uuid) = "delete from workers where id = {worker}";

    lost(oldest_beat: i64, now: i64, limit: i64) = "select id, request_id, started_at, max_attempts, max_age_ms, {receipt}
    from jobs where state = 'running'
        and not exists (select 1 from workers where workers.id = jobs.worker_id and beat_at > {oldest_beat})
    order by started_at limit +{limit}";

    running(worker: Uuid, now: i64, limit: i64) = "select id, request_id, started_at, max_attempts, max_age_ms, {receipt}
    from jobs where state = 'running' and worker_id = {worker} order by started_at limit +{limit}";

    forget(oldest_beat: i64) = "delete from workers where beat_at <= {oldest_beat}
    and not exists (select 1 from jobs where worker_id = workers.id and state = 'running')";
}

#[async_trait]
impl Leases for SqliteStore {
    async fn beat(&self, worker: WorkerId, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.write_one(move |now| sql::beat(worker.0, &name, now)).await.map(drop)
    }

    async fn retire(&self, worker: WorkerId) -> Result<()> {
        self.write_one(move |_| sql::retire(worker.0)).await.map(drop)
    }

    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>> {
        let now = self.now_micros();
        let lost = self.reader.fetch(sql::lost(now - micros(lease), now, to_limit(limit))).await?;
        Ok(readable(&lost, rows::lost))
    }

    async fn running_jobs(&self, worker: WorkerId, limit: usize) -> Result<Vec<LostJob>> {
        let query = sql::running(worker.0, self.now_micros(), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, rows::lost))
    }

    async fn forget_workers(&self, after: Duration) -> Result<u64> {
        self.write_one(move |now| sql::forget(now - micros(after))).await
    }
}
