//! The scan of the auditor, and its repairs.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::{JobId, WorkerId},
    store::{
        Audit, AuditLimits, AuditPage, Finding, Result,
        audit::{AUDIT, SUCCEEDED},
        columns::Limits,
        convert::{micros, to_limit},
        read::StoreRow as _,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    audit(limits: One<'_, Limits>, now: i64, after: Vec<u8>, limit: i64) = AUDIT;

    succeeded(after: Vec<u8>, limit: i64) = SUCCEEDED;

    make_due(id: Uuid, now: i64) = "update jobs set due_at = {now}, published = 0
    where id = {id} and state = 'available' and due_at > {now}";

    eldest(lease: i64, now: i64) = "select id from workers where beat_at > {now} - coalesce(lease_ms * 1000, {lease})
    order by started_at, id limit 1";
}

#[async_trait]
impl Audit for SqliteStore {
    async fn audit(
        &self,
        after: Option<JobId>,
        limit: usize,
        limits: &AuditLimits,
    ) -> Result<AuditPage<Finding>> {
        let query = sql::audit(One(limits), self.now_micros(), bytes(after), to_limit(limit));
        AuditPage::findings(&self.reader.fetch(query).await?)
    }

    async fn make_findable(&self, _ids: &[JobId]) -> Result<Vec<JobId>> {
        Ok(Vec::new())
    }

    async fn make_due(&self, ids: &[JobId]) -> Result<Vec<JobId>> {
        let changed = self.write_each(ids.to_vec(), |id, now| sql::make_due(id.0, now)).await?;
        Ok(ids.iter().zip(changed).filter_map(|(id, changed)| changed.then_some(*id)).collect())
    }

    async fn eldest_worker(&self, lease: Duration) -> Result<Option<WorkerId>> {
        let found = self.reader.fetch_first(sql::eldest(micros(lease), self.now_micros())).await?;
        found.map(|row| Ok(WorkerId(row.read("id")?))).transpose()
    }

    async fn succeeded_by_call(&self, after: Option<JobId>, limit: usize) -> Result<AuditPage<JobId>> {
        let query = sql::succeeded(bytes(after), to_limit(limit));
        AuditPage::succeeded(&self.reader.fetch(query).await?)
    }
}

/// An ID to begin after. No bytes come before all IDs.
fn bytes(after: Option<JobId>) -> Vec<u8> {
    after.map(|id| id.0.as_bytes().to_vec()).unwrap_or_default()
}
