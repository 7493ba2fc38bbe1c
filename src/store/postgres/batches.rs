//! Batches: many jobs that were enqueued together.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, Postgres};
use uuid::Uuid;

use super::{
    PostgresStore,
    batch::{MAX_ROUNDS, jobs_kept_changing, place_among_new},
    jobs,
};
use crate::{
    bounds::{MAX_CHUNK_ITEMS, MAX_OPEN_BATCHES},
    job::{BatchId, JobId, JobSpec, Owner, Principal},
    store::{
        Added, BatchDecided, BatchItem, BatchView, Batches, ChangeKind, Conflict, Counted, Counts, Decider,
        Inserted, NewBatch, NotAdded, Place, Result, StoreError, TakenBatch,
        batch_items::{Distinct, Part, digest_of, distinct, parts, takes},
        batches::{TAKING_TURNS, counted, is_same, item, meant, taken, view},
        changes::NewChange,
        columns::{Batch, BatchPart, ChangeColumns, PrincipalColumns, Spec, StretchColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        job_filter::Stretch,
        read::{StoreRow as _, readable},
        rows,
        sql::{Bound, One, Rows, statements},
    },
};

/// Most jobs that one statement inserts.
const INSERTED_TOGETHER: usize = 1_000;

statements! { Postgres:
    add(batch: One<'_, Batch>, digest: Option<Vec<u8>>, is_sealed: bool, is_complete: bool, most: i64, record: bool) = "with changed as (insert into batches
        ({batch}, digest, created_at, sealed_at, completed_at, changed_at, look_at, events)
    select {values batch}, {digest}, now(), case when {is_sealed} then now() end, case when {is_complete} then now() end, now(),
        case when not {is_complete} then now() end, {is_complete}::integer
    where {may_be_opened}
    on conflict do nothing returning *, case when {is_complete} then 'batch.completed' end as event),
    {record_batch_event}
    select {batch_view} from changed";

    lock(principal: One<'_, PrincipalColumns>, id: Uuid) =
    "select {batch_view}, digest, (select count(*) from batch_parts p where p.batch_id = batches.id) as parts
    from batches where {may_see} and id = {id} for update";

    is_there(id: Uuid) = "select 1 from batches where id = {id}";

    part(batch_id: Uuid, first: i64) = "select digest from batch_parts where batch_id = {batch_id} and first = {first}";

    insert_items(specs: Rows<'_, Spec>, batch_id: Uuid) = "insert into jobs ({spec}, batch_id, state, created_at, due_at,
        first_due_at, published)
    select {i.spec}, {batch_id}::uuid, case when i.run_at > now() then 'scheduled' else 'available' end, now(),
        greatest(now(), i.run_at), greatest(now(), i.run_at), 0
    from {rows} on conflict do nothing
    returning id";

    add_part(part: One<'_, BatchPart>, digest: Option<Vec<u8>>, job_ids: Vec<Uuid>) =
    "insert into batch_parts ({part}, digest, job_ids, looked_at) select {values part}, {digest}, {job_ids}, now()";

    grow(id: Uuid, more: i64) =
    "update batches set items = items + {more}, look_at = now() where id = {id} returning {batch_view}";

    seal(principal: One<'_, PrincipalColumns>, id: Uuid) = "update batches set sealed_at = coalesce(sealed_at, now()),
        look_at = case when completed_at is null then now() end
    where {may_see} and id = {id} returning {batch_view}";

    batch(principal: One<'_, PrincipalColumns>, id: Uuid) = "select {batch_view} from batches where {may_see} and id = {id}";

    /// Those of which no more than the last count is told come last.
    live(batch_id: Uuid, most: i64) = "with open as (
        select first, job_ids, sum(items) over (order by looked_at, first) - items as before
        from batch_parts where batch_id = {batch_id} and not is_closed),
    c as (
        select {count_jobs} from open o cross join lateral {jobs_of_part} where o.before < {most}
        union all
        select {counts} from batch_parts p where p.batch_id = {batch_id}
            and (p.is_closed or p.first in (select first from open where before >= {most})))
    select {sum_counts} from c";

    items(principal: One<'_, PrincipalColumns>, batch: Uuid, index: i64, limit: i64) = "select
        p.first + item.place - 1 as item, item.id as job_id, j.state
    from (select first, job_ids from batch_parts where batch_id = {batch} and first + items > {index} and {may_see_batch}
        order by first limit {limit}) p
    cross join lateral unnest(p.job_ids) with ordinality as item (id, place)
    left join lateral (select state from jobs where jobs.id = item.id offset 0) j on true
    where p.first + item.place - 1 >= {index} order by 1 limit {limit}";

    batches(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select {batch_view} from batches where {may_see} and {in_order} order by created_at desc, id desc limit {limit}";

    going_on(ids: Vec<Uuid>) = "select id from batches where id = any({ids}) and {goes_on}";

    call_off(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid, record: bool) = "with changed as (update batches
        set sealed_at = coalesce(sealed_at, now()), cancelled_by = {decider}, cancelled_at = now(), doing = 'cancel',
            doing_by = {decider}, doing_force = false, doing_since = now(), doing_place = null, look_at = now(),
            events = events + 1
        where {may_see} and id = {id} and completed_at is null and cancelled_at is null
        returning *, 'batch.cancelled' as event),
    logged as ({log}, owner_kind, owner_id, id::text, null, null from changed),
    {record_batch_event}
    select {batch_view} from changed";

    retry(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid, force: bool, meant: i32, most: i64, record: bool) = "with changed as (update batches
        set generation = generation + 1, completed_at = null, cancelled_by = null, cancelled_at = null, deadline = null,
            doing = 'retry', doing_by = {decider}, doing_force = {force}, doing_since = now(), doing_place = null,
            changed_at = now(), look_at = now(), events = events + 1
        where {may_see} and id = {id} and completed_at is not null and {has_failed} and {may_be_reopened}
            and {meant} in (0, generation) returning *, 'batch.retried' as event),
    logged as ({log}, owner_kind, owner_id, id::text, null, jsonb_build_object('generation', generation, 'force', {force})::text
        from changed),
    {record_batch_event}
    select {batch_view} from changed";

    take(limit: i64, taking_turns: i64, lease: i64) = "with due as (
        select id, owner_kind, owner_id, look_at from batches where look_at <= now() order by look_at limit {taking_turns}),
    turns as (
        select id, look_at, row_number() over (partition by owner_kind, owner_id order by look_at) as turn from due),
    next as (
        select b.id as next_id from turns t join batches b on b.id = t.id
        where b.look_at <= now() order by t.turn, t.look_at limit {limit} for update of b skip locked)
    update batches set look_at = now() + {lease}::bigint * interval '1 microsecond' from next where id = next_id
    returning {batch_view}, follow_up, doing_by, doing_force, doing_place,
        (extract(epoch from now() - doing_since) * 1000000)::bigint as doing_for,
        coalesce(deadline <= now(), false) as is_past_deadline,
        (extract(epoch from now() - created_at) * 1000000)::bigint as age,
        (extract(epoch from look_at) * 1000000)::bigint as until";

    count_parts(batch_id: Uuid, most: i64) = "with open as (
        select first, job_ids, sum(items) over (order by looked_at, first) - items as before
        from batch_parts where batch_id = {batch_id} and not is_closed),
    c as (
        select o.first, {count_jobs} from open o cross join lateral {jobs_of_part} where o.before < {most} group by o.first),
    b as (select cancelled_at is not null as is_cancelled from batches where id = {batch_id})
    update batch_parts p set looked_at = now(), {set_counts},
        is_closed = c.scheduled + c.available + c.running + c.retryable = 0 and (c.held = 0 or b.is_cancelled)
    from c, b where p.batch_id = {batch_id} and p.first = c.first and not p.is_closed";

    fold(batch_id: Uuid) = "with c as (
        select {sum_counts}, count(*) filter (where not is_closed) as open from batch_parts c where c.batch_id = {batch_id})
    update batches b set {set_counts}, changed_at = case when {counts_differ} then now() else b.changed_at end
    from c where b.id = {batch_id}
    returning {each scheduled, available, running, retryable, held, succeeded, failed, cancelled, removed: b.@}, c.open,
        (extract(epoch from now() - b.changed_at) * 1000000)::bigint as unchanged_for";

    advance(id: Uuid, at: i64, place: Option<&str>) =
    "update batches set doing_place = {place} where id = {id} and look_at = {instant} and doing is not null";

    /// Whatever failed may run again.
    done(id: Uuid, at: i64) = "with done as (
        update batches set doing = null, doing_by = null, doing_force = false, doing_since = null, doing_place = null
        where id = {id} and look_at = {instant} returning id)
    update batch_parts p set is_closed = false from done where p.batch_id = done.id and p.failed > 0";

    complete(id: Uuid, generation: i32, record: bool) = "with changed as (update batches set completed_at = now(), look_at = null,
        events = events + 1
    where id = {id} and generation = {generation} and completed_at is null and sealed_at is not null and doing is null
        and not exists (select 1 from batch_parts p where p.batch_id = {id} and not p.is_closed)
    returning id, owner_kind, owner_id, events, callback_url, 'batch.completed' as event),
    {record_batch_event}
    select id from changed";

    is_complete(id: Uuid, generation: i32) =
    "select 1 from batches where id = {id} and (generation > {generation} or completed_at is not null)";

    put_off(id: Uuid, at: i64, after: i64) = "update batches
    set look_at = now() + {after}::bigint * interval '1 microsecond' where id = {id} and look_at = {instant}";

    remove(completed_for: i64, limit: i64) = "with gone as (delete from batches where id in (
        select id from batches where created_at < now() - {completed_for}::bigint * interval '1 microsecond'
            and completed_at < now() - {completed_for}::bigint * interval '1 microsecond' limit {limit})
        returning id),
    parts as (delete from batch_parts where batch_id in (select id from gone))
    select id from gone";

    remove_of(owner_kind: &str, owner_id: &str) = "with gone as (
        delete from batches where owner_kind = {owner_kind} and owner_id = {owner_id} returning id),
    parts as (delete from batch_parts where batch_id in (select id from gone))
    select id from gone";

}

