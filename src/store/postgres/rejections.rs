//! Messages that are not jobs, kept whole.

use std::collections::BTreeMap;

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::{Asked, JobId, Principal},
    store::{
        ChangeKind, Decider, Place, Rejected, RejectedFilter, RejectedView, Rejections, Result,
        changes::NewChange,
        columns::{Ask, ChangeColumns, Messages, PrincipalColumns, Rejection, StretchColumns},
        convert::to_limit,
        history::refuse_decider,
        job_filter::Stretch,
        read::{StoreRow as _, readable},
        rows,
        sql::{One, Rows, statements},
    },
};

statements! { Postgres:
    /// A message that was kept before has been seen more often than it comes now.
    reject(rejections: Rows<'_, Rejection>, asks: Rows<'_, Ask>) = "with kept as (
        insert into rejected ({rejection}, received_at)
        select {i.rejection}, now() from {rows}
        on conflict (id) do update set seen = rejected.seen + least(excluded.seen, 2147483647 - rejected.seen),
            received_at = excluded.received_at, requeued_at = null
        returning id, seen)
    insert into answers (id, kind, rejected_id, reply_to, correlation_id, message_id, publisher, due_at)
    select i.answer_id, 'rejected', i.id, i.reply_to, i.correlation_id, i.message_id, i.publisher, now()
    from {rows} join kept on kept.id = i.id
    where i.answer_id is not null and not (i.redelivered and kept.seen > i.seen)
    on conflict (id) do update set again = true where not answers.again";

    rejected(principal: One<'_, PrincipalColumns>, messages: One<'_, Messages>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select id, queue, reason, message, ''::bytea as body, properties, octet_length(body)::bigint as size, seen,
        received_at, requeued_at, requeued_by, null::bytea as corrected, job_id
    from rejected where (received_at, id) < (timestamptz 'epoch' + {before_at}::bigint * interval '1 microsecond', {before_id}::uuid)
        and (received_at, id) >= (timestamptz 'epoch' + {end_at}::bigint * interval '1 microsecond', {end_id}::uuid)
        and {is_operator} and requeued_at is null and ({reason}::text is null or reason = {reason})
        and ({queue}::text is null or queue = {queue})
    order by received_at desc, id desc limit {limit}";

    message(principal: One<'_, PrincipalColumns>, id: Uuid) = "select id, queue, reason, message, body, properties, octet_length(body)::bigint as size, seen,
        received_at, requeued_at, requeued_by, corrected, job_id
    from rejected where id = {id} and {is_operator}";

    rejected_as(principal: One<'_, PrincipalColumns>, job_id: Uuid) =
    "select id from rejected where job_id = {job_id} and {is_operator} order by received_at desc, id desc limit 1";

    requeued(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid, corrected: Option<Vec<u8>>) = "with requeued as (
        update rejected set requeued_at = now(), requeued_by = {decider}, corrected = {corrected}::bytea
        where id = {id} and {is_operator} and requeued_at is null returning *)
    {log}, null, null, id::text, jsonb_build_object('reason', reason)::text,
        jsonb_build_object('corrected', corrected is not null)::text
    from requeued returning 1";
}

#[async_trait]
impl Rejections for PostgresStore {
    async fn reject(&self, batch: &[Rejected]) -> Result<()> {
        // One statement cannot touch a row twice, so copies are counted here; the order of the IDs
        // makes concurrent batches wait for each other in one direction.
        let mut counted: BTreeMap<Uuid, (&Rejected, i32)> = BTreeMap::new();
        let mut asks: BTreeMap<Uuid, Option<&Asked>> = BTreeMap::new();
        for rejected in batch {
            counted.entry(rejected.id).or_insert((rejected, 0)).1 += 1;
            // Who asks for the first time is owed an answer, whatever else the broker delivers again.
            let asked = asks.entry(rejected.id).or_default();
            if asked.is_none_or(|asked| asked.redelivered) {
                *asked = rejected.asked.as_ref().or(*asked);
            }
        }
        let counted: Vec<(&Rejected, i32)> = counted.into_values().collect();
        let asks: Vec<Option<&Asked>> = asks.into_values().collect();
        self.hot.fetch(sql::reject(Rows(&counted), Rows(&asks))).await.map(drop)
    }

    async fn rejected(
        &self,
        principal: &Principal,
        filter: &RejectedFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<RejectedView>> {
        let stretch = Stretch::between(filter.since, filter.until, before);
        let query = sql::rejected(One(principal), One(filter), One(&stretch), to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, rows::rejected))
    }

    async fn rejected_message(&self, principal: &Principal, id: Uuid) -> Result<Option<RejectedView>> {
        self.other
            .fetch_first(sql::message(One(principal), id))
            .await?
            .as_ref()
            .map(rows::rejected)
            .transpose()
    }

    async fn rejected_as(&self, principal: &Principal, job: JobId) -> Result<Option<Uuid>> {
        let found = self.other.fetch_first(sql::rejected_as(One(principal), job.0)).await?;
        found.map(|row| row.read("id")).transpose()
    }

    async fn mark_requeued(
        &self,
        principal: &Principal,
        id: Uuid,
        by: &Decider,
        corrected: Option<Vec<u8>>,
    ) -> Result<bool> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::RejectedRequeued, principal, by);
        let query = sql::requeued(One(principal), One(&change), id, corrected);
        Ok(self.other.fetch_first(query).await?.is_some())
    }
}
