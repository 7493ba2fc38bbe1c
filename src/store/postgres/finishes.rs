//! The ends of attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff_sqlx::Timestamp as SqlTime;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{
    Bound, PostgresStore,
    batch::{ErrorColumns, column, jobs_kept_changing, sparse_column, take_complete, unanswered},
    connections::{fetch_and_note_awaited, note_awaited},
    instant,
};
use crate::{
    job::{Ending, Fence, HeldReason, JobError, State},
    store::{
        By, Finish, Finished, Finishes, StoreError,
        convert::{micros, parse_column, to_i32},
        replay::{self, Judged, Record, reporter},
        rows::read_record,
    },
};

/// The attempts are written from what the update returns, without joining the batch again, which the
/// planner would do by comparing each with each.
///
/// A first attempt that succeeded is recorded in the job's row, which says the same; the status is the mark.
/// The lease is null for the holder. A snooze that has nothing to tell keeps the error of the attempt
/// before.
const FINISH: &str = "with i as (
        select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::integer[],
                $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::text[], $13::integer[],
                $14::uuid[], $15::text[], $16::integer[], $17::text[], $18::text[], $19::text[], $20::text[],
                $21::bigint[], $22::text[], $23::timestamptz[], $24::timestamptz[], $25::text[], $26::bigint[],
                $27::text[])
            as i (id, fence, lease, state, after, charge, held_reason, error_kind, error_message, error_code,
                error_slug, result, number, request_id, outcome, http_status, log_id, version, attempt_error_kind,
                attempt_error_message, attempt_error_code, attempt_error_slug, started_at, finished_at, reported_by,
                check_after, waits_for)),
    ended as (
        update jobs j set
            state = case when j.cancel_requested and i.state in ('retryable', 'held') then 'cancelled' else i.state end,
            due_at = case when not j.cancel_requested then now() + i.after * interval '1 microsecond' end,
            spent = j.spent + least(i.charge, j.attempt - j.spent), worker_id = null,
            held_reason = case when not j.cancel_requested then i.held_reason end,
            check_at = case when not j.cancel_requested then now() + i.check_after * interval '1 microsecond' end,
            unknown_since = case when i.check_after is not null then now() else j.unknown_since end,
            checks = case when i.check_after is not null then 0 else j.checks end,
            error_kind = case when i.state = 'retryable' and i.error_kind is null then j.error_kind else i.error_kind end,
            error_message = case when i.state = 'retryable' and i.error_kind is null then j.error_message else i.error_message end,
            error_code = case when i.state = 'retryable' and i.error_kind is null then j.error_code else i.error_code end,
            error_slug = case when i.state = 'retryable' and i.error_kind is null then j.error_slug else i.error_slug end,
            result = i.result::json, log_id = coalesce(i.log_id, j.log_id),
            http_status = case when i.number = 1 and i.state = 'succeeded' and i.outcome = 'succeeded'
                and i.version is not distinct from j.toolkit_version then i.http_status end,
            finished_at = case when j.cancel_requested or i.state in ('succeeded', 'failed') then now() end,
            reply_due_at = case when j.reply_to is not null and (j.cancel_requested or i.state in ('succeeded', 'failed')) then now() end,
            waits_for = coalesce(i.waits_for, j.waits_for),
            waits_until = case when i.waits_for is null then j.waits_until
                else least(j.expires_at, j.created_at + j.max_age_ms * interval '1 millisecond') end
        from i
        where j.id = i.id and j.fence = i.fence and j.state = 'running'
            and (i.lease is null or not exists (select 1 from workers w where w.id = j.worker_id
                and w.beat_at > now() - i.lease * interval '1 microsecond'))
            and (i.lease is null or i.outcome <> 'interrupted' or j.toolkit is null)
        returning j.id, j.state, j.http_status as kept, i.number, i.request_id, i.outcome, i.http_status, i.log_id, i.version,
            i.attempt_error_kind, i.attempt_error_message, i.attempt_error_code, i.attempt_error_slug, i.started_at,
            i.finished_at, i.reported_by, i.charge),
    recorded as (
        insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version, error_kind,
            error_message, error_code, error_slug, started_at, finished_at, reported_by, ended_as, late, charged)
        select id, number, request_id, outcome, http_status, log_id, version, attempt_error_kind,
            attempt_error_message, attempt_error_code, attempt_error_slug, started_at, finished_at, reported_by,
            state, false, charge > 0
        from ended where kept is null
        on conflict (job_id, number) do nothing)
    select id, state from ended";

const CURRENT: &str = "select state, fence from jobs where id = $1 for update";

