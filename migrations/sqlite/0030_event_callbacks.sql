-- Where an event is sent is recorded with it: the URL of its job, or of its batch where it is about the batch as a whole.
alter table events add column callback_url text;
