-- Which build a worker runs, as it says itself. Null for one of a build before this.
alter table workers add column build text;
-- The worker that ended the last attempt of a job. Null where a worker of a build before this ended it.
alter table jobs add column ran_by blob;
-- Who enqueued a rejected message again, and the body that was taken instead of its own. Null for its own, or before this.
alter table rejected add column requeued_by text;
alter table rejected add column corrected blob;
-- Held jobs in the order of creation, for lists: they may be few and old among millions.
create index jobs_held_in_order on jobs (created_at, id) where state = 'held';
-- The jobs of an owner in the same order, whose places are found without reading the jobs.
create index jobs_owner_in_order on jobs (owner_kind, owner_id, created_at, id);
drop index jobs_owner;
