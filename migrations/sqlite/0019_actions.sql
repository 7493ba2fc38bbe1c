-- Actions: one decision about all jobs that a filter means, which a person previews and confirms, and which workers carry out
-- page by page. One without an owner is the operator's.
create table actions (
    id              blob primary key,
    owner_kind      text,
    owner_id        text,
    kind            text not null,
    -- How held jobs are let go.
    how             text,
    -- Whether an effect may be repeated, and whether a job may run before its time.
    force           integer not null check (force in (0, 1)),
    early           integer not null check (early in (0, 1)),
    -- Whether it was made to repeat effects.
    asked_force     integer not null check (asked_force in (0, 1)),
    -- Which jobs are meant, as JSON, and before when they were created.
    filter          text not null,
    created_before  integer not null,
    -- What was counted before it was confirmed, as JSON; an action of errand's own has none.
    preview         text,
    status          text not null check (status in ('previewed', 'confirmed', 'done', 'aborted')),
    made_by         text not null,
    created_at      integer not null,
    expires_at      integer,
    confirmed_by    text,
    confirmed_at    integer,
    aborted_by      text,
    finished_at     integer,
    -- What was met and done, as JSON: of all jobs from the newest down to the place.
    progress        text not null,
    place_at        integer,
    place_id        blob,
    -- The jobs after the place that are being decided about, since when, and the place after them. Whoever goes on looks at
    -- their histories, so that none is decided about twice.
    deciding        text not null default '[]',
    deciding_since  integer,
    deciding_to_at  integer,
    deciding_to_id  blob,
    -- Which process carries it out, and until when nobody else does.
    fence           integer not null default 0,
    leased_until    integer,
    -- When it was taken last, by which actions take turns.
    taken_at        integer,
    constraint actions_have_a_whole_owner_or_none check ((owner_kind is null) = (owner_id is null)),
    constraint actions_that_release_say_how check ((kind = 'release') = (how is not null)),
    constraint actions_expire_until_they_are_confirmed check ((status = 'previewed') = (expires_at is not null)),
    constraint actions_have_a_whole_place_or_none check ((place_at is null) = (place_id is null)),
    constraint actions_that_have_ended_say_when check ((status in ('done', 'aborted')) = (finished_at is not null))
) without rowid;

create index actions_in_order on actions (created_at, id);
create index actions_of_owner_in_order on actions (owner_kind, owner_id, created_at, id);
create index actions_to_carry_out on actions (id) where status = 'confirmed';
create index actions_taken on actions (taken_at) where taken_at is not null;
create index actions_finished on actions (finished_at) where finished_at is not null;
create index actions_expiring on actions (expires_at) where expires_at is not null;