#[async_trait]
impl Batches for PostgresStore {
    async fn add_batch(&self, batch: &NewBatch, items: &[Arc<JobSpec>]) -> Result<Added> {
        let (batch, items, record) = (batch.clone(), items.to_vec(), self.records_events);
        self.adding(move |db| Box::pin(async move { add_batch(db, &batch, &items, record).await })).await
    }

    async fn add_items(
        &self,
        principal: &Principal,
        id: BatchId,
        from: u64,
        items: &[Arc<JobSpec>],
    ) -> Result<Added> {
        let (principal, items) = (principal.clone(), items.to_vec());
        self.adding(move |db| Box::pin(async move { add_items(db, &principal, id, from, &items).await }))
            .await
    }

    async fn seal_batch(&self, principal: &Principal, id: BatchId) -> Result<Option<BatchView>> {
        self.other.fetch_first(sql::seal(One(principal), id.0)).await?.as_ref().map(view).transpose()
    }

    async fn batch(&self, principal: &Principal, id: BatchId, live: bool) -> Result<Option<BatchView>> {
        let Some(row) = self.other.fetch_first(sql::batch(One(principal), id.0)).await? else {
            return Ok(None);
        };
        let mut batch = view(&row)?;
        if live
            && batch.completed_at.is_none()
            && let Some(row) = {
                let query = sql::live(id.0, to_limit(MAX_CHUNK_ITEMS)).asked_by(principal.owner());
                self.other.fetch_first(query).await?
            }
        {
            batch.counts = Counts::of(&row)?;
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
        self.other.fetch(query).await?.iter().map(item).collect()
    }

    async fn batches(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<BatchView>> {
        let stretch = Stretch::between(None, None, before);
        let query = sql::batches(One(principal), One(&stretch), to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, view))
    }

    async fn settled_batches(&self, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let going_on = self.other.fetch(sql::going_on(ids.iter().map(|id| id.0).collect())).await?;
        let going_on =
            going_on.iter().map(|row| Ok(BatchId(row.read("id")?))).collect::<Result<HashSet<_>>>()?;
        Ok(ids.iter().filter(|id| !going_on.contains(id)).copied().collect())
    }

    async fn cancel_batch(&self, principal: &Principal, id: BatchId, by: &Decider) -> Result<BatchDecided> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::BatchCancelled, principal, by);
        let query = sql::call_off(One(principal), One(&change), id.0, self.records_events);
        self.decided(principal, id, query).await
    }

    async fn retry_batch(
        &self,
        principal: &Principal,
        id: BatchId,
        by: &Decider,
        force: bool,
        generation: Option<u32>,
    ) -> Result<BatchDecided> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::BatchRetried, principal, by);
        let query = sql::retry(
            One(principal),
            One(&change),
            id.0,
            force,
            meant(generation),
            to_limit(MAX_OPEN_BATCHES),
            self.records_events,
        );
        self.decided(principal, id, query).await
    }

    async fn take_batches(&self, limit: usize, lease: Duration) -> Result<Vec<TakenBatch>> {
        let rows = self.other.fetch(sql::take(to_limit(limit), TAKING_TURNS, micros(lease))).await?;
        Ok(readable(&rows, taken))
    }

    async fn count_batch(&self, id: BatchId, most: usize) -> Result<Option<Counted>> {
        self.other.fetch(sql::count_parts(id.0, to_limit(most))).await?;
        self.other.fetch_first(sql::fold(id.0)).await?.as_ref().map(counted).transpose()
    }

    async fn advance_batch(&self, taken: &TakenBatch, place: Option<Place>) -> Result<()> {
        let (id, until) = (taken.batch.id.0, taken.until);
        match place.map(|place| place.to_string()) {
            Some(place) => self.other.fetch(sql::advance(id, until, Some(&place))).await.map(drop),
            None => self.other.fetch(sql::done(id, until)).await.map(drop),
        }
    }

    async fn complete_batch(&self, taken: &TakenBatch) -> Result<bool> {
        let (id, generation) = (taken.batch.id.0, i32::try_from(taken.batch.generation).unwrap_or(i32::MAX));
        if self.other.fetch_first(sql::complete(id, generation, self.records_events)).await?.is_some() {
            return Ok(true);
        }
        Ok(self.other.fetch_first(sql::is_complete(id, generation)).await?.is_some())
    }

    async fn put_off_batch(&self, taken: &TakenBatch, after: Duration) -> Result<()> {
        self.other.fetch(sql::put_off(taken.batch.id.0, taken.until, micros(after))).await.map(drop)
    }

    async fn remove_batches(&self, completed_for: Duration, limit: usize) -> Result<u64> {
        Ok(self.other.fetch(sql::remove(micros(completed_for), to_limit(limit))).await?.len() as u64)
    }

    async fn remove_batches_of(&self, owner: &Owner) -> Result<u64> {
        Ok(self.other.fetch(sql::remove_of(owner.kind().as_str(), owner.id())).await?.len() as u64)
    }
}

