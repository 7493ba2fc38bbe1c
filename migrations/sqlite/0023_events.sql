-- Events: what became of jobs and batches, for whoever follows it, in an order that is the same for everybody.

-- How often a job ended, was held or was decided about by somebody; how often a batch was completed or decided about. So its
-- events are counted, whether they are recorded or not.
alter table jobs add column events integer not null default 0;
alter table batches add column events integer not null default 0;

-- There is one writer, so that positions are in the order of commits.
create table events (
    position    integer primary key autoincrement not null,
    at          integer not null,
    kind        text not null,
    -- Of the job, or else of the batch.
    sequence    integer not null,
    job_id      blob,
    -- The batch that it is about, or of which the job is.
    batch_id    blob,
    -- Null of a batch of the operator's.
    owner_kind  text,
    owner_id    text,
    tool        text,
    toolkit     text,
    queue       text,
    attempt     integer,
    held_reason text,
    error_kind  text,

    constraint events_about_something check (job_id is not null or batch_id is not null)
);

-- The index ends with `position` by itself.
create index events_owner on events (owner_kind, owner_id);

-- One row, or none before any was removed for its age: the last position that was.
create table event_positions (
    only_one integer primary key default 1 check (only_one = 1),
    removed  integer not null default 0
);
