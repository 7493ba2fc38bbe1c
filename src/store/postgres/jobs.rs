//! The writes on the path of every job.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff_sqlx::Timestamp as SqlTime;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Bound, PostgresStore, at,
    connections::{note_awaited, rows_and_awaited},
    rows, time,
};
use crate::{
    job::{Binding, Ending, ErrorKind, Fence, HeldReason, JobError, JobSpec, State, Stop, WorkerId},
    store::{
        Bind, By, Claim, ClaimReceipt, Claimed, Finish, Finished, Inserted, Jobs, StoreError, StoreErrorKind,
        replay::{self, Judged, Known, Record, reporter},
        row::{
            EXPIRED_MESSAGE, MAX_ERROR_LENGTH, WORN_OUT_MESSAGE, micros, read_binding, read_known,
            read_receipt, read_record, signed, tags, to_millis, word,
        },
    },
};

/// The columns of what was asked for, bound by [`Specs`].
macro_rules! spec_columns {
    () => {
        "id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, \
         connected_account_id, queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, \
         effect, idempotency_key, tags, reply_to, correlation_id, traceparent"
    };
}

macro_rules! spec_values {
    () => {
        "i.id, i.digest, i.owner_kind, i.owner_id, i.requested_by, i.tool, i.arguments::json, i.text, i.version, \
         i.connected_account_id, i.queue, i.priority, i.run_at, i.expires_at, i.timeout_ms, i.max_attempts, \
         i.max_age_ms, i.effect, i.idempotency_key, i.tags::jsonb, i.reply_to, i.correlation_id, i.traceparent"
    };
}

macro_rules! spec_arrays {
    () => {
        "$1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
         $9::text[], $10::text[], $11::text[], $12::smallint[], $13::timestamptz[], $14::timestamptz[], \
         $15::bigint[], $16::integer[], $17::bigint[], $18::text[], $19::text[], $20::text[], $21::text[], \
         $22::text[], $23::text[]"
    };
}

const INSERT: &str = concat!(
    "insert into jobs (",
    spec_columns!(),
    ", state, created_at, due_at, published) select ",
    spec_values!(),
    ", case when i.run_at > now() then 'scheduled' else 'available' end, now(),
        case when i.run_at > now() then i.run_at else now() + $24::bigint * interval '1 microsecond' end,
        case when i.run_at > now() or $24 = 0 then 0 else 1 end
    from unnest(",
    spec_arrays!(),
    ") as i (",
    spec_columns!(),
    ") on conflict do nothing
    returning id, state"
);

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
        attempt = j.attempt + case when s.state = 'running' then 1 else 0 end,
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
        and (i.verdict <> 'running' or (j.attempt < 2147483647 and j.fence < 9223372036854775807))
    returning j.id, j.state, j.error_kind, j.fence, j.attempt, j.spent, j.toolkit, j.toolkit_version, j.pinned_by,
        j.account, j.frozen_effect, j.created_at, (extract(epoch from now() - j.created_at) * 1000000)::bigint as age), ",
    log_claims!("$18"),
    " select * from claimed"
);

/// For what [`CLAIM_KNOWN`] leaves out, because its columns cannot count any further.
const WEAR_OUT: &str = "update jobs set state = 'failed', due_at = null, settled_by = $2, error_kind = $3,
        error_message = left($4 || coalesce('; its last error: ' || error_message, ''), $5),
        error_code = null, error_slug = null, finished_at = now(),
        reply_due_at = case when reply_to is not null then now() end
    where id = $1 and state = 'available' and (attempt >= 2147483647 or fence >= 9223372036854775807)
    returning 1";

