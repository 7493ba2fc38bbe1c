//! Messages that are not jobs, kept whole.

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
use crate::store::{
    Rejected, RejectedView, Rejections, Result,
    columns::Rejection,
    convert::to_limit,
    read::readable,
    rows,
    sql::{One, statements},
};

statements! { Sqlite:
    reject(rejection: One<'_, Rejection>, now: i64) = "insert into rejected ({rejection}, received_at)
    values ({values rejection}, {now})
    on conflict (id) do update set seen = min(seen, 2147483646) + 1, received_at = excluded.received_at, requeued_at = null";

    rejected(limit: i64) = "select id, queue, reason, message, x'' as body, properties, length(body) as size, seen,
        received_at, requeued_at
    from rejected where requeued_at is null order by received_at desc, id desc limit +{limit}";

    message(id: Uuid) = "select id, queue, reason, message, body, properties, length(body) as size, seen,
        received_at, requeued_at
    from rejected where id = {id}";

    requeued(id: Uuid, now: i64) = "update rejected set requeued_at = {now} where id = {id} and requeued_at is null";
}

#[async_trait]
impl Rejections for SqliteStore {
    async fn reject(&self, batch: &[Rejected]) -> Result<()> {
        self.write_each(batch.to_vec(), |rejected, now| sql::reject(One((rejected, 1)), now)).await.map(drop)
    }

    async fn rejected(&self, limit: usize) -> Result<Vec<RejectedView>> {
        Ok(readable(&self.reader.fetch(sql::rejected(to_limit(limit))).await?, rows::rejected))
    }

    async fn rejected_message(&self, id: Uuid) -> Result<Option<RejectedView>> {
        self.reader.fetch_first(sql::message(id)).await?.as_ref().map(rows::rejected).transpose()
    }

    async fn mark_requeued(&self, id: Uuid) -> Result<bool> {
        Ok(self.write_one(move |now| sql::requeued(id, now)).await? > 0)
    }
}
