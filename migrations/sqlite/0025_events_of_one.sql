-- Whoever follows one job or batch reads what it has missed. The indexes end with `position` by themselves.
create index events_job on events (job_id) where job_id is not null;
create index events_batch on events (batch_id) where batch_id is not null;