/// What stands in the way, by ID, or by idempotency key where the ID is new.
const KNOWN: &str = "with i as (
        select * from unnest($1::integer[], $2::uuid[], $3::text[], $4::text[], $5::text[])
            as i (place, id, owner_kind, owner_id, idempotency_key)),
    found as (
        select i.place, false as by_key, j.id from i join jobs j on j.id = i.id
        union all
        select i.place, true, j.id from i join jobs j on j.owner_kind = i.owner_kind and j.owner_id = i.owner_id
            and j.idempotency_key = i.idempotency_key
        where not exists (select 1 from jobs k where k.id = i.id))
    select f.place, f.by_key, j.id, j.owner_kind, j.owner_id, j.digest, j.state, j.error_kind, j.worker_id,
        j.request_id, j.settled_by, j.fence, j.attempt, j.spent, j.toolkit, j.toolkit_version, j.pinned_by, j.account,
        j.frozen_effect, j.created_at, (extract(epoch from now() - j.created_at) * 1000000)::bigint as age
    from found f join jobs j on j.id = f.id";

const BIND: &str = "update jobs j set toolkit = i.toolkit, toolkit_version = i.toolkit_version,
        pinned_by = i.pinned_by, account = i.account, frozen_effect = i.frozen_effect
    from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
        as i (id, fence, toolkit, toolkit_version, pinned_by, account, frozen_effect)
    where j.id = i.id and j.fence = i.fence and j.state = 'running'
        and (j.toolkit is null or (j.toolkit, j.toolkit_version, j.pinned_by, j.frozen_effect)
                is not distinct from (i.toolkit, i.toolkit_version, i.pinned_by, i.frozen_effect)
            and (j.account is null or j.account = i.account))
    returning j.id, j.fence, j.toolkit, j.toolkit_version, j.pinned_by, j.account, j.frozen_effect";

/// The attempts are written from what the update returns, without joining the batch again, which the
/// planner would do by comparing each with each.
///
/// A first attempt that succeeded is recorded in the job's row, which says the same; the status is the mark.
/// The lease is null for the holder. A snooze that has nothing to tell keeps the error of the attempt
/// before.
const FINISH: &str = "with i as (
        select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::integer[],
                $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::text[], $13::integer[],
                $14::uuid[], $15::text[], $16::integer[], $17::text[], $18::text[], $19::text[], $20::text[],
                $21::bigint[], $22::text[], $23::timestamptz[], $24::timestamptz[], $25::text[], $26::bigint[],
                $27::text[])
            as i (id, fence, lease, state, after, charge, held_reason, error_kind, error_message, error_code,
                error_slug, result, number, request_id, outcome, http_status, log_id, version, attempt_error_kind,
                attempt_error_message, attempt_error_code, attempt_error_slug, started_at, finished_at, reported_by,
                check_after, waits_for)),
    ended as (
        update jobs j set
            state = case when j.cancel_requested and i.state in ('retryable', 'held') then 'cancelled' else i.state end,
            due_at = case when not j.cancel_requested then now() + i.after * interval '1 microsecond' end,
            spent = j.spent + least(i.charge, j.attempt - j.spent), worker_id = null,
            held_reason = case when not j.cancel_requested then i.held_reason end,
            check_at = case when not j.cancel_requested then now() + i.check_after * interval '1 microsecond' end,
            unknown_since = case when i.check_after is not null then now() else j.unknown_since end,
            checks = case when i.check_after is not null then 0 else j.checks end,
            error_kind = case when i.state = 'retryable' and i.error_kind is null then j.error_kind else i.error_kind end,
            error_message = case when i.state = 'retryable' and i.error_kind is null then j.error_message else i.error_message end,
            error_code = case when i.state = 'retryable' and i.error_kind is null then j.error_code else i.error_code end,
            error_slug = case when i.state = 'retryable' and i.error_kind is null then j.error_slug else i.error_slug end,
            result = i.result::json, log_id = coalesce(i.log_id, j.log_id),
            http_status = case when i.number = 1 and i.state = 'succeeded' and i.outcome = 'succeeded'
                and i.version is not distinct from j.toolkit_version then i.http_status end,
            finished_at = case when j.cancel_requested or i.state in ('succeeded', 'failed') then now() end,
            reply_due_at = case when j.reply_to is not null and (j.cancel_requested or i.state in ('succeeded', 'failed')) then now() end,
            waits_for = coalesce(i.waits_for, j.waits_for),
            waits_until = case when i.waits_for is null then j.waits_until
                else least(j.expires_at, j.created_at + j.max_age_ms * interval '1 millisecond') end
        from i
        where j.id = i.id and j.fence = i.fence and j.state = 'running'
            and (i.lease is null or not exists (select 1 from workers w where w.id = j.worker_id
                and w.beat_at > now() - i.lease * interval '1 microsecond'))
            and (i.lease is null or i.outcome <> 'interrupted' or j.toolkit is null)
        returning j.id, j.state, j.http_status as kept, i.number, i.request_id, i.outcome, i.http_status, i.log_id, i.version,
            i.attempt_error_kind, i.attempt_error_message, i.attempt_error_code, i.attempt_error_slug, i.started_at,
            i.finished_at, i.reported_by, i.charge),
    recorded as (
        insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version, error_kind,
            error_message, error_code, error_slug, started_at, finished_at, reported_by, ended_as, late, charged)
        select id, number, request_id, outcome, http_status, log_id, version, attempt_error_kind,
            attempt_error_message, attempt_error_code, attempt_error_slug, started_at, finished_at, reported_by,
            state, false, charge > 0
        from ended where kept is null
        on conflict (job_id, number) do nothing)
    select id, state from ended";

