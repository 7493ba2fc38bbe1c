-- Those of an owner are counted before another one is made.
create index batches_open on batches (owner_kind, owner_id) where completed_at is null;
