-- Callbacks: events that are sent to whoever asked for them, by HTTP.

-- Where the events of a job, or of a batch as a whole, are sent.
alter table jobs add column callback_url text;
alter table batches add column callback_url text;

-- What an owner has set, and what signs all that is sent for them. It is there from the first event on that is sent.
create table callbacks (
    owner_kind      text not null,
    owner_id        text not null,
    -- Where all events of the owner are sent; null: nowhere.
    url             text,
    secret          bytea not null,
    -- Signs beside the new one for a while.
    previous_secret bytea,
    previous_until  timestamptz,
    set_at          timestamptz not null default now(),
    -- Since when nothing that was sent to the URL has been taken.
    failing_since   timestamptz,
    disabled_at     timestamptz,
    disabled_why    text,
    -- How often it was disabled.
    events          integer not null default 0,

    primary key (owner_kind, owner_id)
);

-- Whoever something is sent to: an owner's URLs of one host and port.
create table receivers (
    -- Made of these.
    id         uuid primary key,
    owner_kind text not null,
    owner_id   text not null,
    -- When it is looked at for what is due; null: nothing waits for it.
    next_at    timestamptz,
    -- Whether it has taken anything.
    is_proven  boolean not null default false,
    -- How often in a row it has not taken what it was sent. Meanwhile it is tried seldom, whatever is due.
    failures   integer not null default 0
);

create index receivers_next on receivers (next_at) where next_at is not null;
create index receivers_owner on receivers (owner_kind, owner_id);

-- An event that is sent to a URL, once it is known that it has to be.
create table deliveries (
    -- Made of the event and the URL.
    id            uuid primary key,
    receiver      uuid not null,
    owner_kind    text not null,
    owner_id      text not null,
    url           text not null,
    event_id      uuid not null,
    kind          text not null,
    -- As it is told, so that it can be sent when the event itself was removed for its age.
    event         text not null,
    -- The job or batch whose event it is, and where it is in the order of events.
    subject       uuid not null,
    position      bigint not null,
    job_id        uuid,
    batch_id      uuid,
    state         text not null default 'waiting',
    created_at    timestamptz not null default now(),
    -- Since when it waits: since it was made, or since somebody asked for it again.
    waiting_since timestamptz not null default now(),
    due_at        timestamptz default now(),
    tries         integer not null default 0,
    last_status   integer,
    last_error    text,
    tried_at      timestamptz,
    finished_at   timestamptz,

    constraint deliveries_wait_or_are_final check ((state = 'waiting') = (due_at is not null) and (due_at is null) = (finished_at is not null))
);

create index deliveries_due on deliveries (receiver, due_at) where state = 'waiting';
create index deliveries_in_order on deliveries (subject, position) where state = 'waiting';
create index deliveries_waiting on deliveries (waiting_since) where state = 'waiting';
create index deliveries_owner on deliveries (owner_kind, owner_id, created_at, id);
create index deliveries_created on deliveries (created_at, id);
create index deliveries_failed_of_owner on deliveries (owner_kind, owner_id, created_at, id) where state = 'failed';
create index deliveries_failed on deliveries (created_at, id) where state = 'failed';
create index deliveries_finished on deliveries (finished_at) where finished_at is not null;

-- Rows change as often as something is sent.
alter table receivers set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
alter table deliveries set (autovacuum_vacuum_scale_factor = 0.01);

-- That a callback was disabled is an event of its owner's.
alter table events drop constraint events_about_something;
alter table events add constraint events_about_something check (job_id is not null or batch_id is not null or owner_id is not null) not valid;

