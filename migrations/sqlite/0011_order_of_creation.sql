-- The order of creation, for what removes old jobs and for lists.
create index jobs_in_order on jobs (created_at, id);
drop index jobs_created;
-- The same for rejected messages, whether they were requeued or not.
create index rejected_in_order on rejected (received_at, id);
drop index rejected_open;
