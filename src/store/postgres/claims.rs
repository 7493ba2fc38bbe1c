//! Claims: how a delivery becomes a running job.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Bound, PostgresStore,
    batch::{
        BindingColumns, ErrorColumns, MAX_ROUNDS, Specs, column, jobs_kept_changing, sparse_column,
        spec_arrays, spec_columns, spec_values, take_complete, unanswered,
    },
    connections::fetch_and_note_awaited,
    fetch, instant, read_time,
};
use crate::{
    job::{ErrorKind, Fence, HeldReason, State, Stop, WorkerId},
    store::{
        Bind, Claim, ClaimReceipt, Claimed, Claims, StoreError,
        convert::parse_column,
        rows::{read_binding, read_receipt},
        texts::EXPIRED_MESSAGE,
    },
};

/// Notes which jobs the worker `$worker` took with this statement, which is how they are found when it
/// stops: no index of `jobs` knows a state, so that a finish changes none of them.
macro_rules! log_claims {
    ($worker:literal) => {
        concat!(
            "logged as (insert into claims (worker_id, job_ids) select ",
            $worker,
            "::uuid, array_agg(id) from claimed where state = 'running' having count(*) > 0)"
        )
    };
}

/// $36 is the worker, $37 the message of an expired job, $38 the toolkit that is to be connected.
const CLAIM_NEW: &str = concat!(
    "with claimed as (insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, fence, attempt, worker_id, request_id, started_at, settled_by, held_reason, \
     error_kind, error_message, error_code, error_slug, toolkit, toolkit_version, pinned_by, account, \
     frozen_effect, finished_at, reply_due_at, waits_for, waits_until) select ",
    spec_values!(),
    ", s.state, now(), case when s.state = 'scheduled' then i.run_at end,
        case when s.state = 'running' then 1 else 0 end, case when s.state = 'running' then 1 else 0 end,
        case when s.state = 'running' then $36::uuid end,
        case when s.state = 'running' then i.request_id end,
        case when s.state = 'running' then now() end,
        case when s.state <> 'running' then i.request_id end,
        i.held_reason,
        case when s.expired then 'expired' else i.error_kind end,
        case when s.expired then $37 else i.error_message end,
        i.error_code, i.error_slug,
        case when s.state = 'running' then i.toolkit end,
        case when s.state = 'running' then i.toolkit_version end,
        case when s.state = 'running' then i.pinned_by end,
        case when s.state = 'running' then i.account end,
        case when s.state = 'running' then i.frozen_effect end,
        case when s.state = 'failed' then now() end,
        case when s.state = 'failed' and i.reply_to is not null then now() end,
        i.waits_for,
        case when i.waits_for is not null
            then least(i.expires_at, now() + i.max_age_ms * interval '1 millisecond') end
    from unnest(",
    spec_arrays!(),
    ", $24::uuid[], $25::text[], $26::text[], $27::text[], $28::text[], $29::bigint[], $30::text[], $31::text[], \
     $32::text[], $33::text[], $34::text[], $35::text[], $38::text[]) as i (",
    spec_columns!(),
    ", request_id, verdict, held_reason, error_kind, error_message, error_code, error_slug, toolkit, \
     toolkit_version, pinned_by, account, frozen_effect, waits_for)
    cross join lateral (select
        i.verdict = 'running' and coalesce(i.expires_at <= now(), false) as expired,
        case when i.verdict <> 'running' then i.verdict
            when i.expires_at <= now() then 'failed'
            when i.run_at > now() then 'scheduled'
            else 'running' end as state) s
    on conflict do nothing
    returning id, state, error_kind, created_at), ",
    log_claims!("$36"),
    " select id, state, error_kind, created_at from claimed"
);

