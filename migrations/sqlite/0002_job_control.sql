-- What surrounds the jobs: who works on them, which versions they run, and what was no job at all.

create table workers (
    id         blob primary key not null,
    name       text not null,
    started_at integer not null,
    beat_at    integer not null
);

-- A global pin has the kind `global` and an empty owner ID.
create table pins (
    owner_kind text not null check (owner_kind in ('user', 'org', 'global')),
    owner_id   text not null check ((owner_kind = 'global') = (owner_id = '')),
    toolkit    text not null,
    version    text not null,
    primary key (owner_kind, owner_id, toolkit)
);

create table rejected (
    id          blob primary key not null,
    queue       text not null,
    reason      text not null,
    message     text not null,
    body        blob not null,
    properties  text not null,
    seen        integer not null check (seen > 0),
    received_at integer not null,
    requeued_at integer
);

create index rejected_open on rejected (received_at) where requeued_at is null;
