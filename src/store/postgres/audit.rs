//! The scan of the auditor, and its repairs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Postgres;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::{JobId, WorkerId},
    store::{
        Audit, AuditLimits, AuditPage, Finding, Result,
        audit::{AUDIT, SUCCEEDED},
        columns::Limits,
        convert::{micros, to_limit, uuids},
        read::StoreRow as _,
        sql::{Bound, One, statements},
    },
};

statements! { Postgres:
    audit(limits: One<'_, Limits>, after: Option<Uuid>, limit: i64) = AUDIT;

    succeeded(after: Option<Uuid>, limit: i64) = SUCCEEDED;

    /// What the claim should have noted. A claim that exists already is enough.
    make_findable(ids: Vec<Uuid>) = "with lacking as (
        select j.id, j.worker_id from jobs j
        where j.id = any({ids}) and j.state = 'running' and j.worker_id is not null
            and not exists (select 1 from claims c where c.worker_id = j.worker_id and j.id = any(c.job_ids))),
    noted as (
        insert into claims (worker_id, job_ids) select worker_id, array_agg(id) from lacking group by worker_id)
    select id from lacking";

    make_due(ids: Vec<Uuid>) = "update jobs set due_at = now(), published = 0
    where id = any({ids}) and state = 'available' and due_at > now()
    returning id";

    eldest(lease: i64) = "select id from workers
    where beat_at > now() - coalesce(lease_ms * 1000, {lease}::bigint) * interval '1 microsecond' order by started_at, id limit 1";
}

#[async_trait]
impl Audit for PostgresStore {
    async fn audit(
        &self,
        after: Option<JobId>,
        limit: usize,
        limits: &AuditLimits,
    ) -> Result<AuditPage<Finding>> {
        let query = sql::audit(One(limits), after.map(|id| id.0), to_limit(limit));
        AuditPage::findings(&self.other.fetch(query).await?)
    }

    async fn make_findable(&self, ids: &[JobId]) -> Result<Vec<JobId>> {
        self.repaired(sql::make_findable(uuids(ids))).await
    }

    async fn make_due(&self, ids: &[JobId]) -> Result<Vec<JobId>> {
        self.repaired(sql::make_due(uuids(ids))).await
    }

    async fn eldest_worker(&self, lease: Duration) -> Result<Option<WorkerId>> {
        let found = self.other.fetch_first(sql::eldest(micros(lease))).await?;
        found.map(|row| Ok(WorkerId(row.read("id")?))).transpose()
    }

    async fn succeeded_by_call(&self, after: Option<JobId>, limit: usize) -> Result<AuditPage<JobId>> {
        AuditPage::succeeded(&self.other.fetch(sql::succeeded(after.map(|id| id.0), to_limit(limit))).await?)
    }
}

impl PostgresStore {
    /// Executes a repair, which returns the jobs that it repaired.
    async fn repaired(&self, repair: Bound<Postgres>) -> Result<Vec<JobId>> {
        self.other.fetch(repair).await?.iter().map(|row| Ok(JobId(row.read("id")?))).collect()
    }
}
