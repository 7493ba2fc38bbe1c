-- Which connections held jobs wait for, and when the tool API is asked next whether one is there.

-- While `held_reason` is `connection`: the toolkit that the owner has to connect, and when the job gives up.
-- Otherwise they mean nothing, so that whatever lets a job go need not know them.
alter table jobs add column waits_for text;
alter table jobs add column waits_until integer;

create index jobs_waits on jobs (owner_kind, owner_id, waits_for, created_at) where held_reason = 'connection';
create index jobs_waits_until on jobs (waits_until) where held_reason = 'connection' and waits_until is not null;

-- One row for all jobs that wait for the same connection, made together with the first of them and removed some
-- time after the last.
create table awaited (
    id         integer primary key autoincrement not null,
    owner_kind text not null check (owner_kind in ('user', 'org')),
    owner_id   text not null,
    toolkit    text not null,
    -- The account that the jobs name; empty: the one that their owner connected last.
    account    text not null,
    -- The account that calls were last refused with, whatever its status says.
    doubted    text,
    looks      integer not null default 0 check (looks >= 0),
    look_at    integer not null,
    -- Grows whenever jobs are parked, so that a row is not removed while another is on its way.
    parked     integer not null default 1,
    unique (owner_kind, owner_id, toolkit, account)
);

create index awaited_looks on awaited (look_at);

update jobs set waits_for = toolkit,
    waits_until = min(coalesce(expires_at, created_at + max_age_ms * 1000), coalesce(created_at + max_age_ms * 1000, expires_at))
where held_reason = 'connection' and toolkit is not null;

insert into awaited (owner_kind, owner_id, toolkit, account, doubted, look_at)
select owner_kind, owner_id, waits_for, coalesce(connected_account_id, ''), max(account), 0
from jobs where held_reason = 'connection' and waits_for is not null
group by 1, 2, 3, 4;
