//! Claims: how a delivery becomes a running job.

use std::{borrow::Cow, collections::HashSet};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{
    SqliteStore,
    answers::owe_held,
    connections::note_awaited,
    events::Recorder,
    history::note,
    jobs::{find, find_by_id},
};
use crate::{
    job::{EXPIRED, ErrorKind, JobError, State, Stop, WorkerId},
    store::{
        Bind, Claim, ClaimReceipt, Claimed, Claims, Result,
        columns::{Decision, Spec, Start},
        history::of_claim,
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    claim_new(spec: One<'_, Spec>, start: One<'_, Start>, state: &str, worker: Uuid, now: i64,
        first_due_at: i64) = "insert into jobs
        ({spec}, state, created_at, due_at, first_due_at, fence, attempt, worker_id, request_id, started_at, ended_by,
        held_reason, {error}, {binding}, finished_at, reply_due_at, events)
    values ({values spec}, {state}, {now},
        case when {state} = 'scheduled' then {run_at} end,
        {first_due_at},
        {state} = 'running', {state} = 'running',
        case when {state} = 'running' then {worker} end,
        case when {state} = 'running' then {request_id} end,
        case when {state} = 'running' then {now} end,
        case when {state} <> 'running' then {request_id} end,
        {held_reason}, {values error},
        {each binding: case when {state} = 'running' then {@} end},
        case when {state} = 'failed' then {now} end,
        case when {state} = 'failed' and {reply_to} is not null then {now} end,
        {state} in ('failed', 'held'))
    on conflict do nothing";

    run_known(start: One<'_, Start>, id: Uuid, worker: Uuid, now: i64) = "update jobs set
        state = 'running', due_at = null, published = 0, fence = fence + 1, attempt = min(attempt, 2147483646) + 1,
        worker_id = {worker}, request_id = {request_id}, started_at = {now}, ended_by = null,
        {each binding: @ = case when toolkit is null then {@} else @ end}
    where id = {id} and state = 'available'
    returning {receipt}";

    end_known(start: One<'_, Start>, id: Uuid, now: i64) = "update jobs set
        state = {goes_to}, due_at = null, ended_by = {request_id}, held_reason = {held_reason},
        {each error: @ = {@}},
        finished_at = case when {goes_to} = 'failed' then {now} end,
        reply_due_at = case when {goes_to} = 'failed' and reply_to is not null then {now} end,
        events = events + 1
    where id = {id} and state = 'available'";

    bind(decision: One<'_, Decision>) = "update jobs set {each binding: @ = coalesce(@, {@})}
    where id = {id} and fence = {fence} and state = 'running'
        and (toolkit is null or (toolkit, toolkit_version) = ({toolkit}, {toolkit_version})
            and (account is null or account is {account}))";
}

#[async_trait]
impl Claims for SqliteStore {
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>> {
        let (batch, recorder) = (batch.to_vec(), self.recorder);
        self.write(move |db, now| {
            Box::pin(async move {
                let mut seen = HashSet::with_capacity(batch.len());
                let mut answers = Vec::with_capacity(batch.len());
                for claim in &batch {
                    let again = !seen.insert(claim.spec.id);
                    answers.push(claim_one(db, now, worker, claim, again, recorder).await?);
                }
                Ok(answers)
            })
        })
        .await
    }

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>> {
        self.write_each(batch.to_vec(), |bind, _| sql::bind(One(bind))).await
    }
}

/// The claim, which ends its job if that has expired.
fn unless_expired(claim: &Claim, now: i64) -> Cow<'_, Claim> {
    let has_expired = claim.spec.expires_at.is_some_and(|expires_at| expires_at.as_microsecond() <= now);
    if claim.stop.is_some() || !has_expired {
        return Cow::Borrowed(claim);
    }
    let error = JobError::new(ErrorKind::Expired, EXPIRED);
    Cow::Owned(Claim { stop: Some(Stop::Fail { error }), ..claim.clone() })
}

async fn claim_one(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
    again: bool,
    recorder: Recorder,
) -> Result<Claimed> {
    if !claim.from_store
        && let Some(claimed) = claim_new(db, now, worker, &unless_expired(claim, now), recorder).await?
    {
        return Ok(claimed);
    }
    let found = if claim.from_store {
        find_by_id(db, now, &claim.spec).await?
    } else {
        find(db, now, &claim.spec).await?
    };
    let Some(found) = found else { return Ok(Claimed::Gone) };
    let is_under_way = found.is_under_way();
    if let Some(answer) = found.claimed(claim, worker, again) {
        return Ok(answer);
    }
    let claim = if is_under_way { &Claim { stop: None, ..claim.clone() } } else { claim };
    claim_known(db, now, worker, &unless_expired(claim, now), recorder).await
}

/// Inserts an unknown job as it is claimed; `None` when something is known already.
async fn claim_new(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
    recorder: Recorder,
) -> Result<Option<Claimed>> {
    let run_at = claim.spec.run_at.map(Timestamp::as_microsecond);
    let is_later = run_at.is_some_and(|run_at| run_at > now);
    let published_at = claim.published_at.map_or(now, |at| at.as_microsecond().min(now));
    let first_due_at = run_at.map_or(published_at, |run_at| run_at.max(published_at));
    let state = if claim.stop.is_none() && is_later { State::Scheduled } else { claim.goes_to() };
    let query = sql::claim_new(One(&*claim.spec), One(claim), state.as_str(), worker.0, now, first_due_at);
    if query.execute(&mut *db).await?.rows_affected() == 0 {
        return Ok(None);
    }
    Ok(Some(match &claim.stop {
        Some(stop) => stopped(db, now, claim, stop, recorder).await?,
        None if is_later => Claimed::Scheduled,
        None => {
            let [created_at, first_due_at] =
                [now, first_due_at].map(|at| Timestamp::from_microsecond(at).unwrap_or_default());
            Claimed::Running(ClaimReceipt::first(claim.binding.clone(), created_at, first_due_at))
        }
    }))
}

/// Takes a job that is `available`. It was due, or was made due by a person, so `run_at` does not matter any more.
async fn claim_known(
    db: &mut SqliteConnection,
    now: i64,
    worker: WorkerId,
    claim: &Claim,
    recorder: Recorder,
) -> Result<Claimed> {
    let id = claim.spec.id.0;
    match &claim.stop {
        Some(stop) => {
            sql::end_known(One(claim), id, now).execute(&mut *db).await?;
            stopped(db, now, claim, stop, recorder).await
        }
        None => {
            let row = sql::run_known(One(claim), id, worker.0, now).fetch_one(db).await?;
            Ok(Claimed::Running(rows::receipt(&row)?))
        }
    }
}

async fn stopped(
    db: &mut SqliteConnection,
    now: i64,
    claim: &Claim,
    stop: &Stop,
    recorder: Recorder,
) -> Result<Claimed> {
    if let Some(entry) = of_claim(claim, stop.state()) {
        note(db, now, &entry).await?;
        owe_held(db, now, claim.spec.id).await?;
    }
    note_awaited(db, now, claim.spec.id, stop.waits_for()).await?;
    recorder.record_end(db, now, claim.spec.id).await?;
    Ok(Claimed::Ended { state: stop.state(), kind: stop.error().kind() })
}
