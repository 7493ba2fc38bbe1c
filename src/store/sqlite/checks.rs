//! Jobs whose outcome the tool API's log may still tell.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, history::note, read_time};
use crate::{
    job::{Fence, HeldReason, RequestId},
    store::{
        Check, Checks, HistoryFact, PutOff, StoreError,
        convert::{micros, read_count, to_duration, to_i32, to_limit},
        history::Note,
        rows::read_job,
        texts::BY_LOOK_UP,
    },
};

const DUE: &str = concat!(
    "select fence, ",
    super::job_control::job_columns!(),
    ", null as result from jobs where check_at is not null and check_at <= ?1 order by check_at limit +?2"
);

const TAKE: &str = "update jobs set check_at = ?2 where id = ?1 and check_at is not null";

const PUT_OFF: &str = "update jobs set check_at = ?4, checks = min(checks, 2147483646) + 1
    where id = ?1 and fence = ?2 and checks = ?3 and check_at is not null
    returning attempt";

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
        let PutOff { id, fence, checks, again_after, look, detail } = put_off.clone();
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(PUT_OFF)
                    .bind(id.0)
                    .bind(fence.0)
                    .bind(to_i32(checks))
                    .bind(again_after.map(|after| now + micros(after)));
                let Some(row) = query.fetch_optional(&mut *db).await? else { return Ok(false) };
                let attempt = Some(read_count("attempt", row.try_get(0)?)?);
                let looked_up = HistoryFact::LookedUp { found: look, detail };
                let held = HistoryFact::Held { reason: HeldReason::UnknownOutcome };
                for fact in [Some(looked_up), again_after.is_none().then_some(held)].into_iter().flatten() {
                    note(db, now, &Note { job: id, by: BY_LOOK_UP, attempt, fact }).await?;
                }
                Ok(true)
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
