-- The secret of what the API seals: places in lists that not everybody may know, and tokens. One row, or none before it was asked for.
create table sealing_secret (
    only_row   boolean primary key default true check (only_row),
    secret     bytea not null,
    created_at timestamptz not null default now()
);
