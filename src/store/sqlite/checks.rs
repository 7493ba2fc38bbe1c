//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, read_time, refuse_nul};
use crate::{
    job::{Fence, RequestId},
    store::{
        Check, Checks, PutOff, StoreError,
        convert::{micros, read_count, to_duration, to_limit},
        rows::read_job,
    },
};

const DUE: &str = concat!(
    "select fence, request_id, checks, unknown_since,
        (select a.error_message from attempts a where a.job_id = jobs.id and a.number = jobs.attempt) as known, ",
    super::job_control::job_columns!(),
    ", null as result from jobs where check_at is not null and check_at <= ?1 order by check_at limit +?2"
);

const TAKE: &str = "update jobs set check_at = ?2 where id = ?1 and check_at is not null";

const PUT_OFF: &str =
    "update jobs set check_at = ?3, checks = min(checks, 2147483646) + 1, error_kind = ?4, error_message = ?5,
        error_code = ?6, error_slug = ?7
    where id = ?1 and fence = ?2 and check_at is not null";

const KNOWN_SUCCESS: &str =
    "select request_id from jobs where created_at > ?1 and http_status is not null limit 1";

const DAY: Duration = Duration::from_secs(24 * 3600);

#[async_trait]
impl Checks for SqliteStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(DUE).bind(now).bind(to_limit(limit));
                let mut taken = Vec::new();
                for row in &query.fetch_all(&mut *db).await? {
                    let (unknown_since, created_at): (i64, i64) =
                        (row.try_get("unknown_since")?, row.try_get("created_at")?);
                    let check = Check {
                        fence: Fence(row.try_get("fence")?),
                        request_id: RequestId(row.try_get("request_id")?),
                        checks: read_count("checks", row.try_get("checks")?)?,
                        known: row.try_get::<Option<String>, _>("known")?.unwrap_or_default(),
                        unknown_for: to_duration(now - unknown_since),
                        age: to_duration(now - created_at),
                        job: read_job!(row, read_time).view()?,
                    };
                    let id = check.job.spec.id.0;
                    sqlx::query(TAKE).bind(id).bind(now + micros(again_after)).execute(&mut *db).await?;
                    taken.push(check);
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool, StoreError> {
        let PutOff { id, fence, again_after, error, .. } = put_off.clone();
        refuse_nul([Some(error.message()), error.slug()])?;
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(PUT_OFF)
                    .bind(id.0)
                    .bind(fence.0)
                    .bind(again_after.map(|after| now + micros(after)))
                    .bind(error.kind().as_str())
                    .bind(error.message())
                    .bind(error.code())
                    .bind(error.slug());
                Ok(query.execute(db).await?.rows_affected() > 0)
            })
        })
        .await
    }

    async fn known_success(&self) -> Result<Option<RequestId>, StoreError> {
        let query = sqlx::query(KNOWN_SUCCESS).bind(self.now_micros() - micros(DAY));
        match query.fetch_optional(&self.reader).await? {
            Some(row) => Ok(Some(RequestId(row.try_get(0)?))),
            None => Ok(None),
        }
    }
}
