-- The audit log: every change that a person or a key made, append-only. An entry is written in the statement of its change.
-- It outlives what it is about; entries go when they are old enough.
create table changes (
    change_id    blob primary key not null,
    at           integer not null,
    what         text not null check (length(what) between 1 and 64),
    -- Who: a person's name, or a key by its ID.
    decider      text not null check (length(decider) between 1 and 128),
    -- From where: the address of the other end, or the command line.
    origin       text not null check (length(origin) <= 128),
    -- Whether they did so as the operator, and not as the owner.
    as_operator  integer not null check (as_operator in (0, 1)),
    -- Whose it is about, if that is anybody's. Of an owner that was erased there is the kind.
    owner_kind   text,
    owner_id     text,
    -- What it is about, by the ID or name that it has among its kind.
    object       text check (length(object) <= 256),
    -- Small JSON, without what customers sent.
    before_value text,
    after_value  text
);

create index changes_at on changes (at, change_id);
create index changes_owner on changes (owner_kind, owner_id, at, change_id);
