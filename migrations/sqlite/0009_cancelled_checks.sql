-- A cancelled job whose call may have run is still looked up, so that what is not known is not forgotten. SQLite can
-- change a constraint only by building the table anew.
create table jobs_new (
    id                   blob primary key not null,
    -- What was asked for; never changes. JSON is text, which keeps the order of keys, the
    -- digits of numbers and every escape as they were sent.
    digest               blob not null check (length(digest) = 16),
    owner_kind           text not null check (owner_kind in ('user', 'org')),
    owner_id             text not null,
    requested_by         text,
    tool                 text not null,
    arguments            text,
    text                 text,
    version              text,
    connected_account_id text,
    queue                text not null,
    priority             integer not null check (priority between 0 and 9),
    run_at               integer,
    expires_at           integer,
    timeout_ms           integer,
    max_attempts         integer,
    max_age_ms           integer,
    effect               text check (effect in ('safe', 'idempotent', 'once')),
    idempotency_key      text,
    tags                 text not null,
    reply_to             text,
    correlation_id       text,
    traceparent          text,
    -- What is decided once, before anything is sent.
    toolkit              text,
    toolkit_version      text,
    pinned_by            text check (pinned_by in ('job', 'owner', 'global', 'config', 'env', 'latest')),
    account              text,
    frozen_effect        text check (frozen_effect in ('safe', 'idempotent', 'once')),
    -- Where it is.
    state                text not null check (state in ('scheduled', 'available', 'running', 'retryable',
                                                        'held', 'succeeded', 'failed', 'cancelled')),
    created_at           integer not null,
    due_at               integer,
    published            integer not null default 0 check (published >= 0),
    fence                integer not null default 0 check (fence >= 0),
    attempt              integer not null default 0 check (attempt >= 0),
    spent                integer not null default 0,
    worker_id            blob,
    request_id           blob,
    started_at           integer,
    cancel_requested     integer not null default 0,
    -- The request ID of a claim that scheduled, refused or held the job instead of running it, by
    -- which a repetition of that claim is recognized.
    ended_by             blob,
    held_reason          text check (held_reason in ('unknown_outcome', 'connection', 'credentials', 'unidentified')),
    error_kind           text,
    error_message        text,
    error_code           integer,
    error_slug           text,
    result               text,
    log_id               text,
    -- Given where the first attempt succeeded: then this row is its record too.
    http_status          integer,
    finished_at          integer,
    -- While the tool API's log may still tell an unknown outcome: when it is asked next, since when the
    -- outcome is unknown by the store's clock, and how often the log was asked.
    check_at             integer,
    unknown_since        integer,
    checks               integer not null default 0 check (checks >= 0),
    -- When the reply is offered to the relay; null when there is nothing to publish.
    reply_due_at         integer,
    -- While `held_reason` is `connection`: the toolkit that the owner has to connect, and when the job gives up.
    -- Otherwise they mean nothing, so that whatever lets a job go need not know them.
    waits_for            text,
    waits_until          integer,
    -- How often the broker refused a reply since it was last offered anew, so that waits grow and end.
    reply_refusals       integer not null default 0,
    -- The AMQP user who published the job, as the broker has checked it, by which its reply queue is judged again.
    publisher            text,

    constraint jobs_waiting_is_due check ((state in ('scheduled', 'available', 'retryable')) = (due_at is not null)),
    constraint jobs_running_has_worker check ((state = 'running') = (worker_id is not null)),
    constraint jobs_running_has_attempt check (state <> 'running' or (attempt > 0 and request_id is not null and started_at is not null)),
    constraint jobs_held_has_reason check ((state = 'held') = (held_reason is not null)),
    constraint jobs_final_is_finished check ((state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)),
    constraint jobs_succeeded_has_result check ((state = 'succeeded') = (result is not null)),
    constraint jobs_first_attempt_succeeded check (http_status is null or (state = 'succeeded' and attempt = 1)),
    constraint jobs_error_fits check (case when error_kind is null
        then state not in ('failed', 'held') and error_message is null and error_code is null and error_slug is null
        else state <> 'succeeded' and error_message is not null end),
    constraint jobs_frozen_is_whole check (case when toolkit is null
        then toolkit_version is null and pinned_by is null and account is null and frozen_effect is null
        else toolkit_version is not null and pinned_by is not null and frozen_effect is not null end),
    constraint jobs_spent_is_bounded check (spent between 0 and attempt),
    constraint jobs_cancel_marks_running check (not cancel_requested or state in ('running', 'succeeded', 'failed', 'cancelled')),
    constraint jobs_check_is_of_unknown check (check_at is null or (unknown_since is not null
        and (state = 'cancelled' or (held_reason is not null and held_reason = 'unknown_outcome')))),
    constraint jobs_reply_is_final check (reply_due_at is null or (reply_to is not null and finished_at is not null))
);

insert into jobs_new (
    id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, connected_account_id,
    queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, effect, idempotency_key, tags,
    reply_to, correlation_id, traceparent, toolkit, toolkit_version, pinned_by, account, frozen_effect,
    state, created_at, due_at, published, fence, attempt, spent, worker_id, request_id, started_at,
    cancel_requested, ended_by, held_reason, error_kind, error_message, error_code, error_slug, result,
    log_id, http_status, finished_at, check_at, unknown_since, checks, reply_due_at, waits_for, waits_until,
    reply_refusals, publisher)
select
    id, digest, owner_kind, owner_id, requested_by, tool, arguments, text, version, connected_account_id,
    queue, priority, run_at, expires_at, timeout_ms, max_attempts, max_age_ms, effect, idempotency_key, tags,
    reply_to, correlation_id, traceparent, toolkit, toolkit_version, pinned_by, account, frozen_effect,
    state, created_at, due_at, published, fence, attempt, spent, worker_id, request_id, started_at,
    cancel_requested, ended_by, held_reason, error_kind, error_message, error_code, error_slug, result,
    log_id, http_status, finished_at, check_at, unknown_since, checks, reply_due_at, waits_for, waits_until,
    reply_refusals, publisher
from jobs;
drop table jobs;
alter table jobs_new rename to jobs;

-- For the relay; its last two columns let the census read nothing else.
create index jobs_due on jobs (priority, due_at, queue, state) where due_at is not null;
-- For the rescue.
create index jobs_running on jobs (worker_id, queue) where state = 'running';
create index jobs_held on jobs (held_reason, queue) where state = 'held';
create index jobs_checks on jobs (check_at) where check_at is not null;
create index jobs_replies on jobs (reply_due_at) where reply_due_at is not null;
-- For lists.
create index jobs_created on jobs (created_at);
create index jobs_owner on jobs (owner_kind, owner_id, created_at);
create unique index jobs_idempotency on jobs (owner_kind, owner_id, idempotency_key) where idempotency_key is not null;
create index jobs_waits on jobs (owner_kind, owner_id, waits_for, created_at) where held_reason = 'connection';
create index jobs_waits_until on jobs (waits_until) where held_reason = 'connection' and waits_until is not null;
