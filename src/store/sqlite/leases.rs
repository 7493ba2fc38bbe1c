//! Heartbeats of workers, and the jobs of workers that stopped.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, read_time, refuse_nul};
use crate::{
    job::WorkerId,
    store::{
        Leases, LostJob, StoreError,
        convert::{micros, to_limit},
        rows::read_lost,
    },
};

const BEAT: &str = "insert into workers (id, name, started_at, beat_at) values (?1, ?2, ?3, ?3)
    on conflict (id) do update set name = excluded.name, beat_at = excluded.beat_at";

const RETIRE: &str = "delete from workers where id = ?1";

const LOST: &str =
    "select id, fence, attempt, spent, request_id, started_at, created_at, max_attempts, max_age_ms,
        toolkit, toolkit_version, pinned_by, account, frozen_effect
    from jobs where state = 'running'
        and not exists (select 1 from workers where workers.id = jobs.worker_id and beat_at > ?1)
    order by started_at limit +?2";

const FORGET: &str = "delete from workers where beat_at <= ?1
    and not exists (select 1 from jobs where worker_id = workers.id and state = 'running')";

#[async_trait]
impl Leases for SqliteStore {
    async fn beat(&self, worker: WorkerId, name: &str) -> Result<(), StoreError> {
        refuse_nul([Some(name)])?;
        let name = name.to_owned();
        self.write(move |db, now| {
            Box::pin(async move {
                sqlx::query(BEAT).bind(worker.0).bind(name).bind(now).execute(db).await?;
                Ok(())
            })
        })
        .await
    }

    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.write(move |db, _| {
            Box::pin(async move {
                sqlx::query(RETIRE).bind(worker.0).execute(db).await?;
                Ok(())
            })
        })
        .await
    }

    async fn lost_jobs(&self, lease: Duration, limit: usize) -> Result<Vec<LostJob>, StoreError> {
        let now = self.now_micros();
        let query = sqlx::query(LOST).bind(now - micros(lease)).bind(to_limit(limit));
        let rows = query.fetch_all(&self.reader).await?;
        rows.iter()
            .map(|row| {
                let created_at: i64 = row.try_get("created_at")?;
                Ok(read_lost!(row, read_time, now - created_at))
            })
            .collect()
    }

    async fn forget_workers(&self, after: Duration) -> Result<u64, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                Ok(sqlx::query(FORGET).bind(now - micros(after)).execute(db).await?.rows_affected())
            })
        })
        .await
    }
}
