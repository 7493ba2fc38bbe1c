-- The rare decisions about jobs, append-only: what an operator asks about a job long after it happened. The
-- ordinary path of a job (claimed, finished, retried) is in `attempts` and leaves nothing here.
--
-- An entry is written in the transaction of the change that it records. There is no foreign key, because every
-- insert has the job's row in the same transaction; whatever removes a job removes its history with it.
create table job_history (
    seq     integer primary key autoincrement not null,
    job_id  blob not null,
    at      integer not null,
    kind    text not null check (kind in ('unknown', 'looked_up', 'adopted', 'held', 'released', 'cancelled', 'retried',
                                          'account_forgotten')),
    -- Who decided: a person's name, or `errand: ` and the part of errand.
    by      text not null check (length(by) between 1 and 128),
    -- The number of the attempt that it is about.
    attempt integer check (attempt > 0),
    -- A word that belongs to the kind: what was found, the outcome, the reason, or how it was released.
    what    text check (length(what) <= 64),
    -- Why the log could not be read, or which account was forgotten.
    detail  text check (length(detail) <= 2000),

    constraint job_history_word_fits check ((what is not null) = (kind in ('looked_up', 'adopted', 'held', 'released'))),
    constraint job_history_detail_fits check (detail is null or kind in ('looked_up', 'account_forgotten'))
);

-- For one job's history in order; the index ends with `seq` by itself.
create index job_history_job on job_history (job_id);
