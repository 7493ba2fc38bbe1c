-- What an app asked for is the same job although somebody has changed when, where and until when it runs. `digest` is of the
-- job as it is now, which is what messages of it are compared with; a message from before the change is none of it any more.
-- Null as long as nothing was changed.
alter table jobs add column asked_digest blob;

-- The history tells of such a change. SQLite changes no constraint of a table that is there.
create table job_history_new (
    seq     integer primary key autoincrement not null,
    job_id  blob not null,
    at      integer not null,
    kind    text not null check (kind in ('unknown', 'looked_up', 'adopted', 'held', 'released', 'cancelled', 'retried',
                                          'account_forgotten', 'edited')),
    -- Who decided: a person's name, or `errand: ` and the part of errand.
    by      text not null check (length(by) between 1 and 128),
    -- The number of the attempt that it is about.
    attempt integer check (attempt > 0),
    -- A word that belongs to the kind: what was found, the outcome, the reason, or how it was released.
    what    text check (length(what) <= 64),
    -- Why the log could not be read, which account was forgotten, or what was changed.
    detail  text check (length(detail) <= 2000),

    constraint job_history_word_fits check ((what is not null) = (kind in ('looked_up', 'adopted', 'held', 'released'))),
    constraint job_history_detail_fits check (detail is null or kind in ('looked_up', 'account_forgotten', 'edited'))
);

insert into job_history_new (seq, job_id, at, kind, by, attempt, what, detail)
select seq, job_id, at, kind, by, attempt, what, detail from job_history;
drop table job_history;
alter table job_history_new rename to job_history;

-- For one job's history in order; the index ends with `seq` by itself.
create index job_history_job on job_history (job_id);

-- Queues from which no worker takes jobs until somebody lets them go on.
create table paused_queues (
    queue  text primary key,
    -- Who paused it, and why.
    by     text not null check (length(by) between 1 and 128),
    reason text not null check (length(reason) between 1 and 500),
    since  integer not null
) without rowid;
