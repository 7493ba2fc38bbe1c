-- A role that reads errand's views and nothing else: what jobs there are, whose they are and what became of them, without
-- arguments, results and texts of tools. docs/sql.md has the columns. Run it as a superuser in errand's database after
-- `errand migrate`; a second run changes nothing:
--
--   psql -d errand -f deploy/postgres/read_only.sql
--
-- Then give it a password (`\password errand_viewer` in psql). Where `store.schema` is not `errand`, write its name instead.

do $$ begin
    if not exists (select from pg_roles where rolname = 'errand_viewer') then
        create role errand_viewer login;
    end if;
    execute format('grant connect on database %I to errand_viewer', current_database());
end $$;

grant usage on schema errand to errand_viewer;
grant select on errand.job_list, errand.attempt_list to errand_viewer;
-- A report must not keep the cleaning up of old versions of rows waiting for hours.
alter role errand_viewer set statement_timeout = '5min';
alter role errand_viewer set idle_in_transaction_session_timeout = '1min';

-- Customers' data, for those who may see it:
-- grant select on errand.job_contents to errand_viewer;
