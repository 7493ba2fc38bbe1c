-- Since when a job waits that should run: set where it begins to wait, and by a retry after a counted failure to the time
-- of the retry. Being published or postponed does not move it. Null for a job of a build before, whose `due_at` stands
-- for it; a worker of such a build does not move it after a failure either.
alter table jobs add column first_due_at integer;
-- The gauges read figures of waiting jobs from the index alone. It has no entry of a job that runs or is done.
drop index jobs_due;
create index jobs_due on jobs (priority, due_at, queue, state, first_due_at) where due_at is not null;
