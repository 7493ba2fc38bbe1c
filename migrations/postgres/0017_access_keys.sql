-- Access keys, by which apps use the HTTP API. Of the secret there is only the SHA-256. A key without an owner is the
-- operator's. Rows go some time after their key has ended.
create table access_keys (
    id           uuid primary key,
    digest       bytea not null check (octet_length(digest) = 32),
    owner_kind   text,
    owner_id     text,
    -- Words with a comma between them.
    scopes       text not null,
    created_at   timestamptz not null,
    expires_at   timestamptz,
    revoked_at   timestamptz,
    -- The key that took its place.
    replaced_by  uuid,
    -- To the minute.
    last_used_at timestamptz,
    constraint access_keys_have_a_whole_owner_or_none check ((owner_kind is null) = (owner_id is null))
);

create index access_keys_owner on access_keys (owner_kind, owner_id, created_at);

-- One row from the first key on, which stays when all keys are gone: from then on requests need one.
create table access_keys_required (
    only_row boolean primary key check (only_row),
    since    timestamptz not null
);
