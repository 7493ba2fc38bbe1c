-- no-transaction
-- The order of creation, for what removes old jobs and for lists. The summary of page ranges that was there finds little
-- once the space of removed jobs is used again. New entries go to the right end of the index, and nothing that a claim
-- or a finish changes is in it. Each statement waits for others and keeps nobody waiting; a half built index of a build
-- that was cut off is dropped first.
drop index concurrently if exists jobs_in_order;
create index concurrently jobs_in_order on jobs (created_at, id);
drop index concurrently if exists jobs_created;
-- The same for rejected messages, whether they were requeued or not.
drop index concurrently if exists rejected_in_order;
create index concurrently rejected_in_order on rejected (received_at, id);
drop index concurrently if exists rejected_open;
