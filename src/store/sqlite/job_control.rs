//! Questions and decisions about single jobs.

use async_trait::async_trait;
use sqlx::Sqlite;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    job::{JobId, Release, State, Transition},
    store::{
        AttemptView, Census, Decided, HeldFilter, JobControl, JobFilter, JobView, StoreError,
        columns::{Error, Held},
        convert::{owner_columns, to_duration, to_limit},
        job_control::ATTEMPTS,
        read::StoreRow as _,
        rows,
        sql::{Bound, One, statements},
        texts::{NO_RESULT, marked_failed},
    },
};

statements! { Sqlite:
    job(id: Uuid) = "select {job}, result from jobs where id = {id}";

    attempts(job_id: Uuid) = ATTEMPTS;

    jobs(state: Option<&str>, tool: Option<&str>, limit: i64) = "select {job}, null as result
    from jobs where ({state} is null or state = {state}) and ({tool} is null or tool = {tool})
    order by created_at desc, id desc limit +{limit}";

    jobs_of_owner(state: Option<&str>, tool: Option<&str>, limit: i64, owner_kind: &str, owner_id: &str) =
    "select {job}, null as result
    from jobs where ({state} is null or state = {state}) and ({tool} is null or tool = {tool})
        and owner_kind = {owner_kind} and owner_id = {owner_id}
    order by created_at desc, id desc limit +{limit}";

    cancel(id: Uuid, now: i64) = "update jobs set
        state = case when state = 'running' then 'running' else 'cancelled' end,
        cancel_requested = (state = 'running'), due_at = null, held_reason = null, check_at = null,
        finished_at = case when state <> 'running' then {now} end,
        reply_due_at = case when state <> 'running' and reply_to is not null then {now} end
    where id = {id} and state in ('scheduled', 'available', 'retryable', 'held', 'running')
    returning state";

    restart(id: Uuid, now: i64) = "update jobs set state = 'available', due_at = {now}, published = 0, spent = 0,
        finished_at = null, reply_due_at = null, cancel_requested = 0, {each error: @ = null}
    where id = {id} and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state";

    release_retry(id: Uuid, now: i64) = "update jobs set {to_retry} where id = {id} and state = 'held' returning state";

    release_succeeded(id: Uuid, now: i64, result: &str) =
    "update jobs set {to_succeeded} where id = {id} and state = 'held' returning state";

    release_failed(error: One<'_, Error>, id: Uuid, now: i64) =
    "update jobs set {to_failed} where id = {id} and state = 'held' returning state";

    count_held(held: One<'_, Held>) = "select count(*) as jobs from jobs where {is_held_match}";

    release_held_retry(held: One<'_, Held>, now: i64, limit: i64) =
    "update jobs set {to_retry} where id in (select id from jobs where {is_held_match} limit +{limit})";

    release_held_succeeded(held: One<'_, Held>, now: i64, limit: i64, result: &str) =
    "update jobs set {to_succeeded} where id in (select id from jobs where {is_held_match} limit +{limit})";

    release_held_failed(held: One<'_, Held>, error: One<'_, Error>, now: i64, limit: i64) =
    "update jobs set {to_failed} where id in (select id from jobs where {is_held_match} limit +{limit})";

    state(id: Uuid) = "select state from jobs where id = {id}";

    census_waiting(now: i64) = "select queue, state, count(*) as jobs,
        {now} - min(case when due_at <= {now} then due_at end) as oldest
    from jobs where due_at is not null group by queue, state order by queue, state";

    census_running() = "select queue, count(*) as jobs from jobs where state = 'running'
    group by queue order by queue";

    census_held() = "select queue, held_reason, count(*) as jobs from jobs where state = 'held'
    group by queue, held_reason order by queue, held_reason";
}

#[async_trait]
impl JobControl for SqliteStore {
    async fn job(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        sql::job(id.0).fetch_optional(&self.reader).await?.as_ref().map(rows::job).transpose()
    }

    async fn attempts(&self, id: JobId) -> Result<Vec<AttemptView>, StoreError> {
        sql::attempts(id.0).fetch_all(&self.reader).await?.iter().map(rows::attempt).collect()
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, StoreError> {
        let (state, tool, limit) =
            (filter.state.map(State::as_str), filter.tool.as_deref(), to_limit(filter.limit));
        let query = match owner_columns(filter.owner.as_ref()) {
            (Some(kind), Some(id)) => sql::jobs_of_owner(state, tool, limit, kind, id),
            _ => sql::jobs(state, tool, limit),
        };
        query.fetch_all(&self.reader).await?.iter().map(rows::job).collect()
    }

    async fn cancel(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Cancel, move |now| sql::cancel(id.0, now)).await
    }

    async fn restart(&self, id: JobId) -> Result<Decided, StoreError> {
        self.decide(id, Transition::Restart, move |now| sql::restart(id.0, now)).await
    }

    async fn release(&self, id: JobId, release: Release) -> Result<Decided, StoreError> {
        let decision = move |now: i64| match release {
            Release::Retry => sql::release_retry(id.0, now),
            Release::Succeeded => sql::release_succeeded(id.0, now, NO_RESULT),
            Release::Failed => sql::release_failed(One(Some(&marked_failed())), id.0, now),
        };
        self.decide(id, Transition::Release(release), decision).await
    }

    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError> {
        sql::count_held(One(filter)).fetch_one(&self.reader).await?.total("jobs")
    }

    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let (filter, limit) = (filter.clone(), to_limit(limit));
        let page = move |now| match release {
            Release::Retry => sql::release_held_retry(One(&filter), now, limit),
            Release::Succeeded => sql::release_held_succeeded(One(&filter), now, limit, NO_RESULT),
            Release::Failed => {
                sql::release_held_failed(One(&filter), One(Some(&marked_failed())), now, limit)
            }
        };
        self.write_one(page).await
    }

    async fn census(&self) -> Result<Census, StoreError> {
        let now = self.now_micros();
        let mut db = self.reader.acquire().await?;
        let mut census = Census::default();
        for row in sql::census_waiting(now).fetch_all(&mut *db).await? {
            let oldest: Option<i64> = row.read("oldest")?;
            census.add(row.parse("queue")?, row.parse("state")?, row.total("jobs")?, oldest.map(to_duration));
        }
        for row in sql::census_running().fetch_all(&mut *db).await? {
            census.add(row.parse("queue")?, State::Running, row.total("jobs")?, None);
        }
        for row in sql::census_held().fetch_all(&mut *db).await? {
            census.add_held(row.parse("queue")?, row.parse("held_reason")?, row.total("jobs")?);
        }
        Ok(census)
    }
}

impl SqliteStore {
    /// Executes a decision, whose statement names the states that allow it; the transition says why
    /// not, where it changed nothing.
    async fn decide(
        &self,
        id: JobId,
        transition: Transition,
        decision: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static,
    ) -> Result<Decided, StoreError> {
        self.write(move |db, now| {
            Box::pin(async move {
                if let Some(row) = decision(now).fetch_optional(&mut *db).await? {
                    return Ok(Decided::Now(row.parse("state")?));
                }
                let Some(row) = sql::state(id.0).fetch_optional(&mut *db).await? else {
                    return Ok(Decided::Unknown);
                };
                match transition.apply(row.parse("state")?) {
                    Err(illegal) => Ok(Decided::Illegal(illegal)),
                    Ok(_) => Err(StoreError::corrupt("state")),
                }
            })
        })
        .await
    }
}
