//! Questions and decisions about single jobs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;

use super::{Bound, PostgresStore, fetch, leases::running_of_claim, read_time};
use crate::{
    job::{ErrorKind, JobId, Release, State, Transition},
    store::{
        AttemptView, Census, Decided, HeldFilter, JobControl, JobFilter, JobView, StoreError, StoreErrorKind,
        convert::{micros, owner_columns, parse_column, to_duration, to_limit, to_u64},
        rows::{read_attempt, read_job},
        texts::{MARKED_FAILED_MESSAGE, NO_RESULT},
    },
};

/// The columns of a job as they are read, but for `result`.
macro_rules! job_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments::text as arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags::text as tags, reply_to, correlation_id, traceparent, toolkit, \
         toolkit_version, pinned_by, account, frozen_effect, state, created_at, due_at, check_at, attempt, spent, \
         started_at, cancel_requested, held_reason, error_kind, error_message, error_code, error_slug, log_id, \
         finished_at"
    };
}
pub(super) use job_columns;

const JOB: &str = concat!("select ", job_columns!(), ", result::text as result from jobs where id = $1");

const ATTEMPTS: &str = "select number, request_id, outcome, http_status, log_id, version, error_kind,
        error_message, error_code, error_slug, started_at, finished_at
    from attempts where job_id = $1
    union all
    select attempt, request_id, case when state = 'succeeded' then 'succeeded' end, http_status,
        case when state = 'succeeded' then log_id end, toolkit_version, null, null, null, null, started_at, finished_at
    from jobs where id = $1 and (state = 'running' or http_status is not null)
    order by number";

const JOBS: &str = concat!(
    "select ",
    job_columns!(),
    ", null::text as result from jobs where ($1::text is null or state = $1) and ($2::text is null or tool = $2)
        and created_at >= now() - $4::bigint * interval '1 microsecond'
    order by created_at desc, id desc limit $3"
);

/// How far back a list looks until it is full. The index says which pages have rows of a time and nothing
/// about their order, so everything in a window is sorted.
const WINDOWS: [Duration; 4] = [
    Duration::from_secs(10 * 60),
    Duration::from_secs(12 * 3600),
    Duration::from_secs(14 * 24 * 3600),
    Duration::from_secs(100 * 366 * 24 * 3600),
];

const JOBS_OF_OWNER: &str = concat!(
    "select ",
    job_columns!(),
    ", null::text as result from jobs where ($1::text is null or state = $1) and ($2::text is null or tool = $2)
        and owner_kind = $4 and owner_id = $5
    order by created_at desc, id desc limit $3"
);

const CANCEL: &str = "update jobs set
        state = case when state = 'running' then 'running' else 'cancelled' end,
        cancel_requested = (state = 'running'), due_at = null, held_reason = null, check_at = null,
        finished_at = case when state <> 'running' then now() end,
        reply_due_at = case when state <> 'running' and reply_to is not null then now() end
    where id = $1 and state in ('scheduled', 'available', 'retryable', 'held', 'running')
    returning state";

const RESTART: &str = "update jobs set state = 'available', due_at = now(), published = 0, spent = 0,
        finished_at = null, reply_due_at = null, cancel_requested = false,
        error_kind = null, error_message = null, error_code = null, error_slug = null
    where id = $1 and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state";

/// What a held job becomes that is let go.
macro_rules! to_retry {
    () => {
        "state = 'available', due_at = now(), published = 0, held_reason = null, check_at = null,
        account = case when held_reason <> 'connection' or connected_account_id is not null then account end"
    };
}
pub(super) use to_retry;

macro_rules! to_succeeded {
    ($result:literal) => {
        concat!(
            "state = 'succeeded', held_reason = null, check_at = null, result = ",
            $result,
            "::text::json,
        error_kind = null, error_message = null, error_code = null, error_slug = null,
        finished_at = now(), reply_due_at = case when reply_to is not null then now() end"
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
        finished_at = now(), reply_due_at = case when reply_to is not null then now() end"
        )
    };
}

const RELEASE_RETRY: &str =
    concat!("update jobs set ", to_retry!(), " where id = $1 and state = 'held' returning state");

const RELEASE_SUCCEEDED: &str =
    concat!("update jobs set ", to_succeeded!("$2"), " where id = $1 and state = 'held' returning state");

const RELEASE_FAILED: &str =
    concat!("update jobs set ", to_failed!("$2", "$3"), " where id = $1 and state = 'held' returning state");

/// Held jobs by reason, owner and toolkit.
macro_rules! matching {
    () => {
        "held_reason = $1 and ($2::text is null or (owner_kind = $2 and owner_id = $3))
            and ($4::text is null or coalesce(toolkit, waits_for) = $4)"
    };
}

macro_rules! release_page {
    ($($to:tt)*) => {
        concat!(
            "with page as (select id as page_id from jobs where ",
            matching!(),
            " limit $5 for update skip locked)
            update jobs set ",
            $($to)*,
            " from page where id = page_id returning 1"
        )
    };
}

const COUNT_HELD: &str = concat!("select count(*) from jobs where ", matching!());
const RELEASE_HELD_RETRY: &str = release_page!(to_retry!());
const RELEASE_HELD_SUCCEEDED: &str = release_page!(to_succeeded!("$6"));
const RELEASE_HELD_FAILED: &str = release_page!(to_failed!("$6", "$7"));

const STATE: &str = "select state from jobs where id = $1";

