//! Questions and decisions about single jobs.

use async_trait::async_trait;
use sqlx::{Row, sqlite::SqliteConnection};

use super::{SqliteStore, batch::Bound, history::note, read_time};
use crate::{
    bounds::MAX_ERROR_CHARS,
    job::{ErrorKind, JobId, Release, State, Transition},
    store::{
        AttemptView, Census, Decided, HeldFilter, HistoryFact, JobControl, JobFilter, JobView, StoreError,
        convert::{owner_columns, parse_column, to_duration, to_limit, to_u64},
        history::{Note, refuse_decider},
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
         pinned_by, account, frozen_effect, state, created_at, due_at, check_at, unknown_since, checks, request_id, \
         attempt, spent, started_at, cancel_requested, held_reason, error_kind, error_message, error_code, error_slug, log_id, \
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
    returning state, account";

const RESTART: &str = "update jobs set state = 'available', due_at = ?2, published = 0, spent = 0,
        finished_at = null, reply_due_at = null, cancel_requested = 0,
        error_kind = null, error_message = null, error_code = null, error_slug = null
    where id = ?1 and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state, account";

/// What a held job becomes that is let go. ?2 is now.
macro_rules! to_retry {
    () => {
        "state = 'available', due_at = ?2, published = 0, held_reason = null, check_at = null,
        account = case when held_reason <> 'connection' or connected_account_id is not null then account end"
    };
}

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
    concat!("update jobs set ", to_retry!(), " where id = ?1 and state = 'held' returning state, account");

const RELEASE_SUCCEEDED: &str = concat!(
    "update jobs set ",
    to_succeeded!("?3"),
    " where id = ?1 and state = 'held' returning state, account"
);

const RELEASE_FAILED: &str = concat!(
    "update jobs set ",
    to_failed!("?3", "?4"),
    " where id = ?1 and state = 'held' returning state, account"
);

/// Held jobs by reason, owner and toolkit. The state is named for the sake of the index.
macro_rules! matching {
    () => {
        "state = 'held' and held_reason = ?1 and (?2 is null or (owner_kind = ?2 and owner_id = ?3))
            and (?4 is null or coalesce(toolkit, waits_for) = ?4)"
    };
}

const COUNT_HELD: &str = concat!("select count(*) from jobs where ", matching!());
const HELD: &str = concat!("select id from jobs where ", matching!(), " limit +?5");

const BEFORE: &str = "select state, cancel_requested, account from jobs where id = ?1";

const CENSUS_WAITING: &str = "select queue, state, count(*) as jobs,
        min(case when due_at <= ?1 then due_at end) as oldest_due
    from jobs where due_at is not null group by queue, state order by queue, state";

const CENSUS_RUNNING: &str = "select queue, count(*) as jobs from jobs where state = 'running'
    group by queue order by queue";

const CENSUS_HELD: &str = "select queue, held_reason, count(*) as jobs from jobs where state = 'held'
    group by queue, held_reason order by queue, held_reason";

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

    async fn cancel(&self, id: JobId, by: &str) -> Result<Decided, StoreError> {
        let cancel = move |now| sqlx::query(CANCEL).bind(id.0).bind(now);
        self.decide(id, by, Transition::Cancel, HistoryFact::Cancelled, cancel).await
    }

    async fn restart(&self, id: JobId, by: &str) -> Result<Decided, StoreError> {
        let restart = move |now| sqlx::query(RESTART).bind(id.0).bind(now);
        self.decide(id, by, Transition::Restart, HistoryFact::Retried, restart).await
    }

    async fn release(&self, id: JobId, release: Release, by: &str) -> Result<Decided, StoreError> {
        let fact = HistoryFact::Released { how: release };
        self.decide(id, by, Transition::Release(release), fact, move |now| release_one(id, now, release))
            .await
    }

    async fn count_held(&self, filter: &HeldFilter) -> Result<u64, StoreError> {
        let query = bind_held(sqlx::query(COUNT_HELD), filter);
        Ok(to_u64(query.fetch_one(&self.reader).await?.try_get(0)?))
    }

    async fn release_held(
        &self,
        filter: &HeldFilter,
        release: Release,
        by: &str,
        limit: usize,
    ) -> Result<u64, StoreError> {
        refuse_decider(by)?;
        let (filter, by) = (filter.clone(), by.to_owned());
        self.write(move |db, now| {
            Box::pin(async move {
                let page = bind_held(sqlx::query(HELD), &filter).bind(to_limit(limit));
                release_page(db, now, page, release, &by).await
            })
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

fn bind_held(query: Bound, filter: &HeldFilter) -> Bound {
    let (owner_kind, owner_id) = owner_columns(filter.owner.as_ref());
    query.bind(filter.reason.as_str()).bind(owner_kind).bind(owner_id).bind(filter.toolkit.as_deref())
}

impl SqliteStore {
    async fn decide(
        &self,
        id: JobId,
        by: &str,
        transition: Transition,
        fact: HistoryFact,
        decision: impl FnOnce(i64) -> Bound + Send + 'static,
    ) -> Result<Decided, StoreError> {
        refuse_decider(by)?;
        let by = by.to_owned();
        self.write(move |db, now| {
            Box::pin(async move {
                let entry = Note { job: id, by: &by, attempt: None, fact };
                decide(db, now, &transition, decision(now), entry).await
            })
        })
        .await
    }
}

/// Lets the held jobs go whose IDs `page` selects, and returns how many.
pub(super) async fn release_page(
    db: &mut SqliteConnection,
    now: i64,
    page: Bound,
    release: Release,
    by: &str,
) -> Result<u64, StoreError> {
    let mut released = 0;
    for row in page.fetch_all(&mut *db).await? {
        let job = JobId(row.try_get("id")?);
        let entry = Note { job, by, attempt: None, fact: HistoryFact::Released { how: release } };
        let query = release_one(job, now, release);
        let decided = decide(db, now, &Transition::Release(release), query, entry).await?;
        released += u64::from(matches!(decided, Decided::Now(_)));
    }
    Ok(released)
}

fn release_one(id: JobId, now: i64, release: Release) -> Bound {
    let start = |statement| sqlx::query(statement).bind(id.0).bind(now);
    match release {
        Release::Retry => start(RELEASE_RETRY),
        Release::Succeeded => start(RELEASE_SUCCEEDED).bind(NO_RESULT),
        Release::Failed => {
            start(RELEASE_FAILED).bind(ErrorKind::MarkedFailed.as_str()).bind(MARKED_FAILED_MESSAGE)
        }
    }
}

/// Executes a decision, whose statement names the states that allow it, and adds it to the history; the
/// transition says why not, where it changed nothing.
async fn decide(
    db: &mut SqliteConnection,
    now: i64,
    transition: &Transition,
    decision: Bound,
    entry: Note<'_>,
) -> Result<Decided, StoreError> {
    let Some(before) = sqlx::query(BEFORE).bind(entry.job.0).fetch_optional(&mut *db).await? else {
        return Ok(Decided::Unknown);
    };
    let (state, was_cancelled, was): (String, bool, Option<String>) =
        (before.try_get("state")?, before.try_get("cancel_requested")?, before.try_get("account")?);
    let Some(after) = decision.fetch_optional(&mut *db).await? else {
        return match transition.apply(parse_column("state", &state)?) {
            Err(illegal) => Ok(Decided::Illegal(illegal)),
            Ok(_) => Err(StoreError::corrupt("state")),
        };
    };
    let (state, account): (String, Option<String>) = (after.try_get("state")?, after.try_get("account")?);
    // A running job that is called off twice is called off once.
    if entry.fact != HistoryFact::Cancelled || !was_cancelled {
        note(db, now, &entry).await?;
    }
    if let Some(was) = was.filter(|was| account.as_ref() != Some(was)) {
        let account = was.chars().take(MAX_ERROR_CHARS).collect();
        note(db, now, &Note { fact: HistoryFact::AccountForgotten { account }, ..entry }).await?;
    }
    Ok(Decided::Now(parse_column("state", &state)?))
}
