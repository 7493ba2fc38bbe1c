//! Jobs that wait until their owner has connected a toolkit.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::Release,
    store::{
        Awaited, Connections, Result, SEARCHED_FOR_TOGETHER, TakeAwaited,
        convert::{micros, to_limit},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
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

    /// The one that is due longest is chosen with its lock, so that one that a session keeps locked is passed over.
    take(together: bool, others: i64, searched: i64, first_after: i64, again_after: i64) = "with longest as (
        select id, toolkit, look_at from awaited where {is_due_awaited} order by look_at limit 1 for update skip locked),
    due as (select id, toolkit from awaited where {is_due_awaited} order by look_at limit {searched}),
    others as (
        select a.id, a.look_at from longest join due on due.toolkit = longest.toolkit and due.id <> longest.id
            join awaited a on a.id = due.id
        where {together} and a.look_at <= now() order by a.look_at limit {others} for update of a skip locked),
    taken as (select id, look_at from longest union all select id, look_at from others)
    update awaited a set look_at = now() + {again_after}::bigint * interval '1 microsecond'
    from taken where a.id = taken.id
    returning a.id, a.owner_kind, a.owner_id, a.toolkit, a.account, a.doubted, a.lookups, a.parked,
        taken.look_at as due_since";

    /// Connections that no job waits for. Whoever parks a job at the same time changes `parked`, and holds
    /// the row until the job can be seen.
    forget(ids: Vec<i64>, parked: Vec<i64>) = "delete from awaited a
    using unnest({ids}::bigint[], {parked}::bigint[]) as t (id, parked)
    where a.id = t.id and a.parked = t.parked and not exists (select 1 from jobs j where {is_job_of_awaited})
    returning a.id";

    /// Locked in the order of `note`.
    put_off(ids: Vec<i64>, parked: Vec<i64>, again_after: Vec<i64>, keep_doubt: bool) = "with locked as (
        select id from awaited where id = any({ids}) order by owner_kind, owner_id, toolkit, account for update)
    update awaited a set look_at = now() + t.again_after * interval '1 microsecond',
        lookups = least(a.lookups, 2147483646) + 1,
        doubted = case when {keep_doubt} or a.parked <> t.parked then a.doubted end
    from locked join unnest({ids}::bigint[], {parked}::bigint[], {again_after}::bigint[]) as t (id, parked, again_after)
        on t.id = locked.id
    where a.id = locked.id";

    /// The same order.
    give_back(ids: Vec<i64>, lookups: Vec<i64>, due_since: Vec<i64>) = "with locked as (
        select id from awaited where id = any({ids}) order by owner_kind, owner_id, toolkit, account for update)
    update awaited a set look_at = timestamptz 'epoch' + t.due_since * interval '1 microsecond'
    from locked join unnest({ids}::bigint[], {lookups}::bigint[], {due_since}::bigint[]) as t (id, lookups, due_since)
        on t.id = locked.id
    where a.id = locked.id and a.lookups = t.lookups";

    release(id: i64, limit: i64, by: &str, how: &str, record: bool) = "with page as (
        select j.id as page_id, j.account as page_account from awaited a join jobs j on {is_job_of_awaited}
        where a.id = {id} order by j.created_at limit {limit} for update of j skip locked),
    changed as (update jobs set {to_retry} {of_page}), {note_released}, {record_events}
    select state from changed";

    expire(limit: i64, message: &str, max_length: i32, record: bool) = "with due as (
        select id as due_id from jobs where held_reason = 'connection' and waits_until is not null
            and waits_until <= now()
        order by waits_until limit {limit} for update skip locked),
    changed as (update jobs set state = 'failed', held_reason = null, error_message = left({message} || error_message, {max_length}),
        finished_at = now(), reply_due_at = case when reply_to is not null then now() end, events = events + 1
    from due where id = due_id
    returning {event of jobs}, {end of jobs} as event),
    {record_events}
    select id from changed";
}

#[async_trait]
impl Connections for PostgresStore {
    async fn take_awaited(&self, take: TakeAwaited) -> Result<Vec<Awaited>> {
        let others = to_limit(take.limit.saturating_sub(1));
        let (first_after, again_after) = (micros(take.first_after), micros(take.again_after));
        loop {
            let searched = SEARCHED_FOR_TOGETHER.into();
            let query = sql::take(take.together, others, searched, first_after, again_after);
            let mut taken = readable(&self.other.fetch(query).await?, rows::awaited);
            let idle = self.forget(&taken).await?;
            taken.retain(|awaited| !idle.contains(&awaited.id));
            taken.sort_by_key(|awaited| awaited.due_since);
            if idle.is_empty() || !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    async fn put_off_awaited(&self, put_off: &[(Awaited, Duration)], keep_doubt: bool) -> Result<()> {
        let ids = put_off.iter().map(|(awaited, _)| awaited.id).collect();
        let parked = put_off.iter().map(|(awaited, _)| awaited.parked).collect();
        let after = put_off.iter().map(|(_, after)| micros(*after)).collect();
        self.other.fetch(sql::put_off(ids, parked, after, keep_doubt)).await.map(drop)
    }

    async fn give_back_awaited(&self, awaited: &[Awaited]) -> Result<()> {
        let ids = awaited.iter().map(|awaited| awaited.id).collect();
        let lookups = awaited.iter().map(|awaited| awaited.lookups.into()).collect();
        let due_since = awaited.iter().map(|awaited| awaited.due_since.as_microsecond()).collect();
        self.other.fetch(sql::give_back(ids, lookups, due_since)).await.map(drop)
    }

    async fn release_awaited(&self, awaited: &Awaited, limit: usize) -> Result<u64> {
        let query = sql::release(
            awaited.id,
            to_limit(limit),
            BY_CONNECTIONS,
            Release::Retry.as_str(),
            self.records_events,
        );
        let released = self.other.fetch(query).await?.len();
        if released < limit {
            self.forget(std::slice::from_ref(awaited)).await?;
        }
        Ok(released as u64)
    }

    async fn expire_awaiting(&self, limit: usize) -> Result<u64> {
        let query = sql::expire(to_limit(limit), EXPIRED_AWAITING, MAX_ERROR_LENGTH, self.records_events);
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
}

/// Notes what these jobs wait for, as far as they do.
pub(super) async fn note_awaited(db: &mut PgConnection, waiting: Vec<Uuid>) -> Result<()> {
    if !waiting.is_empty() {
        sql::note(waiting).execute(db).await?;
    }
    Ok(())
}
