-- Tasks that one worker does for all, and which one has which until when.
create table tasks (
    name       text primary key,
    worker_id  uuid not null,
    held_until timestamptz not null
);
