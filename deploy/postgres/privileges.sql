-- The least privileges in PostgreSQL, for three roles: one that changes the schema, one that works, one that reads.
-- Run it once as a superuser in errand's database, before the first `errand migrate`; a second run changes nothing:
--
--   psql -d errand -f deploy/postgres/privileges.sql
--
-- Then give them passwords (`\password errand_owner` in psql), or certificates. errand migrates as errand_owner, and
-- works as errand_worker. Where errand has migrated before as another role, run first, as that role or a superuser:
-- `reassign owned by OLD to errand_owner`.

do $$ declare role text; begin
    foreach role in array array['errand_owner', 'errand_worker', 'errand_reader'] loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I login', role);
        end if;
    end loop;
    execute format('grant connect on database %I to errand_owner, errand_worker, errand_reader', current_database());
    -- Whoever may make tables could put one in front of errand's.
    execute format('revoke create, temporary on database %I from public', current_database());
end $$;

revoke create on schema public from public;
grant usage, create on schema public to errand_owner;
grant usage on schema public to errand_worker, errand_reader;

-- What is there, and what later migrations make.
grant select, insert, update, delete on all tables in schema public to errand_worker;
grant select on all tables in schema public to errand_reader;
alter default privileges for role errand_owner in schema public grant select, insert, update, delete on tables to errand_worker;
alter default privileges for role errand_owner in schema public grant select on tables to errand_reader;

-- Results and arguments are customers' data: give errand_reader to people who may see them.
