//! Callbacks, and the deliveries of events to URLs.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    callback::Secret,
    job::{CallbackUrl, JobId, Owner, Principal},
    store::{
        Callback, CallbackAnswer, Callbacks, CalledEvent, CalledJob, ChangeKind, Decider, Delivery,
        DeliveryFilter, DeliveryState, DueDelivery, EventsAfter, NewDelivery, Place, Recovery, Result,
        Secrets, TriedDelivery,
        callbacks::{callback, called, called_job, delivery, due, recovered, secrets, told},
        changes::NewChange,
        columns::{
            ChangeColumns, NewDeliveryColumns, PrincipalColumns, ReceiverColumns, StretchColumns,
            TriedColumns,
        },
        convert::{micros, to_limit, uuids},
        events::to_position,
        history::refuse_decider,
        job_filter::Stretch,
        read::readable,
        sql::{One, Rows, statements},
    },
};

statements! { Postgres:
    set(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, url: Option<&str>, fresh: Vec<u8>, after: &str) = "with was as (
        select url as was_url, disabled_at as was_disabled_at from callbacks
        where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} for update),
    changed as (insert into callbacks (owner_kind, owner_id, url, secret)
        select {owner_kind}, {owner_id}, {url}, {fresh} from (select count(*) from was) as locked
        on conflict (owner_kind, owner_id) do update set url = excluded.url, failing_since = null,
            set_at = case when callbacks.url is distinct from excluded.url then now() else callbacks.set_at end,
            disabled_at = null, disabled_why = null
        returning *),
    logged as ({log}, owner_kind, owner_id, owner_id, null, {after}::text from changed
        where not exists (select 1 from was where was_url is not distinct from url and was_disabled_at is null)
            and (url is not null or exists (select 1 from was)))
    select * from changed";

    ensure(owner_kind: &str, owner_id: &str, fresh: Vec<u8>) = "insert into callbacks (owner_kind, owner_id, secret)
    values ({owner_kind}, {owner_id}, {fresh}) on conflict do nothing";

    /// Whoever wanted another one is not told this one.
    secrets(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, only: Option<Vec<u8>>) = "with found as (
        select * from callbacks where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}),
    logged as ({log}, owner_kind, owner_id, owner_id, null, null from found where {only}::bytea is null or secret = {only})
    select {signing_secrets} from found c";

    replace(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, fresh: Vec<u8>, overlap: i64) = "with changed as (
        update callbacks set previous_secret = secret, secret = {fresh},
            previous_until = now() + {overlap}::bigint * interval '1 microsecond'
        where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}
            and secret <> {fresh} and ({overlap} = 0 or coalesce(previous_until <= now(), true)) returning *),
    logged as ({log}, owner_kind, owner_id, owner_id, null,
        jsonb_build_object('overlap_secs', {overlap}::bigint / 1000000)::text from changed)
    select {signing_secrets} from changed c";

    callbacks(principal: One<'_, PrincipalColumns>, behind_kind: &str, behind_id: &str, limit: i64) = "select * from callbacks
    where {may_see} and url is not null and (owner_kind, owner_id) > ({behind_kind}, {behind_id})
    order by owner_kind, owner_id limit {limit}";

    called(after: i64, up_to: i64) = "select e.*, c.url as owner_url
    from events e left join callbacks c on c.owner_kind = e.owner_kind and c.owner_id = e.owner_id and c.set_at <= e.at
    where e.position > {after} and e.position <= {up_to} and e.owner_id is not null and (e.callback_url is not null or c.url is not null)
    order by e.position";

    /// A receiver that is left alone for a while is not asked before that. What comes after one that waits, waits as long.
    add(deliveries: Rows<'_, NewDeliveryColumns>) = "with i as materialized (select * from {rows}),
    signed as (
        insert into callbacks (owner_kind, owner_id, secret) select owner_kind, owner_id, fresh from i on conflict do nothing),
    added as (
        insert into deliveries ({delivery}, state, due_at, finished_at, last_error)
        select {i.delivery}, case when is_disabled then 'failed' else 'waiting' end,
            case when not is_disabled then greatest(now(), behind) end,
            case when is_disabled then now() end, case when is_disabled then 'disabled' end
        from (select i.*, coalesce(c.disabled_at is not null and c.url = i.url, false) as is_disabled,
                (select max(d.due_at) from deliveries d where d.state = 'waiting' and d.subject = i.subject and d.url = i.url
                    and d.receiver {equals} i.receiver) as behind
            from i left join callbacks c on c.owner_kind = i.owner_kind and c.owner_id = i.owner_id) i
        on conflict do nothing
        returning receiver, owner_kind, owner_id, state)
    insert into receivers as r (id, owner_kind, owner_id, next_at)
    select distinct receiver, owner_kind, owner_id, now() from added where state = 'waiting'
    on conflict (id) do update set next_at = least(r.next_at, excluded.next_at) where r.next_at is null or r.failures = 0";

    /// A receiver is looked at when something of it is due, the one first that was looked at longest ago; and also where all is being
    /// sent, because who sends it may be gone. Rows are read whole only where they are returned.
    due(full: Vec<Uuid>, open: Vec<Uuid>, most: i64, limit: i64) = "with page as materialized (
        select id, is_proven, failures from receivers where next_at <= now() and id <> all({full}) order by next_at limit {limit}
        for update skip locked),
    found as materialized (
        select d.id, d.receiver, p.is_proven, p.failures, row_number() over (partition by d.receiver order by d.due_at) as place
        from page p cross join lateral (
            select id, receiver, due_at from deliveries d
            where d.receiver = p.id and d.state = 'waiting' and d.due_at <= now() and d.id <> all({open}) and {is_first_of_subject}
            order by d.due_at limit {most}) d),
    busy as materialized (select distinct receiver from deliveries where id = any({open})),
    moved as (
        update receivers r set next_at = case when exists (select 1 from found f where f.receiver = r.id) then now()
            else least((select d.due_at from deliveries d where d.receiver = r.id and d.state = 'waiting' and d.id <> all({open})
                    order by d.due_at limit 1),
                case when r.id in (select receiver from busy) then now() + interval '30 seconds' end) end
        where r.id in (select id from page))
    select d.*, f.is_proven, f.failures, {signing_secrets}, {own_url}
    from (select * from found order by place limit {limit}) f
    join deliveries d on d.id = f.id
    left join callbacks c on c.owner_kind = d.owner_kind and c.owner_id = d.owner_id
    order by f.place, d.due_at";

    called_jobs(ids: Vec<Uuid>, most: i64) = "select {called_job}, case when octet_length(result::text) <= {most} then result::text end as result,
        case when octet_length(result::text) > {most} then octet_length(result::text)::bigint end as left_out
    from jobs where id = any({ids})";

    note(tried: Rows<'_, TriedColumns>) = "with noted as (
        update deliveries d set state = i.state, due_at = now() + i.after * interval '1 microsecond', tries = tries + i.is_sent::integer,
            last_status = i.last_status, last_error = i.last_error, tried_at = now(),
            finished_at = case when i.state <> 'waiting' then now() end
        from {rows} where d.id = i.id and d.state = 'waiting' and d.tries = i.was_tried
        returning d.subject, d.url, d.receiver, d.position, d.due_at),
    asked as (
        update receivers r set next_at = n.due_at
        from (select receiver, min(due_at) as due_at from noted where due_at is not null group by receiver) n
        where r.id = n.receiver and r.failures = 0 and (r.next_at is null or r.next_at > n.due_at)),
    later as (
        select w.id, n.due_at from noted n cross join lateral (
            select id from deliveries d where d.state = 'waiting' and d.subject = n.subject and d.url = n.url
                and d.receiver {equals} n.receiver and d.position > n.position and d.due_at < n.due_at offset 0) w
        where n.due_at is not null)
    update deliveries d set due_at = l.due_at from later l where d.id = l.id";

    /// One that fails is asked again after a second, then two, four and so on, up to five minutes.
    note_receivers(answers: Rows<'_, ReceiverColumns>) = "update receivers r set is_proven = r.is_proven or i.is_taken,
        failures = case when i.is_taken then 0 else failures + 1 end,
        next_at = case when i.is_taken then now() else now() + least(300, power(2, least(failures, 9))) * interval '1 second' end
    from {rows} where r.id = i.id";

    note_callback(owner_kind: &str, owner_id: &str, url: &str, taken: bool, gone: bool, patience: i64, record: bool) = "with changed as (
        update callbacks set failing_since = case when not {taken} then coalesce(failing_since, now()) end,
            disabled_at = case when {is_given_up} then now() end,
            disabled_why = case when {is_given_up} then case when {gone} then 'gone' else 'failing' end end,
            events = events + ({is_given_up})::integer
        where owner_kind = {owner_kind} and owner_id = {owner_id} and url = {url} and disabled_at is null
        returning owner_kind, owner_id, events, disabled_at),
    recorded_events as (
        insert into event_inbox ({inbox})
        select array['callback.disabled'], array[events], array[null::uuid], array[null::uuid], array[owner_kind], array[owner_id], array[null],
            array[null], array[null], array[null::integer], array[null], array[null], array[null]
        from changed where {record} and disabled_at is not null)
    select 1 from changed where disabled_at is not null";

    deliveries(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and {in_order} and ({wanted_state}::text is null or state = {wanted_state})
    order by created_at desc, id desc limit {limit}";

    deliveries_of_owner(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order} and ({wanted_state}::text is null or state = {wanted_state})
    order by created_at desc, id desc limit {limit}";

    /// They are few among all.
    failed(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, limit: i64) = "select * from deliveries
    where {may_see} and state = 'failed' and {in_order} order by created_at desc, id desc limit {limit}";

    failed_of_owner(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, limit: i64) = "select * from deliveries
    where {may_see} and state = 'failed' and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order}
    order by created_at desc, id desc limit {limit}";

    recover_failed(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, limit: i64) = "with page as (
        select id from deliveries
        where {may_see} and state = 'failed' and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order}
        order by created_at desc, id desc limit {limit} for update), {recover_page}";

    recover_all(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, limit: i64) = "with page as (
        select id from deliveries
        where {may_see} and state <> 'waiting' and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order}
        order by created_at desc, id desc limit {limit} for update), {recover_page}";

    expire(waited: i64, limit: i64) = "with expired as (update deliveries set state = 'failed', due_at = null, finished_at = now(), last_error = 'expired'
        where id in (select id from deliveries where state = 'waiting' and waiting_since < now() - {waited}::bigint * interval '1 microsecond'
            order by waiting_since limit {limit})
        returning 1)
    select count(*) as deliveries from expired";

    remove(ended_for: i64, limit: i64) = "with gone as (delete from deliveries where id in (
        select id from deliveries where finished_at < now() - {ended_for}::bigint * interval '1 microsecond' order by finished_at limit {limit})
        returning receiver),
    unasked as (delete from receivers where id in (select receiver from gone) and next_at is null)
    select count(*) as deliveries from gone";

    remove_of(owner_kind: &str, owner_id: &str, limit: i64) = "with gone as (delete from deliveries where id in (
        select id from deliveries where owner_kind = {owner_kind} and owner_id = {owner_id} order by created_at limit {limit})
        returning 1)
    select count(*) as deliveries from gone";

    remove_callback(owner_kind: &str, owner_id: &str) = "with gone as (
        delete from receivers where owner_kind = {owner_kind} and owner_id = {owner_id})
    delete from callbacks where owner_kind = {owner_kind} and owner_id = {owner_id} returning 1";
}

