//! Claims: how a delivery becomes a running job.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use async_trait::async_trait;
use sqlx::{Postgres, postgres::PgRow};
use uuid::Uuid;

use super::{
    PostgresStore,
    batch::{MAX_ROUNDS, jobs_kept_changing, place_among_new, take_complete, unanswered},
    follow_up::FollowUp,
};
use crate::{
    job::{EXPIRED, State, WorkerId},
    store::{
        Bind, Claim, ClaimReceipt, Claimed, Claims, Result,
        columns::{Decision, Identity, Spec, Start},
        history::of_claim,
        read::StoreRow as _,
        rows,
        sql::{Bound, Rows, statements},
    },
};

statements! { Postgres:
    claim_new(specs: Rows<'_, Spec>, starts: Rows<'_, Start>, worker: Uuid, expired_message: &str, record: bool) = "with changed as (
    insert into jobs ({spec}, state, created_at, due_at, first_due_at, fence, attempt, worker_id, request_id, started_at, ended_by,
        held_reason, {error}, {binding}, finished_at, reply_due_at, waits_for, waits_until, events)
    select {i.spec}, s.state, now(),
        case when s.state = 'scheduled' then i.run_at end,
        greatest(least(i.published_at, now()), i.run_at),
        case when s.state = 'running' then 1 else 0 end,
        case when s.state = 'running' then 1 else 0 end,
        case when s.state = 'running' then {worker}::uuid end,
        case when s.state = 'running' then i.request_id end,
        case when s.state = 'running' then now() end,
        case when s.state <> 'running' then i.request_id end,
        i.held_reason,
        case when s.expired then 'expired' else i.error_kind end,
        case when s.expired then {expired_message} else i.error_message end,
        i.error_code, i.error_slug,
        {each binding: case when s.state = 'running' then i.@ end},
        case when s.state = 'failed' then now() end,
        case when s.state = 'failed' and i.reply_to is not null then now() end,
        i.waits_for,
        case when i.waits_for is not null
            then least(i.expires_at, now() + i.max_age_ms * interval '1 millisecond') end,
        (s.state in ('failed', 'held'))::integer
    from {rows}
    cross join lateral (select
        i.goes_to = 'running' and coalesce(i.expires_at <= now(), false) as expired,
        case when i.goes_to <> 'running' then i.goes_to
            when i.expires_at <= now() then 'failed'
            when i.run_at > now() then 'scheduled'
            else 'running' end as state) s
    on conflict do nothing
    returning {event of jobs}, {end of jobs} as event, created_at, first_due_at),
    {log_claims},
    {record_events}
    select id, state, error_kind, created_at, first_due_at from changed";

    /// A known job that is available was due, or was made due by a person, so `run_at` does not matter any more.
    claim_known(identities: Rows<'_, Identity>, starts: Rows<'_, Start>, worker: Uuid, expired_message: &str, record: bool) = "with changed as (
    update jobs j set
        state = s.state, due_at = null,
        published = case when s.state = 'running' then 0 else j.published end,
        fence = j.fence + case when s.state = 'running' then 1 else 0 end,
        attempt = case when s.state = 'running' then least(j.attempt, 2147483646) + 1 else j.attempt end,
        worker_id = case when s.state = 'running' then {worker}::uuid end,
        request_id = case when s.state = 'running' then i.request_id else j.request_id end,
        started_at = case when s.state = 'running' then now() else j.started_at end,
        ended_by = case when s.state <> 'running' then i.request_id end,
        held_reason = i.held_reason,
        error_kind = case when s.expired then 'expired' when s.state = 'running' then j.error_kind else i.error_kind end,
        error_message = case when s.expired then {expired_message} when s.state = 'running' then j.error_message else i.error_message end,
        {each error_code, error_slug: @ = case when s.expired then null when s.state = 'running' then j.@ else i.@ end},
        {each binding: @ = case when s.state = 'running' and j.toolkit is null then i.@ else j.@ end},
        finished_at = case when s.state = 'failed' then now() end,
        reply_due_at = case when s.state = 'failed' and j.reply_to is not null then now() end,
        waits_for = coalesce(i.waits_for, j.waits_for),
        waits_until = case when i.waits_for is null then j.waits_until else {waits_until} end,
        events = j.events + (s.state in ('failed', 'held'))::integer
    from {rows}
    cross join lateral (select
        i.goes_to = 'running' and coalesce(i.expires_at <= now(), false) as expired,
        case when i.goes_to <> 'running' then i.goes_to
            when i.expires_at <= now() then 'failed'
            else 'running' end as state) s
    where j.id = i.id and j.state = 'available' and j.owner_kind = i.owner_kind and j.owner_id = i.owner_id
        and j.digest = i.digest and (i.goes_to = 'running' or (j.toolkit is null and j.attempt = 0))
    returning {event of j}, {end of j} as event, {receipt of j}),
    {log_claims},
    {record_events}
    select id, state, error_kind, {receipt} from changed";

    bind(decisions: Rows<'_, Decision>) = "update jobs j set {each binding: @ = coalesce(j.@, i.@)}
    from {rows}
    where j.id = i.id and j.fence = i.fence and j.state = 'running'
        and (j.toolkit is null or (j.toolkit, j.toolkit_version) = (i.toolkit, i.toolkit_version)
            and (j.account is null or j.account = i.account))
    returning j.id, j.fence, {j.binding}";
}

