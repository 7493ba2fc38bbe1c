-- What surrounds the jobs: who works on them, which versions they run, and what was no job at all.

-- Beats change no indexed column, so with free space in the pages they leave no index entries.
create table workers (
    id         uuid primary key,
    name       text not null,
    started_at timestamptz not null,
    beat_at    timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- A global pin has the kind `global` and an empty owner ID.
create table pins (
    owner_kind text not null check (owner_kind in ('user', 'org', 'global')),
    owner_id   text not null check ((owner_kind = 'global') = (owner_id = '')),
    toolkit    text not null,
    version    text not null,
    primary key (owner_kind, owner_id, toolkit)
);

create table rejected (
    id          uuid primary key,
    queue       text not null,
    reason      text not null,
    message     text not null,
    body        bytea not null,
    properties  text not null,
    seen        integer not null check (seen > 0),
    received_at timestamptz not null,
    requeued_at timestamptz
);

create index rejected_open on rejected (received_at) where requeued_at is null;
