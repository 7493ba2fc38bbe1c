-- no-transaction
-- Those of an owner are counted before another one is made.
drop index concurrently if exists batches_open;
create index concurrently batches_open on batches (owner_kind, owner_id) where completed_at is null;