const STANDING: &str = "select state, fence from jobs where id = $1 for update";

const MET: &str = "select request_id, outcome, reported_by, ended_as, late, charged from attempts
    where job_id = $1 and number = $2
    union all
    select request_id, 'succeeded', 'holder', state, false, true from jobs
    where id = $1 and attempt = $2 and http_status is not null";

/// A job that was rescued has no mark of cancellation. $3 is what the rescue charged.
const FINISH_LATE: &str = "update jobs set state = $4,
        due_at = now() + $5 * interval '1 microsecond',
        spent = least(attempt, greatest(0, spent::bigint + $6 - $3)), published = 0, held_reason = $7,
        check_at = now() + $14::bigint * interval '1 microsecond',
        unknown_since = case when $14 is not null then now() else unknown_since end,
        error_kind = case when $4 = 'retryable' and $8::text is null then error_kind else $8 end,
        error_message = case when $4 = 'retryable' and $8 is null then error_message else $9 end,
        error_code = case when $4 = 'retryable' and $8 is null then error_code else $10 end,
        error_slug = case when $4 = 'retryable' and $8 is null then error_slug else $11 end,
        result = $12::json, log_id = coalesce($13, log_id),
        finished_at = case when $4 in ('succeeded', 'failed') then now() end,
        reply_due_at = case when reply_to is not null and $4 in ('succeeded', 'failed') then now() end,
        waits_for = coalesce($15, waits_for),
        waits_until = case when $15 is null then waits_until
            else least(expires_at, created_at + max_age_ms * interval '1 millisecond') end
    where id = $1 and fence = $2 and state in ('scheduled', 'available', 'retryable', 'held')
    returning state";

const RECORD: &str = "insert into attempts (job_id, number, request_id, outcome, http_status, log_id, version,
        error_kind, error_message, error_code, error_slug, started_at, finished_at, reported_by, ended_as, late, charged)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
    on conflict (job_id, number) do update set outcome = excluded.outcome, http_status = excluded.http_status,
        log_id = excluded.log_id, version = excluded.version, error_kind = excluded.error_kind,
        error_message = excluded.error_message, error_code = excluded.error_code, error_slug = excluded.error_slug,
        started_at = excluded.started_at, finished_at = excluded.finished_at, reported_by = excluded.reported_by,
        ended_as = excluded.ended_as, late = excluded.late, charged = excluded.charged
    where attempts.request_id = excluded.request_id";

/// How often a batch looks again at jobs that change under it.
const MAX_ROUNDS: usize = 8;

