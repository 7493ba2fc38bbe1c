-- Tasks that one worker does for all, and which one has which until when.
create table tasks (
    name       text primary key not null,
    worker_id  blob not null,
    held_until integer not null
);
