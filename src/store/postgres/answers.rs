//! Answers to messages, beside the results of final jobs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    bounds::{MAX_ALIASES, MAX_BATCH_BYTES},
    job::{JobId, Principal},
    store::{
        Answer, Answers, MAX_UNCLAIMED_WAIT, Repeat, Result,
        columns::{PrincipalColumns, Repetition},
        convert::{micros, to_i32, to_limit},
        read::{StoreRow as _, readable},
        rows,
        sql::{One, Rows, statements},
    },
};

statements! { Postgres:
    /// The lock keeps a job from being removed before its other ID is there, which would stay behind. The order makes
    /// concurrent batches wait for each other in one direction.
    note_repeats(repeats: Rows<'_, Repetition>, most: i64) = "with others as materialized (
        select i.alias, j.id as job_id from {rows} join jobs j on j.id = i.repeated
        where i.alias is not null for key share of j skip locked),
    named as (
        insert into known_as (id, job_id) select alias, job_id from others
        where (select count(*) from known_as k where k.job_id = others.job_id) < {most}
        order by job_id, alias
        on conflict do nothing)
    insert into answers (id, kind, job_id, reply_to, correlation_id, message_id, publisher, due_at)
    select distinct on (i.answer_id) i.answer_id, 'duplicate', i.repeated, i.reply_to, i.correlation_id, i.message_id,
        i.publisher, now()
    from {rows} where i.answer_id is not null order by i.answer_id
    on conflict (id) do update set again = true where not answers.again";

    owe_held(jobs: Vec<Uuid>) = "insert into answers (id, kind, job_id, reply_to, correlation_id, message_id, publisher, due_at)
    select gen_random_uuid(), 'held', id, reply_to, correlation_id, message_id, publisher, now()
    from jobs where id = any({jobs}) and state = 'held' and reply_to is not null";

    /// Bounded in bytes as what is due. A job or message that was removed leaves nulls.
    take(limit: i64, bytes: i64, again_after: i64) = "with found as (
        select d.*, row_number() over () as place
        from (select id, job_id from answers where due_at <= now() order by due_at limit {limit} for update skip locked) d),
    stored as (
        select f.id, f.place, j.arguments, j.text, j.result, sum(coalesce(pg_column_size(j.arguments), 0)
            + coalesce(pg_column_size(j.text), 0) + coalesce(pg_column_size(j.result), 0)) over (order by f.place) as at_least
        from found f left join jobs j on j.id = f.job_id),
    sized as (
        select id, place, sum(coalesce(octet_length(arguments::text), 0) + coalesce(octet_length(text), 0)
            + coalesce(octet_length(result::text), 0)) over (order by place) as bytes
        from stored where place = 1 or at_least <= {bytes}),
    taken as (
        update answers a set due_at = now() + {again_after}::bigint * interval '1 microsecond', again = false
        from sized s where s.id = a.id and (s.place = 1 or s.bytes <= {bytes})
        returning {each id, kind, job_id, rejected_id, reply_to, correlation_id, message_id, publisher: a.@ as answer_@},
            s.place as answer_place)
    select taken.*, {job}, result::text as result,
        (select r.reason from rejected r where r.id = answer_rejected_id) as rejected_reason,
        (select r.message from rejected r where r.id = answer_rejected_id) as rejected_message,
        (select r.job_id from rejected r where r.id = answer_rejected_id) as rejected_job
    from taken left join jobs on jobs.id = answer_job_id order by answer_place";

    /// As the statements about the replies of jobs, this and the next two leave out what others have locked.
    answered(ids: Vec<Uuid>) = "with told as (select id, again from answers where id = any({ids}) for update skip locked),
    owed_again as (
        update answers set due_at = now(), refusals = 0, again = false where id in (select id from told where again))
    delete from answers where id in (select id from told where not again)";

    defer(ids: Vec<Uuid>, after: i64) = "update answers set due_at = now() + {after}::bigint * interval '1 microsecond'
    where id in (select id from answers where id = any({ids}) for update skip locked)";

    put_off(ids: Vec<Uuid>, first: i64, max_wait: i64, most: i32) =
    "with refused as (select id, refusals from answers where id = any({ids}) for update skip locked),
    waiting as (
        update answers set refusals = refusals + 1, due_at = now()
            + least({first}::bigint * (1::bigint << least(refusals, 20))::float8, {max_wait}::bigint) * interval '1 microsecond'
        where id in (select id from refused where refusals + 1 < {most}))
    delete from answers where id in (select id from refused where refusals + 1 >= {most}) returning id";

    job_known_as(principal: One<'_, PrincipalColumns>, id: Uuid) = "select job_id from known_as where id = {id} and {may_see_of}
    order by job_id desc limit 1";

    known_as(principal: One<'_, PrincipalColumns>, job_id: Uuid, limit: i64) =
    "select id from known_as where job_id = {job_id} and {may_see_of} order by id limit {limit}";
}

#[async_trait]
impl Answers for PostgresStore {
    async fn note_repeats(&self, batch: &[Repeat]) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let repeats: Vec<&Repeat> = batch.iter().collect();
        self.hot.fetch(sql::note_repeats(Rows(&repeats), to_limit(MAX_ALIASES))).await.map(drop)
    }

    async fn take_answers(&self, limit: usize, again_after: Duration) -> Result<Vec<Answer>> {
        let query = sql::take(to_limit(limit), to_limit(MAX_BATCH_BYTES), micros(again_after));
        Ok(readable(&self.other.fetch(query).await?, rows::answer))
    }

    async fn answered(&self, ids: &[Uuid]) -> Result<()> {
        self.other.fetch(sql::answered(ids.to_vec())).await.map(drop)
    }

    async fn defer_answers(&self, ids: &[Uuid], after: Duration) -> Result<()> {
        self.other.fetch(sql::defer(ids.to_vec(), micros(after))).await.map(drop)
    }

    async fn put_off_answers(&self, ids: &[Uuid], first: Duration, most: u32) -> Result<Vec<Uuid>> {
        let query = sql::put_off(ids.to_vec(), micros(first), micros(MAX_UNCLAIMED_WAIT), to_i32(most));
        self.other.fetch(query).await?.iter().map(|row| row.read("id")).collect()
    }

    async fn job_known_as(&self, principal: &Principal, id: JobId) -> Result<Option<JobId>> {
        let found = self.other.fetch_first(sql::job_known_as(One(principal), id.0)).await?;
        found.map(|row| Ok(JobId(row.read("job_id")?))).transpose()
    }

    async fn known_as(&self, principal: &Principal, id: JobId) -> Result<Vec<JobId>> {
        let found = self.other.fetch(sql::known_as(One(principal), id.0, to_limit(MAX_ALIASES))).await?;
        found.iter().map(|row| Ok(JobId(row.read("id")?))).collect()
    }
}

/// Owes the apps of those of these jobs that are held an answer, in the transaction that holds them.
pub(super) async fn owe_held(db: &mut PgConnection, jobs: Vec<Uuid>) -> Result<()> {
    if !jobs.is_empty() {
        sql::owe_held(jobs).execute(db).await?;
    }
    Ok(())
}
