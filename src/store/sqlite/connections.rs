//! Jobs that wait until their owner has connected a toolkit.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, job_control::release_page};
use crate::{
    job::{JobId, Release},
    store::{
        Awaited, Connections, Result,
        convert::{micros, to_limit},
        read::if_readable,
        rows,
        sql::statements,
        texts::{BY_CONNECTIONS, EXPIRED_AWAITING, MAX_ERROR_LENGTH},
    },
};

statements! { Sqlite:
    /// When a job gives up waiting: at the earlier of its two limits, of which `min` needs both.
    wait(id: Uuid, toolkit: &str) = "update jobs set waits_for = {toolkit},
        waits_until = min(coalesce(expires_at, created_at + max_age_ms * 1000),
            coalesce(created_at + max_age_ms * 1000, expires_at))
    where id = {id} and held_reason = 'connection'";

    note(id: Uuid, now: i64) = "insert into awaited (owner_kind, owner_id, toolkit, account, doubted, look_at)
    select owner_kind, owner_id, waits_for, coalesce(connected_account_id, ''), account, {now}
    from jobs where id = {id} and held_reason = 'connection'
    on conflict (owner_kind, owner_id, toolkit, account)
    do update set parked = min(parked, 9223372036854775806) + 1, doubted = coalesce(excluded.doubted, doubted)";

    due(now: i64, limit: i64) = "select id, owner_kind, owner_id, toolkit, account, doubted, lookups, parked
    from awaited where look_at <= {now} order by look_at limit +{limit}";

    take(id: i64, look_at: i64) = "update awaited set look_at = {look_at} where id = {id}";

    forget(id: i64) = "delete from awaited as a
    where a.id = {id} and not exists (select 1 from jobs j where {is_job_of_awaited})";

    put_off(id: i64, parked: i64, look_at: i64, keep_doubt: bool) = "update awaited set look_at = {look_at},
        lookups = min(lookups, 2147483646) + 1, doubted = case when {keep_doubt} or parked <> {parked} then doubted end
    where id = {id}";

    waiting(id: i64, limit: i64) = "select j.id as id from awaited a join jobs j on {is_job_of_awaited}
    where a.id = {id} order by j.created_at limit +{limit}";

    expire(now: i64, limit: i64, message: &str, max_length: i32) = "update jobs set state = 'failed', held_reason = null,
        error_message = substr({message} || error_message, 1, {max_length}), finished_at = {now},
        reply_due_at = case when reply_to is not null then {now} end
    where id in (select id from jobs where held_reason = 'connection' and waits_until is not null
        and waits_until <= {now} order by waits_until limit +{limit})";
}

#[async_trait]
impl Connections for SqliteStore {
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>> {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut taken = Vec::new();
                for row in &sql::due(now, to_limit(limit)).fetch_all(&mut *db).await? {
                    let Some(awaited) = if_readable(row, rows::awaited(row)) else { continue };
                    if !forget(db, awaited.id).await? {
                        sql::take(awaited.id, now + micros(again_after)).execute(&mut *db).await?;
                        taken.push(awaited);
                    }
                }
                Ok(taken)
            })
        })
        .await
    }

    async fn put_off_awaited(
        &self,
        awaited: &Awaited,
        again_after: Duration,
        keep_doubt: bool,
    ) -> Result<()> {
        let (id, parked) = (awaited.id, awaited.parked);
        let put_off = move |now| sql::put_off(id, parked, now + micros(again_after), keep_doubt);
        self.write_one(put_off).await.map(drop)
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64> {
        let id = awaited.id;
        self.write(move |db, now| {
            Box::pin(async move {
                let page = sql::waiting(id, to_limit(limit));
                let released = release_page(db, now, page, Release::Retry, BY_CONNECTIONS).await?;
                if released < limit as u64 {
                    forget(db, id).await?;
                }
                Ok(released)
            })
        })
        .await
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64> {
        let expire = move |now| sql::expire(now, to_limit(limit), EXPIRED_AWAITING, MAX_ERROR_LENGTH);
        self.write_one(expire).await
    }
}

/// Forgets a connection that no job waits for any more; `false` when one does.
async fn forget(db: &mut SqliteConnection, id: i64) -> Result<bool> {
    Ok(sql::forget(id).execute(db).await?.rows_affected() > 0)
}

/// Notes the toolkit that a job waits for, if it does and is held for that.
pub(super) async fn note_awaited(
    db: &mut SqliteConnection,
    now: i64,
    job: JobId,
    toolkit: Option<&str>,
) -> Result<()> {
    if let Some(toolkit) = toolkit {
        sql::wait(job.0, toolkit).execute(&mut *db).await?;
        sql::note(job.0, now).execute(db).await?;
    }
    Ok(())
}