/// A known job that is available was due, or was made due by a person, so `run_at` does not matter
/// any more. $18 is the worker, $19 the message of an expired job, $20 the toolkit that is to be connected.
const CLAIM_KNOWN: &str = concat!(
    "with claimed as (update jobs j set
        state = s.state, due_at = null,
        published = case when s.state = 'running' then 0 else j.published end,
        fence = j.fence + case when s.state = 'running' then 1 else 0 end,
        attempt = case when s.state = 'running' then least(j.attempt, 2147483646) + 1 else j.attempt end,
        worker_id = case when s.state = 'running' then $18::uuid end,
        request_id = case when s.state = 'running' then i.request_id else j.request_id end,
        started_at = case when s.state = 'running' then now() else j.started_at end,
        settled_by = case when s.state <> 'running' then i.request_id end,
        held_reason = i.held_reason,
        error_kind = case when s.expired then 'expired' when s.state = 'running' then j.error_kind else i.error_kind end,
        error_message = case when s.expired then $19 when s.state = 'running' then j.error_message else i.error_message end,
        error_code = case when s.expired then null when s.state = 'running' then j.error_code else i.error_code end,
        error_slug = case when s.expired then null when s.state = 'running' then j.error_slug else i.error_slug end,
        toolkit = case when s.state = 'running' and j.toolkit is null then i.toolkit else j.toolkit end,
        toolkit_version = case when s.state = 'running' and j.toolkit is null then i.toolkit_version else j.toolkit_version end,
        pinned_by = case when s.state = 'running' and j.toolkit is null then i.pinned_by else j.pinned_by end,
        account = case when s.state = 'running' and j.toolkit is null then i.account else j.account end,
        frozen_effect = case when s.state = 'running' and j.toolkit is null then i.frozen_effect else j.frozen_effect end,
        finished_at = case when s.state = 'failed' then now() end,
        reply_due_at = case when s.state = 'failed' and j.reply_to is not null then now() end,
        waits_for = coalesce(i.waits_for, j.waits_for),
        waits_until = case when i.waits_for is null then j.waits_until
            else least(j.expires_at, j.created_at + j.max_age_ms * interval '1 millisecond') end
    from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::timestamptz[], $6::uuid[], $7::text[],
            $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::text[],
            $16::text[], $17::text[], $20::text[])
        as i (id, owner_kind, owner_id, digest, expires_at, request_id, verdict, held_reason, error_kind,
            error_message, error_code, error_slug, toolkit, toolkit_version, pinned_by, account, frozen_effect,
            waits_for)
    cross join lateral (select
        i.verdict = 'running' and coalesce(i.expires_at <= now(), false) as expired,
        case when i.verdict <> 'running' then i.verdict
            when i.expires_at <= now() then 'failed'
            else 'running' end as state) s
    where j.id = i.id and j.state = 'available' and j.owner_kind = i.owner_kind and j.owner_id = i.owner_id
        and j.digest = i.digest
    returning j.id, j.state, j.error_kind, j.fence, j.attempt, j.spent, j.toolkit, j.toolkit_version, j.pinned_by,
        j.account, j.frozen_effect, j.created_at, (extract(epoch from now() - j.created_at) * 1000000)::bigint as age), ",
    log_claims!("$18"),
    " select * from claimed"
);

const BIND: &str = "update jobs j set toolkit = i.toolkit, toolkit_version = i.toolkit_version,
        pinned_by = i.pinned_by, account = i.account, frozen_effect = i.frozen_effect
    from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
        as i (id, fence, toolkit, toolkit_version, pinned_by, account, frozen_effect)
    where j.id = i.id and j.fence = i.fence and j.state = 'running'
        and (j.toolkit is null or (j.toolkit, j.toolkit_version, j.pinned_by, j.frozen_effect)
                is not distinct from (i.toolkit, i.toolkit_version, i.pinned_by, i.frozen_effect)
            and (j.account is null or j.account = i.account))
    returning j.id, j.fence, j.toolkit, j.toolkit_version, j.pinned_by, j.account, j.frozen_effect";

