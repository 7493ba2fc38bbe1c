//! Items that are added to a batch, with the jobs that are new among them.

use std::{collections::HashMap, fmt::Write as _, sync::Arc, time::Duration};

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{events::Recorder, jobs};
use crate::{
    bounds::MAX_OPEN_BATCHES,
    job::{BatchId, JobId, JobSpec, Principal},
    store::{
        Added, Beginning, EventKind, Inserted, NewBatch, NotAdded, Result, StoreError,
        batch_items::{Distinct, digest_of, distinct, parts, takes},
        batches::{is_same, view},
        columns::{Batch, BatchPart, PrincipalColumns, Spec},
        convert::to_limit,
        read::StoreRow as _,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    add(batch: One<'_, Batch>, digest: Vec<u8>, is_sealed: bool, is_complete: bool, most: i64, now: i64) = "insert into batches
        ({batch}, digest, created_at, sealed_at, completed_at, changed_at, look_at, events)
    select {values batch}, {digest}, {now}, case when {is_sealed} then {now} end, case when {is_complete} then {now} end, {now},
        case when not {is_complete} then {now} end, {is_complete}
    where {may_be_opened}
    on conflict do nothing returning {batch_view}";

    find(principal: One<'_, PrincipalColumns>, id: Uuid) =
    "select {batch_view}, digest, (select count(*) from batch_parts p where p.batch_id = batches.id) as parts
    from batches where {may_see} and id = {id}";

    is_there(id: Uuid) = "select 1 from batches where id = {id}";

    part(batch_id: Uuid, first: i64) = "select digest from batch_parts where batch_id = {batch_id} and first = {first}";

    insert_item(spec: One<'_, Spec>, batch_id: Uuid, state: &str, now: i64, due_at: i64) = "insert into jobs
        ({spec}, batch_id, state, created_at, due_at, first_due_at, published)
    values ({values spec}, {batch_id}, {state}, {now}, {due_at}, {due_at}, 0)
    on conflict do nothing";

    add_part(part: One<'_, BatchPart>, digest: Vec<u8>, job_ids: &str, now: i64) =
    "insert into batch_parts ({part}, digest, job_ids, looked_at) values ({values part}, {digest}, {job_ids}, {now})";

    grow(id: Uuid, more: i64, now: i64) =
    "update batches set items = items + {more}, look_at = {now} where id = {id} returning {batch_view}";
}

pub(super) async fn add_batch(
    db: &mut SqliteConnection,
    now: i64,
    batch: &NewBatch,
    items: &[Arc<JobSpec>],
    recorder: Recorder,
) -> Result<Added> {
    let digest = digest_of(Some(batch.digest), items);
    let (is_complete, most) = (batch.is_complete_with(items), to_limit(MAX_OPEN_BATCHES));
    let query = sql::add(One(batch), digest.0.to_vec(), batch.is_sealed, is_complete, most, now);
    if let Some(row) = query.fetch_optional(&mut *db).await? {
        if is_complete {
            recorder.record_batch(db, now, batch.id, EventKind::BatchCompleted).await?;
        }
        return match items {
            [] => Ok(Added::New(view(&row)?, Vec::new())),
            items => insert(db, now, batch.id, 0, items).await,
        };
    }
    match sql::find(One(&batch.principal), batch.id.0).fetch_optional(&mut *db).await? {
        Some(row) if is_same(&row, digest)? => Ok(Added::Known(view(&row)?)),
        None if sql::is_there(batch.id.0).fetch_optional(&mut *db).await?.is_none() => {
            Ok(Added::Not(NotAdded::TooMany))
        }
        _ => Ok(Added::Not(NotAdded::Taken)),
    }
}

pub(super) async fn add_items(
    db: &mut SqliteConnection,
    now: i64,
    principal: &Principal,
    id: BatchId,
    from: u64,
    items: &[Arc<JobSpec>],
) -> Result<Added> {
    let Some(row) = sql::find(One(principal), id.0).fetch_optional(&mut *db).await? else {
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
    insert(db, now, id, from, items).await
}

/// Inserts the jobs of items, and the items.
async fn insert(
    db: &mut SqliteConnection,
    now: i64,
    id: BatchId,
    from: u64,
    items: &[Arc<JobSpec>],
) -> Result<Added> {
    let Distinct { specs, places } = match distinct(items) {
        Ok(distinct) => distinct,
        Err(conflicts) => return Ok(Added::Not(NotAdded::Items(conflicts))),
    };
    let (mut ids, mut conflicts) = (Vec::with_capacity(specs.len()), HashMap::new());
    for (place, spec) in specs.iter().enumerate() {
        match insert_item(db, now, id, spec).await? {
            Inserted::New(_) => ids.push(spec.id),
            Inserted::Duplicate(repeated) => ids.push(repeated.id),
            Inserted::Conflict(conflict) => {
                ids.push(spec.id);
                conflicts.insert(place, conflict);
            }
        }
    }
    if !conflicts.is_empty() {
        let conflicts =
            places.iter().enumerate().filter_map(|(item, place)| Some((item, *conflicts.get(place)?)));
        return Ok(Added::Not(NotAdded::Items(conflicts.collect())));
    }
    let jobs: Vec<JobId> = places.iter().map(|place| ids[*place]).collect();
    let mut left = jobs.as_slice();
    for part in parts(id, from, items) {
        let (own, rest) = left.split_at(part.items.len());
        left = rest;
        let query = sql::add_part(One(&part), part.digest().0.to_vec(), &list(own), now);
        query.execute(&mut *db).await?;
    }
    let row = sql::grow(id.0, to_limit(items.len()), now).fetch_one(&mut *db).await?;
    Ok(Added::New(view(&row)?, jobs))
}

async fn insert_item(
    db: &mut SqliteConnection,
    now: i64,
    batch: BatchId,
    spec: &JobSpec,
) -> Result<Inserted> {
    let beginning = jobs::beginning(spec, now, Duration::ZERO)?;
    let Beginning { state, due_at, .. } = beginning;
    let query = sql::insert_item(One(spec), batch.0, state.as_str(), now, due_at.as_microsecond());
    if query.execute(&mut *db).await?.rows_affected() > 0 {
        return Ok(Inserted::New(beginning));
    }
    match jobs::find(db, now, spec).await? {
        Some(found) => Ok(found.inserted(spec)),
        None => Err(StoreError::corrupt("id")),
    }
}

/// IDs as SQLite keeps them in one value.
fn list(ids: &[JobId]) -> String {
    let mut list = String::with_capacity(2 + 35 * ids.len());
    for id in ids {
        let mark = if list.is_empty() { '[' } else { ',' };
        // Writing to a text does not fail.
        let _written = write!(list, "{mark}\"{}\"", id.0.simple());
    }
    list.push(']');
    list
}
