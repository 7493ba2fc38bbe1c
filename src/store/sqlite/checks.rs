//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::SqliteStore;
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

statements! { Sqlite:
    due(now: i64, limit: i64) = "select fence, request_id, checks, {now} - unknown_since as unknown_for,
        {now} - created_at as age, {job}, null as result,
        (select a.error_message from attempts a where a.job_id = jobs.id and a.number = jobs.attempt) as known
    from jobs where check_at is not null and check_at <= {now} order by check_at limit +{limit}";

    take(id: Uuid, check_at: i64) = "update jobs set check_at = {check_at} where id = {id} and check_at is not null";

    put_off(error: One<'_, Error>, id: Uuid, fence: i64, check_at: Option<i64>) = "update jobs set
        check_at = {check_at}, checks = min(checks, 2147483646) + 1, {each error: @ = {@}}
    where id = {id} and fence = {fence} and check_at is not null";

    known_success(after: i64) = "select request_id from jobs
    where created_at > {after} and http_status is not null limit 1";
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[async_trait]
impl Checks for SqliteStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut taken = Vec::new();
                for row in &sql::due(now, to_limit(limit)).fetch_all(&mut *db).await? {
                    let check = rows::check(row)?;
                    sql::take(check.job.spec.id.0, now + micros(again_after)).execute(&mut *db).await?;
                    taken.push(check);
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool, StoreError> {
        let PutOff { id, fence, again_after, error, .. } = put_off.clone();
        let changed = self.write_one(move |now| {
            let check_at = again_after.map(|after| now + micros(after));
            sql::put_off(One(Some(&error)), id.0, fence.0, check_at)
        });
        Ok(changed.await? > 0)
    }

    async fn known_success(&self) -> Result<Option<RequestId>, StoreError> {
        let query = sql::known_success(self.now_micros() - micros(DAY));
        let found = query.fetch_optional(&self.reader).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }
}
