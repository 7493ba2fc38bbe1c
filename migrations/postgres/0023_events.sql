-- Events: what became of jobs and batches, for whoever follows it, in an order that is the same for everybody.

-- How often a job ended, was held or was decided about by somebody; how often a batch was completed or decided about. So its
-- events are counted, whether they are recorded or not.
alter table jobs add column events integer not null default 0;
alter table batches add column events integer not null default 0;

-- What writes recorded and has no position yet: a row for each write, with a value for each event in every array. A position is
-- given after the commit, by one writer at a time, because commits overtake each other.
create table event_inbox (
    id           bigint generated always as identity primary key,
    at           timestamptz not null default now(),
    kinds        text[] not null,
    sequences    integer[] not null,
    job_ids      uuid[] not null,
    batch_ids    uuid[] not null,
    owner_kinds  text[] not null,
    owner_ids    text[] not null,
    tools        text[] not null,
    toolkits     text[] not null,
    queues       text[] not null,
    attempts     integer[] not null,
    held_reasons text[] not null,
    error_kinds  text[] not null
);

-- It is emptied as fast as it is filled.
alter table event_inbox set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create table events (
    position    bigint primary key,
    at          timestamptz not null,
    kind        text not null,
    -- Of the job, or else of the batch.
    sequence    integer not null,
    job_id      uuid,
    -- The batch that it is about, or of which the job is.
    batch_id    uuid,
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

create index events_owner on events (owner_kind, owner_id, position);

-- One row: the last position that was given, and the last one that was removed for its age.
create table event_positions (
    only_one boolean primary key default true check (only_one),
    last     bigint not null default 0,
    removed  bigint not null default 0
);

insert into event_positions default values;
