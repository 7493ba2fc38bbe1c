-- Jobs and their attempts.
--
-- A job is one row for its whole life: what was asked for, what was decided once, and where it is.
-- The CHECK constraints repeat the rules of the `Transition` type, so that no statement, of this
-- build or of another, can leave a job in a state that no code knows how to go on from.

-- Words of closed choices. As domains they are checked from the server's cache; the same lists as
-- constraints of a table would be parsed again by every statement that writes to it.
create domain owner_kind as text check (value in ('user', 'org'));
create domain effect as text check (value in ('safe', 'idempotent', 'once'));
create domain pin_source as text check (value in ('job', 'owner', 'global', 'config', 'env', 'latest'));
create domain job_state as text check (value in ('scheduled', 'available', 'running', 'retryable', 'held', 'succeeded', 'failed', 'cancelled'));
create domain held_reason as text check (value in ('unknown_outcome', 'connection', 'credentials', 'unidentified'));
create domain reporter as text check (value in ('holder', 'rescuer'));

create table jobs (
    id                   uuid primary key,
    -- What was asked for; never changes. JSON is of type `json`, which keeps the order of keys,
    -- the digits of numbers and the escape \u0000 as they were sent.
    digest               bytea not null check (octet_length(digest) = 16),
    owner_kind           owner_kind not null,
    owner_id             text not null,
    requested_by         text,
    tool                 text not null,
    arguments            json,
    text                 text,
    version              text,
    connected_account_id text,
    queue                text not null,
    priority             smallint not null check (priority between 0 and 9),
    run_at               timestamptz,
    expires_at           timestamptz,
    timeout_ms           bigint,
    max_attempts         integer,
    max_age_ms           bigint,
    effect               effect,
    idempotency_key      text,
    tags                 jsonb not null,
    reply_to             text,
    correlation_id       text,
    traceparent          text,
    -- What is decided once, before anything is sent.
    toolkit              text,
    toolkit_version      text,
    pinned_by            pin_source,
    account              text,
    frozen_effect        effect,
    -- Where it is.
    state                job_state not null,
    created_at           timestamptz not null,
    due_at               timestamptz,
    published            integer not null default 0 check (published >= 0),
    fence                bigint not null default 0 check (fence >= 0),
    attempt              integer not null default 0 check (attempt >= 0),
    spent                integer not null default 0,
    worker_id            uuid,
    request_id           uuid,
    started_at           timestamptz,
    cancel_requested     boolean not null default false,
    -- The request ID of a claim that scheduled, refused or held the job instead of running it, by
    -- which a repetition of that claim is recognized.
    settled_by           uuid,
    held_reason          held_reason,
    error_kind           text,
    error_message        text,
    error_code           bigint,
    error_slug           text,
    result               json,
    log_id               text,
    -- Given where the first attempt succeeded: then this row is its record too.
    http_status          integer,
    finished_at          timestamptz,
    -- While the tool API's log may still tell an unknown outcome: when it is asked next, since when the
    -- outcome is unknown by the store's clock, and how often the log was asked.
    check_at             timestamptz,
    unknown_since        timestamptz,
    checks               integer not null default 0 check (checks >= 0),
    -- When the reply is offered to the relay; null when there is nothing to publish.
    reply_due_at         timestamptz,

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
    constraint jobs_check_is_of_unknown check (check_at is null or (held_reason is not null and held_reason = 'unknown_outcome' and unknown_since is not null)),
    constraint jobs_reply_is_final check (reply_due_at is null or (reply_to is not null and finished_at is not null))
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.01,
    toast.autovacuum_vacuum_cost_delay = 0
);

-- No index contains what a successful finish changes (state, worker, result, times of the end), so that
-- it writes one new version of the row into the same page and no index entry at all.

-- For the relay.
create index jobs_due on jobs (priority, due_at) where due_at is not null;
create index jobs_held on jobs (held_reason, queue) where held_reason is not null;
create index jobs_checks on jobs (check_at) where check_at is not null;
create index jobs_replies on jobs (reply_due_at) where reply_due_at is not null;
-- For lists.
-- Rows lie in the order of their creation, so a summary of page ranges finds the newest.
create index jobs_created on jobs using brin (created_at) with (pages_per_range = 16, autosummarize = on);
create index jobs_owner on jobs (owner_id, created_at);
create unique index jobs_idempotency on jobs (owner_kind, owner_id, idempotency_key) where idempotency_key is not null;

-- Which jobs a worker took together, by which they are found when it stops: one row for each statement
-- that claimed, removed some time after the last of its jobs has ended. It only says where to look;
-- whether a job runs, and for whom, is in the job's row.
create table claims (
    id        bigint generated always as identity primary key,
    worker_id uuid not null,
    job_ids   uuid[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create index claims_worker on claims (worker_id);

-- Written when an attempt ends, unless it is the first and succeeds; an attempt in progress is in its
-- job's row. There is no foreign key, because every insert takes the job's row in the same statement.
create table attempts (
    job_id        uuid not null,
    number        integer not null check (number > 0),
    request_id    uuid not null,
    outcome       text not null,
    http_status   integer,
    log_id        text,
    version       text,
    error_kind    text,
    error_message text,
    error_code    bigint,
    error_slug    text,
    started_at    timestamptz not null,
    finished_at   timestamptz not null,
    -- Who ended it, what the job became by that (null: nothing, its claim was over), whether that
    -- came after a rescue, and whether it was charged to the budget: what a repetition is answered by.
    reported_by   reporter not null,
    ended_as      text,
    late          boolean not null,
    charged       boolean not null,
    primary key (job_id, number)
) with (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