#[async_trait]
impl Callbacks for PostgresStore {
    async fn set_callback(
        &self,
        principal: &Principal,
        owner: &Owner,
        url: Option<CallbackUrl>,
        fresh: &Secret,
        by: &Decider,
    ) -> Result<Option<Callback>> {
        if !principal.may_see(owner) {
            return Ok(None);
        }
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::CallbackSet, principal, by);
        let (kind, id) = (owner.kind().as_str(), owner.id());
        let secret = fresh.expose_bytes().to_vec();
        let query = sql::set(
            One(principal),
            One(&change),
            kind,
            id,
            url.as_ref().map(CallbackUrl::as_str),
            secret,
            &told(url.as_ref()),
        );
        self.other.fetch_first(query).await?.as_ref().map(callback).transpose()
    }

    async fn callback_secrets(
        &self,
        principal: &Principal,
        owner: &Owner,
        fresh: &Secret,
        replaced: Option<Duration>,
        by: &Decider,
    ) -> Result<Option<Secrets>> {
        if !principal.may_see(owner) {
            return Ok(None);
        }
        refuse_decider(by)?;
        let (kind, id) = (owner.kind().as_str(), owner.id());
        let secret = fresh.expose_bytes().to_vec();
        self.other.fetch(sql::ensure(kind, id, secret.clone())).await?;
        if let Some(overlap) = replaced {
            let change = NewChange::new(ChangeKind::CallbackRotated, principal, by);
            let query = sql::replace(One(principal), One(&change), kind, id, secret.clone(), micros(overlap));
            if let Some(replaced) = self.other.fetch_first(query).await? {
                return secrets(&replaced).map(Some);
            }
        }
        let change = NewChange::new(ChangeKind::CallbackSecretRead, principal, by);
        let query = sql::secrets(One(principal), One(&change), kind, id, replaced.map(|_| secret));
        self.other.fetch_first(query).await?.as_ref().map(secrets).transpose()
    }

    async fn callbacks(
        &self,
        principal: &Principal,
        behind: Option<Owner>,
        limit: usize,
    ) -> Result<Vec<Callback>> {
        let (kind, id) = behind.as_ref().map_or(("", ""), |owner| (owner.kind().as_str(), owner.id()));
        let query = sql::callbacks(One(principal), kind, id, to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, callback))
    }

    async fn called_events(&self, after: u64, limit: usize) -> Result<EventsAfter<CalledEvent>> {
        let before = self.place_events().await?;
        let next = before.page(after, limit);
        let rows = self.other.fetch(sql::called(to_position(after), to_position(next))).await?;
        Ok(before.behind(Some(after), self.positions().await?, called(&rows), next))
    }

    async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<()> {
        let rows: Vec<_> = deliveries.iter().collect();
        self.other.fetch(sql::add(Rows(&rows))).await.map(drop)
    }

    async fn due_deliveries(
        &self,
        full: &[Uuid],
        open: &[Uuid],
        most: usize,
        limit: usize,
    ) -> Result<Vec<DueDelivery>> {
        let query = sql::due(full.to_vec(), open.to_vec(), to_limit(most), to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, due))
    }

    async fn called_jobs(&self, jobs: &[JobId], most: usize) -> Result<Vec<CalledJob>> {
        let query = sql::called_jobs(uuids(jobs), to_limit(most));
        Ok(readable(&self.other.fetch(query).await?, called_job))
    }

    async fn note_deliveries(&self, tried: &[TriedDelivery]) -> Result<()> {
        let rows: Vec<_> = tried.iter().collect();
        self.other.fetch(sql::note(Rows(&rows))).await.map(drop)
    }

    async fn note_receivers(&self, answers: &[(Uuid, bool)]) -> Result<()> {
        let rows: Vec<_> = answers.iter().collect();
        self.other.fetch(sql::note_receivers(Rows(&rows))).await.map(drop)
    }

    async fn note_callback(
        &self,
        owner: &Owner,
        url: &str,
        answer: CallbackAnswer,
        patience: Duration,
    ) -> Result<bool> {
        let (taken, gone) = (answer == CallbackAnswer::Taken, answer == CallbackAnswer::Gone);
        let (kind, id) = (owner.kind().as_str(), owner.id());
        let query = sql::note_callback(kind, id, url, taken, gone, micros(patience), self.records_events);
        Ok(self.other.fetch_first(query).await?.is_some())
    }

    async fn deliveries(
        &self,
        principal: &Principal,
        filter: &DeliveryFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Delivery>> {
        let stretch = Stretch::between(None, None, before);
        let (state, limit) = (filter.state, to_limit(limit));
        let (one, stretch) = (One(principal), One(&stretch));
        let query = match (filter.owner.as_ref().or(principal.owner()), state) {
            (None, Some(DeliveryState::Failed)) => sql::failed(one, stretch, limit),
            (None, state) => sql::deliveries(one, stretch, state.map(DeliveryState::as_str), limit),
            (Some(owner), Some(DeliveryState::Failed)) => {
                sql::failed_of_owner(one, stretch, owner.kind().as_str(), owner.id(), limit)
            }
            (Some(owner), state) => {
                let state = state.map(DeliveryState::as_str);
                sql::deliveries_of_owner(one, stretch, owner.kind().as_str(), owner.id(), state, limit)
            }
        };
        Ok(readable(&self.other.fetch(query).await?, delivery))
    }

    async fn recover_deliveries(
        &self,
        principal: &Principal,
        owner: &Owner,
        recovery: &Recovery,
        limit: usize,
        by: &Decider,
    ) -> Result<(u64, Option<Place>)> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::CallbackRecovered, principal, by);
        let stretch = Stretch::between(Some(recovery.since), None, recovery.before);
        let (kind, id) = (owner.kind().as_str(), owner.id());
        let (one, change, stretch) = (One(principal), One(&change), One(&stretch));
        let of = if recovery.delivered { sql::recover_all } else { sql::recover_failed };
        let query = of(one, change, stretch, kind, id, to_limit(limit));
        self.other.fetch_first(query).await?.as_ref().map_or(Ok((0, None)), |row| recovered(row, limit))
    }

    async fn expire_deliveries(&self, waited: Duration, limit: usize) -> Result<u64> {
        self.other.fetch_total(sql::expire(micros(waited), to_limit(limit)), "deliveries").await
    }

    async fn remove_deliveries(&self, ended_for: Duration, limit: usize) -> Result<u64> {
        self.other.fetch_total(sql::remove(micros(ended_for), to_limit(limit)), "deliveries").await
    }

    async fn remove_deliveries_of(&self, owner: &Owner, limit: usize) -> Result<u64> {
        let query = sql::remove_of(owner.kind().as_str(), owner.id(), to_limit(limit));
        self.other.fetch_total(query, "deliveries").await
    }

    async fn remove_callback_of(&self, owner: &Owner) -> Result<bool> {
        let query = sql::remove_callback(owner.kind().as_str(), owner.id());
        Ok(self.other.fetch_first(query).await?.is_some())
    }
}
