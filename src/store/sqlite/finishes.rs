//! The ends of attempts.

use async_trait::async_trait;
use sqlx::{Row, sqlite::SqliteConnection};

use super::{
    SqliteStore,
    batch::{Bound, bind_error},
    connections::note_awaited,
    instant, refuse_nul,
};
use crate::{
    job::{Ending, Fence, HeldReason, State},
    store::{
        By, Finish, Finished, Finishes, StoreError,
        convert::{micros, parse_column, to_i32},
        replay::{self, Judged, Record, reporter},
        rows::read_record,
    },
};

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

const CURRENT: &str = "select state, fence from jobs where id = ?1";

const RECORDED: &str = "select request_id, outcome, reported_by, ended_as, late, charged from attempts
    where job_id = ?1 and number = ?2
    union all
    select request_id, 'succeeded', 'holder', state, false, true from jobs
    where id = ?1 and attempt = ?2 and http_status is not null";

#[async_trait]
impl Finishes for SqliteStore {
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
        let answer = Finished::Applied { state: parse_column("state", &state)?, late: false };
        if !is_recorded {
            record(db, finish, answer).await?;
        }
        note_parked(db, now, finish).await?;
        return Ok(answer);
    }
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
            let query = bind_ending(sqlx::query(FINISH_LATE), now, None, finish)?
                .bind(i32::from(charged))
                .bind(check_at(now, &finish.ending));
            let state: String = query.fetch_one(&mut *db).await?.try_get(0)?;
            note_parked(db, now, finish).await?;
            Finished::Applied { state: parse_column("state", &state)?, late: true }
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
    refuse_nul([attempt.log_id.as_deref(), attempt.version.as_deref()])?;
    let (ended_as, late) = match answer {
        Finished::Applied { state, late } => (Some(state), late),
        Finished::Fenced => (None, false),
    };
    let query = sqlx::query(RECORD)
        .bind(finish.id.0)
        .bind(to_i32(attempt.number))
        .bind(attempt.request_id.0)
        .bind(attempt.outcome.as_str())
        .bind(attempt.http_status.map(i32::from))
        .bind(attempt.log_id.as_deref())
        .bind(attempt.version.as_deref());
    bind_error(query, attempt.error.as_ref())?
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
    refuse_nul([finish.attempt.log_id.as_deref()])?;
    Ok(bind_error(query, ending.error())?.bind(result).bind(finish.attempt.log_id.as_deref()).bind(now))
}
