//! Jobs that did not come through a queue, and what stands in the way of a job.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Row, sqlite::SqliteConnection};

use super::{
    SqliteStore,
    batch::{bind_spec, spec_columns, spec_values},
    instant, read_time,
};
use crate::{
    job::{JobSpec, State},
    store::{Inserted, Jobs, StoreError, convert::micros, replay::Known, rows::read_known},
};

const INSERT: &str = concat!(
    "insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, published) values (",
    spec_values!(),
    ", ?24, ?25, ?26, ?27) on conflict do nothing"
);

const KNOWN_BY_ID: &str = "select id, owner_kind, owner_id, digest, state, error_kind, worker_id, request_id,
        settled_by, fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at
    from jobs where id = ?1";

const KNOWN_BY_KEY: &str = "select id, owner_kind, owner_id, digest, state, error_kind, worker_id, request_id,
        settled_by, fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at
    from jobs where owner_kind = ?1 and owner_id = ?2 and idempotency_key = ?3";

#[async_trait]
impl Jobs for SqliteStore {
    async fn insert(
        &self,
        batch: &[Arc<JobSpec>],
        unclaimed_after: Duration,
    ) -> Result<Vec<Inserted>, StoreError> {
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
}

async fn insert_one(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
    unclaimed_after: Duration,
) -> Result<Inserted, StoreError> {
    let later = spec.run_at.map(instant).filter(|run_at| *run_at > now);
    let state = if later.is_some() { State::Scheduled } else { State::Available };
    let query = bind_spec(sqlx::query(INSERT), spec)?
        .bind(state.as_str())
        .bind(now)
        .bind(later.unwrap_or(now + micros(unclaimed_after)))
        .bind(i32::from(later.is_none() && !unclaimed_after.is_zero()));
    if query.execute(&mut *db).await?.rows_affected() > 0 {
        return Ok(Inserted::New { state });
    }
    match known(db, now, spec).await? {
        Some(known) => Ok(known.inserted(spec)),
        None => Err(StoreError::corrupt("id")),
    }
}

pub(super) async fn known(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
) -> Result<Option<Known>, StoreError> {
    if let Some(known) = known_by_id(db, now, spec).await? {
        return Ok(Some(known));
    }
    let query = sqlx::query(KNOWN_BY_KEY)
        .bind(spec.owner.kind().as_str())
        .bind(spec.owner.id())
        .bind(spec.idempotency_key.as_deref());
    let Some(row) = query.fetch_optional(db).await? else { return Ok(None) };
    let created_at: i64 = row.try_get("created_at")?;
    Ok(Some(read_known!(&row, read_time, true, now - created_at)))
}

pub(super) async fn known_by_id(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
) -> Result<Option<Known>, StoreError> {
    let Some(row) = sqlx::query(KNOWN_BY_ID).bind(spec.id.0).fetch_optional(db).await? else {
        return Ok(None);
    };
    let created_at: i64 = row.try_get("created_at")?;
    Ok(Some(read_known!(&row, read_time, false, now - created_at)))
}
