-- How many attempts in a row a record stands for: those that only postponed their job, for the same cause, are one record,
-- with the start of the first and all else of the last. A worker of a build before writes one for each.
alter table attempts add column times integer not null default 1;