#[async_trait]
impl Jobs for PostgresStore {
    async fn insert(
        &self,
        batch: &[Arc<JobSpec>],
        unclaimed_after: Duration,
    ) -> Result<Vec<Inserted>, StoreError> {
        let mut answers: Vec<Option<Inserted>> = vec![None; batch.len()];
        for _ in 0..MAX_ROUNDS {
            let open = first_of_each(answers.iter().map(Option::is_none), batch);
            let specs = Specs::new(open.iter().map(|place| &*batch[*place]));
            let inserted =
                rows(&self.hot, specs.bind(sqlx::query(INSERT)).bind(micros(unclaimed_after))).await?;
            let places: HashMap<Uuid, usize> =
                open.iter().map(|place| (batch[*place].id.0, *place)).collect();
            for row in &inserted {
                let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
                if let Some(place) = places.get(&id) {
                    answers[*place] = Some(Inserted::New { state: word("state", &state)? });
                }
            }
            let left = unanswered(&answers);
            for (place, known) in self.known(left.iter().map(|place| (*place, &*batch[*place]))).await? {
                answers[place] = Some(known.inserted(&batch[place]));
            }
            if let Some(answers) = whole(&mut answers) {
                return Ok(answers);
            }
        }
        Err(restless())
    }

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
            if let Some(answers) = whole(&mut answers) {
                return Ok(answers);
            }
            let left = unanswered(&answers);
            let mut found = self.known(left.iter().map(|place| (*place, &*batch[*place].spec))).await?;
            for place in left {
                let claim = &batch[place];
                match found.remove(&place) {
                    Some(known) if known.by_key && claim.from_store => answers[place] = Some(Claimed::Gone),
                    Some(known) => {
                        let is_worn_out = known.is_worn_out(claim);
                        answers[place] = known.claimed(claim, worker, again[place]);
                        if answers[place].is_none() && is_worn_out {
                            answers[place] = self.wear_out(claim).await?;
                        }
                    }
                    None if claim.from_store => answers[place] = Some(Claimed::Gone),
                    None => again[place] = false,
                }
            }
            if let Some(answers) = whole(&mut answers) {
                return Ok(answers);
            }
        }
        Err(restless())
    }

    async fn bind(&self, batch: &[Bind]) -> Result<Vec<bool>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let query =
            sqlx::query(BIND).bind(all(batch, |bind| bind.id.0)).bind(all(batch, |bind| bind.fence.0));
        let binding = BindingColumns::new(batch.iter().map(|bind| Some(&bind.binding)));
        let mut done = HashMap::with_capacity(batch.len());
        for row in rows(&self.hot, binding.bind(query)).await? {
            let (id, fence): (Uuid, i64) = (row.try_get("id")?, row.try_get("fence")?);
            done.insert((id, fence), read_binding!(row).binding()?);
        }
        let is_kept = |Bind { id, fence, binding }: &Bind| {
            done.get(&(id.0, fence.0)).is_some_and(|kept| kept.as_ref() == Some(binding))
        };
        Ok(batch.iter().map(is_kept).collect())
    }

    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut answers: Vec<Option<Finished>> = vec![None; batch.len()];
        let mut places: HashMap<Uuid, usize> = HashMap::with_capacity(batch.len());
        for (place, finish) in batch.iter().enumerate() {
            places.entry(finish.id.0).or_insert(place);
        }
        let mut firsts: Vec<&Finish> = places.values().map(|place| &batch[*place]).collect();
        firsts.sort_unstable_by_key(|finish| finish.id);
        let query = bind_finishes(&firsts);
        for row in rows_and_awaited(&self.hot, query, parked(firsts.iter().copied())).await? {
            let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
            if let Some(place) = places.get(&id) {
                answers[*place] = Some(Finished::Applied { state: word("state", &state)?, late: false });
            }
        }
        let mut left = unanswered(&answers);
        if !left.is_empty() {
            left.sort_by_key(|place| batch[*place].id);
            let finishes = left.iter().map(|place| batch[*place].clone()).collect();
            for (place, answer) in left.into_iter().zip(self.finish_leftovers(finishes).await?) {
                answers[place] = Some(answer);
            }
        }
        whole(&mut answers).ok_or_else(restless)
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
            answers[*place] = Some(match word("state", &state)? {
                State::Running => Claimed::Running(ClaimReceipt {
                    fence: Fence(1),
                    attempt: 1,
                    spent: 0,
                    binding: batch[*place].binding.clone(),
                    created_at: time(row, "created_at")?.unwrap_or_default(),
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
            .bind(all(&claims, |claim| claim.spec.id.0))
            .bind(all(&claims, |claim| claim.spec.owner.kind().as_str()))
            .bind(all(&claims, |claim| claim.spec.owner.id()))
            .bind(all(&claims, |claim| &claim.spec.digest.0[..]))
            .bind(some(&claims, |claim| claim.spec.expires_at.map(at)));
        let query = bind_starts(query, &claims).bind(worker.0).bind(EXPIRED_MESSAGE);
        let done = self.claimed(query, &claims).await?;
        let places: HashMap<Uuid, usize> =
            places.iter().map(|place| (batch[*place].spec.id.0, *place)).collect();
        for row in &done {
            let (id, state): (Uuid, String) = (row.try_get("id")?, row.try_get("state")?);
            let Some(place) = places.get(&id) else { continue };
            answers[*place] = Some(match word("state", &state)? {
                State::Running => Claimed::Running(read_receipt!(row, time, row.try_get("age")?)),
                state => Claimed::Ended { state, kind: ended_kind(row)? },
            });
        }
        Ok(())
    }

    /// Ends a job that cannot be claimed once more; `None` when it has changed meanwhile.
    async fn wear_out(&self, claim: &Claim) -> Result<Option<Claimed>, StoreError> {
        let kind = ErrorKind::Internal;
        let query = sqlx::query(WEAR_OUT)
            .bind(claim.spec.id.0)
            .bind(claim.request_id.0)
            .bind(kind.as_str())
            .bind(WORN_OUT_MESSAGE)
            .bind(MAX_ERROR_LENGTH);
        let ended = !rows(&self.hot, query).await?.is_empty();
        Ok(ended.then_some(Claimed::Ended { state: State::Failed, kind }))
    }

    /// Executes a claim, whose last column is the toolkit that is to be connected.
    async fn claimed(&self, query: Bound, claims: &[&Claim]) -> Result<Vec<PgRow>, StoreError> {
        let toolkit = |claim: &&Claim| claim.stop.as_ref().and_then(Stop::waits_for).map(str::to_owned);
        let parked = claims.iter().filter(|claim| toolkit(claim).is_some());
        let parked = parked.map(|claim| claim.spec.id.0).collect();
        rows_and_awaited(&self.hot, query.bind(some(claims, toolkit)), parked).await
    }

    /// What stands in the way of the given specs, by their place.
    async fn known<'a>(
        &self,
        specs: impl Iterator<Item = (usize, &'a JobSpec)> + Send,
    ) -> Result<HashMap<usize, Known>, StoreError> {
        let specs: Vec<(usize, &JobSpec)> = specs.collect();
        if specs.is_empty() {
            return Ok(HashMap::new());
        }
        let query = sqlx::query(KNOWN)
            .bind(all(&specs, |(place, _)| i32::try_from(*place).unwrap_or(i32::MAX)))
            .bind(all(&specs, |(_, spec)| spec.id.0))
            .bind(all(&specs, |(_, spec)| spec.owner.kind().as_str()))
            .bind(all(&specs, |(_, spec)| spec.owner.id()))
            .bind(all(&specs, |(_, spec)| spec.idempotency_key.as_deref()));
        let mut found = HashMap::new();
        for row in &rows(&self.hot, query).await? {
            let place: i32 = row.try_get("place")?;
            let place = usize::try_from(place).map_err(|_| StoreError::corrupt("place"))?;
            found.insert(place, read_known!(row, time, row.try_get("by_key")?, row.try_get("age")?));
        }
        Ok(found)
    }

    /// Finishes whose jobs are not running under their fence, in one transaction.
    async fn finish_leftovers(&self, finishes: Vec<Finish>) -> Result<Vec<Finished>, StoreError> {
        let work = self.hot.transaction(move |db| {
            Box::pin(async move {
                let mut answers = Vec::with_capacity(finishes.len());
                for finish in &finishes {
                    answers.push(finish_leftover(db, finish).await?);
                }
                let parked = parked(&finishes);
                if !parked.is_empty() {
                    note_awaited(db, parked).await?;
                }
                Ok(answers)
            })
        });
        work.await
    }
}

async fn finish_leftover(db: &mut PgConnection, finish: &Finish) -> Result<Finished, StoreError> {
    let job = match sqlx::query(STANDING).bind(finish.id.0).fetch_optional(&mut *db).await? {
        Some(row) => {
            let state: String = row.try_get("state")?;
            Some((word("state", &state)?, Fence(row.try_get("fence")?)))
        }
        None => None,
    };
    let met = sqlx::query(MET).bind(finish.id.0).bind(signed(finish.attempt.number));
    let met: Option<Record> = match met.fetch_optional(&mut *db).await? {
        Some(row) => Some(read_record!(&row)),
        None => None,
    };
    let answer = match replay::finish(finish, job, met.as_ref())? {
        Judged::Answer(answer) => return Ok(answer),
        Judged::Record => Finished::Fenced,
        Judged::Late { charged } => {
            let query = bind_late(sqlx::query(FINISH_LATE), charged, finish);
            let state: String = query.fetch_one(&mut *db).await?.try_get(0)?;
            Finished::Applied { state: word("state", &state)?, late: true }
        }
    };
    record(db, finish, answer).await?;
    Ok(answer)
}

async fn record(db: &mut PgConnection, finish: &Finish, answer: Finished) -> Result<(), StoreError> {
    let (attempt, error) = (&finish.attempt, finish.attempt.error.as_ref());
    let (ended_as, late) = match answer {
        Finished::Applied { state, late } => (Some(state), late),
        Finished::Fenced => (None, false),
    };
    sqlx::query(RECORD)
        .bind(finish.id.0)
        .bind(signed(attempt.number))
        .bind(attempt.request_id.0)
        .bind(attempt.outcome.as_str())
        .bind(attempt.http_status.map(i32::from))
        .bind(attempt.log_id.as_deref())
        .bind(attempt.version.as_deref())
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug))
        .bind(at(attempt.started_at))
        .bind(at(attempt.finished_at))
        .bind(reporter(finish.by))
        .bind(ended_as.map(State::as_str))
        .bind(late)
        .bind(ended_as.is_some() && finish.ending.spends_attempt())
        .execute(db)
        .await?;
    Ok(())
}

