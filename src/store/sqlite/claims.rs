//! Claims: how a delivery becomes a running job.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use sqlx::{Row, sqlite::SqliteConnection};

use super::{
    SqliteStore,
    batch::{bind_binding, bind_error, bind_spec, spec_columns, spec_values},
    connections::note_awaited,
    instant,
    jobs::{known, known_by_id},
    read_time,
};
use crate::{
    job::{ErrorKind, Fence, HeldReason, JobError, State, Stop, WorkerId},
    store::{
        Bind, Claim, ClaimReceipt, Claimed, Claims, StoreError, rows::read_receipt, texts::EXPIRED_MESSAGE,
    },
};

const CLAIM_NEW: &str = concat!(
    "insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, fence, attempt, worker_id, request_id, started_at, settled_by, held_reason, \
     error_kind, error_message, error_code, error_slug, toolkit, toolkit_version, pinned_by, account, \
     frozen_effect, finished_at, reply_due_at) values (",
    spec_values!(),
    ", ?24, ?25, ?26, ?27, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34, ?35, ?36, ?37, ?38, ?39, ?40, ?41, ?42, ?43) \
     on conflict do nothing"
);

const RUN_KNOWN: &str = "update jobs set state = 'running', due_at = null, published = 0, fence = fence + 1,
        attempt = min(attempt, 2147483646) + 1, worker_id = ?2, request_id = ?3, started_at = ?4, settled_by = null,
        toolkit_version = case when toolkit is null then ?6 else toolkit_version end,
        pinned_by = case when toolkit is null then ?7 else pinned_by end,
        account = case when toolkit is null then ?8 else account end,
        frozen_effect = case when toolkit is null then ?9 else frozen_effect end,
        toolkit = coalesce(toolkit, ?5)
    where id = ?1 and state = 'available'
    returning fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at";

const END_KNOWN: &str = "update jobs set state = ?2, due_at = null, settled_by = ?3, held_reason = ?4,
        error_kind = ?5, error_message = ?6, error_code = ?7, error_slug = ?8, finished_at = ?9,
        reply_due_at = case when reply_to is not null then ?9 end
    where id = ?1 and state = 'available'";

const BIND: &str = "update jobs set toolkit = ?3, toolkit_version = ?4, pinned_by = ?5, account = ?6,
        frozen_effect = ?7
    where id = ?1 and fence = ?2 and state = 'running'
        and (toolkit is null or (toolkit, toolkit_version, pinned_by, frozen_effect) is (?3, ?4, ?5, ?7)
            and (account is null or account is ?6))";

#[async_trait]
impl Claims for SqliteStore {
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>, StoreError> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut seen = HashSet::with_capacity(batch.len());
                let mut answers = Vec::with_capacity(batch.len());
                for claim in &batch {
                    let again = !seen.insert(claim.spec.id);
                    answers.push(claim_one(db, now, worker, claim, again).await?);
                }
                Ok(answers)
            })
        })
        .await
    }

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>, StoreError> {
        let batch = batch.to_vec();
        self.write(move |db, _| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(batch.len());
                for Bind { id, fence, binding } in &batch {
                    let query = sqlx::query(BIND).bind(id.0).bind(fence.0);
                    let done = bind_binding(query, Some(binding))?.execute(&mut *db).await?;
                    answers.push(done.rows_affected() > 0);
                }
                Ok(answers)
            })
        })
        .await
    }
}

async fn claim_one(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
    again: bool,
) -> Result<Claimed, StoreError> {
    if !claim.from_store && claim_new(db, now, worker, claim).await? {
        return Ok(match settle(claim, now, true) {
            Settled::Run => Claimed::Running(ClaimReceipt {
                fence: Fence(1),
                attempt: 1,
                spent: 0,
                binding: claim.binding.clone(),
                created_at: jiff::Timestamp::from_microsecond(now).unwrap_or_default(),
                age: Duration::ZERO,
            }),
            Settled::Later(_) => Claimed::Scheduled,
            Settled::Ended(stop) => Claimed::Ended { state: stop.state(), kind: stop.error().kind() },
        });
    }
    let known = if claim.from_store {
        known_by_id(db, now, &claim.spec).await?
    } else {
        known(db, now, &claim.spec).await?
    };
    let Some(known) = known else { return Ok(Claimed::Gone) };
    match known.claimed(claim, worker, again) {
        Some(answer) => Ok(answer),
        None => claim_known(db, now, worker, claim).await,
    }
}

