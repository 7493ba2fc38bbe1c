-- Enqueueing by SQL: a job is there if, and only if, the transaction commits that enqueued it.

-- What the function took and no job is made of yet. The relay of a worker looks at it many times a second.
create table job_inbox (
    id       bigint generated always as identity primary key,
    job_id   uuid not null,
    -- As it came, because a repeated job is known by its bytes.
    envelope json not null,
    -- Of the envelope.
    bytes    integer not null default 0,
    -- The role of the session, which says for whom it may enqueue.
    caller   text not null default session_user
);

-- It is emptied as fast as it is filled.
alter table job_inbox set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The ID of the job that an envelope is, or an error that names the field that is wrong, so far as SQL can tell. The relay judges the
-- rest. Temporary things of the caller's come last, so that none is taken for what is meant.
create function envelope_id(envelope json) returns uuid language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    known constant text[] := array['id', 'user_id', 'org_id', 'requested_by', 'tool', 'arguments', 'text', 'version',
        'connected_account_id', 'queue', 'priority', 'run_at', 'expires_at', 'timeout_ms', 'max_attempts', 'max_age_ms', 'effect',
        'idempotency_key', 'tags'];
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

-- Enqueues a job within the transaction of the caller, and returns its ID. It is bound to what it names when it is made, so that it goes
-- on where the tables are moved to another schema, and it runs as their owner, so that a caller needs the right to execute it alone.
create function enqueue(envelope json) returns uuid language sql volatile security definer
begin atomic
    insert into job_inbox (job_id, envelope, bytes) values (envelope_id(envelope), envelope, octet_length(envelope::text)) returning job_id;
end;

revoke execute on function enqueue(json), envelope_id(json) from public;