#[async_trait]
impl Claims for PostgresStore {
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>> {
        let mut answers: Vec<Option<Claimed>> = vec![None; batch.len()];
        let mut batch: Vec<Cow<'_, Claim>> = batch.iter().map(Cow::Borrowed).collect();
        let mut seen = HashSet::with_capacity(batch.len());
        let mut again: Vec<bool> = batch.iter().map(|claim| !seen.insert(claim.spec.id)).collect();
        for _ in 0..MAX_ROUNDS {
            let mut open: Vec<usize> =
                (0..batch.len()).filter(|place| answers[*place].is_none() && !again[*place]).collect();
            // In the order of their IDs, so that concurrent batches wait for each other in one direction.
            open.sort_unstable_by_key(|place| batch[*place].spec.id);
            let mut fresh: Vec<usize> =
                open.iter().copied().filter(|place| !batch[*place].from_store).collect();
            fresh.sort_by(|one, other| {
                place_among_new(&batch[*one].spec).cmp(&place_among_new(&batch[*other].spec))
            });
            let new = |claims: &[&Claim]| {
                let specs: Vec<_> = claims.iter().map(|claim| &*claim.spec).collect();
                sql::claim_new(Rows(&specs), Rows(claims), worker.0, EXPIRED, self.records_events)
            };
            let first = |row: &PgRow, claim: &Claim| {
                let (created_at, first_due_at) = (row.time("created_at")?, row.time("first_due_at")?);
                Ok(ClaimReceipt::first(claim.binding.clone(), created_at, first_due_at))
            };
            self.claim_places(&batch, &fresh, &mut answers, new, first).await?;
            open.retain(|place| answers[*place].is_none());
            let known = |claims: &[&Claim]| {
                sql::claim_known(Rows(claims), Rows(claims), worker.0, EXPIRED, self.records_events)
            };
            self.claim_places(&batch, &open, &mut answers, known, |row, _| rows::receipt(row)).await?;
            if let Some(answers) = take_complete(&mut answers) {
                return Ok(answers);
            }
            let left = unanswered(&answers);
            let mut found = self.find(left.iter().map(|place| (*place, &*batch[*place].spec))).await?;
            for place in left {
                let claim = &mut batch[place];
                match found.remove(&place) {
                    Some(job) if job.by_key && claim.from_store => answers[place] = Some(Claimed::Gone),
                    Some(job) => {
                        if job.is_under_way() && claim.stop.is_some() {
                            claim.to_mut().stop = None;
                        }
                        answers[place] = job.claimed(claim, worker, again[place]);
                    }
                    None if claim.from_store => answers[place] = Some(Claimed::Gone),
                    None => again[place] = false,
                }
            }
            if let Some(answers) = take_complete(&mut answers) {
                return Ok(answers);
            }
        }
        Err(jobs_kept_changing())
    }

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let decisions: Vec<&Bind> = batch.iter().collect();
        let mut done = HashMap::with_capacity(batch.len());
        for row in &self.hot.fetch(sql::bind(Rows(&decisions))).await? {
            let key: (Uuid, i64) = (row.read("id")?, row.read("fence")?);
            done.insert(key, rows::binding(row)?);
        }
        let is_kept = |Bind { id, fence, binding }: &Bind| {
            done.get(&(id.0, fence.0)).is_some_and(|kept| kept.as_ref() == Some(binding))
        };
        Ok(batch.iter().map(is_kept).collect())
    }
}

impl PostgresStore {
    /// Executes the claims of these places, notes which of them wait for a connection, and answers those whose jobs
    /// were claimed.
    async fn claim_places(
        &self,
        batch: &[Cow<'_, Claim>],
        places: &[usize],
        answers: &mut [Option<Claimed>],
        query: impl FnOnce(&[&Claim]) -> Bound<Postgres>,
        receipt: impl Fn(&PgRow, &Claim) -> Result<ClaimReceipt>,
    ) -> Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let claims: Vec<&Claim> = places.iter().map(|place| &*batch[*place]).collect();
        let waits = |claim: &Claim| claim.stop.as_ref().is_some_and(|stop| stop.waits_for().is_some());
        let waiting = claims.iter().filter(|claim| waits(claim)).map(|claim| claim.spec.id.0).collect();
        let note = |claim: &Claim| Some((claim.goes_to(), of_claim(claim, claim.goes_to())?));
        let notes = claims.iter().filter_map(|claim| note(claim)).collect();
        let follow_up = FollowUp { waiting, notes, ..FollowUp::default() };
        let rows = self.fetch_and_follow_up(query(&claims), follow_up).await?;
        let places: HashMap<Uuid, usize> =
            places.iter().map(|place| (batch[*place].spec.id.0, *place)).collect();
        for row in &rows {
            let Some(place) = places.get(&row.read("id")?) else { continue };
            answers[*place] = Some(match row.parse("state")? {
                State::Running => Claimed::Running(receipt(row, &batch[*place])?),
                State::Scheduled => Claimed::Scheduled,
                state => Claimed::Ended { state, kind: row.parse("error_kind")? },
            });
        }
        Ok(())
    }
}
