//! Jobs that apps enqueue by the function `enqueue` of migration 27.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    bounds::MAX_BATCH_BYTES,
    job::JobId,
    store::{InboxEntry, JobInbox, Result, convert::to_limit, read::StoreRow as _, sql::statements},
};

statements! { Postgres:
    inbox(limit: i64, bytes: i64) = "with oldest as (
        select id, job_id, envelope::text as envelope, caller from job_inbox order by id limit {limit}),
    sized as (
        select *, sum(octet_length(envelope)) over (order by id) as bytes, row_number() over (order by id) as place from oldest)
    select id, job_id, envelope, caller from sized where place = 1 or bytes <= {bytes} order by id";

    clear(ids: Vec<i64>) = "delete from job_inbox where id = any({ids})";
}

#[async_trait]
impl JobInbox for PostgresStore {
    async fn inbox(&self, limit: usize) -> Result<Vec<InboxEntry>> {
        let rows = self.other.fetch(sql::inbox(to_limit(limit), to_limit(MAX_BATCH_BYTES))).await?;
        rows.iter()
            .map(|row| {
                Ok(InboxEntry {
                    id: row.read("id")?,
                    job: JobId(row.read("job_id")?),
                    envelope: row.read("envelope")?,
                    caller: row.read("caller")?,
                })
            })
            .collect()
    }

    async fn clear_inbox(&self, ids: &[i64]) -> Result<()> {
        self.other.fetch(sql::clear(ids.to_vec())).await.map(drop)
    }
}
