-- no-transaction
-- Whoever follows one job or batch reads what it has missed.
drop index concurrently if exists events_job;
create index concurrently events_job on events (job_id, position) where job_id is not null;
drop index concurrently if exists events_batch;
create index concurrently events_batch on events (batch_id, position) where batch_id is not null;
