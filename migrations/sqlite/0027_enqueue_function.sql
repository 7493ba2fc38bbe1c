-- Enqueueing by SQL is for PostgreSQL, whose functions other programs can call. A file of SQLite is errand's alone.
select 1;
