-- The least privileges in PostgreSQL, for three roles: one that changes the schema, one that works, one that reads.
-- Run it once as a superuser in errand's database, before the first `errand migrate`; a second run changes nothing:
--
--   psql -d errand -f deploy/postgres/privileges.sql
--
-- Then give them passwords (`\password errand_owner` in psql), or certificates. errand migrates as errand_owner, and
-- works as errand_worker. Where errand has migrated before as another role, run first, as that role or a superuser:
-- `reassign owned by OLD to errand_owner`. Where `store.schema` is not `errand`, write its name after each `schema`.
--
-- Run it again before `errand migrate --move-from` moves the tables of an earlier build from another schema into this one.
--
-- Where `store.schema` is "public", which is others', too: write "public" after each `schema`, but instead of the lines that
-- begin with `create schema` and `alter schema` execute `grant create on schema public to errand_owner`, so that it does not
-- come to own the schema, and leave out those with `on all`, which would open others' tables. What errand_owner makes later
-- has its rights by default; grant those on tables of errand's that are there by their names.

do $$ declare role text; begin
    foreach role in array array['errand_owner', 'errand_worker', 'errand_reader'] loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I login', role);
        end if;
    end loop;
    execute format('grant connect on database %I to errand_owner, errand_worker, errand_reader', current_database());
    -- errand makes no temporary tables. Another application in this database that does is granted the right by name.
    execute format('revoke create, temporary on database %I from public', current_database());
end $$;

create schema if not exists errand;
alter schema errand owner to errand_owner;
grant usage on schema errand to errand_worker, errand_reader;

-- What is there, and what later migrations make.
grant select, insert, update, delete on all tables in schema errand to errand_worker;
grant select on all tables in schema errand to errand_reader;
-- pg_dump reads where the sequences are.
grant select on all sequences in schema errand to errand_reader;
alter default privileges for role errand_owner in schema errand grant select, insert, update, delete on tables to errand_worker;
alter default privileges for role errand_owner in schema errand grant select on tables to errand_reader;
alter default privileges for role errand_owner in schema errand grant select on sequences to errand_reader;

-- Results and arguments are customers' data: give errand_reader to people who may see them, and errand_viewer of
-- read_only.sql to all others.
