//! Jobs that did not come through a queue, and what stands in the way of a job.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::{JobId, JobSpec, State},
    store::{
        Beginning, Inserted, Jobs, Result, StoreError,
        columns::Spec,
        convert::{micros, to_i32},
        replay::FoundJob,
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    insert(spec: One<'_, Spec>, state: &str, now: i64, due_at: i64, first_due_at: i64, published: i32) = "insert into jobs
        ({spec}, state, created_at, due_at, first_due_at, published)
    values ({values spec}, {state}, {now}, {due_at}, {first_due_at}, {published})
    on conflict do nothing";

    find_by_id(id: Uuid, now: i64) = "select {found_job} from jobs where id = {id}";

    find_by_key(owner_kind: &str, owner_id: &str, idempotency_key: Option<&str>, now: i64) = "select {found_job}
    from jobs where owner_kind = {owner_kind} and owner_id = {owner_id} and idempotency_key = {idempotency_key}";
}

#[async_trait]
impl Jobs for SqliteStore {
    async fn insert(&self, batch: &[Arc<JobSpec>], unclaimed_after: Duration) -> Result<Vec<Inserted>> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(batch.len());
                for spec in &batch {
                    answers.push(insert_one(db, now, spec, unclaimed_after).await?);
                }
                Ok(answers)
            })
        })
        .await
    }

    async fn known(&self, spec: &JobSpec) -> Result<Option<Inserted>> {
        let now = self.now_micros();
        let by_id = self.reader.fetch_first(sql::find_by_id(spec.id.0, now)).await?;
        let (row, by_key) = match (by_id, spec.idempotency_key.as_deref()) {
            (None, Some(key)) => {
                let by_key = sql::find_by_key(spec.owner.kind().as_str(), spec.owner.id(), Some(key), now);
                (self.reader.fetch_first(by_key).await?, true)
            }
            (by_id, _) => (by_id, false),
        };
        row.map(|row| Ok(rows::found(&row, by_key)?.inserted(spec))).transpose()
    }

    /// Nobody locks a row alone; whoever locks the database keeps every write waiting.
    async fn locked(&self, _: &[JobId]) -> Result<HashSet<JobId>> {
        Ok(HashSet::new())
    }
}

async fn insert_one(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
    unclaimed_after: Duration,
) -> Result<Inserted> {
    let beginning = beginning(spec, now, unclaimed_after)?;
    let Beginning { state, due_at, first_due_at, publications, .. } = beginning;
    let (due_at, first_due_at) = (due_at.as_microsecond(), first_due_at.as_microsecond());
    let query = sql::insert(One(spec), state.as_str(), now, due_at, first_due_at, to_i32(publications));
    if query.execute(&mut *db).await?.rows_affected() > 0 {
        return Ok(Inserted::New(beginning));
    }
    match find(db, now, spec).await? {
        Some(found) => Ok(found.inserted(spec)),
        None => Err(StoreError::corrupt("id")),
    }
}

/// How a job begins that is inserted now.
pub(super) fn beginning(spec: &JobSpec, now: i64, unclaimed_after: Duration) -> Result<Beginning> {
    let time = |micros| Timestamp::from_microsecond(micros).map_err(|_| StoreError::corrupt("created_at"));
    let created_at = time(now)?;
    let later = spec.run_at.filter(|run_at| *run_at > created_at);
    Ok(Beginning {
        state: if later.is_some() { State::Scheduled } else { State::Available },
        created_at,
        due_at: later.map_or_else(|| time(now.saturating_add(micros(unclaimed_after))), Ok)?,
        first_due_at: later.unwrap_or(created_at),
        publications: u32::from(later.is_none() && !unclaimed_after.is_zero()),
    })
}

/// What stands in the way of a job, by ID, or by idempotency key where the ID is new.
pub(super) async fn find(db: &mut SqliteConnection, now: i64, spec: &JobSpec) -> Result<Option<FoundJob>> {
    if let Some(found) = find_by_id(db, now, spec).await? {
        return Ok(Some(found));
    }
    let key = spec.idempotency_key.as_deref();
    let row =
        sql::find_by_key(spec.owner.kind().as_str(), spec.owner.id(), key, now).fetch_optional(db).await?;
    row.map(|row| rows::found(&row, true)).transpose()
}

pub(super) async fn find_by_id(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
) -> Result<Option<FoundJob>> {
    let row = sql::find_by_id(spec.id.0, now).fetch_optional(db).await?;
    row.map(|row| rows::found(&row, false)).transpose()
}
