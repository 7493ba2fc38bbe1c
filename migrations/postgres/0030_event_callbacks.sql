-- Where an event is sent is recorded with it: the URL of its job, or of its batch where it is about the batch as a whole.
alter table events add column callback_url text;

-- Null from workers of an earlier build.
alter table event_inbox add column callback_urls text[];
