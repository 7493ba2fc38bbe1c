//! Messages that are not jobs, kept whole.

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    job::{JobId, Principal},
    store::{
        ChangeKind, Decider, Place, Rejected, RejectedFilter, RejectedView, Rejections, Result,
        changes::NewChange,
        columns::{Ask, Messages, PrincipalColumns, Rejection, StretchColumns},
        convert::to_limit,
        history::refuse_decider,
        job_filter::Stretch,
        read::{StoreRow as _, readable},
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    reject(rejection: One<'_, Rejection>, now: i64) = "insert into rejected ({rejection}, received_at)
    values ({values rejection}, {now})
    on conflict (id) do update set seen = min(seen, 2147483646) + 1, received_at = excluded.received_at, requeued_at = null
    returning seen";

    owe(ask: One<'_, Ask>, rejected: Uuid, now: i64) = "insert into answers
        (id, kind, rejected_id, reply_to, correlation_id, message_id, publisher, due_at)
    values ({answer_id}, 'rejected', {rejected}, {reply_to}, {correlation_id}, {message_id}, {publisher}, {now})
    on conflict (id) do update set again = 1";

    rejected(principal: One<'_, PrincipalColumns>, messages: One<'_, Messages>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select id, queue, reason, message, x'' as body, properties, length(body) as size, seen,
        received_at, requeued_at, requeued_by, null as corrected, job_id
    from rejected where (received_at, id) < ({before_at}, {before_id}) and (received_at, id) >= ({end_at}, {end_id})
        and {is_operator} and requeued_at is null and ({reason} is null or reason = {reason}) and ({queue} is null or queue = {queue})
    order by received_at desc, id desc limit +{limit}";

    message(principal: One<'_, PrincipalColumns>, id: Uuid) = "select id, queue, reason, message, body, properties, length(body) as size, seen,
        received_at, requeued_at, requeued_by, corrected, job_id
    from rejected where id = {id} and {is_operator}";

    rejected_as(principal: One<'_, PrincipalColumns>, job_id: Uuid) =
    "select id from rejected where job_id = {job_id} and {is_operator} order by received_at desc, id desc limit 1";

    requeued(principal: One<'_, PrincipalColumns>, id: Uuid, by: &str, corrected: Option<Vec<u8>>, now: i64) =
    "update rejected set requeued_at = {now}, requeued_by = {by}, corrected = {corrected}
    where id = {id} and {is_operator} and requeued_at is null returning reason";
}

#[async_trait]
impl Rejections for SqliteStore {
    async fn reject(&self, batch: &[Rejected]) -> Result<()> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for rejected in &batch {
                    let kept = sql::reject(One((rejected, 1)), now).fetch_one(&mut *db).await?;
                    let was_kept = kept.count("seen")? > 1;
                    let asked = rejected.asked.as_ref().filter(|asked| !(asked.redelivered && was_kept));
                    if asked.is_some() {
                        sql::owe(One(asked), rejected.id, now).execute(&mut *db).await?;
                    }
                }
                Ok(())
            })
        })
        .await
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
        Ok(readable(&self.reader.fetch(query).await?, rows::rejected))
    }

    async fn rejected_message(&self, principal: &Principal, id: Uuid) -> Result<Option<RejectedView>> {
        self.reader
            .fetch_first(sql::message(One(principal), id))
            .await?
            .as_ref()
            .map(rows::rejected)
            .transpose()
    }

    async fn rejected_as(&self, principal: &Principal, job: JobId) -> Result<Option<Uuid>> {
        let found = self.reader.fetch_first(sql::rejected_as(One(principal), job.0)).await?;
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
        let (principal, by) = (principal.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let after = json!({ "corrected": corrected.is_some() }).to_string();
                let requeued = sql::requeued(One(&principal), id, &by.by, corrected, now);
                let Some(requeued) = requeued.fetch_optional(&mut *db).await? else { return Ok(false) };
                let before = json!({ "reason": requeued.read::<String>("reason")? }).to_string();
                let change = NewChange::new(ChangeKind::RejectedRequeued, &principal, &by);
                let id = id.to_string();
                let about = About {
                    object: Some(&id),
                    before: Some(&before),
                    after: Some(&after),
                    ..About::default()
                };
                log(db, now, &change, about).await?;
                Ok(true)
            })
        })
        .await
    }
}
