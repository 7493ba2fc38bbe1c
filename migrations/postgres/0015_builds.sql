-- no-transaction
-- Which build a worker runs, as it says itself. Null for one of a build before this.
alter table workers add column if not exists build text;
-- The worker that ended the last attempt of a job. Null where a worker of a build before this ended it.
alter table jobs add column if not exists ran_by uuid;
-- Who enqueued a rejected message again, and the body that was taken instead of its own. Null for its own, or before this.
alter table rejected add column if not exists requeued_by text;
alter table rejected add column if not exists corrected bytea;
-- Held jobs in the order of creation, for lists: they may be few and old among millions. Nothing that a claim or a
-- successful finish changes is in it.
drop index concurrently if exists jobs_held_in_order;
create index concurrently jobs_held_in_order on jobs (created_at, id) where held_reason is not null;
-- The jobs of an owner in the same order, whose places are found without reading the jobs.
drop index concurrently if exists jobs_owner_in_order;
create index concurrently jobs_owner_in_order on jobs (owner_kind, owner_id, created_at, id);
drop index concurrently if exists jobs_owner;
