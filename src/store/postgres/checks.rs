//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{PostgresStore, fetch, read_time};
use crate::{
    job::{Fence, RequestId},
    store::{
        Check, Checks, PutOff, StoreError,
        convert::{micros, read_count, to_duration, to_limit},
        rows::read_job,
    },
};

const TAKE: &str = concat!(
    "with due as (
        select id from jobs where check_at is not null and check_at <= now()
        order by check_at limit $1 for update skip locked),
    taken as (
        update jobs j set check_at = now() + $2::bigint * interval '1 microsecond'
        from due where j.id = due.id
        returning j.*)
    select fence, request_id, checks, (extract(epoch from now() - unknown_since) * 1000000)::bigint as unknown_for,
        (extract(epoch from now() - created_at) * 1000000)::bigint as age,
        (select a.error_message from attempts a where a.job_id = taken.id and a.number = taken.attempt) as known, ",
    super::job_control::job_columns!(),
    ", null::text as result from taken order by unknown_since"
);

const PUT_OFF: &str =
    "update jobs set check_at = now() + $3::bigint * interval '1 microsecond', checks = least(checks, 2147483646) + 1,
        error_kind = $4, error_message = $5, error_code = $6, error_slug = $7
    where id = $1 and fence = $2 and check_at is not null
    returning 1";

const KNOWN_SUCCESS: &str = "select request_id from jobs
    where created_at > now() - interval '1 day' and http_status is not null limit 1";

#[async_trait]
impl Checks for PostgresStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>, StoreError> {
        let query = sqlx::query(TAKE).bind(to_limit(limit)).bind(micros(again_after));
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(Check {
                fence: Fence(row.try_get("fence")?),
                request_id: RequestId(row.try_get("request_id")?),
                checks: read_count("checks", row.try_get("checks")?)?,
                known: row.try_get::<Option<String>, _>("known")?.unwrap_or_default(),
                unknown_for: to_duration(row.try_get("unknown_for")?),
                age: to_duration(row.try_get("age")?),
                job: read_job!(row, read_time).view()?,
            })
        };
        fetch(&self.other, query).await?.iter().map(read).collect()
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool, StoreError> {
        let PutOff { id, fence, again_after, error, .. } = put_off;
        let query = sqlx::query(PUT_OFF)
            .bind(id.0)
            .bind(fence.0)
            .bind(again_after.map(micros))
            .bind(error.kind().as_str())
            .bind(error.message())
            .bind(error.code())
            .bind(error.slug());
        Ok(!fetch(&self.other, query).await?.is_empty())
    }

    async fn known_success(&self) -> Result<Option<RequestId>, StoreError> {
        match fetch(&self.other, sqlx::query(KNOWN_SUCCESS)).await?.first() {
            Some(row) => Ok(Some(RequestId(row.try_get(0)?))),
            None => Ok(None),
        }
    }
}