/// Inserts an unknown job as it is claimed; `false` when something is known already.
async fn claim_new(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
) -> Result<bool, StoreError> {
    let settled = settle(claim, now, true);
    let (state, due_at, held_reason, error) = match &settled {
        Settled::Run => (State::Running, None, None, None),
        Settled::Later(due_at) => (State::Scheduled, Some(*due_at), None, None),
        Settled::Ended(stop) => (stop.state(), None, stop.held_reason(), Some(stop.error())),
    };
    let runs = state == State::Running;
    let finished_at = state.is_final().then_some(now);
    let query = bind_spec(sqlx::query(CLAIM_NEW), &claim.spec)?
        .bind(state.as_str())
        .bind(now)
        .bind(due_at)
        .bind(i32::from(runs))
        .bind(runs.then_some(worker.0))
        .bind(runs.then_some(claim.request_id.0))
        .bind(runs.then_some(now))
        .bind((!runs).then_some(claim.request_id.0))
        .bind(held_reason.map(HeldReason::as_str));
    let query = bind_error(query, error)?;
    let query = bind_binding(query, claim.binding.as_ref().filter(|_| runs))?
        .bind(finished_at)
        .bind(finished_at.filter(|_| claim.spec.reply_to.is_some()));
    let is_new = query.execute(&mut *db).await?.rows_affected() > 0;
    if let (true, Some(toolkit)) = (is_new, claim.stop.as_ref().and_then(Stop::waits_for)) {
        note_awaited(db, now, claim.spec.id, toolkit.to_owned()).await?;
    }
    Ok(is_new)
}

/// Takes a job that is `available`.
async fn claim_known(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
) -> Result<Claimed, StoreError> {
    let id = claim.spec.id.0;
    match settle(claim, now, false) {
        Settled::Run | Settled::Later(_) => {
            let query = sqlx::query(RUN_KNOWN).bind(id).bind(worker.0).bind(claim.request_id.0).bind(now);
            let row = bind_binding(query, claim.binding.as_ref())?.fetch_one(db).await?;
            let created_at: i64 = row.try_get("created_at")?;
            Ok(Claimed::Running(read_receipt!(&row, read_time, now - created_at)))
        }
        Settled::Ended(stop) => {
            let state = stop.state();
            let query = sqlx::query(END_KNOWN)
                .bind(id)
                .bind(state.as_str())
                .bind(claim.request_id.0)
                .bind(stop.held_reason().map(HeldReason::as_str));
            bind_error(query, Some(stop.error()))?
                .bind(state.is_final().then_some(now))
                .execute(&mut *db)
                .await?;
            if let Some(toolkit) = stop.waits_for() {
                note_awaited(db, now, claim.spec.id, toolkit.to_owned()).await?;
            }
            Ok(Claimed::Ended { state, kind: stop.error().kind() })
        }
    }
}

/// What a claim makes of a job that it may take.
enum Settled {
    Run,
    Later(i64),
    Ended(Stop),
}

fn settle(claim: &Claim, now: i64, new: bool) -> Settled {
    match &claim.stop {
        Some(stop) => Settled::Ended(stop.clone()),
        None if claim.spec.expires_at.is_some_and(|expires_at| instant(expires_at) <= now) => {
            Settled::Ended(Stop::Fail { error: JobError::new(ErrorKind::Expired, EXPIRED_MESSAGE) })
        }
        // A known job that is available was due, or was made due by a person.
        None => match claim.spec.run_at.map(instant).filter(|run_at| new && *run_at > now) {
            Some(due_at) => Settled::Later(due_at),
            None => Settled::Run,
        },
    }
}
