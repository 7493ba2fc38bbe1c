//! Events of jobs and batches, which other statements record by the fragment `record_events`.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::{Owner, Principal},
    store::{
        EventListener, Events, EventsAfter, EventsOf, Heard, Result, StoreError,
        columns::PrincipalColumns,
        convert::{micros, to_limit},
        events::{PLACED_TOGETHER, Positions, events_after, to_position},
        read::StoreRow as _,
        sql::{One, statements},
    },
};

statements! { Postgres:
    /// Whoever gives positions has this row locked until they can be seen, so nobody gives others meanwhile.
    lock_positions() = "select last from event_positions for update";

    /// In the order in which writes reached the inbox, which is that of the changes of each job: a change waits for the job
    /// before it has a place there.
    place(limit: i64, last: i64) = "with first as (
        select id, sum(cardinality(kinds)) over (order by id) - cardinality(kinds) as before
        from (select id, kinds from event_inbox order by id limit {limit}) oldest),
    taken as (delete from event_inbox where id in (select id from first where before < {limit}) returning *),
    placed as (
        insert into events (position, at, kind, sequence, job_id, batch_id, owner_kind, owner_id, tool, toolkit, queue, attempt,
            held_reason, error_kind, callback_url)
        select {last} + row_number() over (order by t.id, e.place), t.at, e.kind, e.sequence, e.job_id, e.batch_id, e.owner_kind,
            e.owner_id, e.tool, e.toolkit, e.queue, e.attempt, e.held_reason, e.error_kind, e.callback_url
        from taken t cross join lateral unnest({inbox}) with ordinality as e (kind, sequence, job_id, batch_id, owner_kind, owner_id,
            tool, toolkit, queue, attempt, held_reason, error_kind, callback_url, place)
        returning 1),
    moved as (update event_positions set last = last + (select count(*) from placed) where exists (select 1 from placed))
    select count(*) as events from placed";

    positions() = "select last, removed, (select id from event_inbox order by id limit 1) is not null as is_anything_new from event_positions";

    events(after: i64, limit: i64) = "select * from events where position > {after} order by position limit {limit}";

    events_of_job(principal: One<'_, PrincipalColumns>, wanted: Uuid, after: i64, limit: i64) = "select * from events
    where job_id = {wanted} and {may_see} and position > {after} order by position limit {limit}";

    events_of_batch(principal: One<'_, PrincipalColumns>, wanted: Uuid, after: i64, limit: i64) = "select * from events
    where batch_id = {wanted} and {may_see} and position > {after} order by position limit {limit}";

    events_of_owner(principal: One<'_, PrincipalColumns>, after: i64, limit: i64) = "select * from events
    where owner_kind = {principal_kind} and owner_id = {principal_id} and position > {after} order by position limit {limit}";

    heard(listener: &str) = "select last, removed, (select id from event_inbox order by id limit 1) is not null as is_anything_new,
        (select position from event_listeners where name = {listener}) as up_to
    from event_positions";

    /// The first of several processes that begin says where.
    begin_to_listen(listener: &str, last: i64) = "insert into event_listeners (name, position) values ({listener}, {last})
    on conflict do nothing";

    note_heard(listener: &str, up_to: i64) = "update event_listeners set position = {up_to} where name = {listener} and position < {up_to}";

    /// As far as they are old from the first on, so that a position has all events behind it or is told to have lost some.
    remove(age: i64, limit: i64) = "with first as (
        select position, at from events order by position limit {limit}),
    old as (
        select position from first where position < coalesce((select min(position) from first
            where at >= now() - {age}::bigint * interval '1 microsecond'), 9223372036854775807)),
    gone as (delete from events where position in (select position from old) returning position),
    moved as (update event_positions set removed = greatest(removed, (select max(position) from old))
        where exists (select 1 from old))
    select count(*) as events from gone";

    remove_of(owner_kind: &str, owner_id: &str, limit: i64) = "with gone as (delete from events where position in (
        select position from events where owner_kind = {owner_kind} and owner_id = {owner_id} order by position limit {limit})
        returning 1)
    select count(*) as events from gone";
}