fn ended_kind(row: &PgRow) -> Result<ErrorKind, StoreError> {
    let kind: Option<String> = row.try_get("error_kind")?;
    word("error_kind", &kind.unwrap_or_default())
}

/// The first open place of every ID, in the order of the IDs, so that concurrent batches wait for
/// each other in one direction.
fn first_of_each(open: impl Iterator<Item = bool>, batch: &[Arc<JobSpec>]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(batch.len());
    let mut places: Vec<usize> = open
        .enumerate()
        .filter(|(place, open)| *open && seen.insert(batch[*place].id))
        .map(|(place, _)| place)
        .collect();
    places.sort_unstable_by_key(|place| batch[*place].id);
    places
}

fn unanswered<T>(answers: &[Option<T>]) -> Vec<usize> {
    (0..answers.len()).filter(|place| answers[*place].is_none()).collect()
}

/// The answers, once all are there.
fn whole<T>(answers: &mut Vec<Option<T>>) -> Option<Vec<T>> {
    if answers.iter().any(Option::is_none) {
        return None;
    }
    Some(std::mem::take(answers).into_iter().flatten().collect())
}

fn restless() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "the jobs of a batch kept changing while it was written")
}

/// One column of a batch.
fn all<'a, T, C>(batch: &'a [T], column: impl Fn(&'a T) -> C) -> Vec<C> {
    batch.iter().map(column).collect()
}