#[async_trait]
impl Claims for PostgresStore {
    async fn claim(&self, worker: WorkerId, batch: &[Claim]) -> Result<Vec<Claimed>, StoreError> {
        let mut answers: Vec<Option<Claimed>> = vec![None; batch.len()];
        let mut seen = HashSet::with_capacity(batch.len());
        let mut again: Vec<bool> = batch.iter().map(|claim| !seen.insert(claim.spec.id)).collect();
        for _ in 0..MAX_ROUNDS {
            let mut open: Vec<usize> =
                (0..batch.len()).filter(|place| answers[*place].is_none() && !again[*place]).collect();
            // In the order of the keys, so that concurrent batches wait for each other in one direction.
            open.sort_unstable_by_key(|place| batch[*place].spec.id);
            let fresh: Vec<usize> = open.iter().copied().filter(|place| !batch[*place].from_store).collect();
            self.claim_new(worker, batch, &fresh, &mut answers).await?;
            open.retain(|place| answers[*place].is_none());
            self.claim_known(worker, batch, &open, &mut answers).await?;
            if let Some(answers) = take_complete(&mut answers) {
                return Ok(answers);
            }
            let left = unanswered(&answers);
            let mut found = self.known(left.iter().map(|place| (*place, &*batch[*place].spec))).await?;
            for place in left {
                let claim = &batch[place];
                match found.remove(&place) {
                    Some(known) if known.by_key && claim.from_store => answers[place] = Some(Claimed::Gone),
                    Some(known) => answers[place] = known.claimed(claim, worker, again[place]),
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

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let query =
            sqlx::query(BIND).bind(column(batch, |bind| bind.id.0)).bind(column(batch, |bind| bind.fence.0));
        let binding = BindingColumns::new(batch.iter().map(|bind| Some(&bind.binding)));
        let mut done = HashMap::with_capacity(batch.len());
        for row in fetch(&self.hot, binding.bind(query)).await? {
            let (id, fence): (Uuid, i64) = (row.try_get("id")?, row.try_get("fence")?);
            done.insert((id, fence), read_binding!(row).binding()?);
        }
        let is_kept = |Bind { id, fence, binding }: &Bind| {
            done.get(&(id.0, fence.0)).is_some_and(|kept| kept.as_ref() == Some(binding))
        };
        Ok(batch.iter().map(is_kept).collect())
    }
}

impl PostgresStore {
    /// Inserts unknown jobs as they are claimed.
    async fn claim_new(
        &self,
        worker: WorkerId,
        batch: &[Claim],
        places: &[usize],
        answers: &mut [Option<Claimed>],
    ) -> Result<(), StoreError> {
        if places.is_empty() {
            return Ok(());
        }
        let claims: Vec<&Claim> = places.iter().map(|place| &batch[*place]).collect();
        let query = Specs::new(claims.iter().map(|claim| &*claim.spec)).bind(sqlx::query(CLAIM_NEW));
        let query = bind_starts(query, &claims).bind(worker.0).bind(EXPIRED_MESSAGE);
        let done = self.claimed(query, &claims).await?;
        let places: HashMap<Uuid, usize> =
            places.iter().map(|place| (batch[*place].spec.id.0, *place)).collect();
        for row in &done {
            let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
            let Some(place) = places.get(&id) else { continue };
            answers[*place] = Some(match parse_column("state", &state)? {
                State::Running => Claimed::Running(ClaimReceipt {
                    fence: Fence(1),
                    attempt: 1,
                    spent: 0,
                    binding: batch[*place].binding.clone(),
                    created_at: read_time(row, "created_at")?.unwrap_or_default(),
                    age: Duration::ZERO,
                }),
                State::Scheduled => Claimed::Scheduled,
                state => Claimed::Ended { state, kind: ended_kind(row)? },
            });
        }
        Ok(())
    }

    /// Takes known jobs that are `available`.
    async fn claim_known(
        &self,
        worker: WorkerId,
        batch: &[Claim],
        places: &[usize],
        answers: &mut [Option<Claimed>],
    ) -> Result<(), StoreError> {
        if places.is_empty() {
            return Ok(());
        }
        let claims: Vec<&Claim> = places.iter().map(|place| &batch[*place]).collect();
        let query = sqlx::query(CLAIM_KNOWN)
            .bind(column(&claims, |claim| claim.spec.id.0))
            .bind(column(&claims, |claim| claim.spec.owner.kind().as_str()))
            .bind(column(&claims, |claim| claim.spec.owner.id()))
            .bind(column(&claims, |claim| &claim.spec.digest.0[..]))
            .bind(sparse_column(&claims, |claim| claim.spec.expires_at.map(instant)));
        let query = bind_starts(query, &claims).bind(worker.0).bind(EXPIRED_MESSAGE);
        let done = self.claimed(query, &claims).await?;
        let places: HashMap<Uuid, usize> =
            places.iter().map(|place| (batch[*place].spec.id.0, *place)).collect();
        for row in &done {
            let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
            let Some(place) = places.get(&id) else { continue };
            answers[*place] = Some(match parse_column("state", &state)? {
                State::Running => Claimed::Running(read_receipt!(row, read_time, row.try_get("age")?)),
                state => Claimed::Ended { state, kind: ended_kind(row)? },
            });
        }
        Ok(())
    }

    /// Executes a claim, whose last column is the toolkit that is to be connected.
    async fn claimed(&self, query: Bound, claims: &[&Claim]) -> Result<Vec<PgRow>, StoreError> {
        let toolkit = |claim: &&Claim| claim.stop.as_ref().and_then(Stop::waits_for).map(str::to_owned);
        let parked = claims.iter().filter(|claim| toolkit(claim).is_some());
        let parked = parked.map(|claim| claim.spec.id.0).collect();
        fetch_and_note_awaited(&self.hot, query.bind(sparse_column(claims, toolkit)), parked).await
    }
}

fn ended_kind(row: &PgRow) -> Result<ErrorKind, StoreError> {
    let kind: Option<String> = row.try_get("error_kind")?;
    parse_column("error_kind", &kind.unwrap_or_default())
}

/// Request IDs, stops and offers of claims.
fn bind_starts(query: Bound, claims: &[&Claim]) -> Bound {
    let states = column(claims, |claim| claim.goes_to().as_str());
    let reasons = sparse_column(claims, |claim| {
        claim.stop.as_ref().and_then(Stop::held_reason).map(HeldReason::as_str)
    });
    let errors = ErrorColumns(column(claims, |claim| claim.stop.as_ref().map(Stop::error)));
    let query = query.bind(column(claims, |claim| claim.request_id.0)).bind(states).bind(reasons);
    BindingColumns::new(claims.iter().map(|claim| claim.binding.as_ref())).bind(errors.bind(query))
}