#[async_trait]
impl Events for PostgresStore {
    async fn events(
        &self,
        principal: &Principal,
        of: EventsOf,
        after: Option<u64>,
        limit: usize,
    ) -> Result<EventsAfter> {
        let before = self.place_events().await?;
        let from = after.map_or(0, to_position);
        let most = to_limit(limit);
        let query = match (of, principal) {
            (EventsOf::All, Principal::Operator) => sql::events(from, most),
            (EventsOf::All, Principal::Owner(_)) => sql::events_of_owner(One(principal), from, most),
            (EventsOf::Job(job), _) => sql::events_of_job(One(principal), job.0, from, most),
            (EventsOf::Batch(batch), _) => sql::events_of_batch(One(principal), batch.0, from, most),
        };
        let rows = self.other.fetch(query).await?;
        events_after(after, limit, &rows, before, self.positions().await?)
    }

    async fn last_event(&self) -> Result<u64> {
        Ok(self.place_events().await?.last)
    }

    async fn heard(&self, listener: EventListener) -> Result<Heard> {
        loop {
            let found = self.other.fetch_first(sql::heard(listener.as_str())).await?;
            let found = found.ok_or_else(|| StoreError::corrupt("event_positions"))?;
            let last = match unless_new(&found)? {
                Some(positions) => positions.last,
                None => self.place_events().await?.last,
            };
            if found.read::<Option<i64>>("up_to")?.is_some() {
                return Ok(Heard { up_to: found.total("up_to")?, last });
            }
            self.other.fetch(sql::begin_to_listen(listener.as_str(), to_position(last))).await?;
        }
    }

    async fn note_heard(&self, listener: EventListener, up_to: u64) -> Result<()> {
        self.other.fetch(sql::note_heard(listener.as_str(), to_position(up_to))).await?;
        Ok(())
    }

    async fn remove_events(&self, age: Duration, limit: usize) -> Result<u64> {
        self.place_events().await?;
        self.other.fetch_total(sql::remove(micros(age), to_limit(limit)), "events").await
    }

    async fn remove_events_of(&self, owner: &Owner, limit: usize) -> Result<u64> {
        self.place_events().await?;
        let query = sql::remove_of(owner.kind().as_str(), owner.id(), to_limit(limit));
        self.other.fetch_total(query, "events").await
    }
}

impl PostgresStore {
    /// Gives a position to each event that was recorded before this call, and returns the positions then.
    pub(super) async fn place_events(&self) -> Result<Positions> {
        if let Some(positions) = self.placed().await? {
            return Ok(positions);
        }
        // One of a process at a time: the others would hold connections while they wait for the lock.
        let _placing = self.placing.lock().await;
        loop {
            if let Some(positions) = self.placed().await? {
                return Ok(positions);
            }
            let placing = self.other.transaction(|db| {
                Box::pin(async move {
                    let last: i64 = sql::lock_positions().fetch_one(&mut *db).await?.read("last")?;
                    sql::place(PLACED_TOGETHER, last).fetch_one(&mut *db).await?.total("events")
                })
            });
            // What is new since then may wait.
            if placing.await? < PLACED_TOGETHER as u64 {
                return self.positions().await;
            }
        }
    }

    /// The positions, if there is nothing without one.
    async fn placed(&self) -> Result<Option<Positions>> {
        let found = self.other.fetch_first(sql::positions()).await?;
        unless_new(&found.ok_or_else(|| StoreError::corrupt("event_positions"))?)
    }

    pub(super) async fn positions(&self) -> Result<Positions> {
        let positions = self.other.fetch_first(sql::positions()).await?;
        Positions::read(&positions.ok_or_else(|| StoreError::corrupt("event_positions"))?)
    }
}

/// The positions, if there is nothing without one.
fn unless_new(row: &PgRow) -> Result<Option<Positions>> {
    if row.read("is_anything_new")? { Ok(None) } else { Positions::read(row).map(Some) }
}