impl PostgresStore {
    async fn decided(
        &self,
        principal: &Principal,
        id: BatchId,
        query: Bound<Postgres>,
    ) -> Result<BatchDecided> {
        if let Some(row) = self.other.fetch_first(query).await? {
            return view(&row).map(BatchDecided::Begun);
        }
        Ok(self.batch(principal, id, false).await?.map_or(BatchDecided::Unknown, BatchDecided::Unchanged))
    }

    /// Adds items in one transaction, of which nothing is left if they are not added.
    async fn adding<W>(&self, work: W) -> Result<Added>
    where
        W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<Added>> + Send + 'static,
    {
        self.other
            .transaction(move |db| {
                Box::pin(async move {
                    let mut adding = db.begin().await?;
                    let added = work(&mut adding).await?;
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

async fn add_batch(
    db: &mut PgConnection,
    batch: &NewBatch,
    items: &[Arc<JobSpec>],
    record: bool,
) -> Result<Added> {
    let digest = digest_of(Some(batch.digest), items);
    let query = sql::add(
        One(batch),
        Some(digest.0.to_vec()),
        batch.is_sealed,
        batch.is_complete_with(items),
        to_limit(MAX_OPEN_BATCHES),
        record,
    );
    if let Some(row) = query.fetch_optional(&mut *db).await? {
        return match items {
            [] => Ok(Added::New(view(&row)?, Vec::new())),
            items => insert(db, batch.id, 0, items).await,
        };
    }
    match sql::lock(One(&batch.principal), batch.id.0).fetch_optional(&mut *db).await? {
        Some(row) if is_same(&row, digest)? => Ok(Added::Known(view(&row)?)),
        None if sql::is_there(batch.id.0).fetch_optional(&mut *db).await?.is_none() => {
            Ok(Added::Not(NotAdded::TooMany))
        }
        _ => Ok(Added::Not(NotAdded::Taken)),
    }
}

async fn add_items(
    db: &mut PgConnection,
    principal: &Principal,
    id: BatchId,
    from: u64,
    items: &[Arc<JobSpec>],
) -> Result<Added> {
    let Some(row) = sql::lock(One(principal), id.0).fetch_optional(&mut *db).await? else {
        return Ok(Added::Not(NotAdded::Unknown));
    };
    let batch = view(&row)?;
    if from < batch.items {
        for part in parts(id, from, items) {
            match sql::part(id.0, part.first()).fetch_optional(&mut *db).await? {
                Some(row) if is_same(&row, part.digest())? => {}
                _ => return Ok(Added::Not(NotAdded::Taken)),
            }
        }
        return Ok(Added::Known(batch));
    }
    if let Err(why) = takes(&batch, from, items.len(), row.total("parts")?) {
        return Ok(Added::Not(why));
    }
    insert(db, id, from, items).await
}

/// Inserts the jobs of items, and the items.
async fn insert(db: &mut PgConnection, id: BatchId, from: u64, items: &[Arc<JobSpec>]) -> Result<Added> {
    let Distinct { specs, places } = match distinct(items) {
        Ok(distinct) => distinct,
        Err(conflicts) => return Ok(Added::Not(NotAdded::Items(conflicts))),
    };
    let (mut ids, mut conflicts) = (vec![None; specs.len()], HashMap::new());
    for _ in 0..MAX_ROUNDS {
        insert_round(db, id, &specs, &mut ids, &mut conflicts).await?;
        if ids.iter().enumerate().all(|(place, id)| id.is_some() || conflicts.contains_key(&place)) {
            break;
        }
    }
    if !conflicts.is_empty() {
        let conflicts =
            places.iter().enumerate().filter_map(|(item, place)| Some((item, *conflicts.get(place)?)));
        return Ok(Added::Not(NotAdded::Items(conflicts.collect())));
    }
    let ids: Vec<Uuid> = ids.into_iter().collect::<Option<_>>().ok_or_else(jobs_kept_changing)?;
    let jobs: Vec<Uuid> = places.iter().map(|place| ids[*place]).collect();
    let mut left = jobs.as_slice();
    for part in parts(id, from, items) {
        let (own, rest) = left.split_at(part.items.len());
        left = rest;
        add_part(db, &part, own).await?;
    }
    let row = sql::grow(id.0, to_limit(items.len())).fetch_one(&mut *db).await?;
    Ok(Added::New(view(&row)?, jobs.into_iter().map(JobId).collect()))
}

async fn add_part(db: &mut PgConnection, part: &Part<'_>, jobs: &[Uuid]) -> Result<()> {
    let query = sql::add_part(One(part), Some(part.digest().0.to_vec()), jobs.to_vec());
    query.execute(&mut *db).await?;
    Ok(())
}

/// Inserts those that have no job yet, and finds the jobs of those that are known.
async fn insert_round(
    db: &mut PgConnection,
    id: BatchId,
    specs: &[Arc<JobSpec>],
    jobs: &mut [Option<Uuid>],
    conflicts: &mut HashMap<usize, Conflict>,
) -> Result<()> {
    let mut open: Vec<usize> =
        (0..specs.len()).filter(|place| jobs[*place].is_none() && !conflicts.contains_key(place)).collect();
    open.sort_unstable_by(|one, other| place_among_new(&specs[*one]).cmp(&place_among_new(&specs[*other])));
    for together in open.chunks(INSERTED_TOGETHER) {
        let rows: Vec<&JobSpec> = together.iter().map(|place| &*specs[*place]).collect();
        let inserted = sql::insert_items(Rows(&rows), id.0).fetch_all(&mut *db).await?;
        let inserted = inserted.iter().map(|row| row.read::<Uuid>("id")).collect::<Result<HashSet<_>>>()?;
        let mut left = Vec::new();
        for place in together {
            let id = specs[*place].id.0;
            if inserted.contains(&id) {
                jobs[*place] = Some(id);
            } else {
                left.push((*place, &*specs[*place]));
            }
        }
        if left.is_empty() {
            continue;
        }
        for row in jobs::sql::find(Rows(&left)).fetch_all(&mut *db).await? {
            let place = row.count("place")? as usize;
            match rows::found(&row, row.read("by_key")?)?.inserted(&specs[place]) {
                Inserted::Duplicate(repeated) => jobs[place] = Some(repeated.id.0),
                Inserted::Conflict(conflict) => drop(conflicts.insert(place, conflict)),
                Inserted::New(_) => return Err(StoreError::corrupt("id")),
            }
        }
    }
    Ok(())
}
