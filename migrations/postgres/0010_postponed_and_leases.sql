-- Since when each attempt of a job has only postponed it; null for all others. How long that may go on counts from here.
alter table jobs add column postponed_since timestamptz;
-- How long after its last beat a worker counts as alive, as it says itself. Null for one of a build before this.
alter table workers add column lease_ms bigint;
