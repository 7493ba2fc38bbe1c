//! The writes on the path of every job.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Row, Sqlite,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnection},
};

use super::{SqliteStore, at, connections::note_awaited, fits, time};
use crate::{
    job::{Binding, Ending, ErrorKind, Fence, HeldReason, JobError, JobSpec, State, Stop, WorkerId},
    store::{
        Bind, By, Claim, ClaimReceipt, Claimed, Finish, Finished, Inserted, Jobs, StoreError,
        replay::{self, Judged, Known, Record, reporter},
        row::{
            EXPIRED_MESSAGE, MAX_ERROR_LENGTH, WORN_OUT_MESSAGE, micros, read_known, read_receipt,
            read_record, signed, tags, to_millis, word,
        },
    },
};

/// The columns of what was asked for, bound by [`bind_spec`].
macro_rules! spec_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags, reply_to, correlation_id, traceparent"
    };
}

macro_rules! spec_values {
    () => {
        "?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23"
    };
}

const INSERT: &str = concat!(
    "insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, published) values (",
    spec_values!(),
    ", ?24, ?25, ?26, ?27) on conflict do nothing"
);

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
        attempt = attempt + 1, worker_id = ?2, request_id = ?3, started_at = ?4, settled_by = null,
        toolkit_version = case when toolkit is null then ?6 else toolkit_version end,
        pinned_by = case when toolkit is null then ?7 else pinned_by end,
        account = case when toolkit is null then ?8 else account end,
        frozen_effect = case when toolkit is null then ?9 else frozen_effect end,
        toolkit = coalesce(toolkit, ?5)
    where id = ?1 and state = 'available'
    returning fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at";

/// A job whose columns cannot count any further. ?5 is now.
const WEAR_OUT: &str = "update jobs set state = 'failed', due_at = null, settled_by = ?2, error_kind = ?3,
        error_message = substr(?4 || coalesce('; its last error: ' || error_message, ''), 1, ?6),
        error_code = null, error_slug = null, finished_at = ?5,
        reply_due_at = case when reply_to is not null then ?5 end
    where id = ?1 and state = 'available'";

const END_KNOWN: &str = "update jobs set state = ?2, due_at = null, settled_by = ?3, held_reason = ?4,
        error_kind = ?5, error_message = ?6, error_code = ?7, error_slug = ?8, finished_at = ?9,
        reply_due_at = case when reply_to is not null then ?9 end
    where id = ?1 and state = 'available'";

const KNOWN_BY_ID: &str = "select id, owner_kind, owner_id, digest, state, error_kind, worker_id, request_id,
        settled_by, fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at
    from jobs where id = ?1";

const KNOWN_BY_KEY: &str = "select id, owner_kind, owner_id, digest, state, error_kind, worker_id, request_id,
        settled_by, fence, attempt, spent, toolkit, toolkit_version, pinned_by, account, frozen_effect, created_at
    from jobs where owner_kind = ?1 and owner_id = ?2 and idempotency_key = ?3";

const BIND: &str = "update jobs set toolkit = ?3, toolkit_version = ?4, pinned_by = ?5, account = ?6,
        frozen_effect = ?7
    where id = ?1 and fence = ?2 and state = 'running'
        and (toolkit is null or (toolkit, toolkit_version, pinned_by, frozen_effect) is (?3, ?4, ?5, ?7)
            and (account is null or account is ?6))";

