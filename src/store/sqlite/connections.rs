//! Jobs that wait until their owner has connected a toolkit.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, job_control::release_page};
use crate::{
    job::{JobId, Release},
    store::{
        Awaited, Connections, Result, SEARCHED_FOR_TOGETHER, TakeAwaited,
        convert::{micros, to_limit},
        read::{StoreRow as _, if_readable},
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

    due(now: i64, together: bool, limit: i64, searched: i64, first_after: i64) = "with due as materialized (
        select * from awaited where {is_due_awaited} order by look_at limit +{searched}),
    longest as (select id, toolkit from due order by look_at limit 1)
    select due.id, owner_kind, owner_id, due.toolkit, account, doubted, lookups, parked, look_at as due_since
    from longest join due on due.id = longest.id or {together} and due.toolkit = longest.toolkit
    order by look_at limit +{limit}";

    take(id: i64, look_at: i64) = "update awaited set look_at = {look_at} where id = {id}";

    forget(id: i64) = "delete from awaited as a
    where a.id = {id} and not exists (select 1 from jobs j where {is_job_of_awaited})";

    give_back(id: i64, lookups: i64, look_at: i64) = "update awaited set look_at = {look_at}
    where id = {id} and lookups = {lookups}";

    put_off(id: i64, parked: i64, look_at: i64, keep_doubt: bool) = "update awaited set look_at = {look_at},
        lookups = min(lookups, 2147483646) + 1, doubted = case when {keep_doubt} or parked <> {parked} then doubted end
    where id = {id}";

    waiting(id: i64, limit: i64) = "select j.id as id from awaited a join jobs j on {is_job_of_awaited}
    where a.id = {id} order by j.created_at limit +{limit}";

    expire(now: i64, limit: i64, message: &str, max_length: i32) = "update jobs set state = 'failed', held_reason = null,
        error_message = substr({message} || error_message, 1, {max_length}), finished_at = {now},
        reply_due_at = case when reply_to is not null then {now} end, events = events + 1
    where id in (select id from jobs where held_reason = 'connection' and waits_until is not null
        and waits_until <= {now} order by waits_until limit +{limit})
    returning id";
}

#[async_trait]
impl Connections for SqliteStore {
    async fn take_awaited(&self, take: TakeAwaited) -> Result<Vec<Awaited>> {
        loop {
            let (taken, has_forgotten) =
                self.write(move |db, now| Box::pin(take_page(db, now, take))).await?;
            if !has_forgotten || !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    async fn put_off_awaited(&self, put_off: &[(Awaited, Duration)], keep_doubt: bool) -> Result<()> {
        let rows: Vec<_> =
            put_off.iter().map(|(awaited, after)| (awaited.id, awaited.parked, micros(*after))).collect();
        self.write(move |db, now| {
            Box::pin(async move {
                for (id, parked, after) in rows {
                    sql::put_off(id, parked, now + after, keep_doubt).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn give_back_awaited(&self, awaited: &[Awaited]) -> Result<()> {
        let rows: Vec<_> =
            awaited.iter().map(|awaited| (awaited.id, awaited.lookups, awaited.due_since)).collect();
        self.write(move |db, _| {
            Box::pin(async move {
                for (id, lookups, due_since) in rows {
                    let give_back = sql::give_back(id, lookups.into(), due_since.as_microsecond());
                    give_back.execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64> {
        let (id, recorder) = (awaited.id, self.recorder);
        self.write(move |db, now| {
            Box::pin(async move {
                let page = sql::waiting(id, to_limit(limit));
                let released = release_page(db, now, page, Release::Retry, BY_CONNECTIONS, recorder).await?;
                if released < limit as u64 {
                    forget(db, id).await?;
                }
                Ok(released)
            })
        })
        .await
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64> {
        let recorder = self.recorder;
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sql::expire(now, to_limit(limit), EXPIRED_AWAITING, MAX_ERROR_LENGTH);
                let expired = query.fetch_all(&mut *db).await?;
                for row in &expired {
                    recorder.record_end(db, now, JobId(row.read("id")?)).await?;
                }
                Ok(expired.len() as u64)
            })
        })
        .await
    }
}

/// Takes what is due, or forgets it, and tells whether it has forgotten any.
async fn take_page(db: &mut SqliteConnection, now: i64, take: TakeAwaited) -> Result<(Vec<Awaited>, bool)> {
    let limit = to_limit(if take.together { take.limit } else { 1 });
    let due = sql::due(now, take.together, limit, SEARCHED_FOR_TOGETHER.into(), micros(take.first_after));
    let (mut taken, mut has_forgotten) = (Vec::new(), false);
    for row in &due.fetch_all(&mut *db).await? {
        let id = row.read("id")?;
        let awaited = if_readable(row, rows::awaited(row));
        if awaited.is_some() && forget(db, id).await? {
            has_forgotten = true;
            continue;
        }
        // What cannot be read is taken too, so that it stands in nobody's way.
        sql::take(id, now + micros(take.again_after)).execute(&mut *db).await?;
        taken.extend(awaited);
    }
    Ok((taken, has_forgotten))
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