const RECORDED: &str = "select request_id, outcome, reported_by, ended_as, late, charged from attempts
    where job_id = $1 and number = $2
    union all
    select request_id, 'succeeded', 'holder', state, false, true from jobs
    where id = $1 and attempt = $2 and http_status is not null";

/// A job that was rescued has no mark of cancellation. $3 is what the rescue charged.
const FINISH_LATE: &str = "update jobs set state = $4,
        due_at = now() + $5 * interval '1 microsecond',
        spent = least(attempt, greatest(0, spent::bigint + $6 - $3)), published = 0, held_reason = $7,
        check_at = now() + $14::bigint * interval '1 microsecond',
        unknown_since = case when $14 is not null then now() else unknown_since end,
        error_kind = case when $4 = 'retryable' and $8::text is null then error_kind else $8 end,
        error_message = case when $4 = 'retryable' and $8 is null then error_message else $9 end,
        error_code = case when $4 = 'retryable' and $8 is null then error_code else $10 end,
        error_slug = case when $4 = 'retryable' and $8 is null then error_slug else $11 end,
        result = $12::json, log_id = coalesce($13, log_id),
        finished_at = case when $4 in ('succeeded', 'failed') then now() end,
        reply_due_at = case when reply_to is not null and $4 in ('succeeded', 'failed') then now() end,
        waits_for = coalesce($15, waits_for),
        waits_until = case when $15 is null then waits_until
            else least(expires_at, created_at + max_age_ms * interval '1 millisecond') end
    where id = $1 and fence = $2 and state in ('scheduled', 'available', 'retryable', 'held')
    returning state";

const RECORD: &str = "insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version,
        error_kind, error_message, error_code, error_slug, started_at, finished_at, reported_by, ended_as, late, charged)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
    on conflict (job_id, number) do update set outcome = excluded.outcome, http_status = excluded.http_status,
        log_id = excluded.log_id, version = excluded.version, error_kind = excluded.error_kind,
        error_message = excluded.error_message, error_code = excluded.error_code, error_slug = excluded.error_slug,
        started_at = excluded.started_at, finished_at = excluded.finished_at, reported_by = excluded.reported_by,
        ended_as = excluded.ended_as, late = excluded.late, charged = excluded.charged
    where attempts.request_id = excluded.request_id";

#[async_trait]
impl Finishes for PostgresStore {
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError> {
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
        let query = bind_finishes(&firsts);
        for row in fetch_and_note_awaited(&self.hot, query, parked(firsts.iter().copied())).await? {
            let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
            if let Some(place) = places.get(&id) {
                answers[*place] =
                    Some(Finished::Applied { state: parse_column("state", &state)?, late: false });
            }
        }
        let mut left = unanswered(&answers);
        if !left.is_empty() {
            left.sort_by_key(|place| batch[*place].id);
            let finishes = left.iter().map(|place| batch[*place].clone()).collect();
            for (place, answer) in left.into_iter().zip(self.finish_leftovers(finishes).await?) {
                answers[place] = Some(answer);
            }
        }
        take_complete(&mut answers).ok_or_else(jobs_kept_changing)
    }
}

impl PostgresStore {
    /// Finishes whose jobs are not running under their fence, in one transaction.
    async fn finish_leftovers(&self, finishes: Vec<Finish>) -> Result<Vec<Finished>, StoreError> {
        let work = self.hot.transaction(move |db| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(finishes.len());
                for finish in &finishes {
                    answers.push(finish_leftover(db, finish).await?);
                }
                let parked = parked(&finishes);
                if !parked.is_empty() {
                    note_awaited(db, parked).await?;
                }
                Ok(answers)
            })
        });
        work.await
    }
}

async fn finish_leftover(db: &mut PgConnection, finish: &Finish) -> Result<Finished, StoreError> {
    let job = match sqlx::query(CURRENT).bind(finish.id.0).fetch_optional(&mut *db).await? {
        Some(row) => {
            let state: String = row.try_get("state")?;
            Some((parse_column("state", &state)?, Fence(row.try_get("fence")?)))
        }
        None => None,
    };
    let met = sqlx::query(RECORDED).bind(finish.id.0).bind(to_i32(finish.attempt.number));
    let met: Option<Record> = match met.fetch_optional(&mut *db).await? {
        Some(row) => Some(read_record!(&row)),
        None => None,
    };
    let answer = match replay::finish(finish, job, met.as_ref())? {
        Judged::Answer(answer) => return Ok(answer),
        Judged::Record => Finished::Fenced,
        Judged::Late { charged } => {
            let query = bind_late(sqlx::query(FINISH_LATE), charged, finish);
            let state: String = query.fetch_one(&mut *db).await?.try_get(0)?;
            Finished::Applied { state: parse_column("state", &state)?, late: true }
        }
    };
    record(db, finish, answer).await?;
    Ok(answer)
}

