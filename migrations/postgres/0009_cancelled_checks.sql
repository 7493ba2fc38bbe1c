-- A cancelled job whose call may have run is still looked up, so that what is not known is not forgotten.
alter table jobs drop constraint jobs_check_is_of_unknown;
alter table jobs add constraint jobs_check_is_of_unknown check (check_at is null or (unknown_since is not null
    and (state = 'cancelled' or (held_reason is not null and held_reason = 'unknown_outcome')))) not valid;
