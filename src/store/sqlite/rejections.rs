//! Messages that are not jobs, kept whole.

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::{SqliteStore, read_time, refuse_nul};
use crate::store::{Rejected, RejectedView, Rejections, StoreError, convert::to_limit, rows::read_rejected};

const REJECT: &str = "insert into rejected (id, queue, reason, message, body, properties, seen, received_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7)
    on conflict (id) do update set seen = min(seen, 2147483646) + 1, requeued_at = null";

const REJECTED: &str =
    "select id, queue, reason, message, x'' as body, properties, length(body) as size, seen,
        received_at, requeued_at
    from rejected where requeued_at is null order by received_at desc, id desc limit +?1";

const MESSAGE: &str = "select id, queue, reason, message, body, properties, length(body) as size, seen,
        received_at, requeued_at
    from rejected where id = ?1";

const REQUEUED: &str = "update rejected set requeued_at = ?2 where id = ?1 and requeued_at is null";

#[async_trait]
impl Rejections for SqliteStore {
    async fn reject(&self, batch: &[Rejected]) -> Result<(), StoreError> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for rejected in &batch {
                    refuse_nul([Some(&*rejected.message), Some(&*rejected.properties)])?;
                    sqlx::query(REJECT)
                        .bind(rejected.id)
                        .bind(rejected.queue.as_str())
                        .bind(rejected.reason.as_str())
                        .bind(&*rejected.message)
                        .bind(&*rejected.body)
                        .bind(&*rejected.properties)
                        .bind(now)
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn rejected(&self, limit: usize) -> Result<Vec<RejectedView>, StoreError> {
        let rows = sqlx::query(REJECTED).bind(to_limit(limit)).fetch_all(&self.reader).await?;
        rows.iter().map(|row| read_rejected!(row, read_time).view()).collect()
    }

    async fn rejected_message(&self, id: Uuid) -> Result<Option<RejectedView>, StoreError> {
        let row = sqlx::query(MESSAGE).bind(id).fetch_optional(&self.reader).await?;
        row.map(|row| read_rejected!(&row, read_time).view()).transpose()
    }

    async fn mark_requeued(&self, id: Uuid) -> Result<bool, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                Ok(sqlx::query(REQUEUED).bind(id).bind(now).execute(db).await?.rows_affected() > 0)
            })
        })
        .await
    }
}
