//! Jobs that wait until their owner has connected a toolkit.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use sqlx::{PgConnection, Postgres, postgres::PgRow};
use uuid::Uuid;

use super::{PostgresStore, history::note};
use crate::{
    job::{Release, State},
    store::{
        Awaited, Connections, Result,
        convert::{micros, to_limit},
        history::Note,
        read::{StoreRow as _, readable},
        rows,
        sql::{Bound, statements},
        texts::{BY_CONNECTIONS, EXPIRED_AWAITING, MAX_ERROR_LENGTH},
    },
};

statements! { Postgres:
    /// In the order of the key, so that concurrent batches wait for each other in one direction. The lock
    /// on a row that is there already lasts until its jobs are committed, which `forget` relies on.
    note(jobs: Vec<Uuid>) = "insert into awaited (owner_kind, owner_id, toolkit, account, doubted, look_at)
    select owner_kind, owner_id, waits_for, coalesce(connected_account_id, ''), max(account), now()
    from jobs where id = any({jobs}) and held_reason = 'connection' and waits_for is not null
    group by 1, 2, 3, 4 order by 1, 2, 3, 4
    on conflict (owner_kind, owner_id, toolkit, account)
    do update set parked = least(awaited.parked, 9223372036854775806) + 1, doubted = coalesce(excluded.doubted, awaited.doubted)";

    take(limit: i64, again_after: i64) = "with due as (
        select id from awaited where look_at <= now() order by look_at limit {limit} for update skip locked)
    update awaited a set look_at = now() + {again_after}::bigint * interval '1 microsecond'
    from due where a.id = due.id
    returning a.id, a.owner_kind, a.owner_id, a.toolkit, a.account, a.doubted, a.lookups, a.parked";

    /// Connections that no job waits for. Whoever parks a job at the same time changes `parked`, and holds
    /// the row until the job can be seen.
    forget(ids: Vec<i64>, parked: Vec<i64>) = "delete from awaited a
    using unnest({ids}::bigint[], {parked}::bigint[]) as t (id, parked)
    where a.id = t.id and a.parked = t.parked and not exists (select 1 from jobs j where {is_job_of_awaited})
    returning a.id";

    put_off(id: i64, parked: i64, again_after: i64, keep_doubt: bool) = "update awaited set
        look_at = now() + {again_after}::bigint * interval '1 microsecond', lookups = least(lookups, 2147483646) + 1,
        doubted = case when {keep_doubt} or parked <> {parked} then doubted end
    where id = {id}";

    release(id: i64, limit: i64, by: &str, how: &str) = "with page as (
        select j.id as page_id, j.account as page_account from awaited a join jobs j on {is_job_of_awaited}
        where a.id = {id} order by j.created_at limit {limit} for update of j skip locked),
    released as (update jobs set {to_retry} {of_page}), {note_released}
    select state from released";

    expire(limit: i64, message: &str, max_length: i32) = "with due as (
        select id as due_id from jobs where held_reason = 'connection' and waits_until is not null
            and waits_until <= now()
        order by waits_until limit {limit} for update skip locked)
    update jobs set state = 'failed', held_reason = null, error_message = left({message} || error_message, {max_length}),
        finished_at = now(), reply_due_at = case when reply_to is not null then now() end
    from due where id = due_id
    returning 1";
}

#[async_trait]
impl Connections for PostgresStore {
    async fn take_awaited(&self, limit: usize, again_after: Duration) -> Result<Vec<Awaited>> {
        let due = self.other.fetch(sql::take(to_limit(limit), micros(again_after))).await?;
        let mut taken = readable(&due, rows::awaited);
        let idle = self.forget(&taken).await?;
        taken.retain(|awaited| !idle.contains(&awaited.id));
        Ok(taken)
    }

    async fn put_off_awaited(
        &self,
        awaited: &Awaited,
        again_after: Duration,
        keep_doubt: bool,
    ) -> Result<()> {
        let query = sql::put_off(awaited.id, awaited.parked, micros(again_after), keep_doubt);
        self.other.fetch(query).await.map(drop)
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64> {
        let query = sql::release(awaited.id, to_limit(limit), BY_CONNECTIONS, Release::Retry.as_str());
        let released = self.other.fetch(query).await?.len();
        if released < limit {
            self.forget(std::slice::from_ref(awaited)).await?;
        }
        Ok(released as u64)
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64> {
        let query = sql::expire(to_limit(limit), EXPIRED_AWAITING, MAX_ERROR_LENGTH);
        Ok(self.other.fetch(query).await?.len() as u64)
    }
}

impl PostgresStore {
    /// Forgets those that no job waits for any more, and returns them.
    async fn forget(&self, awaited: &[Awaited]) -> Result<Vec<i64>> {
        if awaited.is_empty() {
            return Ok(Vec::new());
        }
        let (ids, parked): (Vec<i64>, Vec<i64>) = awaited.iter().map(|a| (a.id, a.parked)).unzip();
        self.other.fetch(sql::forget(ids, parked)).await?.iter().map(|row| row.read("id")).collect()
    }

    /// Executes a statement that returns `id` and `state` of the jobs that it changes, with what goes with it in the
    /// same transaction: what jobs wait for that may end up waiting for a connection, and entries of the history,
    /// each with the state of its job if it happens. Most batches have neither.
    pub(super) async fn fetch_and_note(
        &self,
        query: Bound<Postgres>,
        waiting: Vec<Uuid>,
        notes: Vec<(State, Note<'static>)>,
    ) -> Result<Vec<PgRow>> {
        if waiting.is_empty() && notes.is_empty() {
            return self.hot.fetch(query).await;
        }
        let work = self.hot.transaction(move |db| {
            Box::pin(async move {
                let rows = query.fetch_all(&mut *db).await?;
                let mut changed: HashMap<Uuid, State> = HashMap::with_capacity(rows.len());
                for row in &rows {
                    changed.insert(row.read("id")?, row.parse("state")?);
                }
                let happened = |(state, note): (State, Note<'static>)| {
                    (changed.get(&note.job.0) == Some(&state)).then_some(note)
                };
                let notes: Vec<_> = notes.into_iter().filter_map(happened).collect();
                note(db, &notes).await?;
                note_awaited(db, waiting).await?;
                Ok(rows)
            })
        });
        work.await
    }
}

/// Notes what these jobs wait for, as far as they do.
pub(super) async fn note_awaited(db: &mut PgConnection, waiting: Vec<Uuid>) -> Result<()> {
    if !waiting.is_empty() {
        sql::note(waiting).execute(db).await?;
    }
    Ok(())
}
