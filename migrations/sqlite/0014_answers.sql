-- Answers that are owed to apps beside the results of final jobs, which the row of their job owes: that a job is held, that
-- a message is rejected, that a message repeats a job that is known. A row goes when its answer is published or given up,
-- or with its job or message.
create table answers (
    id             blob primary key not null,
    kind           text not null check (kind in ('held', 'rejected', 'duplicate')),
    job_id         blob,
    rejected_id    blob,
    -- Who asked, and what they know it by. No message ID: that of the job.
    reply_to       text not null,
    correlation_id text,
    message_id     text,
    publisher      text,
    due_at         integer not null,
    refusals       integer not null default 0 check (refusals >= 0),
    -- Whether the same was asked again since the answer was taken to be published: then it is owed once more.
    again          integer not null default 0 check (again in (0, 1)),
    constraint answers_tell_of_one check ((job_id is null) <> (rejected_id is null) and (kind = 'rejected') = (rejected_id is not null))
);

create index answers_due on answers (due_at);
create index answers_job on answers (job_id) where job_id is not null;
create index answers_rejected on answers (rejected_id) where rejected_id is not null;

-- Other IDs under which a job was sent with its idempotency key; they go with it.
create table known_as (
    job_id blob not null,
    id     blob not null,
    primary key (job_id, id)
);

create index known_as_id on known_as (id);

-- The AMQP message ID of a job whose reply is to have it, where that is not the job's own ID.
alter table jobs add column message_id text;

-- The job that a rejected message was meant to be, where that can be told.
alter table rejected add column job_id blob;
