-- The secret of what the API seals: places in lists that not everybody may know, and tokens. One row, or none before it was asked for.
create table sealing_secret (
    only_row integer primary key check (only_row = 1),
    secret   blob not null
);
