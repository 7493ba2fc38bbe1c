-- Two columns get the words that the rest of errand has for what they hold.
alter table jobs rename column settled_by to ended_by;
alter table awaited rename column looks to lookups;
