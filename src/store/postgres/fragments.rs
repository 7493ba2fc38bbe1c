//! What several statements have in common.

use sqlx::Postgres;

use crate::store::{
    audit::RULES,
    batches::{
        BATCH, COUNT_JOBS, COUNTS, COUNTS_DIFFER, GOES_ON, HAS_FAILED, MAY_BE_OPENED, MAY_BE_REOPENED,
        SET_COUNTS, SUM_COUNTS,
    },
    callbacks::{IS_FIRST_OF_SUBJECT, OWN_URL},
    columns::common_lists,
    job_control::{MAY_HAVE_ACTED, MAY_HAVE_RUN},
    job_lists::{GLANCE, IS_UNKNOWN},
    rows::{BESIDE_SPEC, CALLED_JOB, FIRST_DUE, JOB},
    sql::{Declared, Dialect},
};

impl Dialect for Postgres {
    const MARK: char = '$';
    const CASTS_JSON: bool = true;
    const FRAGMENTS: &'static [(&'static str, &'static str)] = &[
        ("job", JOB),
        ("called_job", CALLED_JOB),
        ("beside_spec", BESIDE_SPEC),
        ("first_due", FIRST_DUE),
        ("is_operator", "{principal_kind}::text is null"),
        // Whether a job is one that the principal may see; what is about the job `job_id` is if that is.
        ("may_see", "({is_operator} or owner_kind = {principal_kind} and owner_id = {principal_id})"),
        // Whether it is the principal's own, for the operator, too.
        (
            "is_of_principal",
            "({is_operator} and owner_kind is null or owner_kind = {principal_kind} and owner_id = {principal_id})",
        ),
        // An entry of the audit log; what follows are whose it is about, the object, and what was before and after.
        (
            "log",
            "insert into changes ({change}, owner_kind, owner_id, object, before_value, after_value) select {values change}",
        ),
        (
            "wanted_changes",
            "({kind}::text is null or substr(what, 1, length({kind})) = {kind}) and ({object}::text is null or object = {object})
            and ({wanted_kind}::text is null or owner_kind = {wanted_kind} and owner_id = {wanted_id})
            and ({wanted_by}::text is null or decider = {wanted_by})",
        ),
        ("is_valid", "k.revoked_at is null and (k.expires_at is null or k.expires_at > now())"),
        ("may_see_of", "exists (select 1 from jobs where jobs.id = job_id and {may_see})"),
        // What the holder of a claim knows.
        (
            "receipt of j",
            "j.fence, j.attempt, j.spent, {j.binding}, j.created_at, j.first_due_at,
            (extract(epoch from now() - j.created_at) * 1000000)::bigint as age,
            (extract(epoch from now() - j.postponed_since) * 1000000)::bigint as postponed_for",
        ),
        ("receipt", "fence, attempt, spent, {binding}, created_at, first_due_at, age, postponed_for"),
        // What an event tells of a job; and the word of the event where it ended or is held.
        (
            "event of j",
            "j.id, j.events, j.batch_id, j.owner_kind, j.owner_id, j.tool, coalesce(j.toolkit, j.waits_for) as event_toolkit, j.queue,
            j.attempt as event_attempt, j.state, j.held_reason, j.error_kind, j.callback_url",
        ),
        (
            "event of jobs",
            "id, events, batch_id, owner_kind, owner_id, tool, coalesce(toolkit, waits_for) as event_toolkit, queue,
            attempt as event_attempt, state, held_reason, error_kind, callback_url",
        ),
        ("end of j", "case when j.state in ('succeeded', 'failed', 'cancelled', 'held') then 'job.' || j.state end"),
        ("end of jobs", "case when state in ('succeeded', 'failed', 'cancelled', 'held') then 'job.' || state end"),
        // Records the events of the jobs that a statement changed, in one row for all.
        (
            "record_events",
            "recorded_events as (
            insert into event_inbox ({inbox})
            select array_agg(event), array_agg(events), array_agg(id), array_agg(batch_id), array_agg(owner_kind), array_agg(owner_id),
                array_agg(tool), array_agg(event_toolkit), array_agg(queue), array_agg(event_attempt), array_agg(held_reason),
                array_agg(error_kind), array_agg(callback_url)
            from changed where {record} and event is not null having count(*) > 0)",
        ),
        // The same of the batch that it changed.
        (
            "record_batch_event",
            "recorded_events as (
            insert into event_inbox ({inbox})
            select array[event], array[events], array[null::uuid], array[id], array[owner_kind], array[owner_id], array[null], array[null],
                array[null], array[null::integer], array[null], array[null], array[callback_url]
            from changed where {record} and event is not null)",
        ),
        (
            "inbox",
            "kinds, sequences, job_ids, batch_ids, owner_kinds, owner_ids, tools, toolkits, queues, attempts, held_reasons, error_kinds, callback_urls",
        ),
        ("is_first_of_subject", IS_FIRST_OF_SUBJECT),
        // As `=`, and no index is used for it.
        ("equals", "is not distinct from"),
        // What signs for the owner of a callback `c`.
        (
            "signing_secrets",
            "c.secret, c.previous_secret, c.previous_until, coalesce(c.previous_until > now(), false) as previous_signs",
        ),
        ("own_url", OWN_URL),
        // What is done with a page of deliveries that are sent again.
        (
            "recover_page",
            "changed as (update deliveries set state = 'waiting', waiting_since = now(), due_at = now(), tries = 0, finished_at = null
                where id in (select id from page) returning id, created_at, receiver),
            asked as (update receivers set next_at = now(), failures = 0 where id in (select receiver from changed)),
            logged as ({log}, {owner_kind}::text, {owner_id}::text, {owner_id}::text, null, jsonb_build_object('deliveries', deliveries)::text
                from (select count(*) as deliveries from changed) c where deliveries > 0)
            select id, created_at, count(*) over () as deliveries from changed order by created_at, id limit 1",
        ),
        // Whether nothing is sent any more to a URL that answered so.
        (
            "is_given_up",
            "(not {taken} and ({gone} or coalesce(failing_since < now() - {patience}::bigint * interval '1 microsecond', false)))",
        ),
        // Which of some jobs owe a reply, and are not locked by others.
        (
            "owed",
            "select id from jobs where id = any({ids}) and reply_due_at is not null for no key update skip locked",
        ),
        // An instant that is given in microseconds since 1970.
        ("instant", "timestamptz 'epoch' + {at}::bigint * interval '1 microsecond'"),
        // What is looked at before a job is removed.
        (
            "old_job",
            "id, owner_kind, owner_id, state, (extract(epoch from created_at) * 1000000)::bigint as at,
        (extract(epoch from finished_at) * 1000000)::bigint as finished_at,
        (extract(epoch from now() - finished_at) * 1000000)::bigint as finished_for,
        reply_due_at is not null as owes_reply, check_at is not null as is_looked_up,
        coalesce(pg_column_size(arguments), 0)::bigint + coalesce(pg_column_size(result), 0) as bytes",
        ),
        // Whether a record `a` is that of a snooze which its holder reported.
        (
            "is_snooze",
            "a.ended_as = 'retryable' and not a.charged and not a.late and a.reported_by = 'holder'",
        ),
        // When a job gives up waiting for a connection.
        ("waits_until", "least(j.expires_at, j.created_at + j.max_age_ms * interval '1 millisecond')"),
        // Notes which jobs a worker took with this statement, which is how they are found when it stops: no index of
        // `jobs` knows a state, so that a finish changes none of them.
        (
            "log_claims",
            "logged as (insert into claims (worker_id, job_ids)
                select {worker}::uuid, array_agg(id) from changed where state = 'running' having count(*) > 0)",
        ),
        // The running jobs among those that a claim `c` took. The offset keeps the planner from joining the other
        // way round: right after many claims, before the statistics know of them, it would compare each job with
        // each.
        (
            "running_of_claim",
            "unnest(c.job_ids) as taken (id)
            cross join lateral (select * from jobs
                where jobs.id = taken.id and worker_id = c.worker_id and state = 'running' offset 0) j",
        ),
        // Whether a connection should be asked about now, together with others or alone. The tool API takes a list of
        // owners joined by commas.
        (
            "is_due_awaited",
            "look_at <= now() and (lookups > 0 or look_at <= now() - {first_after}::bigint * interval '1 microsecond')
            and (account = '' and position(',' in owner_id) = 0) = {together}",
        ),
        // The jobs of an awaited connection `a`.
        (
            "is_job_of_awaited",
            "j.held_reason = 'connection' and j.owner_id = a.owner_id and j.waits_for = a.toolkit
            and j.owner_kind = a.owner_kind and coalesce(j.connected_account_id, '') = a.account",
        ),
        // What a held job becomes that is let go.
        (
            "to_retry",
            "state = 'available', due_at = now(), first_due_at = now(), published = 0, postponed_since = null, held_reason = null,
        check_at = null, events = events + 1,
        account = case when held_reason <> 'connection' or connected_account_id is not null then account end",
        ),
        (
            "to_succeeded",
            "state = 'succeeded', held_reason = null, check_at = null, result = {result}::text::json,
        {each error: @ = null}, events = events + 1, finished_at = now(), reply_due_at = case when reply_to is not null then now() end",
        ),
        (
            "to_failed",
            "state = 'failed', held_reason = null, check_at = null, {each error: @ = {@}}, events = events + 1, finished_at = now(),
        reply_due_at = case when reply_to is not null then now() end",
        ),
        ("glance", GLANCE),
        ("finished_micros", "(extract(epoch from finished_at) * 1000000)::bigint"),
        ("finished_for", "(extract(epoch from now() - finished_at) * 1000000)::bigint"),
        // A part of the order of creation.
        (
            "in_order",
            "(created_at, id) < (timestamptz 'epoch' + {before_at}::bigint * interval '1 microsecond', {before_id}::uuid)
            and (created_at, id) >= (timestamptz 'epoch' + {end_at}::bigint * interval '1 microsecond', {end_id}::uuid)",
        ),
        // The same among the jobs of an owner. It has no `owner_id = ...` and is ordered by the owner, because no other index
        // than that of owners can serve this, whatever the planner believes of how many jobs they have.
        (
            "in_order_of_owner",
            "(owner_kind, owner_id, created_at, id) < ({owner_kind}, {owner_id},
                timestamptz 'epoch' + {before_at}::bigint * interval '1 microsecond', {before_id}::uuid)
            and (owner_kind, owner_id, created_at, id) >= ({owner_kind}, {owner_id},
                timestamptz 'epoch' + {end_at}::bigint * interval '1 microsecond', {end_id}::uuid)",
        ),
        // What a filter asks for.
        (
            "matches",
            "({state}::text is null or state = {state})
            and ({owner_kind}::text is null or owner_kind = {owner_kind} and owner_id = {owner_id})
            and ({tool}::text is null or tool = {tool})
            and ({toolkit}::text is null or coalesce(toolkit, waits_for) = {toolkit})
            and ({queue}::text is null or queue = {queue})
            and ({wanted_tags}::text is null or tags @> {wanted_tags}::jsonb)
            and ({error_kind}::text is null or error_kind = {error_kind})
            and ({held_reason}::text is null or held_reason = {held_reason})
            and ({version}::text is null or coalesce(toolkit_version, version) = {version})
            and ({effect}::text is null or coalesce(frozen_effect, effect) = {effect})
            and ({batch}::uuid is null or batch_id = {batch})
            and (not {outcome_unknown} or {is_unknown})",
        ),
        ("is_unknown", IS_UNKNOWN),
        // Whether the principal may see this batch, all of whose jobs are its owner's.
        ("may_see_batch", "({is_operator} or exists (select 1 from batches where id = {batch} and {may_see}))"),
        ("batch_view", BATCH),
        ("goes_on", GOES_ON),
        // The jobs of the items of a part `o`, each of which is looked up by its ID, whatever the planner believes.
        (
            "jobs_of_part",
            "unnest(o.job_ids) as item (id)
            left join lateral (select id, state from jobs where jobs.id = item.id offset 0) j on true",
        ),
        ("counts", COUNTS),
        ("count_jobs", COUNT_JOBS),
        ("sum_counts", SUM_COUNTS),
        ("set_counts", SET_COUNTS),
        ("counts_differ", COUNTS_DIFFER),
        ("has_failed", HAS_FAILED),
        ("may_be_reopened", MAY_BE_REOPENED),
        ("may_be_opened", MAY_BE_OPENED),
        (
            "held_one",
            "page as (
            select id as page_id, account as page_account from jobs
            where ({force} or not {may_have_acted}) and {may_see} and {is_as_read} and id = {id} and state = 'held' for update)",
        ),
        (
            "run_one",
            "page as (
            select id as page_id, account as page_account from jobs
            where {may_have_run} and {may_see} and {is_as_read} and id = {id} and state = 'held' for update)",
        ),
        (
            "is_as_read",
            "({was_state}::text is null or state = {was_state} and attempt = {was_attempt} and digest = {was_digest}
                and first_due_at is not distinct from {was_first_due_at}
                and finished_at is not distinct from {was_finished_at})",
        ),
        // What follows on an update of a page.
        ("of_page", "from page where id = page_id
            returning {event of jobs}, coalesce({end of jobs}, 'job.released') as event, account, page_account"),
        (
            "note_released",
            "noted as (
            insert into job_history (job_id, kind, by, what, detail)
            select id, 'released', {by}::text, {how}::text, null from changed
            union all
            select id, 'account_forgotten', {by}, null, left(page_account, 2000)
            from changed where account is distinct from page_account)",
        ),
        (
            "log_released",
            "logged as ({log}, owner_kind, owner_id, id::text, jsonb_build_object('state', 'held')::text,
                jsonb_build_object('state', state)::text from changed)",
        ),
        ("may_have_acted", MAY_HAVE_ACTED),
        ("may_have_run", MAY_HAVE_RUN),
        ("is_early", "coalesce(run_at > now(), false)"),
        // For the audit, which reads the claims once for a page at most, and not at all where nothing runs.
        ("rules", RULES),
        ("audit_after", "({after}::uuid is null or id > {after})"),
        (
            "audit_instants",
            "now() - {lost}::bigint * interval '1 microsecond' as lost_before,
        now() - {overdue}::bigint * interval '1 microsecond' as overdue_before,
        now() - {overrun}::bigint * interval '1 microsecond' as overrun_before",
        ),
        (
            "audit_alive_after",
            "lost_before - coalesce(w.lease_ms * 1000, {lease}::bigint) * interval '1 microsecond'",
        ),
        (
            "audit_overran",
            "started_at + coalesce(timeout_ms, {timeout_ms}) * interval '1 millisecond' < overrun_before",
        ),
        (
            "audit_findable",
            "coalesce((worker_id, id) in (
            select c.worker_id, taken.id from claims c cross join lateral unnest(c.job_ids) as taken (id)), false)",
        ),
    ];

    fn lists() -> Declared {
        common_lists()
    }
}
