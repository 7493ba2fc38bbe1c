-- What an app asked for is the same job although somebody has changed when, where and until when it runs. `digest` is of the
-- job as it is now, which is what messages of it are compared with; a message from before the change is none of it any more.
-- Null as long as nothing was changed.
alter table jobs add column asked_digest bytea;

-- The history tells of such a change. A worker of a build before leaves out what it does not know.
alter table job_history drop constraint job_history_kind_check;
alter table job_history add constraint job_history_kind_check check (kind in ('unknown', 'looked_up', 'adopted', 'held',
    'released', 'cancelled', 'retried', 'account_forgotten', 'edited')) not valid;
alter table job_history drop constraint job_history_detail_fits;
alter table job_history add constraint job_history_detail_fits
    check (detail is null or kind in ('looked_up', 'account_forgotten', 'edited')) not valid;

-- Queues from which no worker takes jobs until somebody lets them go on.
create table paused_queues (
    queue  text primary key,
    -- Who paused it, and why.
    by     text not null check (char_length(by) between 1 and 128),
    reason text not null check (char_length(reason) between 1 and 500),
    since  timestamptz not null
);