const CENSUS_WAITING: &str = "select queue, state, count(*) as jobs,
        (extract(epoch from now() - min(due_at) filter (where due_at <= now())) * 1000000)::bigint as oldest
    from jobs where due_at is not null group by queue, state order by queue, state";

const CENSUS_RUNNING: &str = concat!(
    "select j.queue, count(distinct j.id) as jobs from claims c cross join lateral ",
    running_of_claim!(),
    " group by j.queue order by j.queue"
);

const CENSUS_HELD: &str =
    "select queue, held_reason, count(*) as jobs from jobs where held_reason is not null
    group by queue, held_reason order by queue, held_reason";

/// How often a decision looks again at a job that changes under it.
const MAX_ROUNDS: usize = 8;

#[async_trait]
impl JobControl for PostgresStore {
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        let found = fetch(&self.other, sqlx::query(JOB).bind(id.0)).await?;
        found.first().map(|row| read_job!(row, read_time).view()).transpose()
    }

    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError> {
        let found = fetch(&self.other, sqlx::query(ATTEMPTS).bind(id.0)).await?;
        found.iter().map(|row| read_attempt!(row, read_time).view()).collect()
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError> {
        let bind = |sql| {
            sqlx::query(sql)
                .bind(filter.state.map(State::as_str))
                .bind(filter.tool.as_deref())
                .bind(to_limit(filter.limit))
        };
        let mut found = Vec::new();
        if let (Some(kind), Some(id)) = owner_columns(filter.owner.as_ref()) {
            found = fetch(&self.other, bind(JOBS_OF_OWNER).bind(kind).bind(id)).await?;
        } else {
            for window in WINDOWS {
                found = fetch(&self.other, bind(JOBS).bind(micros(window))).await?;
                if found.len() >= filter.limit {
                    break;
                }
            }
        }
        found.iter().map(|row| read_job!(row, read_time).view()).collect()
    }

    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Cancel, || sqlx::query(CANCEL).bind(id.0)).await
    }

    async fn restart(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Restart, || sqlx::query(RESTART).bind(id.0)).await
    }

    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError> {
        let decision = || match release {
            Release::Retry => sqlx::query(RELEASE_RETRY).bind(id.0),
            Release::Succeeded => sqlx::query(RELEASE_SUCCEEDED).bind(id.0).bind(NO_RESULT),
            Release::Failed => sqlx::query(RELEASE_FAILED)
                .bind(id.0)
                .bind(ErrorKind::MarkedFailed.as_str())
                .bind(MARKED_FAILED_MESSAGE),
        };
        self.decide(id, Transition::Release(release), decision).await
    }

    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError> {
        match fetch(&self.other, bind_held(sqlx::query(COUNT_HELD), filter)).await?.first() {
            Some(row) => Ok(to_u64(row.try_get(0)?)),
            None => Ok(0),
        }
    }

    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let page = |sql| bind_held(sqlx::query(sql), filter).bind(to_limit(limit));
        let query = match release {
            Release::Retry => page(RELEASE_HELD_RETRY),
            Release::Succeeded => page(RELEASE_HELD_SUCCEEDED).bind(NO_RESULT),
            Release::Failed => {
                page(RELEASE_HELD_FAILED).bind(ErrorKind::MarkedFailed.as_str()).bind(MARKED_FAILED_MESSAGE)
            }
        };
        Ok(fetch(&self.other, query).await?.len() as u64)
    }

    async fn census(&self) -> Result<Census, StoreError> {
        let mut census = Census::default();
        for row in fetch(&self.other, sqlx::query(CENSUS_WAITING)).await? {
            let (queue, state, oldest): (String, String, Option<i64>) =
                (row.try_get("queue")?, row.try_get("state")?, row.try_get("oldest")?);
            let oldest = oldest.map(to_duration);
            census.add(
                parse_column("queue", &queue)?,
                parse_column("state", &state)?,
                to_u64(row.try_get("jobs")?),
                oldest,
            );
        }
        for row in fetch(&self.other, sqlx::query(CENSUS_RUNNING)).await? {
            let queue: String = row.try_get("queue")?;
            census.add(parse_column("queue", &queue)?, State::Running, to_u64(row.try_get("jobs")?), None);
        }
        for row in fetch(&self.other, sqlx::query(CENSUS_HELD)).await? {
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

fn bind_held(query: Bound, filter: &HeldFilter) -> Bound {
    let (owner_kind, owner_id) = owner_columns(filter.owner.as_ref());
    query.bind(filter.reason.as_str()).bind(owner_kind).bind(owner_id).bind(filter.toolkit.as_deref())
}

impl PostgresStore {
    /// Executes a decision, whose statement names the states that allow it; the transition says why
    /// not, where it changed nothing.
    async fn decide(
        &self,
        id: JobId,
        transition: Transition,
        decision: impl Fn() -> Bound + Send + Sync,
    ) -> Result<Decided, StoreError> {
        for _ in 0..MAX_ROUNDS {
            if let Some(row) = fetch(&self.other, decision()).await?.first() {
                let state: String = row.try_get(0)?;
                return Ok(Decided::Now(parse_column("state", &state)?));
            }
            let found = fetch(&self.other, sqlx::query(STATE).bind(id.0)).await?;
            let Some(row) = found.first() else { return Ok(Decided::Unknown) };
            let state: String = row.try_get(0)?;
            if let Err(illegal) = transition.apply(parse_column("state", &state)?) {
                return Ok(Decided::Illegal(illegal));
            }
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, "the job kept changing while it was decided on"))
    }
}
