//! Questions and decisions about single jobs.

use std::collections::HashSet;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{
    Sqlite,
    sqlite::{SqliteConnection, SqliteRow},
};
use uuid::Uuid;

use super::{
    SqliteStore,
    changes::{About, log},
    events::Recorder,
    history::note,
};
use crate::{
    bounds::MAX_ERROR_CHARS,
    job::{JobId, Principal, Release, State, Transition},
    store::{
        AsRead, AttemptView, Census, ChangeKind, Decided, Decider, Edited, EventKind, Force, HistoryFact,
        JobControl, JobDecision, JobView, Result, StoreError,
        changes::NewChange,
        columns::{EditColumns, Error, PrincipalColumns},
        history::{Note, refuse_decider},
        job_control::{ATTEMPTS, refused},
        read::{StoreRow as _, readable},
        rows,
        sql::{Bound, One, statements},
        texts::{NO_RESULT, marked_failed},
    },
};

statements! { Sqlite:
    job(principal: One<'_, PrincipalColumns>, id: Uuid) = "select {job}, result from jobs where id = {id} and {may_see}";

    is_unsettled(id: Uuid) = "select 1 from jobs
    where id = {id} and state in ('scheduled', 'available', 'running', 'retryable')";

    attempts(principal: One<'_, PrincipalColumns>, job_id: Uuid) = ATTEMPTS;

    cancel(id: Uuid, now: i64) = "update jobs set
        state = case when state = 'running' then 'running' else 'cancelled' end,
        cancel_requested = (state = 'running'), due_at = null, held_reason = null,
        finished_at = case when state <> 'running' then {now} end,
        reply_due_at = case when state <> 'running' and reply_to is not null then {now} end,
        events = events + (state <> 'running' or not cancel_requested)
    where id = {id} and state in ('scheduled', 'available', 'retryable', 'held', 'running')
    returning state, account";

    restart(id: Uuid, now: i64, force: bool, early: bool) = "update jobs set state = 'available', due_at = {now}, first_due_at = {now}, published = 0,
        postponed_since = null, spent = 0,
        finished_at = null, reply_due_at = null, check_at = null, cancel_requested = 0, {each error: @ = null}, events = events + 1
    where ({force} or not {may_have_acted}) and ({early} or not {is_early}) and id = {id} and state in ('failed', 'cancelled', 'retryable', 'scheduled')
    returning state, account";

    release_retry(id: Uuid, now: i64, force: bool) =
    "update jobs set {to_retry} where ({force} or not {may_have_acted}) and id = {id} and state = 'held' returning state, account";

    release_succeeded(id: Uuid, now: i64, result: &str) =
    "update jobs set {to_succeeded} where {may_have_run} and id = {id} and state = 'held' returning state, account";

    release_failed(error: One<'_, Error>, id: Uuid, now: i64) =
    "update jobs set {to_failed} where {may_have_run} and id = {id} and state = 'held' returning state, account";

    edit(edit: One<'_, EditColumns>, now: i64) = "update jobs set
        digest = {digest}, asked_digest = coalesce(asked_digest, digest),
        run_at = {run_at}, queue = {queue}, priority = {priority}, expires_at = {expires_at},
        state = case when not {is_moved} or state not in ('scheduled', 'available') then state
            when {later} then 'scheduled' else 'available' end,
        due_at = case when state = 'held' then null
            when {is_moved} then max(coalesce({run_at}, {now}), {now})
            when state = 'available' then {now}
            else due_at end,
        first_due_at = case when {is_moved} then max(coalesce({run_at}, {now}), {now}) else first_due_at end,
        published = 0,
        waits_until = case when waits_for is not null then min(coalesce({expires_at}, created_at + max_age_ms * 1000),
            coalesce(created_at + max_age_ms * 1000, {expires_at})) end,
        events = events + 1
    where state = {was_state} and attempt = {was_attempt} and digest = {was_digest}
        and first_due_at is {was_first_due_at} and finished_at is {was_finished_at}
        and not (state = 'held' and {is_moved})
        and id = {id} and state in ('scheduled', 'available', 'retryable', 'held')
    returning state, account";

    /// Every decision looks here first, in its transaction; the others ask for no principal.
    before(principal: One<'_, PrincipalColumns>, id: Uuid, now: i64) = "select state, attempt, digest, first_due_at, finished_at, owner_kind, owner_id, held_reason, cancel_requested, account, {may_have_acted} as may_have_acted,
        {is_early} as is_early
    from jobs where id = {id} and {may_see}";

    census_waiting(now: i64) = "select queue, state, count(*) as jobs,
        {now} - min(case when {first_due} <= {now} then {first_due} end) as oldest
    from jobs where due_at is not null group by queue, state order by queue, state";

    census_running() = "select queue, count(*) as jobs from jobs where state = 'running'
    group by queue order by queue";

    census_held() = "select queue, held_reason, count(*) as jobs from jobs where state = 'held'
    group by queue, held_reason order by queue, held_reason";
}

#[async_trait]
impl JobControl for SqliteStore {
    async fn job(&self, principal: &Principal, id: JobId) -> Result<Option<JobView>> {
        self.reader.fetch_first(sql::job(One(principal), id.0)).await?.as_ref().map(rows::job).transpose()
    }

    async fn settled(&self, jobs: &[JobId]) -> Result<HashSet<JobId>> {
        let mut settled = HashSet::new();
        for id in jobs {
            if self.reader.fetch_first(sql::is_unsettled(id.0)).await?.is_none() {
                settled.insert(*id);
            }
        }
        Ok(settled)
    }

    async fn attempts(&self, principal: &Principal, id: JobId) -> Result<Vec<AttemptView>> {
        Ok(readable(&self.reader.fetch(sql::attempts(One(principal), id.0)).await?, rows::attempt))
    }

    async fn decide(
        &self,
        principal: &Principal,
        id: JobId,
        decision: JobDecision,
        as_read: Option<&AsRead>,
        by: &Decider,
    ) -> Result<Decided> {
        refuse_decider(by)?;
        let (principal, as_read, by) = (principal.clone(), as_read.copied(), by.clone());
        let recorder = self.recorder;
        self.write(move |db, now| {
            Box::pin(async move {
                let force = decision.repeats_effects();
                let (fact, query) = match decision {
                    JobDecision::Cancel => (HistoryFact::Cancelled, sql::cancel(id.0, now)),
                    JobDecision::Restart(Force { early, .. }) => {
                        (HistoryFact::Retried, sql::restart(id.0, now, force, early))
                    }
                    JobDecision::Release(how) => (HistoryFact::Released { how }, release_one(id, now, how)),
                    JobDecision::ReleaseToRun(_) => {
                        (HistoryFact::Released { how: Release::Retry }, sql::release_retry(id.0, now, force))
                    }
                };
                let entry = Note { job: id, by: &by.by, attempt: None, fact };
                let change = NewChange::new(decision.change(), &principal, &by);
                let what = (&decision.transition(), as_read.as_ref());
                decide(db, now, &principal, what, query, (entry, recorder), Some(&change)).await
            })
        })
        .await
    }

    async fn edit(&self, principal: &Principal, edited: &Edited, by: &Decider) -> Result<Decided> {
        refuse_decider(by)?;
        let (principal, edited, by) = (principal.clone(), edited.clone(), by.clone());
        let recorder = self.recorder;
        self.write(move |db, now| {
            Box::pin(async move {
                let id = edited.before.id;
                let before = sql::before(One(&principal), id.0, now).fetch_optional(&mut *db).await?;
                let Some(before) = before else { return Ok(Decided::Unknown) };
                if let Some(refused) = refused(&before, &edited.transition(), None)? {
                    return Ok(refused);
                }
                let Some(after) = sql::edit(One(&edited), now).fetch_optional(&mut *db).await? else {
                    return Ok(Decided::Changed);
                };
                recorder.record(db, now, id, Some(EventKind::JobEdited)).await?;
                let changes = edited.before.changes(&edited.after);
                let told = json!({"changes": changes}).to_string();
                let fact = HistoryFact::Edited { changes };
                note(db, now, &Note { job: id, by: &by.by, attempt: None, fact }).await?;
                let (kind, owner): (String, String) = (before.read("owner_kind")?, before.read("owner_id")?);
                let object = id.to_string();
                let about = About {
                    owner_kind: Some(&kind),
                    owner_id: Some(&owner),
                    object: Some(&object),
                    before: None,
                    after: Some(&told),
                };
                log(db, now, &NewChange::new(ChangeKind::JobEdited, &principal, &by), about).await?;
                Ok(Decided::Now(after.parse("state")?))
            })
        })
        .await
    }

    async fn census(&self) -> Result<Census> {
        let waiting = self.reader.fetch(sql::census_waiting(self.now_micros())).await?;
        let running = self.reader.fetch(sql::census_running()).await?;
        Census::of(&waiting, &running, &self.reader.fetch(sql::census_held()).await?)
    }
}

/// Lets the held jobs go whose IDs `page` selects, and returns how many.
pub(super) async fn release_page(
    db: &mut SqliteConnection,
    now: i64,
    page: Bound<Sqlite>,
    release: Release,
    by: &str,
    recorder: Recorder,
) -> Result<u64> {
    let mut released = 0;
    for row in page.fetch_all(&mut *db).await? {
        let job = JobId(row.read("id")?);
        let entry = Note { job, by, attempt: None, fact: HistoryFact::Released { how: release } };
        let query = release_one(job, now, release);
        let transition = Transition::Release(release);
        let entry = (entry, recorder);
        let decided = decide(db, now, &Principal::Operator, (&transition, None), query, entry, None).await?;
        released += u64::from(matches!(decided, Decided::Now(_)));
    }
    Ok(released)
}

fn release_one(id: JobId, now: i64, release: Release) -> Bound<Sqlite> {
    match release {
        Release::Retry => sql::release_retry(id.0, now, true),
        Release::Succeeded => sql::release_succeeded(id.0, now, NO_RESULT),
        Release::Failed => sql::release_failed(One(Some(&marked_failed())), id.0, now),
    }
}

/// Adds a decision to the audit log, with the state before and after it.
async fn log_decision(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    job: JobId,
    [before, after]: [&SqliteRow; 2],
) -> Result<()> {
    let (kind, owner): (String, String) = (before.read("owner_kind")?, before.read("owner_id")?);
    let state =
        |row: &SqliteRow| row.read::<String>("state").map(|state| json!({ "state": state }).to_string());
    let (before, after, job) = (state(before)?, state(after)?, job.to_string());
    let about = About {
        owner_kind: Some(&kind),
        owner_id: Some(&owner),
        object: Some(&job),
        before: Some(&before),
        after: Some(&after),
    };
    log(db, now, change, about).await
}

/// What a decision is as an event; `None` where that is the end to which it brought the job.
fn event_of(fact: &HistoryFact, state: State) -> Option<EventKind> {
    match fact {
        _ if state.is_final() => None,
        HistoryFact::Cancelled => Some(EventKind::JobCancelRequested),
        HistoryFact::Retried => Some(EventKind::JobRetried),
        _ => Some(EventKind::JobReleased),
    }
}

/// Executes a decision, whose statement names the states that allow it, and adds it to the history; the
/// transition says why not, where it changed nothing.
async fn decide(
    db: &mut SqliteConnection,
    now: i64,
    principal: &Principal,
    (transition, as_read): (&Transition, Option<&AsRead>),
    decision: Bound<Sqlite>,
    (entry, recorder): (Note<'_>, Recorder),
    change: Option<&NewChange<'_>>,
) -> Result<Decided> {
    let Some(before) = sql::before(One(principal), entry.job.0, now).fetch_optional(&mut *db).await? else {
        return Ok(Decided::Unknown);
    };
    if let Some(read) = as_read
        && !read.is(&before)?
    {
        return Ok(refused(&before, transition, as_read)?.unwrap_or(Decided::Changed));
    }
    let Some(after) = decision.fetch_optional(&mut *db).await? else {
        return refused(&before, transition, as_read)?.ok_or_else(|| StoreError::corrupt("state"));
    };
    // A running job that is called off twice is called off once.
    if entry.fact != HistoryFact::Cancelled || !before.read::<bool>("cancel_requested")? {
        recorder.record(db, now, entry.job, event_of(&entry.fact, after.parse("state")?)).await?;
        note(db, now, &entry).await?;
        if let Some(change) = change {
            log_decision(db, now, change, entry.job, [&before, &after]).await?;
        }
    }
    let (was, account): (Option<String>, Option<String>) = (before.read("account")?, after.read("account")?);
    if let Some(was) = was.filter(|was| account.as_ref() != Some(was)) {
        let account = was.chars().take(MAX_ERROR_CHARS).collect();
        note(db, now, &Note { fact: HistoryFact::AccountForgotten { account }, ..entry }).await?;
    }
    Ok(Decided::Now(after.parse("state")?))
}
