//! Messages that are not jobs, kept whole.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::Row;
use uuid::Uuid;

use super::{PostgresStore, fetch, read_time};
use crate::store::{Rejected, RejectedView, Rejections, StoreError, convert::to_limit, rows::read_rejected};

const REJECT: &str = "insert into rejected (id, queue, reason, message, body, properties, seen, received_at)
    select i.*, now() from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::integer[])
        as i (id, queue, reason, message, body, properties, seen)
    on conflict (id) do update set seen = rejected.seen + least(excluded.seen, 2147483647 - rejected.seen), requeued_at = null";

const REJECTED: &str = "select id, queue, reason, message, ''::bytea as body, properties,
        octet_length(body)::bigint as size, seen, received_at, requeued_at
    from rejected where requeued_at is null order by received_at desc, id desc limit $1";

const MESSAGE: &str =
    "select id, queue, reason, message, body, properties, octet_length(body)::bigint as size, seen,
        received_at, requeued_at
    from rejected where id = $1";

const REQUEUED: &str = "update rejected set requeued_at = now() where id = $1 and requeued_at is null
    returning 1";

#[async_trait]
impl Rejections for PostgresStore {
    async fn reject(&self, batch: &[Rejected]) -> Result<(), StoreError> {
        // One statement cannot touch a row twice, so copies are counted here; the order of the IDs
        // makes concurrent batches wait for each other in one direction.
        let mut counted: BTreeMap<Uuid, (&Rejected, i32)> = BTreeMap::new();
        for rejected in batch {
            counted.entry(rejected.id).or_insert((rejected, 0)).1 += 1;
        }
        let column = |column: fn(&Rejected) -> &str| -> Vec<&str> {
            counted.values().map(|(rejected, _)| column(rejected)).collect()
        };
        let query = sqlx::query(REJECT)
            .bind(counted.keys().copied().collect::<Vec<Uuid>>())
            .bind(column(|rejected| rejected.queue.as_str()))
            .bind(column(|rejected| rejected.reason.as_str()))
            .bind(column(|rejected| &rejected.message))
            .bind(counted.values().map(|(rejected, _)| &*rejected.body).collect::<Vec<&[u8]>>())
            .bind(column(|rejected| &rejected.properties))
            .bind(counted.values().map(|(_, seen)| *seen).collect::<Vec<i32>>());
        fetch(&self.hot, query).await?;
        Ok(())
    }

    async fn rejected(&self, limit: usize) -> Result<Vec<RejectedView>, StoreError> {
        let found = fetch(&self.other, sqlx::query(REJECTED).bind(to_limit(limit))).await?;
        found.iter().map(|row| read_rejected!(row, read_time).view()).collect()
    }

    async fn rejected_message(&self, id: Uuid) -> Result<Option<RejectedView>, StoreError> {
        let found = fetch(&self.other, sqlx::query(MESSAGE).bind(id)).await?;
        found.first().map(|row| read_rejected!(row, read_time).view()).transpose()
    }

    async fn mark_requeued(&self, id: Uuid) -> Result<bool, StoreError> {
        Ok(!fetch(&self.other, sqlx::query(REQUEUED).bind(id)).await?.is_empty())
    }
}
