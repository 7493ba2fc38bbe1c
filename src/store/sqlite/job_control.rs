//! Questions and decisions about single jobs.

use async_trait::async_trait;
use sqlx::{Row, Sqlite, query::Query, sqlite::SqliteArguments};

use super::{SqliteStore, read_time};
use crate::{
    job::{ErrorKind, JobId, Release, State, Transition},
    store::{
        AttemptView, Census, Decided, HeldFilter, JobControl, JobFilter, JobView, StoreError,
        convert::{owner_columns, parse_column, to_duration, to_limit, to_u64},
        rows::{read_attempt, read_job},
        texts::{MARKED_FAILED_MESSAGE, NO_RESULT},
    },
};

/// The columns of a job as they are read, but for `result`.
macro_rules! job_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags, reply_to, correlation_id, traceparent, toolkit, toolkit_version, \
         pinned_by, account, frozen_effect, state, created_at, due_at, check_at, attempt, spent, started_at, \
         cancel_requested, held_reason, error_kind, error_message, error_code, error_slug, log_id, \
         finished_at"
    };
}
pub(super) use job_columns;

const JOB: &str = concat!("select ", job_columns!(), ", result from jobs where id = ?1");

const ATTEMPTS: &str = "select number, request_id, outcome, http_status, log_id, version, error_kind,
        error_message, error_code, error_slug, started_at, finished_at
    from attempts where job_id = ?1
    union all
    select attempt, request_id, case when state = 'succeeded' then 'succeeded' end, http_status,
        case when state = 'succeeded' then log_id end, toolkit_version, null, null, null, null, started_at, finished_at
    from jobs where id = ?1 and (state = 'running' or http_status is not null)
    order by number";

const JOBS: &str = concat!(
    "select ",
    job_columns!(),
    ", null as result from jobs where (?1 is null or state = ?1) and (?2 is null or tool = ?2)
    order by created_at desc, id desc limit +?3"
);

const JOBS_OF_OWNER: &str = concat!(
    "select ",
    job_columns!(),
    ", null as result from jobs where (?1 is null or state = ?1) and (?2 is null or tool = ?2)
        and owner_kind = ?4 and owner_id = ?5
    order by created_at desc, id desc limit +?3"
);

const CANCEL: &str = "update jobs set
        state = case when state = 'running' then 'running' else 'cancelled' end,
        cancel_requested = (state = 'running'), due_at = null, held_reason = null, check_at = null,
        finished_at = case when state <> 'running' then ?2 end,
        reply_due_at = case when state <> 'running' and reply_to is not null then ?2 end
    where id = ?1 and state in ('scheduled', 'available', 'retryable', 'held', 'running')
    returning state";

const RESTART: &str = "update jobs set state = 'available', due_at = ?2, published = 0, spent = 0,
        finished_at = null, reply_due_at = null, cancel_requested = 0,
        error_kind = null, error_message = null, error_code = null, error_slug = null
    where id = ?1 and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state";

/// What a held job becomes that is let go. ?2 is now.
macro_rules! to_retry {
    () => {
        "state = 'available', due_at = ?2, published = 0, held_reason = null, check_at = null,
        account = case when held_reason <> 'connection' or connected_account_id is not null then account end"
    };
}
pub(super) use to_retry;

macro_rules! to_succeeded {
    ($result:literal) => {
        concat!(
            "state = 'succeeded', held_reason = null, check_at = null, result = ",
            $result,
            ", error_kind = null, error_message = null, error_code = null, error_slug = null,
        finished_at = ?2, reply_due_at = case when reply_to is not null then ?2 end"
        )
    };
}

macro_rules! to_failed {
    ($kind:literal, $message:literal) => {
        concat!(
            "state = 'failed', held_reason = null, check_at = null, error_kind = ",
            $kind,
            ", error_message = ",
            $message,
            ", error_code = null, error_slug = null,
        finished_at = ?2, reply_due_at = case when reply_to is not null then ?2 end"
        )
    };
}

const RELEASE_RETRY: &str =
    concat!("update jobs set ", to_retry!(), " where id = ?1 and state = 'held' returning state");

const RELEASE_SUCCEEDED: &str =
    concat!("update jobs set ", to_succeeded!("?3"), " where id = ?1 and state = 'held' returning state");

const RELEASE_FAILED: &str =
    concat!("update jobs set ", to_failed!("?3", "?4"), " where id = ?1 and state = 'held' returning state");

/// Held jobs by reason, owner and toolkit. The state is named for the sake of the index.
macro_rules! matching {
    () => {
        "state = 'held' and held_reason = ?1 and (?3 is null or (owner_kind = ?3 and owner_id = ?4))
            and (?5 is null or coalesce(toolkit, waits_for) = ?5)"
    };
}

macro_rules! release_page {
    ($($to:tt)*) => {
        concat!(
            "update jobs set ",
            $($to)*,
            " where id in (select id from jobs where ",
            matching!(),
            " limit +?6)"
        )
    };
}

const COUNT_HELD: &str = concat!("select count(*) from jobs where ?2 is not null and ", matching!());
const RELEASE_HELD_RETRY: &str = release_page!(to_retry!());
const RELEASE_HELD_SUCCEEDED: &str = release_page!(to_succeeded!("?7"));
const RELEASE_HELD_FAILED: &str = release_page!(to_failed!("?7", "?8"));

const STATE: &str = "select state from jobs where id = ?1";

const CENSUS_WAITING: &str = "select queue, state, count(*) as jobs,
        min(case when due_at <= ?1 then due_at end) as oldest_due
    from jobs where due_at is not null group by queue, state order by queue, state";

const CENSUS_RUNNING: &str = "select queue, count(*) as jobs from jobs where state = 'running'
    group by queue order by queue";

