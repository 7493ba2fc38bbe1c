-- How often the broker refused a reply since it was last offered anew, so that waits grow and end. It has no check,
-- because adding one would read the whole table while nobody else may write to it.
alter table jobs add column reply_refusals integer not null default 0;
-- The AMQP user who published the job, as the broker has checked it, by which its reply queue is judged again.
alter table jobs add column publisher text;
