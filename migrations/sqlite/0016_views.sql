-- What others read by SQL; docs/sql.md has the meaning of each column.
--
-- The columns are called as in the JSON of `errand jobs show`, and IDs and times are written as there; a time has all six
-- digits of a second, so that times sort as text. They stay: a later migration that changes what a view is made of drops it
-- first and makes it again, with the same columns and new ones at the end.

create view job_list as
select lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21, 12)) as id,
    state, held_reason, owner_kind, owner_id, requested_by, tool, toolkit, toolkit_version as version, pinned_by,
    case when toolkit is null then connected_account_id else account end as connected_account_id, queue,
    strftime('%Y-%m-%dT%H:%M:%S', created_at / 1000000, 'unixepoch') || printf('.%06dZ', created_at % 1000000) as created_at,
    strftime('%Y-%m-%dT%H:%M:%S', finished_at / 1000000, 'unixepoch') || printf('.%06dZ', finished_at % 1000000) as finished_at,
    error_kind, error_code, error_slug, log_id, priority,
    strftime('%Y-%m-%dT%H:%M:%S', run_at / 1000000, 'unixepoch') || printf('.%06dZ', run_at % 1000000) as run_at,
    strftime('%Y-%m-%dT%H:%M:%S', expires_at / 1000000, 'unixepoch') || printf('.%06dZ', expires_at % 1000000) as expires_at,
    strftime('%Y-%m-%dT%H:%M:%S', first_due_at / 1000000, 'unixepoch') || printf('.%06dZ', first_due_at % 1000000) as first_due_at,
    strftime('%Y-%m-%dT%H:%M:%S', due_at / 1000000, 'unixepoch') || printf('.%06dZ', due_at % 1000000) as due_at,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000000, 'unixepoch') || printf('.%06dZ', started_at % 1000000) as started_at,
    attempt, spent, frozen_effect as effect, tags
from jobs;

-- A first attempt that succeeds is kept in its job's row, and one that runs is there, too.
create view attempt_list as
select lower(substr(hex(job_id), 1, 8) || '-' || substr(hex(job_id), 9, 4) || '-' || substr(hex(job_id), 13, 4) || '-' || substr(hex(job_id), 17, 4) || '-' || substr(hex(job_id), 21, 12)) as job_id,
    number, times,
    lower(substr(hex(request_id), 1, 8) || '-' || substr(hex(request_id), 9, 4) || '-' || substr(hex(request_id), 13, 4) || '-' || substr(hex(request_id), 17, 4) || '-' || substr(hex(request_id), 21, 12)) as request_id,
    outcome, http_status, log_id, version, error_kind, error_code, error_slug,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000000, 'unixepoch') || printf('.%06dZ', started_at % 1000000) as started_at,
    strftime('%Y-%m-%dT%H:%M:%S', finished_at / 1000000, 'unixepoch') || printf('.%06dZ', finished_at % 1000000) as finished_at
from (
    select job_id, number, times, request_id, outcome, http_status, log_id, version, error_kind, error_code, error_slug,
        started_at, finished_at
    from attempts
    union all
    select id, attempt, 1, request_id, case when state = 'succeeded' then 'succeeded' end, http_status,
        case when state = 'succeeded' then log_id end, toolkit_version, null, null, null, started_at,
        case when state = 'succeeded' then finished_at end
    from jobs where state = 'running' or http_status is not null);

-- Customers' data.
create view job_contents as
select lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4) || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21, 12)) as id,
    arguments, text, result, error_message
from jobs;