const CENSUS_HELD: &str = "select queue, held_reason, count(*) as jobs from jobs where state = 'held'
    group by queue, held_reason order by queue, held_reason";

type Bound = Query<'static, Sqlite, SqliteArguments>;

#[async_trait]
impl JobControl for SqliteStore {
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        let row = sqlx::query(JOB).bind(id.0).fetch_optional(&self.reader).await?;
        row.map(|row| read_job!(&row, read_time).view()).transpose()
    }

    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError> {
        let rows = sqlx::query(ATTEMPTS).bind(id.0).fetch_all(&self.reader).await?;
        rows.iter().map(|row| read_attempt!(row, read_time).view()).collect()
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError> {
        let (owner_kind, owner_id) = owner_columns(filter.owner.as_ref());
        let query = if owner_kind.is_some() { sqlx::query(JOBS_OF_OWNER) } else { sqlx::query(JOBS) };
        let mut query = query
            .bind(filter.state.map(State::as_str))
            .bind(filter.tool.as_deref())
            .bind(to_limit(filter.limit));
        if owner_kind.is_some() {
            query = query.bind(owner_kind).bind(owner_id);
        }
        let rows = query.fetch_all(&self.reader).await?;
        rows.iter().map(|row| read_job!(row, read_time).view()).collect()
    }

    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Cancel, move |now| sqlx::query(CANCEL).bind(id.0).bind(now)).await
    }

    async fn restart(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Restart, move |now| sqlx::query(RESTART).bind(id.0).bind(now)).await
    }

    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError> {
        let decision = move |now: i64| match release {
            Release::Retry => sqlx::query(RELEASE_RETRY).bind(id.0).bind(now),
            Release::Succeeded => sqlx::query(RELEASE_SUCCEEDED).bind(id.0).bind(now).bind(NO_RESULT),
            Release::Failed => sqlx::query(RELEASE_FAILED)
                .bind(id.0)
                .bind(now)
                .bind(ErrorKind::MarkedFailed.as_str())
                .bind(MARKED_FAILED_MESSAGE),
        };
        self.decide(id, Transition::Release(release), decision).await
    }

    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError> {
        let query = bind_held(sqlx::query(COUNT_HELD), self.now_micros(), filter.clone());
        Ok(to_u64(query.fetch_one(&self.reader).await?.try_get(0)?))
    }

    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let filter = filter.clone();
        self.write(move |db, now| {
            let page = |sql| bind_held(sqlx::query(sql), now, filter).bind(to_limit(limit));
            let query = match release {
                Release::Retry => page(RELEASE_HELD_RETRY),
                Release::Succeeded => page(RELEASE_HELD_SUCCEEDED).bind(NO_RESULT),
                Release::Failed => page(RELEASE_HELD_FAILED)
                    .bind(ErrorKind::MarkedFailed.as_str())
                    .bind(MARKED_FAILED_MESSAGE),
            };
            Box::pin(async move { Ok(query.execute(db).await?.rows_affected()) })
        })
        .await
    }

    async fn census(&self) -> Result<Census, StoreError> {
        let now = self.now_micros();
        let mut db = self.reader.acquire().await?;
        let mut census = Census::default();
        for row in sqlx::query(CENSUS_WAITING).bind(now).fetch_all(&mut *db).await? {
            let (queue, state, oldest_due): (String, String, Option<i64>) =
                (row.try_get("queue")?, row.try_get("state")?, row.try_get("oldest_due")?);
            let oldest = oldest_due.map(|due_at| to_duration(now - due_at));
            census.add(
                parse_column("queue", &queue)?,
                parse_column("state", &state)?,
                to_u64(row.try_get("jobs")?),
                oldest,
            );
        }
        for row in sqlx::query(CENSUS_RUNNING).fetch_all(&mut *db).await? {
            let queue: String = row.try_get("queue")?;
            census.add(parse_column("queue", &queue)?, State::Running, to_u64(row.try_get("jobs")?), None);
        }
        for row in sqlx::query(CENSUS_HELD).fetch_all(&mut *db).await? {
            let (queue, reason): (String, String) = (row.try_get("queue")?, row.try_get("held_reason")?);
            census.add_held(
                parse_column("queue", &queue)?,
                parse_column("held_reason", &reason)?,
                to_u64(row.try_get("jobs")?),
            );
        }
        Ok(census)
    }
}

fn bind_held(query: Bound, now: i64, filter: HeldFilter) -> Bound {
    let (owner_kind, owner_id) = owner_columns(filter.owner.as_ref());
    query
        .bind(filter.reason.as_str())
        .bind(now)
        .bind(owner_kind)
        .bind(owner_id.map(str::to_owned))
        .bind(filter.toolkit)
}

impl SqliteStore {
    /// Executes a decision, whose statement names the states that allow it; the transition says why
    /// not, where it changed nothing.
    async fn decide(
        &self,
        id: JobId,
        transition: Transition,
        decision: impl FnOnce(i64) -> Bound + Send + 'static,
    ) -> Result<Decided, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                if let Some(row) = decision(now).fetch_optional(&mut *db).await? {
                    let state: String = row.try_get(0)?;
                    return Ok(Decided::Now(parse_column("state", &state)?));
                }
                let Some(row) = sqlx::query(STATE).bind(id.0).fetch_optional(&mut *db).await? else {
                    return Ok(Decided::Unknown);
                };
                let state: String = row.try_get(0)?;
                match transition.apply(parse_column("state", &state)?) {
                    Err(illegal) => Ok(Decided::Illegal(illegal)),
                    Ok(_) => Err(StoreError::corrupt("state")),
                }
            })
        })
        .await
    }
}
