//! Events of jobs and batches. There is one writer, so each has its position as soon as it is written.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::{BatchId, JobId, Owner, Principal},
    store::{
        EventKind, EventListener, Events, EventsAfter, EventsOf, Heard, Result, StoreError,
        columns::PrincipalColumns,
        convert::{micros, to_limit},
        events::{Positions, events_after, to_position},
        read::StoreRow as _,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    /// Without a word, that of the state, if that is an end or `held`.
    record(id: Uuid, now: i64, word: Option<&str>) = "insert into events (at, kind, sequence, job_id, batch_id, owner_kind, owner_id, tool,
        toolkit, queue, attempt, held_reason, error_kind, callback_url)
    select {now}, coalesce({word}, 'job.' || state), events, id, batch_id, owner_kind, owner_id, tool, coalesce(toolkit, waits_for), queue,
        attempt, held_reason, error_kind, callback_url
    from jobs where id = {id} and ({word} is not null or state in ('succeeded', 'failed', 'cancelled', 'held'))";

    record_batch(id: Uuid, now: i64, word: &str) = "insert into events (at, kind, sequence, batch_id, owner_kind, owner_id, callback_url)
    select {now}, {word}, events, id, owner_kind, owner_id, callback_url from batches where id = {id}";

    positions() = "select coalesce((select removed from event_positions), 0) as removed,
        coalesce((select seq from sqlite_sequence where name = 'events'), 0) as last";

    events(after: i64, limit: i64) = "select * from events where position > {after} order by position limit +{limit}";

    events_of_job(principal: One<'_, PrincipalColumns>, wanted: Uuid, after: i64, limit: i64) = "select * from events
    where job_id = {wanted} and {may_see} and position > {after} order by position limit +{limit}";

    events_of_batch(principal: One<'_, PrincipalColumns>, wanted: Uuid, after: i64, limit: i64) = "select * from events
    where batch_id = {wanted} and {may_see} and position > {after} order by position limit +{limit}";

    events_of_owner(principal: One<'_, PrincipalColumns>, after: i64, limit: i64) = "select * from events
    where owner_kind = {principal_kind} and owner_id = {principal_id} and position > {after} order by position limit +{limit}";

    heard(listener: &str) = "select coalesce((select seq from sqlite_sequence where name = 'events'), 0) as last,
        (select position from event_listeners where name = {listener}) as up_to";

    begin_to_listen(listener: &str, last: i64) = "insert into event_listeners (name, position) values ({listener}, {last})
    on conflict do nothing";

    note_heard(listener: &str, up_to: i64) = "update event_listeners set position = {up_to} where name = {listener} and position < {up_to}";

    /// As far as they are old from the first on, so that a position has all events behind it or is told to have lost some.
    old(now: i64, age: i64, limit: i64) = "with first as (select position, at from events order by position limit +{limit})
    select max(position) as up_to from first where position < coalesce((
        select min(position) from first where at >= {now} - {age}), 9223372036854775807)";

    remove(up_to: i64) = "delete from events where position <= {up_to}";

    note_removed(up_to: i64) = "insert into event_positions (only_one, removed) values (1, {up_to})
    on conflict (only_one) do update set removed = max(removed, excluded.removed)";

    remove_of(owner_kind: &str, owner_id: &str, limit: i64) = "delete from events where position in (
        select position from events where owner_kind = {owner_kind} and owner_id = {owner_id} order by position limit +{limit})";
}

/// Whether a store records events, and does so in the transaction of what they tell of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorder(pub(super) bool);

impl Recorder {
    /// The event of a job that has ended or is held, if it has.
    pub(super) async fn record_end(self, db: &mut SqliteConnection, now: i64, job: JobId) -> Result<()> {
        self.record(db, now, job, None).await
    }

    /// An event of a job; without a kind as [`Recorder::record_end`].
    pub(super) async fn record(
        self,
        db: &mut SqliteConnection,
        now: i64,
        job: JobId,
        kind: Option<EventKind>,
    ) -> Result<()> {
        if self.0 {
            sql::record(job.0, now, kind.map(EventKind::as_str)).execute(db).await?;
        }
        Ok(())
    }

    pub(super) async fn record_batch(
        self,
        db: &mut SqliteConnection,
        now: i64,
        batch: BatchId,
        kind: EventKind,
    ) -> Result<()> {
        if self.0 {
            sql::record_batch(batch.0, now, kind.as_str()).execute(db).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Events for SqliteStore {
    async fn events(
        &self,
        principal: &Principal,
        of: EventsOf,
        after: Option<u64>,
        limit: usize,
    ) -> Result<EventsAfter> {
        let before = self.positions().await?;
        let from = after.map_or(0, to_position);
        let most = to_limit(limit);
        let query = match (of, principal) {
            (EventsOf::All, Principal::Operator) => sql::events(from, most),
            (EventsOf::All, Principal::Owner(_)) => sql::events_of_owner(One(principal), from, most),
            (EventsOf::Job(job), _) => sql::events_of_job(One(principal), job.0, from, most),
            (EventsOf::Batch(batch), _) => sql::events_of_batch(One(principal), batch.0, from, most),
        };
        let rows = self.reader.fetch(query).await?;
        events_after(after, limit, &rows, before, self.positions().await?)
    }

    async fn last_event(&self) -> Result<u64> {
        Ok(self.positions().await?.last)
    }

    async fn heard(&self, listener: EventListener) -> Result<Heard> {
        let name = listener.as_str();
        loop {
            let found = self.reader.fetch_first(sql::heard(name)).await?;
            let found = found.ok_or_else(|| StoreError::corrupt("event_listeners"))?;
            let last = found.total("last")?;
            if found.read::<Option<i64>>("up_to")?.is_some() {
                return Ok(Heard { up_to: found.total("up_to")?, last });
            }
            self.write_one(move |_| sql::begin_to_listen(name, to_position(last))).await?;
        }
    }

    async fn note_heard(&self, listener: EventListener, up_to: u64) -> Result<()> {
        let (name, up_to) = (listener.as_str(), to_position(up_to));
        self.write_one(move |_| sql::note_heard(name, up_to)).await?;
        Ok(())
    }

    async fn remove_events(&self, age: Duration, limit: usize) -> Result<u64> {
        self.write(move |db, now| {
            Box::pin(async move {
                let old = sql::old(now, micros(age), to_limit(limit)).fetch_one(&mut *db).await?;
                let Some(up_to) = old.read::<Option<i64>>("up_to")? else { return Ok(0) };
                sql::note_removed(up_to).execute(&mut *db).await?;
                Ok(sql::remove(up_to).execute(&mut *db).await?.rows_affected())
            })
        })
        .await
    }

    async fn remove_events_of(&self, owner: &Owner, limit: usize) -> Result<u64> {
        let query = sql::remove_of(owner.kind().as_str(), owner.id(), to_limit(limit));
        self.write_one(|_| query).await
    }
}

impl SqliteStore {
    pub(super) async fn positions(&self) -> Result<Positions> {
        let positions = self.reader.fetch_first(sql::positions()).await?;
        Positions::read(&positions.ok_or_else(|| StoreError::corrupt("event_positions"))?)
    }
}
