//! The ends of attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    PostgresStore,
    answers::owe_held,
    batch::{jobs_kept_changing, take_complete, unanswered},
    connections::note_awaited,
    follow_up::FollowUp,
    history::note,
};
use crate::{
    job::{Ending, State},
    store::{
        By, Finish, Finished, Finishes, Result,
        columns::{Attempt, End, Error},
        convert::to_i32,
        finishes::{RECORD, RECORDED},
        history::{Note, of_finish},
        read::StoreRow as _,
        replay::{self, NextStep},
        rows,
        sql::{One, Rows, statements},
    },
};

statements! { Postgres:
    /// The attempts are written from what the update returns, without joining the batch again, which the
    /// planner would do by comparing each with each.
    ///
    /// A first attempt that succeeded is recorded in the job's row, which says the same; the status is the mark.
    /// A snooze that has nothing to tell keeps the error of the attempt before, and since when the job is postponed. Each
    /// snooze keeps since when the job is due; a row of a build that did not know that was due at its start, at the latest.
    finish(ends: Rows<'_, End>, attempts: Rows<'_, Attempt>, record: bool) = "with i as (select * from {rows}),
    changed as (
        update jobs j set
            state = case when j.cancel_requested and i.state in ('retryable', 'held') then 'cancelled' else i.state end,
            due_at = case when not j.cancel_requested then now() + i.after * interval '1 microsecond' end,
            first_due_at = case when i.state <> 'retryable' then j.first_due_at
                when i.charge > 0 then now() + i.after * interval '1 microsecond' else coalesce(j.first_due_at, j.started_at) end,
            spent = j.spent + least(i.charge, j.attempt - j.spent), worker_id = null,
            ran_by = j.worker_id,
            postponed_since = case when i.state = 'retryable' and i.charge = 0 then coalesce(j.postponed_since,
                case when i.error_kind is not null then now() end) end,
            held_reason = case when not j.cancel_requested then i.held_reason end,
            check_at = now() + i.check_after * interval '1 microsecond',
            unknown_since = case when i.check_after is not null then now() else j.unknown_since end,
            checks = case when i.check_after is not null then 0 else j.checks end,
            {each error: @ = case when i.state = 'retryable' and i.error_kind is null then j.@ else i.@ end},
            result = i.result::json, log_id = coalesce(i.log_id, j.log_id),
            http_status = case when i.number = 1 and i.state = 'succeeded' and i.outcome = 'succeeded'
                and i.version is not distinct from j.toolkit_version then i.http_status end,
            finished_at = case when j.cancel_requested or i.state in ('succeeded', 'failed') then now() end,
            reply_due_at = case when j.reply_to is not null and (j.cancel_requested or i.state in ('succeeded', 'failed')) then now() end,
            waits_for = coalesce(i.waits_for, j.waits_for),
            waits_until = case when i.waits_for is null then j.waits_until else {waits_until} end,
            events = j.events + (j.cancel_requested or i.state in ('succeeded', 'failed', 'held'))::integer
        from i
        where j.id = i.id and j.fence = i.fence and j.state = 'running'
            and (i.lease is null or i.lease = 0 or not exists (select 1 from workers w where w.id = j.worker_id
                and w.beat_at > now() - coalesce(w.lease_ms * 1000, i.lease) * interval '1 microsecond'))
            and (i.lease is null or i.outcome <> 'interrupted' or j.toolkit is null)
        returning {event of j}, {end of j} as event, j.http_status as kept, i.charge, {i.attempt}),
    {record_events},
    recorded as (
        insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version, {error},
            started_at, finished_at, reported_by, ended_as, late, charged)
        select id, {attempt}, state, false, charge > 0
        from changed where kept is null
        on conflict (job_id, number) do nothing)
    select id, state from changed";

    lock_job(id: Uuid) = "select state, fence, check_at is not null as is_looked_up from jobs where id = {id} for update";

    recorded(job_id: Uuid, number: i32) = RECORDED;

    /// A job that was rescued has no mark of cancellation.
    finish_late(end: One<'_, End>, log_id: Option<&str>, rescue_charged: i32, record: bool) = "with changed as (update jobs j set state = {state},
        due_at = now() + {after} * interval '1 microsecond',
        first_due_at = case when {state} <> 'retryable' then first_due_at
            when {charge} > 0 then now() + {after} * interval '1 microsecond' else coalesce(first_due_at, started_at) end,
        spent = least(attempt, greatest(0, spent::bigint + {charge} - {rescue_charged})), published = 0,
        postponed_since = case when {state} = 'retryable' and {charge} = 0 then coalesce(postponed_since,
            case when {error_kind}::text is not null then now() end) end,
        held_reason = {held_reason},
        check_at = now() + {check_after}::bigint * interval '1 microsecond',
        unknown_since = case when {check_after} is not null then now() else unknown_since end,
        {each error: @ = case when {state} = 'retryable' and {error_kind}::text is null then @ else {@} end},
        result = {result}::json, log_id = coalesce({log_id}, log_id),
        finished_at = case when {state} in ('succeeded', 'failed') then now() end,
        reply_due_at = case when reply_to is not null and {state} in ('succeeded', 'failed') then now() end,
        waits_for = coalesce({waits_for}, waits_for),
        waits_until = case when {waits_for} is null then waits_until else {waits_until} end,
        events = events + ({state} in ('succeeded', 'failed', 'held'))::integer
    where id = {id} and fence = {fence} and {lease}::bigint is null
        and state in ('scheduled', 'available', 'retryable', 'held')
    returning {event of j}, {end of j} as event),
    {record_events}
    select state from changed";

    /// What the look-up of a cancelled job's call told.
    learn(error: One<'_, Error>, id: Uuid, log_id: Option<&str>) = "update jobs set check_at = null,
        {each error: @ = {@}}, log_id = coalesce({log_id}, log_id)
    where id = {id} and state = 'cancelled' and check_at is not null";

    record(attempt: One<'_, Attempt>, job_id: Uuid, ended_as: Option<&str>, late: bool, charged: bool) = RECORD;
}

#[async_trait]
impl Finishes for PostgresStore {
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut answers: Vec<Option<Finished>> = vec![None; batch.len()];
        let mut places: HashMap<Uuid, usize> = HashMap::with_capacity(batch.len());
        for (place, finish) in batch.iter().enumerate() {
            places.entry(finish.id.0).or_insert(place);
        }
        let mut firsts: Vec<&Finish> = places.values().map(|place| &batch[*place]).collect();
        firsts.sort_unstable_by_key(|finish| finish.id);
        let query = sql::finish(Rows(&firsts), Rows(&firsts), self.records_events);
        let follow_up = FollowUp {
            waiting: waiting(firsts.iter().copied()),
            snoozed: snoozed(&firsts),
            notes: notes(&firsts),
        };
        for row in &self.fetch_and_follow_up(query, follow_up).await? {
            if let Some(place) = places.get(&row.read("id")?) {
                answers[*place] = Some(Finished::Applied { state: row.parse("state")?, late: false });
            }
        }
        let mut left = unanswered(&answers);
        if !left.is_empty() {
            left.sort_by_key(|place| batch[*place].id);
            let finishes: Vec<Finish> = left.iter().map(|place| batch[*place].clone()).collect();
            let record = self.records_events;
            let work = self.hot.transaction(move |db| {
                Box::pin(async move {
                    let mut answers = Vec::with_capacity(finishes.len());
                    for finish in &finishes {
                        answers.push(finish_leftover(db, finish, record).await?);
                    }
                    note_awaited(db, waiting(&finishes)).await?;
                    Ok(answers)
                })
            });
            for (place, answer) in left.into_iter().zip(work.await?) {
                answers[place] = Some(answer);
            }
        }
        take_complete(&mut answers).ok_or_else(jobs_kept_changing)
    }
}

