-- Answers that are owed to apps beside the results of final jobs, which the row of their job owes: that a job is held, that
-- a message is rejected, that a message repeats a job that is known. A row goes when its answer is published or given up,
-- or with its job or message.
create table answers (
    id             uuid primary key,
    kind           text not null check (kind in ('held', 'rejected', 'duplicate')),
    job_id         uuid,
    rejected_id    uuid,
    -- Who asked, and what they know it by. No message ID: that of the job.
    reply_to       text not null,
    correlation_id text,
    message_id     text,
    publisher      text,
    due_at         timestamptz not null,
    refusals       integer not null default 0 check (refusals >= 0),
    -- Whether the same was asked again since the answer was taken to be published: then it is owed once more.
    again          boolean not null default false,
    constraint answers_tell_of_one check ((job_id is null) <> (rejected_id is null) and (kind = 'rejected') = (rejected_id is not null))
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create index answers_due on answers (due_at);
create index answers_job on answers (job_id) where job_id is not null;
create index answers_rejected on answers (rejected_id) where rejected_id is not null;

-- Other IDs under which a job was sent with its idempotency key; they go with it.
create table known_as (
    job_id uuid not null,
    id     uuid not null,
    primary key (job_id, id)
);

create index known_as_id on known_as (id);

-- The AMQP message ID of a job whose reply is to have it, where that is not the job's own ID.
alter table jobs add column message_id text;

-- The job that a rejected message was meant to be, where that can be told.
alter table rejected add column job_id uuid;
