//! Jobs that apps enqueue by the function `enqueue` of migration 27.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    bounds::MAX_BATCH_BYTES,
    job::JobId,
    store::{InboxEntry, JobInbox, Result, convert::to_limit, read::StoreRow as _, sql::statements},
};

statements! { Postgres:
    /// Envelopes that are not returned are not read.
    inbox(behind: i64, limit: i64, bytes: i64) = "with sized as (
        select id, sum(bytes) over (order by id) as bytes, row_number() over (order by id) as place
        from (select id, bytes from job_inbox where id > {behind} order by id limit {limit}) first)
    select i.id, i.job_id, i.envelope::text as envelope, i.caller from sized s join job_inbox i on i.id = s.id
    where s.place = 1 or s.bytes <= {bytes} order by i.id";

    clear(ids: Vec<i64>) = "delete from job_inbox where id = any({ids})";
}

#[async_trait]
impl JobInbox for PostgresStore {
    async fn inbox(&self, behind: i64, limit: usize) -> Result<Vec<InboxEntry>> {
        let rows = self.other.fetch(sql::inbox(behind, to_limit(limit), to_limit(MAX_BATCH_BYTES))).await?;
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
