//! Questions and decisions about single jobs.

use std::collections::HashSet;

use async_trait::async_trait;
use uuid::Uuid;

use super::{PostgresStore, batch::MAX_ROUNDS};
use crate::{
    job::{JobId, Principal, Release},
    store::{
        AsRead, AttemptView, Census, ChangeKind, Decided, Decider, Edited, Force, JobControl, JobDecision,
        JobView, Result, StoreError, StoreErrorKind,
        changes::NewChange,
        columns::{AsReadColumns, ChangeColumns, EditColumns, Error, PrincipalColumns},
        convert::uuids,
        history::refuse_decider,
        job_control::{ATTEMPTS, refused},
        read::{StoreRow as _, readable},
        rows,
        sql::{One, statements},
        texts::{NO_RESULT, marked_failed},
    },
};

statements! { Postgres:
    job(principal: One<'_, PrincipalColumns>, id: Uuid) = "select {job}, result::text as result from jobs where id = {id} and {may_see}";

    /// Nearly all who wait go on waiting, so that those are told for whom it is over. Each is looked up by itself, which
    /// `offset` keeps, because of a small table the planner would rather read all.
    settled(ids: Vec<Uuid>) = "select waits.id from unnest({ids}::uuid[]) as waits (id)
    left join lateral (
        select 1 as goes_on from jobs
        where jobs.id = waits.id and state in ('scheduled', 'available', 'running', 'retryable') offset 0
    ) as job on true
    where goes_on is null";

    attempts(principal: One<'_, PrincipalColumns>, job_id: Uuid) = ATTEMPTS;

    /// A running job that is called off twice is called off once.
    cancel(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, read: One<'_, AsReadColumns>, id: Uuid, record: bool) = "with was as (
        select id as was_id, state as was_state, cancel_requested as was_cancelled from jobs
        where {may_see} and {is_as_read} and id = {id}
            and state in ('scheduled', 'available', 'retryable', 'held', 'running') for update),
    changed as (
        update jobs set state = case when state = 'running' then 'running' else 'cancelled' end,
            cancel_requested = (state = 'running'), due_at = null, held_reason = null,
            finished_at = case when state <> 'running' then now() end,
            reply_due_at = case when state <> 'running' and reply_to is not null then now() end,
            events = events + (not was_cancelled)::integer
        from was where id = was_id
        returning {event of jobs}, case when state = 'cancelled' then 'job.cancelled'
            when not was_cancelled then 'job.cancel_requested' end as event, was_state, was_cancelled),
    noted as (
        insert into job_history (job_id, kind, by)
        select id, 'cancelled', {decider}::text from changed where not was_cancelled),
    logged as ({log}, owner_kind, owner_id, id::text, jsonb_build_object('state', was_state)::text,
        jsonb_build_object('state', state)::text from changed where not was_cancelled),
    {record_events}
    select state from changed";

    restart(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, read: One<'_, AsReadColumns>, id: Uuid, force: bool, early: bool, record: bool) = "with was as (
        select id as was_id, state as was_state from jobs
        where ({force} or not {may_have_acted}) and ({early} or not {is_early})
            and {may_see} and {is_as_read} and id = {id} and state in ('failed', 'cancelled', 'retryable', 'scheduled') for update),
    changed as (
        update jobs set state = 'available', due_at = now(), first_due_at = now(), published = 0, postponed_since = null, spent = 0,
            finished_at = null, reply_due_at = null, check_at = null, cancel_requested = false, {each error: @ = null}, events = events + 1
        from was where id = was_id
        returning {event of jobs}, 'job.retried' as event, was_state),
    noted as (insert into job_history (job_id, kind, by) select id, 'retried', {decider}::text from changed),
    logged as ({log}, owner_kind, owner_id, id::text, jsonb_build_object('state', was_state)::text,
        jsonb_build_object('state', state)::text from changed),
    {record_events}
    select state from changed";

    release_retry(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, read: One<'_, AsReadColumns>, id: Uuid, by: &str, how: &str, force: bool, record: bool) =
    "with {held_one}, changed as (update jobs set {to_retry} {of_page}), {note_released}, {log_released}, {record_events} select state from changed";

    release_succeeded(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, read: One<'_, AsReadColumns>, id: Uuid, by: &str, how: &str, result: &str, record: bool) =
    "with {run_one}, changed as (update jobs set {to_succeeded} {of_page}), {note_released}, {log_released}, {record_events} select state from changed";

    release_failed(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, read: One<'_, AsReadColumns>, error: One<'_, Error>, id: Uuid, by: &str, how: &str, record: bool) =
    "with {run_one}, changed as (update jobs set {to_failed} {of_page}), {note_released}, {log_released}, {record_events} select state from changed";

    /// Whether it is due later was said by who read the store's clock; a moment more or less changes nothing, because a job
    /// that is scheduled for a time that has passed is due.
    edit(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, edit: One<'_, EditColumns>, changes: &str, record: bool) = "with changed as (
        update jobs set digest = {digest}, asked_digest = coalesce(asked_digest, digest),
            run_at = {run_at}, queue = {queue}, priority = {priority}, expires_at = {expires_at},
            state = case when not {is_moved} or state not in ('scheduled', 'available') then state
                when {later} then 'scheduled' else 'available' end,
            due_at = case when state = 'held' then null
                when {is_moved} then greatest({run_at}, now())
                when state = 'available' then now()
                else due_at end,
            first_due_at = case when {is_moved} then greatest({run_at}, now()) else first_due_at end,
            published = 0,
            waits_until = case when waits_for is not null
                then least({expires_at}, created_at + max_age_ms * interval '1 millisecond') end,
            events = events + 1
        where {may_see} and {is_as_read}
        and not (state = 'held' and {is_moved})
            and id = {id} and state in ('scheduled', 'available', 'retryable', 'held')
        returning {event of jobs}, 'job.edited' as event),
    noted as (
        insert into job_history (job_id, kind, by, detail) select id, 'edited', {decider}::text, {changes}::text from changed),
    logged as ({log}, owner_kind, owner_id, id::text, null, jsonb_build_object('changes', {changes}::text)::text from changed),
    {record_events}
    select state from changed";

    state(principal: One<'_, PrincipalColumns>, id: Uuid) = "select state, attempt, digest, first_due_at, finished_at, held_reason, {may_have_acted} as may_have_acted, {is_early} as is_early
    from jobs where id = {id} and {may_see}";

    census_waiting() = "select queue, state, count(*) as jobs,
        (extract(epoch from now() - min({first_due}) filter (where {first_due} <= now())) * 1000000)::bigint as oldest
    from jobs where due_at is not null group by queue, state order by queue, state";

    census_running() = "select j.queue, count(distinct j.id) as jobs from claims c cross join lateral {running_of_claim}
    group by j.queue order by j.queue";

    census_held() = "select queue, held_reason, count(*) as jobs from jobs where held_reason is not null
    group by queue, held_reason order by queue, held_reason";
}

#[async_trait]
impl JobControl for PostgresStore {
    async fn job(&self, principal: &Principal, id: JobId) -> Result<Option<JobView>> {
        self.other.fetch_first(sql::job(One(principal), id.0)).await?.as_ref().map(rows::job).transpose()
    }

    async fn settled(&self, jobs: &[JobId]) -> Result<HashSet<JobId>> {
        let settled = self.other.fetch(sql::settled(uuids(jobs))).await?;
        settled.iter().map(|row| Ok(JobId(row.read("id")?))).collect()
    }

    async fn attempts(&self, principal: &Principal, id: JobId) -> Result<Vec<AttemptView>> {
        Ok(readable(&self.other.fetch(sql::attempts(One(principal), id.0)).await?, rows::attempt))
    }

    /// The statement names the states that allow the decision; the transition says why not, where it changed nothing.
    async fn decide(
        &self,
        principal: &Principal,
        id: JobId,
        decision: JobDecision,
        as_read: Option<&AsRead>,
        by: &Decider,
    ) -> Result<Decided> {
        refuse_decider(by)?;
        let change = NewChange::new(decision.change(), principal, by);
        let (who, change, read, decider, record) =
            (principal, &change, as_read, &*by.by, self.records_events);
        let query = || match decision {
            JobDecision::Cancel => sql::cancel(One(who), One(change), One(read), id.0, record),
            JobDecision::Restart(Force { effect, early }) => {
                sql::restart(One(who), One(change), One(read), id.0, effect, early, record)
            }
            JobDecision::Release(how @ Release::Succeeded) => {
                let how = how.as_str();
                sql::release_succeeded(
                    One(who),
                    One(change),
                    One(read),
                    id.0,
                    decider,
                    how,
                    NO_RESULT,
                    record,
                )
            }
            JobDecision::Release(how @ Release::Failed) => {
                let (how, error) = (how.as_str(), marked_failed());
                sql::release_failed(
                    One(who),
                    One(change),
                    One(read),
                    One(Some(&error)),
                    id.0,
                    decider,
                    how,
                    record,
                )
            }
            JobDecision::Release(Release::Retry) | JobDecision::ReleaseToRun(_) => {
                let (how, force) = (Release::Retry.as_str(), decision.repeats_effects());
                sql::release_retry(One(who), One(change), One(read), id.0, decider, how, force, record)
            }
        };
        for _ in 0..MAX_ROUNDS {
            if let Some(row) = self.other.fetch_first(query()).await? {
                return Ok(Decided::Now(row.parse("state")?));
            }
            let Some(row) = self.other.fetch_first(sql::state(One(principal), id.0)).await? else {
                return Ok(Decided::Unknown);
            };
            if let Some(refused) = refused(&row, &decision.transition(), as_read)? {
                return Ok(refused);
            }
        }
        Err(StoreError::new(StoreErrorKind::Unavailable, "the job kept changing while it was decided on"))
    }

    async fn edit(&self, principal: &Principal, edited: &Edited, by: &Decider) -> Result<Decided> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::JobEdited, principal, by);
        let changes = edited.before.changes(&edited.after);
        let query = sql::edit(One(principal), One(&change), One(edited), &changes, self.records_events);
        if let Some(row) = self.other.fetch_first(query).await? {
            return Ok(Decided::Now(row.parse("state")?));
        }
        let now = self.other.fetch_first(sql::state(One(principal), edited.before.id.0)).await?;
        let Some(row) = now else { return Ok(Decided::Unknown) };
        Ok(refused(&row, &edited.transition(), None)?.unwrap_or(Decided::Changed))
    }

    async fn census(&self) -> Result<Census> {
        let waiting = self.other.fetch(sql::census_waiting()).await?;
        let running = self.other.fetch(sql::census_running()).await?;
        Census::of(&waiting, &running, &self.other.fetch(sql::census_held()).await?)
    }
}