/// ?3 is null for the holder, and the time of the oldest beat that counts for a rescuer. A snooze that
/// has nothing to tell keeps the error of the attempt before. A first attempt that succeeded is recorded
/// in the job's row, which says the same; the status is the mark.
const FINISH: &str = "update jobs set
        state = case when cancel_requested and ?4 in ('retryable', 'held') then 'cancelled' else ?4 end,
        due_at = case when not cancel_requested then ?5 end,
        spent = min(attempt, spent + ?6), worker_id = null,
        held_reason = case when not cancel_requested then ?7 end,
        check_at = case when not cancel_requested then ?18 end,
        unknown_since = case when ?18 is not null then ?14 else unknown_since end,
        checks = case when ?18 is not null then 0 else checks end,
        error_kind = case when ?4 = 'retryable' and ?8 is null then error_kind else ?8 end,
        error_message = case when ?4 = 'retryable' and ?8 is null then error_message else ?9 end,
        error_code = case when ?4 = 'retryable' and ?8 is null then error_code else ?10 end,
        error_slug = case when ?4 = 'retryable' and ?8 is null then error_slug else ?11 end,
        result = ?12, log_id = coalesce(?13, log_id),
        http_status = case when attempt = 1 and ?4 = 'succeeded' and ?15 = 'succeeded' and ?16 is toolkit_version
            then ?17 end,
        finished_at = case when cancel_requested or ?4 in ('succeeded', 'failed') then ?14 end,
        reply_due_at = case when reply_to is not null and (cancel_requested or ?4 in ('succeeded', 'failed')) then ?14 end
    where id = ?1 and fence = ?2 and state = 'running'
        and (?3 is null or not exists (select 1 from workers where workers.id = jobs.worker_id and beat_at > ?3))
        and (?3 is null or ?15 <> 'interrupted' or toolkit is null)
    returning state, http_status is not null";

/// A job that was rescued has no mark of cancellation. ?15 is what the rescue charged.
const FINISH_LATE: &str =
    "update jobs set state = ?4, due_at = ?5, spent = min(attempt, max(0, spent + ?6 - ?15)),
        published = 0, held_reason = ?7, check_at = ?16,
        unknown_since = case when ?16 is not null then ?14 else unknown_since end,
        error_kind = case when ?4 = 'retryable' and ?8 is null then error_kind else ?8 end,
        error_message = case when ?4 = 'retryable' and ?8 is null then error_message else ?9 end,
        error_code = case when ?4 = 'retryable' and ?8 is null then error_code else ?10 end,
        error_slug = case when ?4 = 'retryable' and ?8 is null then error_slug else ?11 end,
        result = ?12, log_id = coalesce(?13, log_id),
        finished_at = case when ?4 in ('succeeded', 'failed') then ?14 end,
        reply_due_at = case when reply_to is not null and ?4 in ('succeeded', 'failed') then ?14 end
    where id = ?1 and fence = ?2 and ?3 is null and state in ('scheduled', 'available', 'retryable', 'held')
    returning state";

const RECORD: &str = "insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version,
        error_kind, error_message, error_code, error_slug, started_at, finished_at, reported_by, ended_as, late, charged)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
    on conflict (job_id, number) do update set outcome = excluded.outcome, http_status = excluded.http_status,
        log_id = excluded.log_id, version = excluded.version, error_kind = excluded.error_kind,
        error_message = excluded.error_message, error_code = excluded.error_code, error_slug = excluded.error_slug,
        started_at = excluded.started_at, finished_at = excluded.finished_at, reported_by = excluded.reported_by,
        ended_as = excluded.ended_as, late = excluded.late, charged = excluded.charged
    where attempts.request_id = excluded.request_id";

const STANDING: &str = "select state, fence from jobs where id = ?1";

