-- A role that enqueues jobs by the function `errand.enqueue`, in transactions of its own, and does nothing else with what is errand's.
-- docs/enqueue-by-sql.md says how. Run it as a superuser in errand's database after `errand migrate`; a second run changes nothing:
--
--   psql -d errand -f deploy/postgres/enqueue.sql
--
-- Then let the roles of your apps be members of it (`grant errand_enqueuer to shop`). Where `store.schema` is not `errand`, write its
-- name instead.

do $$ begin
    if not exists (select from pg_roles where rolname = 'errand_enqueuer') then
        create role errand_enqueuer nologin;
    end if;
end $$;

grant usage on schema errand to errand_enqueuer;
grant execute on function errand.enqueue(json) to errand_enqueuer;
