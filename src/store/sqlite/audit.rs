//! The scan of the auditor, and its repairs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::SqliteStore;
use crate::{
    job::{JobId, WorkerId},
    store::{
        Audit, AuditLimits, AuditPage, Finding, StoreError,
        audit::{audit, read_findings, read_succeeded, succeeded},
        convert::{micros, to_limit, to_millis},
    },
};

/// The rescue finds running jobs by their state, so it finds them all.
const AUDIT: &str = audit!(
    "id > ?1", "+?2", "?7", "?8",
    instants: "?3 as lost_before, ?4 as overdue_before, ?5 as overrun_before",
    overran: "started_at + coalesce(timeout_ms, ?6) * 1000 < overrun_before",
    findable: "true"
);

const SUCCEEDED: &str = succeeded!("id > ?1", "+?2");

const MAKE_DUE: &str = "update jobs set due_at = ?2, published = 0
    where id = ?1 and state = 'available' and due_at > ?2";

const ELDEST: &str = "select id from workers where beat_at > ?1 order by started_at, id limit 1";

#[async_trait]
impl Audit for SqliteStore {
    async fn audit(
        &self,
        after: Option<JobId>,
        limit: usize,
        limits: &AuditLimits,
    ) -> Result<AuditPage<Finding>, StoreError> {
        let now = self.now_micros();
        let query = sqlx::query(AUDIT)
            .bind(bytes(after))
            .bind(to_limit(limit))
            .bind(now - micros(limits.lost))
            .bind(now - micros(limits.overdue))
            .bind(now - micros(limits.overrun))
            .bind(to_millis(Some(limits.timeout)))
            .bind(limits.publications)
            .bind(limits.verified);
        Ok(read_findings!(&query.fetch_all(&self.reader).await?))
    }

    async fn make_findable(&self, _ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        Ok(Vec::new())
    }

    async fn make_due(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let ids = ids.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut due = Vec::new();
                for id in ids {
                    let done = sqlx::query(MAKE_DUE).bind(id.0).bind(now).execute(&mut *db).await?;
                    due.extend((done.rows_affected() > 0).then_some(id));
                }
                Ok(due)
            })
        })
        .await
    }

    async fn eldest_worker(&self, lease: Duration) -> Result<Option<WorkerId>, StoreError> {
        let query = sqlx::query(ELDEST).bind(self.now_micros() - micros(lease));
        let found = query.fetch_optional(&self.reader).await?;
        found.map(|row| Ok(WorkerId(row.try_get(0)?))).transpose()
    }

    async fn succeeded_by_call(
        &self,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<AuditPage<JobId>, StoreError> {
        let query = sqlx::query(SUCCEEDED).bind(bytes(after)).bind(to_limit(limit));
        Ok(read_succeeded!(&query.fetch_all(&self.reader).await?))
    }
}

/// An ID to begin after. No bytes come before all IDs.
fn bytes(after: Option<JobId>) -> Vec<u8> {
    after.map(|id| id.0.as_bytes().to_vec()).unwrap_or_default()
}
