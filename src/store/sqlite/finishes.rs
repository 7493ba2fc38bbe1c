//! The ends of attempts.

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, answers::owe_held, connections::note_awaited, events::Recorder, history::note};
use crate::{
    job::State,
    store::{
        By, Finish, Finished, Finishes, Result,
        columns::{Attempt, End, Error},
        convert::to_i32,
        finishes::{RECORD, RECORDED},
        history::of_finish,
        read::StoreRow as _,
        replay::{self, NextStep},
        rows,
        sql::{One, statements},
    },
};

statements! { Sqlite:
    /// A snooze that has nothing to tell keeps the error of the attempt before, and since when the job is postponed. Each
    /// snooze keeps since when the job is due; a row of a build that did not know that was due at its start, at the latest. A
    /// first attempt that succeeded is recorded in the job's row, which says the same; the status is the mark.
    finish(end: One<'_, End>, now: i64, outcome: &str, version: Option<&str>, http_status: Option<i32>,
        log_id: Option<&str>) = "update jobs set
        state = case when cancel_requested and {state} in ('retryable', 'held') then 'cancelled' else {state} end,
        due_at = case when not cancel_requested then {now} + {after} end,
        first_due_at = case when {state} <> 'retryable' then first_due_at
            when {charge} > 0 then {now} + {after} else coalesce(first_due_at, started_at) end,
        spent = min(attempt, spent + {charge}), worker_id = null, ran_by = worker_id,
        postponed_since = case when {state} = 'retryable' and {charge} = 0 then coalesce(postponed_since,
            case when {error_kind} is not null then {now} end) end,
        held_reason = case when not cancel_requested then {held_reason} end,
        check_at = {now} + {check_after},
        unknown_since = case when {check_after} is not null then {now} else unknown_since end,
        checks = case when {check_after} is not null then 0 else checks end,
        {each error: @ = case when {state} = 'retryable' and {error_kind} is null then @ else {@} end},
        result = {result}, log_id = coalesce({log_id}, log_id),
        http_status = case when attempt = 1 and {state} = 'succeeded' and {outcome} = 'succeeded'
            and {version} is toolkit_version then {http_status} end,
        finished_at = case when cancel_requested or {state} in ('succeeded', 'failed') then {now} end,
        reply_due_at = case when reply_to is not null and (cancel_requested or {state} in ('succeeded', 'failed')) then {now} end,
        events = events + (cancel_requested or {state} in ('succeeded', 'failed', 'held'))
    where id = {id} and fence = {fence} and state = 'running'
        and ({lease} is null or {lease} = 0 or not exists (select 1 from workers where workers.id = jobs.worker_id
            and beat_at > {now} - coalesce(lease_ms * 1000, {lease})))
        and ({lease} is null or {outcome} <> 'interrupted' or toolkit is null)
    returning state, http_status is not null as is_recorded";

    job(id: Uuid) = "select state, fence, check_at is not null as is_looked_up from jobs where id = {id}";

    recorded(job_id: Uuid, number: i32) = RECORDED;

    /// A job that was rescued has no mark of cancellation.
    finish_late(end: One<'_, End>, now: i64, log_id: Option<&str>, rescue_charged: i32) = "update jobs set
        state = {state}, due_at = {now} + {after}, spent = min(attempt, max(0, spent + {charge} - {rescue_charged})),
        first_due_at = case when {state} <> 'retryable' then first_due_at
            when {charge} > 0 then {now} + {after} else coalesce(first_due_at, started_at) end,
        published = 0, postponed_since = case when {state} = 'retryable' and {charge} = 0 then coalesce(postponed_since,
            case when {error_kind} is not null then {now} end) end,
        held_reason = {held_reason}, check_at = {now} + {check_after},
        unknown_since = case when {check_after} is not null then {now} else unknown_since end,
        {each error: @ = case when {state} = 'retryable' and {error_kind} is null then @ else {@} end},
        result = {result}, log_id = coalesce({log_id}, log_id),
        finished_at = case when {state} in ('succeeded', 'failed') then {now} end,
        reply_due_at = case when reply_to is not null and {state} in ('succeeded', 'failed') then {now} end,
        events = events + ({state} in ('succeeded', 'failed', 'held'))
    where id = {id} and fence = {fence} and {lease} is null
        and state in ('scheduled', 'available', 'retryable', 'held')
    returning state";

    /// What the look-up of a cancelled job's call told.
    learn(error: One<'_, Error>, id: Uuid, log_id: Option<&str>) = "update jobs set check_at = null,
        {each error: @ = {@}}, log_id = coalesce({log_id}, log_id)
    where id = {id} and state = 'cancelled' and check_at is not null";

    /// Takes the record of the attempt before away if it is that of a snooze for the same cause.
    replace(attempt: One<'_, Attempt>, job_id: Uuid) = "delete from attempts as a
    where a.job_id = {job_id} and a.number = {number} - 1 and a.outcome = {outcome}
        and a.error_kind is {attempt_error_kind} and {is_snooze}
    returning times, started_at";

    stand_for(job_id: Uuid, number: i32, times: i32, started_at: i64) = "update attempts
        set times = {times}, started_at = {started_at} where job_id = {job_id} and number = {number}";

    record(attempt: One<'_, Attempt>, job_id: Uuid, ended_as: Option<&str>, late: bool, charged: bool) = RECORD;
}

#[async_trait]
impl Finishes for SqliteStore {
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>> {
        let (batch, recorder) = (batch.to_vec(), self.recorder);
        self.write(move |db, now| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(batch.len());
                for finish in &batch {
                    answers.push(finish_one(db, now, finish, recorder).await?);
                }
                Ok(answers)
            })
        })
        .await
    }
}

async fn finish_one(
    db: &mut SqliteConnection,
    now: i64,
    finish: &Finish,
    recorder: Recorder,
) -> Result<Finished> {
    let attempt = &finish.attempt;
    let (version, log_id) = (attempt.version.as_deref(), attempt.log_id.as_deref());
    let status = attempt.http_status.map(i32::from);
    let query = sql::finish(One(finish), now, attempt.outcome.as_str(), version, status, log_id);
    let Some(row) = query.fetch_optional(&mut *db).await? else {
        return finish_leftover(db, now, finish, recorder).await;
    };
    let state = row.parse("state")?;
    let answer = Finished::Applied { state, late: false };
    if !row.read::<bool>("is_recorded")? {
        let is_snooze =
            state == State::Retryable && finish.by == By::Holder && !finish.ending.spends_attempt();
        let same = if is_snooze {
            sql::replace(One(finish), finish.id.0).fetch_optional(&mut *db).await?
        } else {
            None
        };
        record(db, finish, answer).await?;
        if let Some(same) = same {
            let (times, first) = (same.count("times")?, same.read("started_at")?);
            let query =
                sql::stand_for(finish.id.0, to_i32(attempt.number), to_i32(times).saturating_add(1), first);
            query.execute(&mut *db).await?;
        }
    }
    note_held(db, now, finish, state).await?;
    recorder.record_end(db, now, finish.id).await?;
    Ok(answer)
}

async fn finish_leftover(
    db: &mut SqliteConnection,
    now: i64,
    finish: &Finish,
    recorder: Recorder,
) -> Result<Finished> {
    let job = sql::job(finish.id.0).fetch_optional(&mut *db).await?;
    let job = job.as_ref().map(rows::standing).transpose()?;
    let recorded = sql::recorded(finish.id.0, to_i32(finish.attempt.number)).fetch_optional(&mut *db).await?;
    let recorded = recorded.as_ref().map(rows::recorded).transpose()?;
    let answer = match replay::next_step(finish, job, recorded.as_ref()) {
        NextStep::Answer(answer) => return Ok(answer),
        NextStep::RecordOnly => Finished::Fenced,
        NextStep::EndLate { charged } => {
            let log_id = finish.attempt.log_id.as_deref();
            let query = sql::finish_late(One(finish), now, log_id, i32::from(charged));
            let state = query.fetch_one(&mut *db).await?.parse("state")?;
            note_held(db, now, finish, state).await?;
            recorder.record_end(db, now, finish.id).await?;
            Finished::Applied { state, late: true }
        }
        NextStep::Learn { is_news } => {
            let (error, log_id) = (finish.ending.error(), finish.attempt.log_id.as_deref());
            sql::learn(One(error), finish.id.0, log_id).execute(&mut *db).await?;
            note_held(db, now, finish, State::Cancelled).await?;
            let answer = Finished::Applied { state: State::Cancelled, late: true };
            if !is_news {
                return Ok(answer);
            }
            answer
        }
    };
    record(db, finish, answer).await?;
    Ok(answer)
}

/// Notes what a finish that was applied leaves behind: the history, the answer about a job that is held, and what the job
/// waits for.
async fn note_held(db: &mut SqliteConnection, now: i64, finish: &Finish, state: State) -> Result<()> {
    for entry in of_finish(finish, state) {
        note(db, now, &entry).await?;
    }
    if state == State::Held {
        owe_held(db, now, finish.id).await?;
    }
    note_awaited(db, now, finish.id, finish.ending.waits_for()).await
}

async fn record(db: &mut SqliteConnection, finish: &Finish, answer: Finished) -> Result<()> {
    let (ended_as, late) = answer.recorded();
    let charged = ended_as.is_some() && finish.ending.spends_attempt();
    sql::record(One(finish), finish.id.0, ended_as.map(State::as_str), late, charged).execute(db).await?;
    Ok(())
}