const MET: &str = "select request_id, outcome, reported_by, ended_as, late, charged from attempts
    where job_id = ?1 and number = ?2
    union all
    select request_id, 'succeeded', 'holder', state, false, true from jobs
    where id = ?1 and attempt = ?2 and http_status is not null";

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

    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError> {
        let batch = batch.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(batch.len());
                for finish in &batch {
                    answers.push(finish_one(db, now, finish).await?);
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
    let later = spec.run_at.map(at).filter(|run_at| *run_at > now);
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
    let is_worn_out = known.is_worn_out(claim);
    match known.claimed(claim, worker, again) {
        Some(answer) => Ok(answer),
        None if is_worn_out => wear_out(db, now, claim).await,
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

/// Ends a job that is `available` and cannot be claimed once more.
async fn wear_out(db: &mut SqliteConnection, now: i64, claim: &Claim) -> Result<Claimed, StoreError> {
    let kind = ErrorKind::Internal;
    sqlx::query(WEAR_OUT)
        .bind(claim.spec.id.0)
        .bind(claim.request_id.0)
        .bind(kind.as_str())
        .bind(WORN_OUT_MESSAGE)
        .bind(now)
        .bind(MAX_ERROR_LENGTH)
        .execute(db)
        .await?;
    Ok(Claimed::Ended { state: State::Failed, kind })
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
            Ok(Claimed::Running(read_receipt!(&row, time, now - created_at)))
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
        None if claim.spec.expires_at.is_some_and(|expires_at| at(expires_at) <= now) => {
            Settled::Ended(Stop::Fail { error: JobError::new(ErrorKind::Expired, EXPIRED_MESSAGE) })
        }
        // A known job that is available was due, or was made due by a person.
        None => match claim.spec.run_at.map(at).filter(|run_at| new && *run_at > now) {
            Some(due_at) => Settled::Later(due_at),
            None => Settled::Run,
        },
    }
}

async fn known(db: &mut SqliteConnection, now: i64, spec: &JobSpec) -> Result<Option<Known>, StoreError> {
    if let Some(known) = known_by_id(db, now, spec).await? {
        return Ok(Some(known));
    }
    let query = sqlx::query(KNOWN_BY_KEY)
        .bind(spec.owner.kind().as_str())
        .bind(spec.owner.id())
        .bind(spec.idempotency_key.as_deref());
    let Some(row) = query.fetch_optional(db).await? else { return Ok(None) };
    let created_at: i64 = row.try_get("created_at")?;
    Ok(Some(read_known!(&row, time, true, now - created_at)))
}

async fn known_by_id(
    db: &mut SqliteConnection,
    now: i64,
    spec: &JobSpec,
) -> Result<Option<Known>, StoreError> {
    let Some(row) = sqlx::query(KNOWN_BY_ID).bind(spec.id.0).fetch_optional(db).await? else {
        return Ok(None);
    };
    let created_at: i64 = row.try_get("created_at")?;
    Ok(Some(read_known!(&row, time, false, now - created_at)))
}

async fn finish_one(db: &mut SqliteConnection, now: i64, finish: &Finish) -> Result<Finished, StoreError> {
    let oldest_beat = match finish.by {
        By::Holder => None,
        By::Rescuer { lease } => Some(now - micros(lease)),
    };
    let query = bind_ending(sqlx::query(FINISH), now, oldest_beat, finish)?;
    let ended = query
        .bind(finish.attempt.outcome.as_str())
        .bind(finish.attempt.version.as_deref())
        .bind(finish.attempt.http_status.map(i32::from))
        .bind(check_at(now, &finish.ending))
        .fetch_optional(&mut *db)
        .await?;
    if let Some(row) = ended {
        let (state, is_recorded): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        let answer = Finished::Applied { state: word("state", &state)?, late: false };
        if !is_recorded {
            record(db, finish, answer).await?;
        }
        note_parked(db, now, finish).await?;
        return Ok(answer);
    }
    let job = match sqlx::query(STANDING).bind(finish.id.0).fetch_optional(&mut *db).await? {
        Some(row) => {
            let state: String = row.try_get("state")?;
            Some((word("state", &state)?, Fence(row.try_get("fence")?)))
        }
        None => None,
    };
    let met = sqlx::query(MET).bind(finish.id.0).bind(signed(finish.attempt.number));
    let met: Option<Record> = match met.fetch_optional(&mut *db).await? {
        Some(row) => Some(read_record!(&row)),
        None => None,
    };
    let answer = match replay::finish(finish, job, met.as_ref())? {
        Judged::Answer(answer) => return Ok(answer),
        Judged::Record => Finished::Fenced,
        Judged::Late { charged } => {
            let query = bind_ending(sqlx::query(FINISH_LATE), now, None, finish)?
                .bind(i32::from(charged))
                .bind(check_at(now, &finish.ending));
            let state: String = query.fetch_one(&mut *db).await?.try_get(0)?;
            note_parked(db, now, finish).await?;
            Finished::Applied { state: word("state", &state)?, late: true }
        }
    };
    record(db, finish, answer).await?;
    Ok(answer)
}

async fn note_parked(db: &mut SqliteConnection, now: i64, finish: &Finish) -> Result<(), StoreError> {
    match finish.ending.waits_for() {
        Some(toolkit) => note_awaited(db, now, finish.id, toolkit.to_owned()).await,
        None => Ok(()),
    }
}

async fn record(db: &mut SqliteConnection, finish: &Finish, answer: Finished) -> Result<(), StoreError> {
    let attempt = &finish.attempt;
    fits([attempt.log_id.as_deref(), attempt.version.as_deref()])?;
    let (ended_as, late) = match answer {
        Finished::Applied { state, late } => (Some(state), late),
        Finished::Fenced => (None, false),
    };
    let query = sqlx::query(RECORD)
        .bind(finish.id.0)
        .bind(signed(attempt.number))
        .bind(attempt.request_id.0)
        .bind(attempt.outcome.as_str())
        .bind(attempt.http_status.map(i32::from))
        .bind(attempt.log_id.as_deref())
        .bind(attempt.version.as_deref());
    bind_error(query, attempt.error.as_ref())?
        .bind(at(attempt.started_at))
        .bind(at(attempt.finished_at))
        .bind(reporter(finish.by))
        .bind(ended_as.map(State::as_str))
        .bind(late)
        .bind(ended_as.is_some() && finish.ending.spends_attempt())
        .execute(db)
        .await?;
    Ok(())
}

type Bound = Query<'static, Sqlite, SqliteArguments>;

fn bind_spec(query: Bound, spec: &JobSpec) -> Result<Bound, StoreError> {
    let tags = tags(spec);
    fits([
        spec.requested_by.as_deref(),
        Some(&*spec.tool),
        spec.text.as_deref(),
        spec.version.as_deref(),
        spec.connected_account_id.as_deref(),
        spec.idempotency_key.as_deref(),
        spec.reply_to.as_deref(),
        spec.correlation_id.as_deref(),
        spec.traceparent.as_deref(),
    ])?;
    Ok(query
        .bind(spec.id.0)
        .bind(&spec.digest.0[..])
        .bind(spec.owner.kind().as_str())
        .bind(spec.owner.id())
        .bind(spec.requested_by.as_deref())
        .bind(&*spec.tool)
        .bind(spec.arguments.as_deref().map(|raw| raw.get()))
        .bind(spec.text.as_deref())
        .bind(spec.version.as_deref())
        .bind(spec.connected_account_id.as_deref())
        .bind(spec.queue.as_str())
        .bind(spec.priority)
        .bind(spec.run_at.map(at))
        .bind(spec.expires_at.map(at))
        .bind(to_millis(spec.timeout))
        .bind(spec.budget.max_attempts.map(signed))
        .bind(to_millis(spec.budget.max_age))
        .bind(spec.effect.map(|effect| effect.as_str()))
        .bind(spec.idempotency_key.as_deref())
        .bind(tags)
        .bind(spec.reply_to.as_deref())
        .bind(spec.correlation_id.as_deref())
        .bind(spec.traceparent.as_deref()))
}

fn bind_error(query: Bound, error: Option<&JobError>) -> Result<Bound, StoreError> {
    fits([error.map(JobError::message), error.and_then(JobError::slug)])?;
    Ok(query
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug)))
}

