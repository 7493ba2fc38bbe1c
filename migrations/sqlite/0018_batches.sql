-- Batches: many jobs that were enqueued together, with what becomes of them as a whole.
--
-- What its jobs are is counted from the jobs, part by part, by whoever looks after batches; neither a claim nor a finish
-- writes anything here. A part of which every job is final is not counted again.

-- The batch that enqueued a job. An item that was a known job before is in the batch and has none, or another one.
alter table jobs add column batch_id blob;
create index jobs_batch on jobs (batch_id, created_at, id) where batch_id is not null;

-- A batch without an owner is the operator's.
create table batches (
    id           blob primary key,
    -- Of its settings, and of the items that came with them.
    digest       blob not null check (length(digest) = 16),
    owner_kind   text,
    owner_id     text,
    created_at   integer not null,
    -- From then on it takes no more items.
    sealed_at    integer,
    items        integer not null default 0 check (items >= 0),
    -- Grows when failed jobs are run again. A generation is complete once.
    generation   integer not null default 1 check (generation > 0),
    completed_at integer,
    -- When what has not started by then is called off.
    deadline     integer,
    -- The percentage of failed jobs, among at least so many that succeeded or failed, at which the rest is called off.
    stop_percent integer check (stop_percent between 1 and 100),
    stop_sample  integer check (stop_sample > 0),
    -- The envelope of the job that is enqueued when it is complete.
    follow_up    text,
    -- Who called off its rest, and when. From then on a held job counts as ended.
    cancelled_by text check (length(cancelled_by) between 1 and 128),
    cancelled_at integer,
    -- While its jobs are called off, or those that failed are run again: who wants it, since when, and where it goes on.
    doing        text check (doing in ('cancel', 'retry')),
    doing_by     text check (length(doing_by) between 1 and 128),
    doing_force  integer not null default 0,
    doing_since  integer,
    doing_place  text,
    -- How many of its jobs were in each state when it was last counted, and since when that has been so.
    scheduled    integer not null default 0,
    available    integer not null default 0,
    running      integer not null default 0,
    retryable    integer not null default 0,
    held         integer not null default 0,
    succeeded    integer not null default 0,
    failed       integer not null default 0,
    cancelled    integer not null default 0,
    removed      integer not null default 0,
    changed_at   integer not null,
    -- When it is looked at next; null where nothing is left to be done.
    look_at      integer,
    constraint batches_have_a_whole_owner_or_none check ((owner_kind is null) = (owner_id is null)),
    constraint batches_stop_by_both_or_none check ((stop_percent is null) = (stop_sample is null)),
    constraint batches_do_for_somebody check ((doing is null) = (doing_by is null) and (doing is null) = (doing_since is null)),
    constraint batches_are_cancelled_by_somebody check ((cancelled_by is null) = (cancelled_at is null)),
    constraint batches_complete_are_sealed check (completed_at is null or sealed_at is not null)
);

create index batches_look on batches (look_at) where look_at is not null;
create index batches_in_order on batches (created_at, id);
create index batches_owner on batches (owner_kind, owner_id, created_at, id);

-- The items of a batch, up to a thousand in a row, and how many of them were in each state when they were last counted.
create table batch_parts (
    batch_id   blob not null,
    -- The index of its first item.
    first      integer not null check (first >= 0),
    items      integer not null check (items > 0),
    -- Of its items, by which a chunk is recognized that is sent again.
    digest     blob not null check (length(digest) = 16),
    -- A list of hexadecimal digits.
    job_ids    text not null,
    is_closed  integer not null default 0,
    looked_at  integer not null,
    scheduled  integer not null default 0,
    available  integer not null default 0,
    running    integer not null default 0,
    retryable  integer not null default 0,
    held       integer not null default 0,
    succeeded  integer not null default 0,
    failed     integer not null default 0,
    cancelled  integer not null default 0,
    removed    integer not null default 0,
    primary key (batch_id, first)
);

-- The columns that were there, and the new one at the end.
drop view job_list;
create view job_list as
select lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21, 12)) as id,
    state, held_reason, owner_kind, owner_id, requested_by, tool, toolkit, toolkit_version as version, pinned_by,
    case when toolkit is null then connected_account_id else account end as connected_account_id, queue,
    strftime('%Y-%m-%dT%H:%M:%S', created_at / 1000000, 'unixepoch') || printf('.%06dZ', created_at % 1000000) as created_at,
    strftime('%Y-%m-%dT%H:%M:%S', finished_at / 1000000, 'unixepoch') || printf('.%06dZ', finished_at % 1000000) as finished_at,
    error_kind, error_code, error_slug, log_id, priority,
    strftime('%Y-%m-%dT%H:%M:%S', run_at / 1000000, 'unixepoch') || printf('.%06dZ', run_at % 1000000) as run_at,
    strftime('%Y-%m-%dT%H:%M:%S', expires_at / 1000000, 'unixepoch') || printf('.%06dZ', expires_at % 1000000) as expires_at,
    strftime('%Y-%m-%dT%H:%M:%S', first_due_at / 1000000, 'unixepoch') || printf('.%06dZ', first_due_at % 1000000) as first_due_at,
    strftime('%Y-%m-%dT%H:%M:%S', due_at / 1000000, 'unixepoch') || printf('.%06dZ', due_at % 1000000) as due_at,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000000, 'unixepoch') || printf('.%06dZ', started_at % 1000000) as started_at,
    attempt, spent, frozen_effect as effect, tags,
    case when batch_id is not null then lower(substr(hex(batch_id), 1, 8) || '-' || substr(hex(batch_id), 9, 4) || '-' || substr(hex(batch_id), 13, 4) || '-' || substr(hex(batch_id), 17, 4) || '-' || substr(hex(batch_id), 21, 12)) end as batch_id
from jobs;