-- The ID of the job that an envelope is, or an error that names the field that is wrong, so far as SQL can tell. The relay judges the
-- rest. Temporary things of the caller's come last, so that none is taken for what is meant.
create or replace function envelope_id(envelope json) returns uuid language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    known constant text[] := array['id', 'user_id', 'org_id', 'requested_by', 'tool', 'arguments', 'text', 'version',
        'connected_account_id', 'queue', 'priority', 'run_at', 'expires_at', 'timeout_ms', 'max_attempts', 'max_age_ms', 'effect',
        'idempotency_key', 'tags', 'callback'];
    texts constant text[] := array['id', 'user_id', 'org_id', 'requested_by', 'tool', 'text', 'version', 'connected_account_id', 'queue',
        'run_at', 'expires_at', 'effect', 'idempotency_key'];
    numbers constant text[] := array['priority', 'timeout_ms', 'max_attempts', 'max_age_ms'];
    times constant text[] := array['run_at', 'expires_at'];
    of_any_length constant text[] := array['text', 'user_id', 'org_id', 'tool', 'id'];
    field record;
    seen text[] := '{}';
    wrong text;
    owner text;
    job uuid;
begin
    if envelope is null or json_typeof(envelope) <> 'object' then
        raise exception using errcode = '22023', message = 'errand: the envelope is no JSON object',
            hint = 'enqueue(''{"user_id": "user-1", "tool": "GITHUB_GET_REPO", "arguments": {}}'')';
    end if;
    if octet_length(envelope::text) > 1048576 - 1024 then
        raise exception using errcode = '54000', message = format('errand: the envelope has %s bytes; it may have %s',
            octet_length(envelope::text), 1048576 - 1024);
    end if;
    for field in select key, value, json_typeof(value) as kind, value #>> '{}' as said from json_each(envelope) loop
        wrong := case
            when field.key <> all (known) then 'is not a field of an envelope'
            when field.key = any (seen) then 'is there twice'
            when field.kind = 'null' then null
            when field.key = any (texts) and field.kind <> 'string' then 'is no text'
            when field.key = any (numbers) and field.kind <> 'number' then 'is no number'
            when field.key = any (numbers) and field.said !~ '^[0-9]{1,18}$' then 'is no whole number'
            when field.key = 'priority' and field.said !~ '^[0-9]$' then 'must be from 0 to 9'
            when field.key = any (times) and field.said !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})$'
                then 'is no time such as 2030-01-02T03:04:05Z'
            when field.key = 'effect' and field.said not in ('safe', 'idempotent', 'once') then 'must be safe, idempotent or once'
            when field.key = any (texts) and field.key <> all (of_any_length) and octet_length(field.said) > 256
                then 'is longer than 256 bytes'
            -- An empty list is what PHP makes of an empty map.
            when field.key in ('arguments', 'tags') and field.kind <> 'object'
                and not (field.kind = 'array' and json_array_length(field.value) = 0) then 'is no object'
            when field.key = 'callback' and case when field.kind = 'object' then json_typeof(field.value -> 'url') end is distinct from 'string'
                then 'must be an object such as {"url": "https://app.example.com/errand"}'
        end;
        if wrong is not null then
            raise exception using errcode = '22023', message = format('errand: `%s` %s', left(field.key, 100), wrong),
                hint = 'docs/envelope.schema.json has the fields of an envelope';
        end if;
        seen := seen || field.key;
    end loop;
    owner := coalesce(envelope ->> 'user_id', envelope ->> 'org_id');
    wrong := case
        when (envelope ->> 'user_id' is null) = (envelope ->> 'org_id' is null) then 'give either `user_id` or `org_id`'
        when btrim(owner) = '' then 'the owner is empty; say who it is'
        when octet_length(owner) > 256 then 'the ID of the owner is longer than 256 bytes'
        when envelope ->> 'tool' is null then '`tool` is missing'
        when envelope ->> 'tool' = '' or octet_length(envelope ->> 'tool') > 128 then '`tool` must have 1 to 128 characters'
    end;
    if wrong is not null then
        raise exception using errcode = '22023', message = 'errand: ' || wrong;
    end if;
    begin
        job := coalesce((envelope ->> 'id')::uuid, gen_random_uuid());
    exception when invalid_text_representation then
        raise exception using errcode = '22023', message = 'errand: `id` is not a UUID such as 0190b0a0-0000-7000-8000-000000000001';
    end;
    if get_byte(uuid_send(job), 6) >> 4 = 8 then
        raise exception using errcode = '22023',
            message = 'errand: `id` is a UUID of version 8, which errand keeps for items of batches; use version 4 or 7';
    end if;
    return job;
end $$;
