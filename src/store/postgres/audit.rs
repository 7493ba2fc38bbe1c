//! The scan of the auditor, and its repairs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::{Bound, PostgresStore, fetch};
use crate::{
    job::{JobId, WorkerId},
    store::{
        Audit, AuditLimits, AuditPage, Finding, StoreError,
        audit::{audit, read_findings, read_succeeded, succeeded},
        convert::{micros, to_i32, to_limit, to_millis},
    },
};

/// The claims are read at most once for a page, and not at all where nothing runs.
const AUDIT: &str = audit!(
    "($1::uuid is null or id > $1)", "$2", "$7", "$8",
    instants: "now() - $3::bigint * interval '1 microsecond' as lost_before,
        now() - $4::bigint * interval '1 microsecond' as overdue_before,
        now() - $5::bigint * interval '1 microsecond' as overrun_before",
    overran: "started_at + coalesce(timeout_ms, $6) * interval '1 millisecond' < overrun_before",
    findable: "coalesce((worker_id, id) in (
            select c.worker_id, taken.id from claims c cross join lateral unnest(c.job_ids) as taken (id)), false)"
);

const SUCCEEDED: &str = succeeded!("($1::uuid is null or id > $1)", "$2");

/// What the claim should have noted. A claim that exists already is enough.
const MAKE_FINDABLE: &str = "with lacking as (
        select j.id, j.worker_id from jobs j
        where j.id = any($1) and j.state = 'running' and j.worker_id is not null
            and not exists (select 1 from claims c where c.worker_id = j.worker_id and j.id = any(c.job_ids))),
    noted as (
        insert into claims (worker_id, job_ids) select worker_id, array_agg(id) from lacking group by worker_id)
    select id from lacking";

const MAKE_DUE: &str = "update jobs set due_at = now(), published = 0
    where id = any($1) and state = 'available' and due_at > now()
    returning id";

const ELDEST: &str = "select id from workers where beat_at > now() - $1::bigint * interval '1 microsecond'
    order by started_at, id limit 1";

#[async_trait]
impl Audit for PostgresStore {
    async fn audit(
        &self,
        after: Option<JobId>,
        limit: usize,
        limits: &AuditLimits,
    ) -> Result<AuditPage<Finding>, StoreError> {
        let query = sqlx::query(AUDIT)
            .bind(after.map(|id| id.0))
            .bind(to_limit(limit))
            .bind(micros(limits.lost))
            .bind(micros(limits.overdue))
            .bind(micros(limits.overrun))
            .bind(to_millis(Some(limits.timeout)))
            .bind(to_i32(limits.publications))
            .bind(limits.verified);
        Ok(read_findings!(&fetch(&self.other, query).await?))
    }

    async fn make_findable(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        self.repaired(sqlx::query(MAKE_FINDABLE), ids).await
    }

    async fn make_due(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        self.repaired(sqlx::query(MAKE_DUE), ids).await
    }

    async fn eldest_worker(&self, lease: Duration) -> Result<Option<WorkerId>, StoreError> {
        let found = fetch(&self.other, sqlx::query(ELDEST).bind(micros(lease))).await?;
        found.first().map(|row| Ok(WorkerId(row.try_get(0)?))).transpose()
    }

    async fn succeeded_by_call(
        &self,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<AuditPage<JobId>, StoreError> {
        let query = sqlx::query(SUCCEEDED).bind(after.map(|id| id.0)).bind(to_limit(limit));
        Ok(read_succeeded!(&fetch(&self.other, query).await?))
    }
}

impl PostgresStore {
    /// Executes a repair of these jobs, which returns those that it repaired.
    async fn repaired(&self, repair: Bound, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        fetch(&self.other, repair.bind(ids)).await?.iter().map(|row| Ok(JobId(row.try_get(0)?))).collect()
    }
}
