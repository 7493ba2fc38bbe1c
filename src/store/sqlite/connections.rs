//! Jobs that wait until their owner has connected a toolkit.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Row,
    sqlite::{SqliteConnection, SqliteRow},
};

use super::{SqliteStore, job_control::to_retry, refuse_nul};
use crate::{
    job::JobId,
    store::{
        Awaited, Connections, StoreError,
        convert::{micros, owner_of, read_count, to_limit},
        texts::{EXPIRED_AWAITING, MAX_ERROR_LENGTH},
    },
};

/// When a job gives up waiting: at the earlier of its two limits, of which `min` needs both.
const WAIT: &str = "update jobs set waits_for = ?2,
        waits_until = min(coalesce(expires_at, created_at + max_age_ms * 1000),
            coalesce(created_at + max_age_ms * 1000, expires_at))
    where id = ?1 and held_reason = 'connection'";

const AWAIT: &str = "insert into awaited (owner_kind, owner_id, toolkit, account, doubted, look_at)
    select owner_kind, owner_id, waits_for, coalesce(connected_account_id, ''), account, ?2
    from jobs where id = ?1 and held_reason = 'connection'
    on conflict (owner_kind, owner_id, toolkit, account)
    do update set parked = min(parked, 9223372036854775806) + 1, doubted = coalesce(excluded.doubted, doubted)";

const DUE: &str = "select id, owner_kind, owner_id, toolkit, account, doubted, looks, parked
    from awaited where look_at <= ?1 order by look_at limit +?2";

const TAKE: &str = "update awaited set look_at = ?2 where id = ?1";

/// The jobs of an awaited connection `a`.
macro_rules! jobs_of {
    () => {
        "j.held_reason = 'connection' and j.owner_kind = a.owner_kind and j.owner_id = a.owner_id
            and j.waits_for = a.toolkit and coalesce(j.connected_account_id, '') = a.account"
    };
}

const FORGET: &str = concat!(
    "delete from awaited as a where a.id = ?1 and not exists (select 1 from jobs j where ",
    jobs_of!(),
    ")"
);

const PUT_OFF: &str = "update awaited set look_at = ?3, looks = min(looks, 2147483646) + 1,
        doubted = case when ?4 or parked <> ?2 then doubted end
    where id = ?1";

/// ?2 is now.
const RELEASE: &str = concat!(
    "update jobs set ",
    to_retry!(),
    " where id in (select j.id from awaited a join jobs j on ",
    jobs_of!(),
    " where a.id = ?1 order by j.created_at limit +?3)"
);

const EXPIRE: &str = "update jobs set state = 'failed', held_reason = null,
        error_message = substr(?3 || error_message, 1, ?4), finished_at = ?1,
        reply_due_at = case when reply_to is not null then ?1 end
    where id in (select id from jobs where held_reason = 'connection' and waits_until is not null
        and waits_until <= ?1 order by waits_until limit +?2)";

#[async_trait]
impl Connections for SqliteStore {
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let due = sqlx::query(DUE).bind(now).bind(to_limit(limit)).fetch_all(&mut *db).await?;
                let mut taken = Vec::new();
                for row in &due {
                    let awaited = awaited(row)?;
                    if !forget(db, awaited.id).await? {
                        let query = sqlx::query(TAKE).bind(awaited.id).bind(now + micros(again_after));
                        query.execute(&mut *db).await?;
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
    ) -> Result<(), StoreError> {
        let (id, parked) = (awaited.id, awaited.parked);
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(PUT_OFF).bind(id).bind(parked).bind(now + micros(again_after));
                query.bind(keep_doubt).execute(db).await?;
                Ok(())
            })
        })
        .await
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64, StoreError> {
        let id = awaited.id;
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(RELEASE).bind(id).bind(now).bind(to_limit(limit));
                let released = query.execute(&mut *db).await?.rows_affected();
                if released < limit as u64 {
                    forget(db, id).await?;
                }
                Ok(released)
            })
        })
        .await
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sqlx::query(EXPIRE).bind(now).bind(to_limit(limit));
                let query = query.bind(EXPIRED_AWAITING).bind(MAX_ERROR_LENGTH);
                Ok(query.execute(db).await?.rows_affected())
            })
        })
        .await
    }
}

/// Forgets a connection that no job waits for any more; `false` when one does.
async fn forget(db: &mut SqliteConnection, id: i64) -> Result<bool, StoreError> {
    Ok(sqlx::query(FORGET).bind(id).execute(db).await?.rows_affected() > 0)
}

fn awaited(row: &SqliteRow) -> Result<Awaited, StoreError> {
    let (owner_kind, owner_id): (String, String) = (row.try_get("owner_kind")?, row.try_get("owner_id")?);
    let account: String = row.try_get("account")?;
    Ok(Awaited {
        owner: owner_of(&owner_kind, owner_id)?,
        toolkit: row.try_get("toolkit")?,
        account: (!account.is_empty()).then_some(account),
        doubted: row.try_get("doubted")?,
        looks: read_count("looks", row.try_get("looks")?)?,
        id: row.try_get("id")?,
        parked: row.try_get("parked")?,
    })
}

/// Notes that a job waits for its owner to connect the toolkit, if it is held for that.
pub(super) async fn note_awaited(
    db: &mut SqliteConnection,
    now: i64,
    job: JobId,
    toolkit: String,
) -> Result<(), StoreError> {
    refuse_nul([Some(&*toolkit)])?;
    sqlx::query(WAIT).bind(job.0).bind(toolkit).execute(&mut *db).await?;
    sqlx::query(AWAIT).bind(job.0).bind(now).execute(db).await?;
    Ok(())
}
