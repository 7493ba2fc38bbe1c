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
        DeliveryFilter, DueDelivery, EventsAfter, NewDelivery, Place, Recovery, Result, Secrets,
        TriedDelivery,
        callbacks::{callback, called, called_job, delivery, due, recovered, secrets, told},
        changes::NewChange,
        columns::{
            ChangeColumns, DeliveryColumns, PrincipalColumns, SigningColumns, StretchColumns, TriedColumns,
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
        on conflict (owner_kind, owner_id) do update set url = excluded.url, set_at = now(), failing_since = null,
            disabled_at = null, disabled_why = null
        returning *),
    logged as ({log}, owner_kind, owner_id, owner_id, null, {after}::text from changed
        where not exists (select 1 from was where was_url is not distinct from url and was_disabled_at is null))
    select * from changed";

    ensure(owner_kind: &str, owner_id: &str, fresh: Vec<u8>) = "insert into callbacks (owner_kind, owner_id, secret)
    values ({owner_kind}, {owner_id}, {fresh}) on conflict do nothing";

    secrets(principal: One<'_, PrincipalColumns>, owner_kind: &str, owner_id: &str) = "select {signing_secrets} from callbacks c
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}";

    replace(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, fresh: Vec<u8>, overlap: i64) = "with changed as (
        update callbacks set previous_secret = secret, secret = {fresh},
            previous_until = now() + {overlap}::bigint * interval '1 microsecond'
        where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} returning *),
    logged as ({log}, owner_kind, owner_id, owner_id, null,
        jsonb_build_object('overlap_secs', {overlap}::bigint / 1000000)::text from changed)
    select {signing_secrets} from changed c";

    callbacks(principal: One<'_, PrincipalColumns>, behind_kind: &str, behind_id: &str, limit: i64) = "select * from callbacks
    where {may_see} and url is not null and (owner_kind, owner_id) > ({behind_kind}, {behind_id})
    order by owner_kind, owner_id limit {limit}";

    /// Each job is looked up by its ID, whatever the planner believes.
    called(after: i64, up_to: i64) = "select e.*, coalesce(j.callback_url, b.callback_url) as subject_url, c.url as owner_url
    from events e
    left join lateral (select callback_url from jobs where jobs.id = e.job_id offset 0) j on true
    left join lateral (select callback_url from batches where batches.id = e.batch_id and e.job_id is null offset 0) b on true
    left join callbacks c on c.owner_kind = e.owner_kind and c.owner_id = e.owner_id
    where e.position > {after} and e.position <= {up_to} and e.owner_id is not null
        and (j.callback_url is not null or b.callback_url is not null or c.url is not null)
    order by e.position";

    ensure_all(signing: Rows<'_, SigningColumns>) = "insert into callbacks ({signing}) select {i.signing} from {rows} on conflict do nothing";

    add(deliveries: Rows<'_, DeliveryColumns>) = "insert into deliveries ({delivery}) select {i.delivery} from {rows} on conflict do nothing";

    /// Receivers that have something to send are found one after the other by the index, however much each has.
    due(without: Vec<Uuid>, most: i64, limit: i64) = "with recursive receivers (receiver) as (
        (select receiver from deliveries where state = 'waiting' order by receiver limit 1)
        union all
        select (select d.receiver from deliveries d where d.state = 'waiting' and d.receiver > r.receiver order by d.receiver limit 1)
        from receivers r where r.receiver is not null)
    select d.*, {signing_secrets}, {own_url}
    from receivers r
    cross join lateral (
        select *, row_number() over (order by due_at) as place from (
            select * from deliveries d where d.receiver = r.receiver and d.state = 'waiting' and d.due_at <= now() and {is_first_of_subject}
            order by d.due_at limit {most}) d) d
    join callbacks c on c.owner_kind = d.owner_kind and c.owner_id = d.owner_id
    where r.receiver is not null and r.receiver <> all({without})
    order by row_number() over (partition by d.owner_kind, d.owner_id order by d.place, d.due_at), d.due_at limit {limit}";

    called_jobs(ids: Vec<Uuid>, most: i64) = "select {job}, case when octet_length(result::text) <= {most} then result::text end as result,
        case when octet_length(result::text) > {most} then octet_length(result::text)::bigint end as left_out
    from jobs where id = any({ids})";

    note(tried: Rows<'_, TriedColumns>) = "update deliveries d set state = i.state,
        due_at = now() + i.after * interval '1 microsecond', tries = tries + 1, last_status = i.last_status, last_error = i.last_error,
        tried_at = now(), finished_at = case when i.state <> 'waiting' then now() end
    from {rows} where d.id = i.id and d.state = 'waiting'";

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
            array[null], array[null], array[null::integer], array[null], array[null]
        from changed where {record} and disabled_at is not null)
    select 1 from changed where disabled_at is not null";

    deliveries(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and {in_order} and ({wanted_state}::text is null or state = {wanted_state})
    order by created_at desc, id desc limit {limit}";

    deliveries_of_owner(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order} and ({wanted_state}::text is null or state = {wanted_state})
    order by created_at desc, id desc limit {limit}";

    recover(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, delivered: bool, limit: i64) = "with page as (
        select id from deliveries
        where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order}
            and (state = 'failed' or {delivered} and state = 'delivered')
        order by created_at desc, id desc limit {limit} for update),
    changed as (update deliveries set state = 'waiting', due_at = now(), tries = 0, finished_at = null
        where id in (select id from page) returning id, created_at),
    logged as ({log}, {owner_kind}::text, {owner_id}::text, {owner_id}::text, null, jsonb_build_object('deliveries', deliveries)::text
        from (select count(*) as deliveries from changed) c where deliveries > 0)
    select id, created_at, count(*) over () as deliveries from changed order by created_at, id limit 1";

    remove(ended_for: i64, limit: i64) = "with gone as (delete from deliveries where id in (
        select id from deliveries where finished_at < now() - {ended_for}::bigint * interval '1 microsecond' order by finished_at limit {limit})
        returning 1)
    select count(*) as deliveries from gone";

    remove_of(owner_kind: &str, owner_id: &str, limit: i64) = "with gone as (delete from deliveries where id in (
        select id from deliveries where owner_kind = {owner_kind} and owner_id = {owner_id} order by created_at limit {limit})
        returning 1)
    select count(*) as deliveries from gone";

    remove_callback(owner_kind: &str, owner_id: &str) =
    "delete from callbacks where owner_kind = {owner_kind} and owner_id = {owner_id} returning 1";
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
        let found = match replaced {
            None => self.other.fetch_first(sql::secrets(One(principal), kind, id)).await?,
            Some(overlap) => {
                let change = NewChange::new(ChangeKind::CallbackRotated, principal, by);
                let query = sql::replace(One(principal), One(&change), kind, id, secret, micros(overlap));
                self.other.fetch_first(query).await?
            }
        };
        found.as_ref().map(secrets).transpose()
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
        self.other.fetch(sql::ensure_all(Rows(&rows))).await?;
        self.other.fetch(sql::add(Rows(&rows))).await.map(drop)
    }

    async fn due_deliveries(&self, without: &[Uuid], most: usize, limit: usize) -> Result<Vec<DueDelivery>> {
        let query = sql::due(without.to_vec(), to_limit(most), to_limit(limit));
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
        let (state, limit) = (filter.state.map(|state| state.as_str()), to_limit(limit));
        let query = match filter.owner.as_ref().or(principal.owner()) {
            None => sql::deliveries(One(principal), One(&stretch), state, limit),
            Some(owner) => {
                let (kind, id) = (owner.kind().as_str(), owner.id());
                sql::deliveries_of_owner(One(principal), One(&stretch), kind, id, state, limit)
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
        let query = sql::recover(one, change, stretch, kind, id, recovery.delivered, to_limit(limit));
        self.other.fetch_first(query).await?.as_ref().map_or(Ok((0, None)), |row| recovered(row, limit))
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