async fn record(db: &mut PgConnection, finish: &Finish, answer: Finished) -> Result<(), StoreError> {
    let (attempt, error) = (&finish.attempt, finish.attempt.error.as_ref());
    let (ended_as, late) = match answer {
        Finished::Applied { state, late } => (Some(state), late),
        Finished::Fenced => (None, false),
    };
    sqlx::query(RECORD)
        .bind(finish.id.0)
        .bind(to_i32(attempt.number))
        .bind(attempt.request_id.0)
        .bind(attempt.outcome.as_str())
        .bind(attempt.http_status.map(i32::from))
        .bind(attempt.log_id.as_deref())
        .bind(attempt.version.as_deref())
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug))
        .bind(instant(attempt.started_at))
        .bind(instant(attempt.finished_at))
        .bind(reporter(finish.by))
        .bind(ended_as.map(State::as_str))
        .bind(late)
        .bind(ended_as.is_some() && finish.ending.spends_attempt())
        .execute(db)
        .await?;
    Ok(())
}

fn bind_finishes(batch: &[&Finish]) -> Bound {
    let query = sqlx::query(FINISH)
        .bind(column(batch, |finish| finish.id.0))
        .bind(column(batch, |finish| finish.fence.0))
        .bind(sparse_column(batch, |finish| match finish.by {
            By::Holder => None,
            By::Rescuer { lease } => Some(micros(lease)),
        }))
        .bind(column(batch, |finish| finish.ending.state().as_str()))
        .bind(sparse_column(batch, |finish| wait_of(&finish.ending)))
        .bind(column(batch, |finish| i32::from(finish.ending.spends_attempt())))
        .bind(sparse_column(batch, |finish| finish.ending.held_reason().map(HeldReason::as_str)));
    let query = ErrorColumns(column(batch, |finish| finish.ending.error()))
        .bind(query)
        .bind(sparse_column(batch, |finish| result_of(&finish.ending)))
        .bind(column(batch, |finish| to_i32(finish.attempt.number)))
        .bind(column(batch, |finish| finish.attempt.request_id.0))
        .bind(column(batch, |finish| finish.attempt.outcome.as_str()))
        .bind(sparse_column(batch, |finish| finish.attempt.http_status.map(i32::from)))
        .bind(sparse_column(batch, |finish| finish.attempt.log_id.as_deref()))
        .bind(sparse_column(batch, |finish| finish.attempt.version.as_deref()));
    let times = |time: fn(&Finish) -> jiff::Timestamp| -> Vec<SqlTime> {
        batch.iter().map(|finish| instant(time(finish))).collect()
    };
    ErrorColumns(column(batch, |finish| finish.attempt.error.as_ref()))
        .bind(query)
        .bind(times(|finish| finish.attempt.started_at))
        .bind(times(|finish| finish.attempt.finished_at))
        .bind(column(batch, |finish| reporter(finish.by)))
        .bind(sparse_column(batch, |finish| check_after(&finish.ending)))
        .bind(sparse_column(batch, |finish| finish.ending.waits_for()))
}

fn bind_late(query: Bound, charged: bool, finish: &Finish) -> Bound {
    let (ending, error) = (&finish.ending, finish.ending.error());
    query
        .bind(finish.id.0)
        .bind(finish.fence.0)
        .bind(i32::from(charged))
        .bind(ending.state().as_str())
        .bind(wait_of(ending))
        .bind(i32::from(ending.spends_attempt()))
        .bind(ending.held_reason().map(HeldReason::as_str))
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug))
        .bind(result_of(ending))
        .bind(finish.attempt.log_id.as_deref())
        .bind(check_after(ending))
        .bind(ending.waits_for())
}

/// The jobs that these endings hold until there is a connection.
fn parked<'a>(finishes: impl IntoIterator<Item = &'a Finish>) -> Vec<Uuid> {
    let parked = finishes.into_iter().filter(|finish| finish.ending.waits_for().is_some());
    parked.map(|finish| finish.id.0).collect()
}

fn check_after(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Verify { after, .. } => Some(micros(*after)),
        _ => None,
    }
}

fn wait_of(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Retry { after, .. } | Ending::Snooze { after, .. } => Some(micros(*after)),
        Ending::Succeed { .. } | Ending::Stop(_) | Ending::Verify { .. } => None,
    }
}

fn result_of(ending: &Ending) -> Option<&str> {
    match ending {
        Ending::Succeed { result } => Some(result.get()),
        Ending::Stop(_) | Ending::Retry { .. } | Ending::Snooze { .. } | Ending::Verify { .. } => None,
    }
}
