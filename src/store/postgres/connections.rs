//! Jobs that wait until their owner has connected a toolkit.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Bound, PostgresStore, fetch, job_control::to_retry, pool::Pool};
use crate::store::{
    Awaited, Connections, StoreError,
    convert::{micros, owner_of, read_count, to_limit},
    texts::{EXPIRED_AWAITING, MAX_ERROR_LENGTH},
};

/// In the order of the key, so that concurrent batches wait for each other in one direction. The lock
/// on a row that is there already lasts until its jobs are committed, which [`FORGET`] relies on.
const AWAIT: &str = "insert into awaited (owner_kind, owner_id, toolkit, account, doubted, look_at)
    select owner_kind, owner_id, waits_for, coalesce(connected_account_id, ''), max(account), now()
    from jobs where id = any($1) and held_reason = 'connection' and waits_for is not null
    group by 1, 2, 3, 4 order by 1, 2, 3, 4
    on conflict (owner_kind, owner_id, toolkit, account)
    do update set parked = least(awaited.parked, 9223372036854775806) + 1, doubted = coalesce(excluded.doubted, awaited.doubted)";

const TAKE: &str = "with due as (
        select id from awaited where look_at <= now() order by look_at limit $1 for update skip locked)
    update awaited a set look_at = now() + $2::bigint * interval '1 microsecond'
    from due where a.id = due.id
    returning a.id, a.owner_kind, a.owner_id, a.toolkit, a.account, a.doubted, a.looks, a.parked";

/// The jobs of an awaited connection `a`.
macro_rules! jobs_of {
    () => {
        "j.held_reason = 'connection' and j.owner_id = a.owner_id and j.waits_for = a.toolkit
            and j.owner_kind = a.owner_kind and coalesce(j.connected_account_id, '') = a.account"
    };
}

/// Connections that no job waits for. Whoever parks a job at the same time changes `parked`, and holds
/// the row until the job can be seen.
const FORGET: &str = concat!(
    "delete from awaited a using unnest($1::bigint[], $2::bigint[]) as t (id, parked)
    where a.id = t.id and a.parked = t.parked and not exists (select 1 from jobs j where ",
    jobs_of!(),
    ") returning a.id"
);

const PUT_OFF: &str = "update awaited set look_at = now() + $3::bigint * interval '1 microsecond',
        looks = least(looks, 2147483646) + 1, doubted = case when $4 or parked <> $2 then doubted end
    where id = $1";

const RELEASE: &str = concat!(
    "with page as (
        select j.id as page_id from awaited a join jobs j on ",
    jobs_of!(),
    " where a.id = $1 order by j.created_at limit $2 for update of j skip locked)
    update jobs set ",
    to_retry!(),
    " from page where id = page_id returning 1"
);

const EXPIRE: &str = "with due as (
        select id as due_id from jobs where held_reason = 'connection' and waits_until is not null
            and waits_until <= now()
        order by waits_until limit $1 for update skip locked)
    update jobs set state = 'failed', held_reason = null, error_message = left($2 || error_message, $3),
        finished_at = now(), reply_due_at = case when reply_to is not null then now() end
    from due where id = due_id
    returning 1";

#[async_trait]
impl Connections for PostgresStore {
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>, StoreError> {
        let query = sqlx::query(TAKE).bind(to_limit(limit)).bind(micros(again_after));
        let mut taken =
            fetch(&self.other, query).await?.iter().map(awaited).collect::<Result<Vec<_>, _>>()?;
        let idle = self.forget(&taken).await?;
        taken.retain(|awaited| !idle.contains(&awaited.id));
        Ok(taken)
    }

    async fn put_off_awaited(
        &self,
        awaited: &Awaited,
        again_after: Duration,
        keep_doubt: bool,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(PUT_OFF)
            .bind(awaited.id)
            .bind(awaited.parked)
            .bind(micros(again_after))
            .bind(keep_doubt);
        fetch(&self.other, query).await?;
        Ok(())
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64, StoreError> {
        let query = sqlx::query(RELEASE).bind(awaited.id).bind(to_limit(limit));
        let released = fetch(&self.other, query).await?.len();
        if released < limit {
            self.forget(std::slice::from_ref(awaited)).await?;
        }
        Ok(released as u64)
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64, StoreError> {
        let query = sqlx::query(EXPIRE).bind(to_limit(limit)).bind(EXPIRED_AWAITING).bind(MAX_ERROR_LENGTH);
        Ok(fetch(&self.other, query).await?.len() as u64)
    }
}

impl PostgresStore {
    /// Forgets those that no job waits for any more, and returns them.
    async fn forget(&self, awaited: &[Awaited]) -> Result<Vec<i64>, StoreError> {
        if awaited.is_empty() {
            return Ok(Vec::new());
        }
        let (ids, parked): (Vec<i64>, Vec<i64>) = awaited.iter().map(|a| (a.id, a.parked)).unzip();
        let gone = fetch(&self.other, sqlx::query(FORGET).bind(ids).bind(parked)).await?;
        gone.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

fn awaited(row: &PgRow) -> Result<Awaited, StoreError> {
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

/// Executes a statement of which these jobs may end up waiting for a connection; what they wait for is
/// noted in the same transaction.
pub(super) async fn fetch_and_note_awaited(
    pool: &Pool,
    query: Bound,
    parked: Vec<Uuid>,
) -> Result<Vec<PgRow>, StoreError> {
    if parked.is_empty() {
        return fetch(pool, query).await;
    }
    pool.transaction(move |db| {
        Box::pin(async move {
            let rows = query.fetch_all(&mut *db).await?;
            note_awaited(db, parked).await?;
            Ok(rows)
        })
    })
    .await
}

/// Notes what these jobs wait for, as far as they do.
pub(super) async fn note_awaited(db: &mut PgConnection, parked: Vec<Uuid>) -> Result<(), StoreError> {
    sqlx::query(AWAIT).bind(parked).execute(db).await?;
    Ok(())
}
