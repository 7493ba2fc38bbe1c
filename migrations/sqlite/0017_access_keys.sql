-- Access keys, by which apps use the HTTP API. Of the secret there is only the SHA-256. A key without an owner is the
-- operator's. Rows go some time after their key has ended.
create table access_keys (
    id           blob primary key,
    digest       blob not null check (length(digest) = 32),
    owner_kind   text,
    owner_id     text,
    -- Words with a comma between them.
    scopes       text not null,
    created_at   integer not null,
    expires_at   integer,
    revoked_at   integer,
    -- The key that took its place.
    replaced_by  blob,
    -- To the minute.
    last_used_at integer,
    constraint access_keys_have_a_whole_owner_or_none check ((owner_kind is null) = (owner_id is null))
) without rowid;

create index access_keys_owner on access_keys (owner_kind, owner_id, created_at);

-- One row from the first key on, which stays when all keys are gone: from then on requests need one.
create table access_keys_required (
    only_row integer primary key check (only_row = 1),
    since    integer not null
);
