-- Moves errand's tables back to the schema `public`, where builds before migration 16 look for them, in one transaction.
-- Only for a rollback to such a build. Stop all workers first, then, as a superuser, because the schema is dropped, too:
--
--   psql -d errand -v ON_ERROR_STOP=1 -f deploy/postgres/back_to_public.sql
--
-- `errand migrate --move-from public` of the newer build moves them forth again, after privileges.sql where you use its
-- roles. Where `store.schema` is not `errand`, write its name instead.

begin;
set local lock_timeout = '5s';

do $$ declare thing record; begin
    lock table errand.workers in access exclusive mode;
    if exists (select from errand.workers
            where beat_at > clock_timestamp() - coalesce(lease_ms, 30000) * interval '1 millisecond') then
        raise exception 'a worker still runs: stop all workers, and wait for the lease of one that was killed';
    end if;
    for thing in select case relkind when 'v' then 'view' else 'table' end as kind, relname as name from pg_class
            where relnamespace = 'errand'::regnamespace and relkind in ('r', 'p', 'v') and relname <> '_sqlx_migrations'
        union all
        select 'domain', typname from pg_type where typnamespace = 'errand'::regnamespace and typtype = 'd'
    loop
        execute format('alter %s errand.%I set schema public', thing.kind, thing.name);
    end loop;
    for thing in select proname as name, pg_get_function_identity_arguments(oid) as arguments from pg_proc
            where pronamespace = 'errand'::regnamespace
    loop
        execute format('alter function errand.%I(%s) set schema public', thing.name, thing.arguments);
    end loop;
    -- What the move has left, so that earlier builds make no second set of tables.
    if to_regclass('public._sqlx_migrations') is not null then
        delete from public._sqlx_migrations where version = 1 and checksum = '\x00' and description like 'moved to schema %';
        if found and not exists (select from public._sqlx_migrations) then
            drop table public._sqlx_migrations;
        end if;
    end if;
    if to_regclass('public._sqlx_migrations') is null then
        alter table errand._sqlx_migrations set schema public;
    else
        -- Another application has its own there.
        insert into public._sqlx_migrations select * from errand._sqlx_migrations;
        drop table errand._sqlx_migrations;
    end if;
end $$;

-- A session of a role that is called like the schema would go on looking there first, and make new tables.
drop schema errand;

commit;