/// A column that most batches do not use. One without any value is sent without elements: `unnest`
/// fills it up with nulls to the length of the others, and neither side pays for them.
fn some<'a, T, C>(batch: &'a [T], column: impl Fn(&'a T) -> Option<C>) -> Vec<Option<C>> {
    let mut values = Vec::new();
    for (place, item) in batch.iter().enumerate() {
        let value = column(item);
        if value.is_some() && values.is_empty() {
            values.reserve(batch.len());
            values.extend((0..place).map(|_| None));
        }
        if value.is_some() || !values.is_empty() {
            values.push(value);
        }
    }
    values
}

/// The columns of what was asked for.
struct Specs<'a>(Vec<&'a JobSpec>);

impl<'a> Specs<'a> {
    fn new(specs: impl Iterator<Item = &'a JobSpec>) -> Self {
        Self(specs.collect())
    }

    fn column<C>(&self, column: impl Fn(&'a JobSpec) -> C) -> Vec<C> {
        all(&self.0, |spec| column(spec))
    }

    fn some<C>(&self, column: impl Fn(&'a JobSpec) -> Option<C>) -> Vec<Option<C>> {
        some(&self.0, |spec| column(spec))
    }

    fn bind(&self, query: Bound) -> Bound {
        query
            .bind(self.column(|spec| spec.id.0))
            .bind(self.column(|spec| &spec.digest.0[..]))
            .bind(self.column(|spec| spec.owner.kind().as_str()))
            .bind(self.column(|spec| spec.owner.id()))
            .bind(self.some(|spec| spec.requested_by.as_deref()))
            .bind(self.column(|spec| &*spec.tool))
            .bind(self.some(|spec| spec.arguments.as_deref().map(|raw| raw.get())))
            .bind(self.some(|spec| spec.text.as_deref()))
            .bind(self.some(|spec| spec.version.as_deref()))
            .bind(self.some(|spec| spec.connected_account_id.as_deref()))
            .bind(self.column(|spec| spec.queue.as_str()))
            .bind(self.column(|spec| spec.priority))
            .bind(self.some(|spec| spec.run_at.map(at)))
            .bind(self.some(|spec| spec.expires_at.map(at)))
            .bind(self.some(|spec| to_millis(spec.timeout)))
            .bind(self.some(|spec| spec.budget.max_attempts.map(signed)))
            .bind(self.some(|spec| to_millis(spec.budget.max_age)))
            .bind(self.some(|spec| spec.effect.map(|effect| effect.as_str())))
            .bind(self.some(|spec| spec.idempotency_key.as_deref()))
            .bind(self.column(tags))
            .bind(self.some(|spec| spec.reply_to.as_deref()))
            .bind(self.some(|spec| spec.correlation_id.as_deref()))
            .bind(self.some(|spec| spec.traceparent.as_deref()))
    }
}

/// The columns of errors.
struct ErrorColumns<'a>(Vec<Option<&'a JobError>>);

impl ErrorColumns<'_> {
    fn bind(&self, query: Bound) -> Bound {
        query
            .bind(some(&self.0, |error| error.map(|e| e.kind().as_str())))
            .bind(some(&self.0, |error| error.map(JobError::message)))
            .bind(some(&self.0, |error| error.and_then(JobError::code)))
            .bind(some(&self.0, |error| error.and_then(JobError::slug)))
    }
}

