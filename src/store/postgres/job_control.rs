//! Questions and decisions about single jobs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Postgres;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    job::{JobId, Release, State, Transition},
    store::{
        AttemptView, Census, Decided, HeldFilter, JobControl, JobFilter, JobView, StoreError, StoreErrorKind,
        columns::{Error, Held},
        convert::{micros, owner_columns, to_duration, to_limit},
        job_control::ATTEMPTS,
        read::StoreRow as _,
        rows,
        sql::{Bound, One, statements},
        texts::{NO_RESULT, marked_failed},
    },
};

statements! { Postgres:
    job(id: Uuid) = "select {job}, result::text as result from jobs where id = {id}";

    attempts(job_id: Uuid) = ATTEMPTS;

    jobs(state: Option<&str>, tool: Option<&str>, limit: i64, window: i64) = "select {job}, null::text as result
    from jobs where ({state}::text is null or state = {state}) and ({tool}::text is null or tool = {tool})
        and created_at >= now() - {window}::bigint * interval '1 microsecond'
    order by created_at desc, id desc limit {limit}";

    jobs_of_owner(state: Option<&str>, tool: Option<&str>, limit: i64, owner_kind: &str, owner_id: &str) =
    "select {job}, null::text as result
    from jobs where ({state}::text is null or state = {state}) and ({tool}::text is null or tool = {tool})
        and owner_kind = {owner_kind} and owner_id = {owner_id}
    order by created_at desc, id desc limit {limit}";

    cancel(id: Uuid) = "update jobs set
        state = case when state = 'running' then 'running' else 'cancelled' end,
        cancel_requested = (state = 'running'), due_at = null, held_reason = null, check_at = null,
        finished_at = case when state <> 'running' then now() end,
        reply_due_at = case when state <> 'running' and reply_to is not null then now() end
    where id = {id} and state in ('scheduled', 'available', 'retryable', 'held', 'running')
    returning state";

    restart(id: Uuid) = "update jobs set state = 'available', due_at = now(), published = 0, spent = 0,
        finished_at = null, reply_due_at = null, cancel_requested = false, {each error: @ = null}
    where id = {id} and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state";

    release_retry(id: Uuid) = "update jobs set {to_retry} where id = {id} and state = 'held' returning state";

    release_succeeded(id: Uuid, result: &str) =
    "update jobs set {to_succeeded} where id = {id} and state = 'held' returning state";

    release_failed(error: One<'_, Error>, id: Uuid) =
    "update jobs set {to_failed} where id = {id} and state = 'held' returning state";

    count_held(held: One<'_, Held>) = "select count(*) as jobs from jobs where {is_held_match}";

    release_held_retry(held: One<'_, Held>, limit: i64) =
    "with {held_page} update jobs set {to_retry} from page where id = page_id returning 1";

    release_held_succeeded(held: One<'_, Held>, limit: i64, result: &str) =
    "with {held_page} update jobs set {to_succeeded} from page where id = page_id returning 1";

    release_held_failed(held: One<'_, Held>, error: One<'_, Error>, limit: i64) =
    "with {held_page} update jobs set {to_failed} from page where id = page_id returning 1";

    state(id: Uuid) = "select state from jobs where id = {id}";

    census_waiting() = "select queue, state, count(*) as jobs,
        (extract(epoch from now() - min(due_at) filter (where due_at <= now())) * 1000000)::bigint as oldest
    from jobs where due_at is not null group by queue, state order by queue, state";

    census_running() = "select j.queue, count(distinct j.id) as jobs from claims c cross join lateral {running_of_claim}
    group by j.queue order by j.queue";

    census_held() = "select queue, held_reason, count(*) as jobs from jobs where held_reason is not null
    group by queue, held_reason order by queue, held_reason";
}

/// How far back a list looks until it is full. The index says which pages have rows of a time and nothing
/// about their order, so everything in a window is sorted.
const WINDOWS: [Duration; 4] = [
    Duration::from_secs(10 * 60),
    Duration::from_secs(12 * 3600),
    Duration::from_secs(14 * 24 * 3600),
    Duration::from_secs(100 * 366 * 24 * 3600),
];

/// How often a decision looks again at a job that changes under it.
const MAX_ROUNDS: usize = 8;

#[async_trait]
impl JobControl for PostgresStore {
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        self.other.fetch_first(sql::job(id.0)).await?.as_ref().map(rows::job).transpose()
    }

    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError> {
        self.other.fetch(sql::attempts(id.0)).await?.iter().map(rows::attempt).collect()
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError> {
        let (state, tool, limit) =
            (filter.state.map(State::as_str), filter.tool.as_deref(), to_limit(filter.limit));
        let mut found = Vec::new();
        if let (Some(kind), Some(id)) = owner_columns(filter.owner.as_ref()) {
            found = self.other.fetch(sql::jobs_of_owner(state, tool, limit, kind, id)).await?;
        } else {
            for window in WINDOWS {
                found = self.other.fetch(sql::jobs(state, tool, limit, micros(window))).await?;
                if found.len() >= filter.limit {
                    break;
                }
            }
        }
        found.iter().map(rows::job).collect()
    }

    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Cancel, || sql::cancel(id.0)).await
    }

    async fn restart(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Restart, || sql::restart(id.0)).await
    }

    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError> {
        let decision = || match release {
            Release::Retry => sql::release_retry(id.0),
            Release::Succeeded => sql::release_succeeded(id.0, NO_RESULT),
            Release::Failed => sql::release_failed(One(Some(&marked_failed())), id.0),
        };
        self.decide(id, Transition::Release(release), decision).await
    }

    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError> {
        let count = self.other.fetch_first(sql::count_held(One(filter))).await?;
        count.map_or(Ok(0), |row| row.total("jobs"))
    }

    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let limit = to_limit(limit);
        let query = match release {
            Release::Retry => sql::release_held_retry(One(filter), limit),
            Release::Succeeded => sql::release_held_succeeded(One(filter), limit, NO_RESULT),
            Release::Failed => sql::release_held_failed(One(filter), One(Some(&marked_failed())), limit),
        };
        Ok(self.other.fetch(query).await?.len() as u64)
    }

    async fn census(&self) -> Result<Census, StoreError> {
        let mut census = Census::default();
        for row in self.other.fetch(sql::census_waiting()).await? {
            let oldest: Option<i64> = row.read("oldest")?;
            census.add(row.parse("queue")?, row.parse("state")?, row.total("jobs")?, oldest.map(to_duration));
        }
        for row in self.other.fetch(sql::census_running()).await? {
            census.add(row.parse("queue")?, State::Running, row.total("jobs")?, None);
        }
        for row in self.other.fetch(sql::census_held()).await? {
            census.add_held(row.parse("queue")?, row.parse("held_reason")?, row.total("jobs")?);
        }
        Ok(census)
    }
}

impl PostgresStore {
    /// Executes a decision, whose statement names the states that allow it; the transition says why
    /// not, where it changed nothing.
    async fn decide(
        &self,
        id: JobId,
        transition: Transition,
        decision: impl Fn() -> Bound<Postgres> + Send + Sync,
    ) -> Result<Decided, StoreError> {
        for _ in 0..MAX_ROUNDS {
            if let Some(row) = self.other.fetch_first(decision()).await? {
                return Ok(Decided::Now(row.parse("state")?));
            }
            let Some(row) = self.other.fetch_first(sql::state(id.0)).await? else {
                return Ok(Decided::Unknown);
            };
            if let Err(illegal) = transition.apply(row.parse("state")?) {
                return Ok(Decided::Illegal(illegal));
            }
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, "the job kept changing while it was decided on"))
    }
}
