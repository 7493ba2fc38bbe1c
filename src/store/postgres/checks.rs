//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::RequestId,
    store::{
        Check, Checks, PutOff, StoreError,
        columns::Error,
        convert::{micros, to_limit},
        read::StoreRow as _,
        rows,
        sql::{One, statements},
    },
};

statements! { Postgres:
    take(limit: i64, again_after: i64) = "with due as (
        select id from jobs where check_at is not null and check_at <= now()
        order by check_at limit {limit} for update skip locked),
    taken as (
        update jobs j set check_at = now() + {again_after}::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning j.*)
    select fence, request_id, checks, (extract(epoch from now() - unknown_since) * 1000000)::bigint as unknown_for,
        (extract(epoch from now() - created_at) * 1000000)::bigint as age, {job}, null::text as result,
        (select a.error_message from attempts a where a.job_id = taken.id and a.number = taken.attempt) as known
    from taken order by unknown_since";

    put_off(error: One<'_, Error>, id: Uuid, fence: i64, again_after: Option<i64>) = "update jobs set
        check_at = now() + {again_after}::bigint * interval '1 microsecond', checks = least(checks, 2147483646) + 1,
        {each error: @ = {@}}
    where id = {id} and fence = {fence} and check_at is not null
    returning 1";

    known_success() = "select request_id from jobs
    where created_at > now() - interval '1 day' and http_status is not null limit 1";
}

#[async_trait]
impl Checks for PostgresStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>, StoreError> {
        let taken = self.other.fetch(sql::take(to_limit(limit), micros(again_after))).await?;
        taken.iter().map(rows::check).collect()
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool, StoreError> {
        let PutOff { id, fence, again_after, error, .. } = put_off;
        let query = sql::put_off(One(Some(error)), id.0, fence.0, again_after.map(micros));
        Ok(self.other.fetch_first(query).await?.is_some())
    }

    async fn known_success(&self) -> Result<Option<RequestId>, StoreError> {
        let found = self.other.fetch_first(sql::known_success()).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }
}
