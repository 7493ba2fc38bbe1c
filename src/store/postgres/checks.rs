//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::RequestId,
    store::{
        Check, Checks, PutOff, Result,
        convert::{micros, to_i32, to_limit},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
        texts::BY_LOOK_UP,
    },
};

statements! { Postgres:
    take(limit: i64, again_after: i64) = "with due as (
        select id, check_at as due_at from jobs where check_at is not null and check_at <= now()
        order by check_at limit {limit} for update skip locked),
    taken as (
        update jobs j set check_at = now() + {again_after}::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning due.due_at as was_due_at, j.*)
    select fence, (extract(epoch from now() - unknown_since) * 1000000)::bigint as unknown_for,
        (extract(epoch from now() - created_at) * 1000000)::bigint as age, {job}, null::text as result
    from taken order by was_due_at";

    put_off(id: Uuid, fence: i64, checks: i32, again_after: Option<i64>, by: &str, found: &str, detail: Option<&str>,
        record: bool) = "with changed as (
        update jobs set check_at = now() + {again_after}::bigint * interval '1 microsecond',
            checks = least(checks, 2147483646) + 1,
            events = events + ({again_after}::bigint is null and state = 'held')::integer
        where id = {id} and fence = {fence} and checks = {checks} and check_at is not null
        returning {event of jobs}, case when check_at is null and state = 'held' then 'job.held' end as event, check_at,
            reply_to, correlation_id, message_id, publisher),
    noted as (
        insert into job_history (job_id, kind, by, attempt, what, detail)
        select id, 'looked_up', {by}::text, event_attempt, {found}::text, {detail}::text from changed
        union all
        select id, 'held', {by}, event_attempt, 'unknown_outcome', null from changed
        where check_at is null and state = 'held'),
    owed as (
        insert into answers (id, kind, job_id, reply_to, correlation_id, message_id, publisher, due_at)
        select gen_random_uuid(), 'held', id, reply_to, correlation_id, message_id, publisher, now() from changed
        where check_at is null and state = 'held' and reply_to is not null),
    {record_events}
    select 1 from changed";

    /// A job that was unknown by then was sent later. The eldest has had the most time to appear in the log.
    known_success(at: i64) = "select request_id from jobs where created_at > {instant} and http_status is not null
    order by created_at limit 1";

    /// Jobs that wait since before are walked past, so their number is bounded.
    known_success_before(before: i64) = "select request_id from (
        select request_id, http_status, started_at, created_at from jobs
        where created_at < timestamptz 'epoch' + {before}::bigint * interval '1 microsecond'
        order by created_at desc limit 10000) as j
    where started_at < timestamptz 'epoch' + {before} * interval '1 microsecond' and http_status is not null
    order by created_at desc limit 1";
}

#[async_trait]
impl Checks for PostgresStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>> {
        let taken = self.other.fetch(sql::take(to_limit(limit), micros(again_after))).await?;
        Ok(readable(&taken, rows::check))
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool> {
        let PutOff { id, fence, checks, again_after, look, detail } = put_off;
        let again_after = again_after.map(micros);
        let (found, detail) = (look.as_str(), detail.as_deref());
        let query = sql::put_off(
            id.0,
            fence.0,
            to_i32(*checks),
            again_after,
            BY_LOOK_UP,
            found,
            detail,
            self.records_events,
        );
        Ok(self.other.fetch_first(query).await?.is_some())
    }

    async fn known_success(&self, after: Timestamp) -> Result<Option<RequestId>> {
        let found = self.other.fetch_first(sql::known_success(after.as_microsecond())).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }

    async fn known_success_before(&self, before: Timestamp) -> Result<Option<RequestId>> {
        let found = self.other.fetch_first(sql::known_success_before(before.as_microsecond())).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }
}
