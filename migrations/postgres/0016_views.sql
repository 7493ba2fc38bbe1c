-- What others read by SQL; docs/sql.md has the meaning of each column, and deploy/postgres/read_only.sql a role for it.
--
-- The columns are called as in the JSON of `errand jobs show` and have plain types, whatever the tables have. They stay:
-- a later migration that changes what a view is made of first replaces it, with the same columns and new ones at the end
-- (`create or replace view`), because dropping it would take away what its readers were granted.

create or replace view job_list as
select id, state::text as state, held_reason::text as held_reason, owner_kind::text as owner_kind, owner_id, requested_by,
    tool, toolkit, toolkit_version as version, pinned_by::text as pinned_by,
    case when toolkit is null then connected_account_id else account end as connected_account_id,
    queue, created_at, finished_at, error_kind, error_code, error_slug, log_id,
    priority, run_at, expires_at, first_due_at, due_at, started_at, attempt, spent, frozen_effect::text as effect, tags
from jobs;

-- A first attempt that succeeds is kept in its job's row, and one that runs is there, too.
create or replace view attempt_list as
select job_id, number, times, request_id, outcome, http_status, log_id, version, error_kind, error_code, error_slug,
    started_at, finished_at
from attempts
union all
select id, attempt, 1, request_id, case when state = 'succeeded' then 'succeeded' end, http_status,
    case when state = 'succeeded' then log_id end, toolkit_version, null, null, null, started_at,
    case when state = 'succeeded' then finished_at end
from jobs where state = 'running' or http_status is not null;

-- Customers' data.
create or replace view job_contents as
select id, arguments, text, result, error_message from jobs;
