//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{SqliteStore, answers::owe_held, history::note};
use crate::{
    job::{HeldReason, RequestId},
    store::{
        Check, Checks, HistoryFact, PutOff, Result,
        convert::{micros, to_i32, to_limit},
        history::Note,
        read::{StoreRow as _, if_readable},
        rows,
        sql::statements,
        texts::BY_LOOK_UP,
    },
};

statements! { Sqlite:
    due(now: i64, limit: i64) = "select fence, {now} - unknown_since as unknown_for,
        {now} - created_at as age, {job}, null as result
    from jobs where check_at is not null and check_at <= {now} order by check_at limit +{limit}";

    take(id: Uuid, check_at: i64) = "update jobs set check_at = {check_at} where id = {id} and check_at is not null";

    put_off(id: Uuid, fence: i64, checks: i32, check_at: Option<i64>) = "update jobs set
        check_at = {check_at}, checks = min(checks, 2147483646) + 1,
        events = events + ({check_at} is null and state = 'held')
    where id = {id} and fence = {fence} and checks = {checks} and check_at is not null
    returning attempt, state = 'held' as is_held";

    /// A job that was unknown by then was sent later. The eldest has had the most time to appear in the log.
    known_success(after: i64) = "select request_id from jobs
    where created_at > {after} and http_status is not null order by created_at limit 1";

    /// Jobs that wait since before are walked past, so their number is bounded.
    known_success_before(before: i64) = "select request_id from (
        select request_id, http_status, started_at, created_at from jobs where created_at < {before}
        order by created_at desc limit 10000) as j
    where started_at < {before} and http_status is not null order by created_at desc limit 1";
}

#[async_trait]
impl Checks for SqliteStore {
    async fn take_checks(&self, limit: usize, again_after: Duration) -> Result<Vec<Check>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut taken = Vec::new();
                for row in &sql::due(now, to_limit(limit)).fetch_all(&mut *db).await? {
                    sql::take(row.read("id")?, now + micros(again_after)).execute(&mut *db).await?;
                    taken.extend(if_readable(row, rows::check(row)));
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn put_off(&self, put_off: &PutOff) -> Result<bool> {
        let PutOff { id, fence, checks, again_after, look, detail } = put_off.clone();
        let recorder = self.recorder;
        self.write(move |db, now| {
            Box::pin(async move {
                let check_at = again_after.map(|after| now + micros(after));
                let query = sql::put_off(id.0, fence.0, to_i32(checks), check_at);
                let Some(row) = query.fetch_optional(&mut *db).await? else { return Ok(false) };
                let attempt = Some(row.count("attempt")?);
                let looked_up = HistoryFact::LookedUp { found: look, detail };
                let held = HistoryFact::Held { reason: HeldReason::UnknownOutcome };
                let gives_up = again_after.is_none() && row.read::<bool>("is_held")?;
                for fact in [Some(looked_up), gives_up.then_some(held)].into_iter().flatten() {
                    note(db, now, &Note { job: id, by: BY_LOOK_UP, attempt, fact }).await?;
                }
                if gives_up {
                    recorder.record_end(db, now, id).await?;
                    owe_held(db, now, id).await?;
                }
                Ok(true)
            })
        })
        .await
    }

    async fn known_success(&self, after: Timestamp) -> Result<Option<RequestId>> {
        let found = self.reader.fetch_first(sql::known_success(after.as_microsecond())).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }

    async fn known_success_before(&self, before: Timestamp) -> Result<Option<RequestId>> {
        let found = self.reader.fetch_first(sql::known_success_before(before.as_microsecond())).await?;
        found.map(|row| Ok(RequestId(row.read("request_id")?))).transpose()
    }
}
