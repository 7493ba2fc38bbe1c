-- Callbacks: events that are sent to whoever asked for them, by HTTP.

-- Where the events of a job, or of a batch as a whole, are sent.
alter table jobs add column callback_url text;
alter table batches add column callback_url text;

-- What an owner has set, and what signs all that is sent for them. It is there from the first event on that is sent.
create table callbacks (
    owner_kind      text not null,
    owner_id        text not null,
    -- Where all events of the owner are sent; null: nowhere.
    url             text,
    secret          blob not null,
    -- Signs beside the new one for a while.
    previous_secret blob,
    previous_until  integer,
    set_at          integer not null,
    -- Since when nothing that was sent to the URL has been taken.
    failing_since   integer,
    disabled_at     integer,
    disabled_why    text,
    -- How often it was disabled.
    events          integer not null default 0,

    primary key (owner_kind, owner_id)
);

-- Whoever something is sent to: an owner's URLs of one host and port.
create table receivers (
    -- Made of these.
    id         blob primary key not null,
    owner_kind text not null,
    owner_id   text not null,
    -- When it is looked at for what is due; null: nothing waits for it.
    next_at    integer,
    -- Whether it has taken anything.
    is_proven  boolean not null default false,
    -- How often in a row it has not taken what it was sent. Meanwhile it is tried seldom, whatever is due.
    failures   integer not null default 0
);

create index receivers_next on receivers (next_at) where next_at is not null;
create index receivers_owner on receivers (owner_kind, owner_id);

-- An event that is sent to a URL, once it is known that it has to be.
create table deliveries (
    -- Made of the event and the URL.
    id            blob primary key not null,
    receiver      blob not null,
    owner_kind    text not null,
    owner_id      text not null,
    url           text not null,
    event_id      blob not null,
    kind          text not null,
    -- As it is told, so that it can be sent when the event itself was removed for its age.
    event         text not null,
    -- The job or batch whose event it is, and where it is in the order of events.
    subject       blob not null,
    position      integer not null,
    job_id        blob,
    batch_id      blob,
    state         text not null default 'waiting',
    created_at    integer not null,
    -- Since when it waits: since it was made, or since somebody asked for it again.
    waiting_since integer not null,
    due_at        integer,
    tries         integer not null default 0,
    last_status   integer,
    last_error    text,
    tried_at      integer,
    finished_at   integer,

    constraint deliveries_wait_or_are_final check ((state = 'waiting') = (due_at is not null) and (due_at is null) = (finished_at is not null))
);

create index deliveries_due on deliveries (receiver, due_at) where state = 'waiting';
create index deliveries_in_order on deliveries (subject, position) where state = 'waiting';
create index deliveries_waiting on deliveries (waiting_since) where state = 'waiting';
create index deliveries_owner on deliveries (owner_kind, owner_id, created_at, id);
create index deliveries_created on deliveries (created_at, id);
create index deliveries_failed_of_owner on deliveries (owner_kind, owner_id, created_at, id) where state = 'failed';
create index deliveries_failed on deliveries (created_at, id) where state = 'failed';
create index deliveries_finished on deliveries (finished_at) where finished_at is not null;

-- That a callback was disabled is an event of its owner's, about neither a job nor a batch. SQLite changes no constraint of a table, so
-- that there is another one.
alter table events rename to events_before;
drop index events_owner;
drop index events_job;
drop index events_batch;
create table events (
    position    integer primary key autoincrement not null,
    at          integer not null,
    kind        text not null,
    -- Of the job, or else of the batch, or else of the owner's callback.
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

    constraint events_about_something check (job_id is not null or batch_id is not null or owner_id is not null)
);
insert into events select * from events_before;
-- Positions go on where they were, also where all events were removed.
insert into sqlite_sequence (name, seq) select 'events', 0 where not exists (select 1 from sqlite_sequence where name = 'events');
update sqlite_sequence set seq = max(seq, coalesce((select b.seq from sqlite_sequence b where b.name = 'events_before'), 0)) where name = 'events';
drop table events_before;
create index events_owner on events (owner_kind, owner_id);
create index events_job on events (job_id) where job_id is not null;
create index events_batch on events (batch_id) where batch_id is not null;
