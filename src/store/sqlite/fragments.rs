//! What several statements have in common.

use sqlx::Sqlite;

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

impl Dialect for Sqlite {
    const MARK: char = '?';
    const CASTS_JSON: bool = false;
    const FRAGMENTS: &'static [(&'static str, &'static str)] = &[
        ("job", JOB),
        ("called_job", CALLED_JOB),
        ("beside_spec", BESIDE_SPEC),
        ("first_due", FIRST_DUE),
        ("is_operator", "{principal_kind} is null"),
        // Whether a job is one that the principal may see; what is about the job `job_id` is if that is.
        ("may_see", "({is_operator} or owner_kind = {principal_kind} and owner_id = {principal_id})"),
        // Whether it is the principal's own, for the operator, too.
        ("is_of_principal", "(owner_kind is {principal_kind} and owner_id is {principal_id})"),
        // Which entries of the audit log are meant.
        (
            "wanted_changes",
            "({kind} is null or substr(what, 1, length({kind})) = {kind}) and ({object} is null or object = {object})
            and ({wanted_kind} is null or owner_kind = {wanted_kind} and owner_id = {wanted_id})
            and ({wanted_by} is null or decider = {wanted_by})",
        ),
        ("is_valid", "k.revoked_at is null and (k.expires_at is null or k.expires_at > {now})"),
        ("may_see_of", "exists (select 1 from jobs where jobs.id = job_id and {may_see})"),
        ("is_first_of_subject", IS_FIRST_OF_SUBJECT),
        // The index that has more of what is asked for is used here.
        ("equals", "="),
        // What signs for the owner of a callback `c`.
        (
            "signing_secrets",
            "c.secret, c.previous_secret, c.previous_until, coalesce(c.previous_until > {now}, 0) as previous_signs",
        ),
        ("own_url", OWN_URL),
        // Whether nothing is sent any more to a URL that answered so.
        (
            "is_given_up",
            "(not {taken} and ({gone} or coalesce(failing_since < {now} - {patience}, 0)))",
        ),
        // What the holder of a claim knows.
        (
            "receipt",
            "fence, attempt, spent, {binding}, created_at, first_due_at, {now} - created_at as age,
            {now} - postponed_since as postponed_for",
        ),
        (
            "found_job",
            "id, owner_kind, owner_id, digest, asked_digest, state, error_kind, worker_id, request_id, ended_by, reply_to, correlation_id,
            message_id, {receipt}",
        ),
        // What is looked at before a job is removed.
        (
            "old_job",
            "id, owner_kind, owner_id, state, created_at as at, finished_at, {now} - finished_at as finished_for,
        reply_due_at is not null as owes_reply, check_at is not null as is_looked_up,
        coalesce(octet_length(arguments), 0) + coalesce(octet_length(result), 0) as bytes",
        ),
        // Whether a record `a` is that of a snooze which its holder reported.
        (
            "is_snooze",
            "a.ended_as = 'retryable' and not a.charged and not a.late and a.reported_by = 'holder'",
        ),
        // The most urgent first.
        (
            "priorities",
            "(select column1 as p from (values (9), (8), (7), (6), (5), (4), (3), (2), (1), (0)))",
        ),
        // Whether a connection should be asked about now, together with others or alone. The tool API takes a list of
        // owners joined by commas.
        (
            "is_due_awaited",
            "look_at <= {now} and (lookups > 0 or look_at <= {now} - {first_after})
            and (account = '' and instr(owner_id, ',') = 0) = {together}",
        ),
        // The jobs of an awaited connection `a`.
        (
            "is_job_of_awaited",
            "j.held_reason = 'connection' and j.owner_kind = a.owner_kind and j.owner_id = a.owner_id
            and j.waits_for = a.toolkit and coalesce(j.connected_account_id, '') = a.account",
        ),
        // What a held job becomes that is let go.
        (
            "to_retry",
            "state = 'available', due_at = {now}, first_due_at = {now}, published = 0, postponed_since = null, held_reason = null,
        check_at = null, events = events + 1,
        account = case when held_reason <> 'connection' or connected_account_id is not null then account end",
        ),
        (
            "to_succeeded",
            "state = 'succeeded', held_reason = null, check_at = null, result = {result}, {each error: @ = null}, events = events + 1,
        finished_at = {now}, reply_due_at = case when reply_to is not null then {now} end",
        ),
        (
            "to_failed",
            "state = 'failed', held_reason = null, check_at = null, {each error: @ = {@}}, events = events + 1,
        finished_at = {now}, reply_due_at = case when reply_to is not null then {now} end",
        ),
        ("glance", GLANCE),
        ("finished_micros", "finished_at"),
        ("finished_for", "{now} - finished_at"),
        // A part of the order of creation.
        ("in_order", "(created_at, id) < ({before_at}, {before_id}) and (created_at, id) >= ({end_at}, {end_id})"),
        // What a filter asks for.
        (
            "matches",
            "({state} is null or state = {state})
            and ({owner_kind} is null or owner_kind = {owner_kind} and owner_id = {owner_id})
            and ({tool} is null or tool = {tool})
            and ({toolkit} is null or coalesce(toolkit, waits_for) = {toolkit})
            and ({queue} is null or queue = {queue})
            and ({wanted_tags} is null or not exists (select 1 from json_each({wanted_tags}) w where not exists (
                select 1 from json_each(jobs.tags) t where t.key = w.key and t.value = w.value)))
            and ({error_kind} is null or error_kind = {error_kind})
            and ({held_reason} is null or held_reason = {held_reason})
            and ({version} is null or coalesce(toolkit_version, version) = {version})
            and ({effect} is null or coalesce(frozen_effect, effect) = {effect})
            and ({batch} is null or batch_id = {batch})
            and (not {outcome_unknown} or {is_unknown})",
        ),
        ("is_unknown", IS_UNKNOWN),
        // Whether the principal may see this batch, all of whose jobs are its owner's.
        ("may_see_batch", "({is_operator} or exists (select 1 from batches where id = {batch} and {may_see}))"),
        ("batch_view", BATCH),
        ("goes_on", GOES_ON),
        // The jobs of the items of a part `o`.
        ("jobs_of_part", "json_each(o.job_ids) as item left join jobs j on j.id = unhex(item.value)"),
        ("counts", COUNTS),
        ("count_jobs", COUNT_JOBS),
        ("sum_counts", SUM_COUNTS),
        ("set_counts", SET_COUNTS),
        ("counts_differ", COUNTS_DIFFER),
        ("has_failed", HAS_FAILED),
        ("may_be_reopened", MAY_BE_REOPENED),
        ("may_be_opened", MAY_BE_OPENED),
        ("may_have_acted", MAY_HAVE_ACTED),
        ("may_have_run", MAY_HAVE_RUN),
        ("is_early", "coalesce(run_at > {now}, false)"),
        // For the audit. The rescue finds running jobs by their state, so it finds them all.
        ("rules", RULES),
        ("audit_after", "id > {after}"),
        (
            "audit_instants",
            "{now} - {lost} as lost_before, {now} - {overdue} as overdue_before, {now} - {overrun} as overrun_before",
        ),
        ("audit_alive_after", "lost_before - coalesce(w.lease_ms * 1000, {lease})"),
        ("audit_overran", "started_at + coalesce(timeout_ms, {timeout_ms}) * 1000 < overrun_before"),
        ("audit_findable", "true"),
    ];

    fn lists() -> Declared {
        common_lists()
    }
}
