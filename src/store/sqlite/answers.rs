//! Answers to messages, beside the results of final jobs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    bounds::{MAX_ALIASES, MAX_BATCH_BYTES},
    job::{JobId, Principal},
    store::{
        Answer, Answers, MAX_UNCLAIMED_WAIT, Repeat, Result,
        columns::{PrincipalColumns, Repetition},
        convert::{micros, to_limit},
        read::{StoreRow as _, if_readable},
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    note_alias(repeat: One<'_, Repetition>, most: i64) = "insert into known_as (id, job_id)
    select {alias}, id from jobs where id = {repeated} and {alias} is not null
        and (select count(*) from known_as k where k.job_id = {repeated}) < {most}
    on conflict do nothing";

    owe_duplicate(repeat: One<'_, Repetition>, now: i64) = "insert into answers
        (id, kind, job_id, reply_to, correlation_id, message_id, publisher, due_at)
    select {answer_id}, 'duplicate', {repeated}, {reply_to}, {correlation_id}, {message_id}, {publisher}, {now}
    where {answer_id} is not null
    on conflict (id) do update set again = 1";

    owe_held(answer_id: Uuid, held: Uuid, now: i64) = "insert into answers
        (id, kind, job_id, reply_to, correlation_id, message_id, publisher, due_at)
    select {answer_id}, 'held', id, reply_to, correlation_id, message_id, publisher, {now}
    from jobs where id = {held} and state = 'held' and reply_to is not null";

    /// How many bytes of their jobs go with them is known without reading these.
    due(now: i64, limit: i64) = "select a.id, coalesce(octet_length(j.arguments), 0) + coalesce(octet_length(j.text), 0)
        + coalesce(octet_length(j.result), 0) as bytes
    from answers a left join jobs j on j.id = a.job_id where a.due_at <= {now} order by a.due_at limit +{limit}";

    offer(id: Uuid, due_at: i64) = "update answers set due_at = {due_at}, again = 0 where id = {id}";

    defer(id: Uuid, due_at: i64) = "update answers set due_at = {due_at} where id = {id}";

    /// A job or message that was removed leaves nulls.
    answer(answer: Uuid) = "select asked.*, {job}, result,
        (select r.reason from rejected r where r.id = answer_rejected_id) as rejected_reason,
        (select r.message from rejected r where r.id = answer_rejected_id) as rejected_message,
        (select r.job_id from rejected r where r.id = answer_rejected_id) as rejected_job
    from (select {each id, kind, job_id, rejected_id, reply_to, correlation_id, message_id, publisher: @ as answer_@}
        from answers where id = {answer}) asked
    left join jobs on jobs.id = answer_job_id";

    answered(id: Uuid) = "delete from answers where id = {id} and again = 0";

    owe_again(id: Uuid, now: i64) = "update answers set due_at = {now}, refusals = 0, again = 0 where id = {id} and again = 1";

    give_up(id: Uuid) = "delete from answers where id = {id}";

    refusals(id: Uuid) = "select refusals from answers where id = {id}";

    put_off(id: Uuid, due_at: i64) = "update answers set due_at = {due_at}, refusals = refusals + 1 where id = {id}";

    job_known_as(principal: One<'_, PrincipalColumns>, id: Uuid) = "select job_id from known_as where id = {id} and {may_see_of}
    order by job_id desc limit 1";

    known_as(principal: One<'_, PrincipalColumns>, job_id: Uuid, limit: i64) =
    "select id from known_as where job_id = {job_id} and {may_see_of} order by id limit +{limit}";
}

/// After so many doublings every wait has reached its ceiling.
const MAX_DOUBLINGS: u32 = 20;

#[async_trait]
impl Answers for SqliteStore {
    async fn note_repeats(&self, batch: &[Repeat]) -> Result<()> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for repeat in &batch {
                    sql::note_alias(One(repeat), to_limit(MAX_ALIASES)).execute(&mut *db).await?;
                    sql::owe_duplicate(One(repeat), now).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn take_answers(&self, limit: usize, again_after: Duration) -> Result<Vec<Answer>> {
        // A look that finds nothing, as most do, takes no lock.
        if self.reader.fetch(sql::due(self.now_micros(), 1)).await?.is_empty() {
            return Ok(Vec::new());
        }
        self.write(move |db, now| {
            Box::pin(async move {
                let (mut taken, mut room) = (Vec::new(), to_limit(MAX_BATCH_BYTES));
                for due in sql::due(now, to_limit(limit)).fetch_all(&mut *db).await? {
                    let (id, bytes): (Uuid, i64) = (due.read("id")?, due.read("bytes")?);
                    if bytes > room && !taken.is_empty() {
                        break;
                    }
                    room -= bytes;
                    sql::offer(id, now + micros(again_after)).execute(&mut *db).await?;
                    let row = sql::answer(id).fetch_one(&mut *db).await?;
                    taken.extend(if_readable(&row, rows::answer(&row)));
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn answered(&self, ids: &[Uuid]) -> Result<()> {
        let ids = ids.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for id in ids {
                    sql::answered(id).execute(&mut *db).await?;
                    sql::owe_again(id, now).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn defer_answers(&self, ids: &[Uuid], after: Duration) -> Result<()> {
        self.write_each(ids.to_vec(), move |id, now| sql::defer(*id, now + micros(after))).await.map(drop)
    }

    async fn put_off_answers(&self, ids: &[Uuid], first: Duration, most: u32) -> Result<Vec<Uuid>> {
        let ids = ids.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut given_up = Vec::new();
                for id in ids {
                    let Some(row) = sql::refusals(id).fetch_optional(&mut *db).await? else { continue };
                    let refusals = row.count("refusals")?;
                    if refusals + 1 < most {
                        let wait =
                            first.saturating_mul(1 << refusals.min(MAX_DOUBLINGS)).min(MAX_UNCLAIMED_WAIT);
                        sql::put_off(id, now + micros(wait)).execute(&mut *db).await?;
                    } else {
                        sql::give_up(id).execute(&mut *db).await?;
                        given_up.push(id);
                    }
                }
                Ok(given_up)
            })
        })
        .await
    }

    async fn job_known_as(&self, principal: &Principal, id: JobId) -> Result<Option<JobId>> {
        let found = self.reader.fetch_first(sql::job_known_as(One(principal), id.0)).await?;
        found.map(|row| Ok(JobId(row.read("job_id")?))).transpose()
    }

    async fn known_as(&self, principal: &Principal, id: JobId) -> Result<Vec<JobId>> {
        let found = self.reader.fetch(sql::known_as(One(principal), id.0, to_limit(MAX_ALIASES))).await?;
        found.iter().map(|row| Ok(JobId(row.read("id")?))).collect()
    }
}

/// Owes the app of a job that is held an answer, in the transaction that holds it.
pub(super) async fn owe_held(db: &mut SqliteConnection, now: i64, job: JobId) -> Result<()> {
    sql::owe_held(Uuid::now_v7(), job.0, now).execute(db).await?;
    Ok(())
}