/// The columns of what is decided once.
struct BindingColumns<'a>(Vec<Option<&'a Binding>>);

impl<'a> BindingColumns<'a> {
    fn new(binding: impl Iterator<Item = Option<&'a Binding>>) -> Self {
        Self(binding.collect())
    }

    fn bind(&self, query: Bound) -> Bound {
        query
            .bind(some(&self.0, |binding| binding.map(|f| &*f.toolkit)))
            .bind(some(&self.0, |binding| binding.map(|f| &*f.version)))
            .bind(some(&self.0, |binding| binding.map(|f| f.pinned_by.as_str())))
            .bind(some(&self.0, |binding| binding.and_then(|f| f.account.as_deref())))
            .bind(some(&self.0, |binding| binding.map(|f| f.effect.as_str())))
    }
}

/// Request IDs, stops and offers of claims.
fn bind_starts(query: Bound, claims: &[&Claim]) -> Bound {
    let states = all(claims, |claim| claim.goes_to().as_str());
    let reasons =
        some(claims, |claim| claim.stop.as_ref().and_then(Stop::held_reason).map(HeldReason::as_str));
    let errors = ErrorColumns(all(claims, |claim| claim.stop.as_ref().map(Stop::error)));
    let query = query.bind(all(claims, |claim| claim.request_id.0)).bind(states).bind(reasons);
    BindingColumns::new(claims.iter().map(|claim| claim.binding.as_ref())).bind(errors.bind(query))
}

