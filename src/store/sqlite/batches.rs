//! Batches: many jobs that were enqueued together.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde_json::json;
use sqlx::{Connection as _, Sqlite, sqlite::SqliteConnection};
use uuid::Uuid;

use super::{
    SqliteStore,
    batch_items::{add_batch, add_items},
    changes::{About, log},
};
use crate::{
    bounds::{MAX_CHUNK_ITEMS, MAX_OPEN_BATCHES},
    job::{BatchId, JobSpec, Owner, Principal},
    store::{
        Added, BatchDecided, BatchItem, BatchView, Batches, ChangeKind, Counted, Counts, Decider, EventKind,
        NewBatch, Place, Result, TakenBatch,
        batches::{TAKING_TURNS, counted, item, meant, taken, view},
        changes::NewChange,
        columns::{PrincipalColumns, StretchColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        job_filter::Stretch,
        read::{StoreRow as _, readable},
        sql::{Bound, One, statements},
    },
};

statements! { Sqlite:
    seal(principal: One<'_, PrincipalColumns>, id: Uuid, now: i64) = "update batches set sealed_at = coalesce(sealed_at, {now}),
        look_at = case when completed_at is null then {now} end
    where {may_see} and id = {id} returning {batch_view}";

    batch(principal: One<'_, PrincipalColumns>, id: Uuid) = "select {batch_view} from batches where {may_see} and id = {id}";

    /// Those of which no more than the last count is told come last.
    live(batch_id: Uuid, most: i64) = "with open as (
        select first, job_ids, sum(items) over (order by looked_at, first) - items as before
        from batch_parts where batch_id = {batch_id} and not is_closed),
    c as (
        select {count_jobs} from open o cross join {jobs_of_part} where o.before < {most}
        union all
        select {counts} from batch_parts p where p.batch_id = {batch_id}
            and (p.is_closed or p.first in (select first from open where before >= {most})))
    select {sum_counts} from c";

    items(principal: One<'_, PrincipalColumns>, batch: Uuid, index: i64, limit: i64) = "select
        o.first + item.key as item, unhex(item.value) as job_id, j.state
    from (select first, job_ids from batch_parts where batch_id = {batch} and first + items > {index} and {may_see_batch}
        order by first limit +{limit}) o
    cross join {jobs_of_part}
    where o.first + item.key >= {index} order by 1 limit +{limit}";

    batches(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select {batch_view} from batches where {may_see} and {in_order} order by created_at desc, id desc limit +{limit}";

    going_on(id: Uuid) = "select id from batches where id = {id} and {goes_on}";

    call_off(principal: One<'_, PrincipalColumns>, id: Uuid, by: &str, now: i64) = "update batches
    set sealed_at = coalesce(sealed_at, {now}), cancelled_by = {by}, cancelled_at = {now}, doing = 'cancel', doing_by = {by},
        doing_force = false, doing_since = {now}, doing_place = null, look_at = {now},
        events = events + 1
    where {may_see} and id = {id} and completed_at is null and cancelled_at is null returning {batch_view}";

    retry(principal: One<'_, PrincipalColumns>, id: Uuid, by: &str, force: bool, meant: i32, most: i64, now: i64) = "update batches
    set generation = generation + 1, completed_at = null, cancelled_by = null, cancelled_at = null, deadline = null,
        doing = 'retry', doing_by = {by}, doing_force = {force}, doing_since = {now}, doing_place = null,
        changed_at = {now}, look_at = {now}, events = events + 1
    where {may_see} and id = {id} and completed_at is not null and {has_failed} and {may_be_reopened}
        and {meant} in (0, generation) returning {batch_view}";

    take(limit: i64, taking_turns: i64, lease: i64, now: i64) = "update batches set look_at = {now} + {lease}
    where id in (
        select id from (
            select id, look_at, row_number() over (partition by owner_kind, owner_id order by look_at) as turn
            from (select id, owner_kind, owner_id, look_at from batches
                where look_at <= {now} order by look_at limit +{taking_turns}))
        order by turn, look_at limit +{limit})
    returning {batch_view}, follow_up, doing_by, doing_force, doing_place, {now} - doing_since as doing_for,
        coalesce(deadline <= {now}, false) as is_past_deadline, {now} - created_at as age, look_at as until";

    due(now: i64) = "select 1 from batches where look_at <= {now} limit 1";

    count_parts(batch_id: Uuid, most: i64, now: i64) = "with open as (
        select first, job_ids, sum(items) over (order by looked_at, first) - items as before
        from batch_parts where batch_id = {batch_id} and not is_closed),
    c as materialized (
        select o.first, {count_jobs} from open o cross join {jobs_of_part} where o.before < {most} group by o.first)
    update batch_parts as p set looked_at = {now}, {set_counts},
        is_closed = c.scheduled + c.available + c.running + c.retryable = 0
            and (c.held = 0 or (select cancelled_at is not null from batches where id = {batch_id}))
    from c where p.batch_id = {batch_id} and p.first = c.first and not p.is_closed";

    fold(batch_id: Uuid, now: i64) = "update batches as b set {set_counts},
        changed_at = case when {counts_differ} then {now} else b.changed_at end
    from (select {sum_counts} from batch_parts c where c.batch_id = {batch_id}) as c where b.id = {batch_id}
    returning {counts}, (select count(*) from batch_parts p where p.batch_id = {batch_id} and not p.is_closed) as open,
        {now} - changed_at as unchanged_for";

    advance(id: Uuid, until: i64, place: Option<&str>) =
    "update batches set doing_place = {place} where id = {id} and look_at = {until} and doing is not null";

    done(id: Uuid, until: i64) = "update batches
    set doing = null, doing_by = null, doing_force = false, doing_since = null, doing_place = null
    where id = {id} and look_at = {until}";

    /// Whatever failed may run again.
    reopen(id: Uuid) = "update batch_parts set is_closed = false where batch_id = {id} and failed > 0";

    complete(id: Uuid, generation: i32, now: i64) = "update batches set completed_at = {now}, look_at = null,
        events = events + 1
    where id = {id} and generation = {generation} and completed_at is null and sealed_at is not null and doing is null
        and not exists (select 1 from batch_parts p where p.batch_id = {id} and not p.is_closed)";

    is_complete(id: Uuid, generation: i32) =
    "select 1 from batches where id = {id} and (generation > {generation} or completed_at is not null)";

    put_off(id: Uuid, until: i64, after: i64, now: i64) =
    "update batches set look_at = {now} + {after} where id = {id} and look_at = {until}";

    remove(completed_for: i64, limit: i64, now: i64) = "delete from batches where id in (
        select id from batches where created_at < {now} - {completed_for} and completed_at < {now} - {completed_for}
        limit +{limit})
    returning id";

    remove_of(owner_kind: &str, owner_id: &str) =
    "delete from batches where owner_kind = {owner_kind} and owner_id = {owner_id} returning id";

    remove_parts(id: Uuid) = "delete from batch_parts where batch_id = {id}";

}

#[async_trait]
impl Batches for SqliteStore {
    async fn add_batch(&self, batch: &NewBatch, items: &[Arc<JobSpec>]) -> Result<Added> {
        let (batch, items, recorder) = (batch.clone(), items.to_vec(), self.recorder);
        self.adding(move |db, now| {
            Box::pin(async move { add_batch(db, now, &batch, &items, recorder).await })
        })
        .await
    }

    async fn add_items(
        &self,
        principal: &Principal,
        id: BatchId,
        from: u64,
        items: &[Arc<JobSpec>],
    ) -> Result<Added> {
        let (principal, items) = (principal.clone(), items.to_vec());
        self.adding(move |db, now| {
            Box::pin(async move { add_items(db, now, &principal, id, from, &items).await })
        })
        .await
    }

    async fn seal_batch(&self, principal: &Principal, id: BatchId) -> Result<Option<BatchView>> {
        let principal = principal.clone();
        self.change_batch(move |now| sql::seal(One(&principal), id.0, now)).await
    }

    async fn batch(&self, principal: &Principal, id: BatchId, live: bool) -> Result<Option<BatchView>> {
        let Some(row) = self.reader.fetch_first(sql::batch(One(principal), id.0)).await? else {
            return Ok(None);
        };
        let mut batch = view(&row)?;
        if live && batch.completed_at.is_none() {
            let live = self.reader.fetch_one(sql::live(id.0, to_limit(MAX_CHUNK_ITEMS))).await?;
            batch.counts = Counts::of(&live)?;
        }
        Ok(Some(batch))
    }

    async fn batch_items(
        &self,
        principal: &Principal,
        id: BatchId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<BatchItem>> {
        let index = i64::try_from(from).unwrap_or(i64::MAX);
        let query = sql::items(One(principal), id.0, index, to_limit(limit));
        self.reader.fetch(query).await?.iter().map(item).collect()
    }

    async fn batches(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<BatchView>> {
        let stretch = Stretch::between(None, None, before);
        let query = sql::batches(One(principal), One(&stretch), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, view))
    }

    async fn settled_batches(&self, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let mut settled = Vec::new();
        for id in ids {
            if self.reader.fetch_first(sql::going_on(id.0)).await?.is_none() {
                settled.push(*id);
            }
        }
        Ok(settled)
    }

    async fn cancel_batch(&self, principal: &Principal, id: BatchId, by: &Decider) -> Result<BatchDecided> {
        let (own, name) = (principal.clone(), by.by.clone());
        let cancel = move |now| sql::call_off(One(&own), id.0, &name, now);
        self.begin(principal, id, (ChangeKind::BatchCancelled, None), by, cancel).await
    }

    async fn retry_batch(
        &self,
        principal: &Principal,
        id: BatchId,
        by: &Decider,
        force: bool,
        generation: Option<u32>,
    ) -> Result<BatchDecided> {
        let (own, name) = (principal.clone(), by.by.clone());
        let retry = move |now| {
            sql::retry(One(&own), id.0, &name, force, meant(generation), to_limit(MAX_OPEN_BATCHES), now)
        };
        self.begin(principal, id, (ChangeKind::BatchRetried, Some(force)), by, retry).await
    }

    async fn take_batches(&self, limit: usize, lease: Duration) -> Result<Vec<TakenBatch>> {
        // Nobody waits for the writer where nothing is due.
        if self.reader.fetch_first(sql::due(self.now_micros())).await?.is_none() {
            return Ok(Vec::new());
        }
        self.write(move |db, now| {
            Box::pin(async move {
                let rows =
                    sql::take(to_limit(limit), TAKING_TURNS, micros(lease), now).fetch_all(&mut *db).await?;
                Ok(readable(&rows, taken))
            })
        })
        .await
    }

    async fn count_batch(&self, id: BatchId, most: usize) -> Result<Option<Counted>> {
        self.write(move |db, now| {
            Box::pin(async move {
                sql::count_parts(id.0, to_limit(most), now).execute(&mut *db).await?;
                let row = sql::fold(id.0, now).fetch_optional(&mut *db).await?;
                row.as_ref().map(counted).transpose()
            })
        })
        .await
    }

    async fn advance_batch(&self, taken: &TakenBatch, place: Option<Place>) -> Result<()> {
        let (id, until, place) = (taken.batch.id.0, taken.until, place.map(|place| place.to_string()));
        self.write(move |db, _| {
            Box::pin(async move {
                if let Some(place) = place {
                    sql::advance(id, until, Some(&place)).execute(&mut *db).await?;
                } else if sql::done(id, until).execute(&mut *db).await?.rows_affected() > 0 {
                    sql::reopen(id).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn complete_batch(&self, taken: &TakenBatch) -> Result<bool> {
        let (id, generation) = (taken.batch.id.0, i32::try_from(taken.batch.generation).unwrap_or(i32::MAX));
        let recorder = self.recorder;
        let completed = self.write(move |db, now| {
            Box::pin(async move {
                let is_new = sql::complete(id, generation, now).execute(&mut *db).await?.rows_affected() > 0;
                if is_new {
                    recorder.record_batch(db, now, BatchId(id), EventKind::BatchCompleted).await?;
                }
                Ok(is_new)
            })
        });
        if completed.await? {
            return Ok(true);
        }
        Ok(self.reader.fetch_first(sql::is_complete(id, generation)).await?.is_some())
    }

    async fn put_off_batch(&self, taken: &TakenBatch, after: Duration) -> Result<()> {
        let (id, until) = (taken.batch.id.0, taken.until);
        self.write_one(move |now| sql::put_off(id, until, micros(after), now)).await.map(drop)
    }

    async fn remove_batches(&self, completed_for: Duration, limit: usize) -> Result<u64> {
        self.removing(move |now| sql::remove(micros(completed_for), to_limit(limit), now)).await
    }

    async fn remove_batches_of(&self, owner: &Owner) -> Result<u64> {
        let query = sql::remove_of(owner.kind().as_str(), owner.id());
        self.removing(|_| query).await
    }
}

impl SqliteStore {
    /// Changes a batch; `None` where nothing was changed.
    async fn change_batch(
        &self,
        statement: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static,
    ) -> Result<Option<BatchView>> {
        self.write(move |db, now| {
            let statement = statement(now);
            Box::pin(async move { statement.fetch_optional(&mut *db).await?.as_ref().map(view).transpose() })
        })
        .await
    }

    /// Begins something with a batch, and notes it in the audit log.
    async fn begin(
        &self,
        principal: &Principal,
        id: BatchId,
        (what, force): (ChangeKind, Option<bool>),
        by: &Decider,
        statement: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static,
    ) -> Result<BatchDecided> {
        refuse_decider(by)?;
        let (own, by, recorder) = (principal.clone(), by.clone(), self.recorder);
        let event = if what == ChangeKind::BatchRetried {
            EventKind::BatchRetried
        } else {
            EventKind::BatchCancelled
        };
        let begun = self.write(move |db, now| {
            let statement = statement(now);
            Box::pin(async move {
                let Some(row) = statement.fetch_optional(&mut *db).await? else { return Ok(None) };
                let batch = view(&row)?;
                let owner = batch.principal.owner();
                let (object, after) = (
                    id.to_string(),
                    force.map(|force| json!({"generation": batch.generation, "force": force}).to_string()),
                );
                let about = About {
                    owner_kind: owner.map(|owner| owner.kind().as_str()),
                    owner_id: owner.map(Owner::id),
                    object: Some(&object),
                    before: None,
                    after: after.as_deref(),
                };
                log(db, now, &NewChange::new(what, &own, &by), about).await?;
                recorder.record_batch(db, now, id, event).await?;
                Ok(Some(batch))
            })
        });
        Ok(match begun.await? {
            Some(batch) => BatchDecided::Begun(batch),
            None => {
                let batch = self.batch(principal, id, false).await?;
                batch.map_or(BatchDecided::Unknown, BatchDecided::Unchanged)
            }
        })
    }

    /// Removes batches with their items.
    async fn removing(&self, statement: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static) -> Result<u64> {
        self.write(move |db, now| {
            let statement = statement(now);
            Box::pin(async move {
                let gone = statement.fetch_all(&mut *db).await?;
                for row in &gone {
                    sql::remove_parts(row.read("id")?).execute(&mut *db).await?;
                }
                Ok(gone.len() as u64)
            })
        })
        .await
    }

    /// Adds items in one transaction, of which nothing is left if they are not added.
    async fn adding<W>(&self, work: W) -> Result<Added>
    where
        W: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<Added>> + Send + 'static,
    {
        self.write(move |db, now| {
            Box::pin(async move {
                let mut adding = db.begin().await?;
                let added = work(&mut adding, now).await?;
                if matches!(added, Added::Not(_)) {
                    adding.rollback().await?;
                } else {
                    adding.commit().await?;
                }
                Ok(added)
            })
        })
        .await
    }
}