/// Of a job that is not running under its fence.
async fn finish_leftover(db: &mut PgConnection, finish: &Finish, record: bool) -> Result<Finished> {
    let job = sql::lock_job(finish.id.0).fetch_optional(&mut *db).await?;
    let job = job.as_ref().map(rows::standing).transpose()?;
    let recorded = sql::recorded(finish.id.0, to_i32(finish.attempt.number)).fetch_optional(&mut *db).await?;
    let recorded = recorded.as_ref().map(rows::recorded).transpose()?;
    let answer = match replay::next_step(finish, job, recorded.as_ref()) {
        NextStep::Answer(answer) => return Ok(answer),
        NextStep::RecordOnly => Finished::Fenced,
        NextStep::EndLate { charged } => {
            let query =
                sql::finish_late(One(finish), finish.attempt.log_id.as_deref(), i32::from(charged), record);
            let state = query.fetch_one(&mut *db).await?.parse("state")?;
            note(db, &of_finish(finish, state)).await?;
            if state == State::Held {
                owe_held(db, vec![finish.id.0]).await?;
            }
            Finished::Applied { state, late: true }
        }
        NextStep::Learn { is_news } => {
            let (error, log_id) = (finish.ending.error(), finish.attempt.log_id.as_deref());
            sql::learn(One(error), finish.id.0, log_id).execute(&mut *db).await?;
            note(db, &of_finish(finish, State::Cancelled)).await?;
            let answer = Finished::Applied { state: State::Cancelled, late: true };
            if !is_news {
                return Ok(answer);
            }
            answer
        }
    };
    let (ended_as, late) = answer.recorded();
    let charged = ended_as.is_some() && finish.ending.spends_attempt();
    sql::record(One(finish), finish.id.0, ended_as.map(State::as_str), late, charged).execute(db).await?;
    Ok(answer)
}

/// What goes into the history of jobs that come to the state of their ending.
fn notes(finishes: &[&Finish]) -> Vec<(State, Note<'static>)> {
    let of_state =
        |finish: &Finish, state| of_finish(finish, state).into_iter().map(move |note| (state, note));
    // A job that somebody called off meanwhile comes to another state.
    let of_one = |finish: &&Finish| {
        let called_off = of_state(finish, State::Cancelled);
        of_state(finish, finish.ending.state()).chain(called_off).collect::<Vec<_>>()
    };
    finishes.iter().flat_map(of_one).collect()
}

/// The jobs that their workers put off.
fn snoozed(finishes: &[&Finish]) -> Vec<Uuid> {
    let snoozed = finishes.iter().filter(|finish| {
        matches!(finish.ending, Ending::Snooze { .. }) && !matches!(finish.by, By::Rescuer { .. })
    });
    snoozed.map(|finish| finish.id.0).collect()
}

/// The jobs that these endings hold until there is a connection.
fn waiting<'a>(finishes: impl IntoIterator<Item = &'a Finish>) -> Vec<Uuid> {
    let waiting = finishes.into_iter().filter(|finish| finish.ending.waits_for().is_some());
    waiting.map(|finish| finish.id.0).collect()
}