fn bind_finishes(batch: &[&Finish]) -> Bound {
    let query = sqlx::query(FINISH)
        .bind(all(batch, |finish| finish.id.0))
        .bind(all(batch, |finish| finish.fence.0))
        .bind(some(batch, |finish| match finish.by {
            By::Holder => None,
            By::Rescuer { lease } => Some(micros(lease)),
        }))
        .bind(all(batch, |finish| finish.ending.state().as_str()))
        .bind(some(batch, |finish| wait_of(&finish.ending)))
        .bind(all(batch, |finish| i32::from(finish.ending.spends_attempt())))
        .bind(some(batch, |finish| finish.ending.held_reason().map(HeldReason::as_str)));
    let query = ErrorColumns(all(batch, |finish| finish.ending.error()))
        .bind(query)
        .bind(some(batch, |finish| result_of(&finish.ending)))
        .bind(all(batch, |finish| signed(finish.attempt.number)))
        .bind(all(batch, |finish| finish.attempt.request_id.0))
        .bind(all(batch, |finish| finish.attempt.outcome.as_str()))
        .bind(some(batch, |finish| finish.attempt.http_status.map(i32::from)))
        .bind(some(batch, |finish| finish.attempt.log_id.as_deref()))
        .bind(some(batch, |finish| finish.attempt.version.as_deref()));
    let times = |time: fn(&Finish) -> jiff::Timestamp| -> Vec<SqlTime> {
        batch.iter().map(|finish| at(time(finish))).collect()
    };
    ErrorColumns(all(batch, |finish| finish.attempt.error.as_ref()))
        .bind(query)
        .bind(times(|finish| finish.attempt.started_at))
        .bind(times(|finish| finish.attempt.finished_at))
        .bind(all(batch, |finish| reporter(finish.by)))
        .bind(some(batch, |finish| check_after(&finish.ending)))
        .bind(some(batch, |finish| finish.ending.waits_for()))
}

fn bind_late(query: Bound, charged: bool, finish: &Finish) -> Bound {
    let (ending, error) = (&finish.ending, finish.ending.error());
    query
        .bind(finish.id.0)
        .bind(finish.fence.0)
        .bind(i32::from(charged))
        .bind(ending.state().as_str())
        .bind(wait_of(ending))
        .bind(i32::from(ending.spends_attempt()))
        .bind(ending.held_reason().map(HeldReason::as_str))
        .bind(error.map(|e| e.kind().as_str()))
        .bind(error.map(JobError::message))
        .bind(error.and_then(JobError::code))
        .bind(error.and_then(JobError::slug))
        .bind(result_of(ending))
        .bind(finish.attempt.log_id.as_deref())
        .bind(check_after(ending))
        .bind(ending.waits_for())
}

/// The jobs that these endings hold until there is a connection.
fn parked<'a>(finishes: impl IntoIterator<Item = &'a Finish>) -> Vec<Uuid> {
    let parked = finishes.into_iter().filter(|finish| finish.ending.waits_for().is_some());
    parked.map(|finish| finish.id.0).collect()
}

fn check_after(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Verify { after, .. } => Some(micros(*after)),
        _ => None,
    }
}

fn wait_of(ending: &Ending) -> Option<i64> {
    match ending {
        Ending::Retry { after, .. } | Ending::Snooze { after, .. } => Some(micros(*after)),
        Ending::Succeed { .. } | Ending::Stop(_) | Ending::Verify { .. } => None,
    }
}

fn result_of(ending: &Ending) -> Option<&str> {
    match ending {
        Ending::Succeed { result } => Some(result.get()),
        Ending::Stop(_) | Ending::Retry { .. } | Ending::Snooze { .. } | Ending::Verify { .. } => None,
    }
}