fn bind_binding(query: Bound, binding: Option<&Binding>) -> Result<Bound, StoreError> {
    let account = binding.and_then(|f| f.account.as_deref());
    fits([binding.map(|f| &*f.toolkit), binding.map(|f| &*f.version), account])?;
    Ok(query
        .bind(binding.map(|f| &*f.toolkit))
        .bind(binding.map(|f| &*f.version))
        .bind(binding.map(|f| f.pinned_by.as_str()))
        .bind(account)
        .bind(binding.map(|f| f.effect.as_str())))
}

fn check_at(now: i64, ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Verify { after, .. } => Some(now + micros(*after)),
        _ => None,
    }
}

fn bind_ending(
    query: Bound,
    now: i64,
    oldest_beat: Option<i64>,
    finish: &Finish,
) -> Result<Bound, StoreError> {
    let ending = &finish.ending;
    let due_at = match ending {
        Ending::Retry { after, .. } | Ending::Snooze { after, .. } => Some(now + micros(*after)),
        Ending::Succeed { .. } | Ending::Stop(_) | Ending::Verify { .. } => None,
    };
    let result = match ending {
        Ending::Succeed { result } => Some(result.get()),
        _ => None,
    };
    let query = query
        .bind(finish.id.0)
        .bind(finish.fence.0)
        .bind(oldest_beat)
        .bind(ending.state().as_str())
        .bind(due_at)
        .bind(i32::from(ending.spends_attempt()))
        .bind(ending.held_reason().map(HeldReason::as_str));
    fits([finish.attempt.log_id.as_deref()])?;
    Ok(bind_error(query, ending.error())?.bind(result).bind(finish.attempt.log_id.as_deref()).bind(now))
}
