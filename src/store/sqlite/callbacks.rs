//! Callbacks, and the deliveries of events to URLs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    callback::Secret,
    job::{CallbackUrl, JobId, Owner, Principal},
    store::{
        Callback, CallbackAnswer, Callbacks, CalledEvent, CalledJob, ChangeKind, Decider, Delivery,
        DeliveryFilter, DueDelivery, EventKind, EventsAfter, NewDelivery, Place, Recovery, Result, Secrets,
        TriedDelivery,
        callbacks::{callback, called, called_job, delivery, due, recovered, rotated, secrets, told},
        changes::NewChange,
        columns::{DeliveryColumns, PrincipalColumns, StretchColumns, TriedColumns},
        convert::{micros, to_limit},
        events::to_position,
        history::refuse_decider,
        job_filter::Stretch,
        read::{StoreRow as _, readable},
        sql::{One, statements},
    },
};

statements! { Sqlite:
    was(principal: One<'_, PrincipalColumns>, owner_kind: &str, owner_id: &str, url: Option<&str>) = "select url is {url} and disabled_at is null as is_same from callbacks
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}";

    set(owner_kind: &str, owner_id: &str, url: Option<&str>, fresh: Vec<u8>, now: i64) = "insert into callbacks (owner_kind, owner_id, url, secret, set_at)
    values ({owner_kind}, {owner_id}, {url}, {fresh}, {now})
    on conflict (owner_kind, owner_id) do update set url = excluded.url, failing_since = null,
        set_at = case when callbacks.url is not excluded.url then excluded.set_at else callbacks.set_at end,
        disabled_at = null, disabled_why = null
    returning *";

    ensure(owner_kind: &str, owner_id: &str, fresh: Vec<u8>, now: i64) = "insert into callbacks (owner_kind, owner_id, secret, set_at)
    values ({owner_kind}, {owner_id}, {fresh}, {now}) on conflict do nothing";

    secrets(principal: One<'_, PrincipalColumns>, owner_kind: &str, owner_id: &str, now: i64) = "select {signing_secrets} from callbacks c
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}";

    replace(principal: One<'_, PrincipalColumns>, owner_kind: &str, owner_id: &str, fresh: Vec<u8>, overlap: i64, now: i64) = "update callbacks
    set previous_secret = secret, secret = {fresh}, previous_until = {now} + {overlap}
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id}
        and secret <> {fresh} and ({overlap} = 0 or coalesce(previous_until <= {now}, 1))";

    callbacks(principal: One<'_, PrincipalColumns>, behind_kind: &str, behind_id: &str, limit: i64) = "select * from callbacks
    where {may_see} and url is not null and (owner_kind, owner_id) > ({behind_kind}, {behind_id})
    order by owner_kind, owner_id limit +{limit}";

    /// An ID may be another one's by now.
    called(after: i64, up_to: i64) = "select e.*, c.url as owner_url
    from events e left join callbacks c on c.owner_kind = e.owner_kind and c.owner_id = e.owner_id and c.set_at <= e.at
    where e.position > {after} and e.position <= {up_to} and e.owner_id is not null and (e.callback_url is not null or c.url is not null)
    order by e.position";

    is_disabled(owner_kind: &str, owner_id: &str, url: &str) = "select 1 from callbacks
    where owner_kind = {owner_kind} and owner_id = {owner_id} and url = {url} and disabled_at is not null";

    /// What comes after one that waits, waits as long.
    add(delivery: One<'_, DeliveryColumns>, now: i64) = "insert into deliveries ({delivery}, created_at, waiting_since, due_at)
    values ({values delivery}, {now}, {now}, max({now}, coalesce((select max(d.due_at) from deliveries d
        where d.state = 'waiting' and d.subject = {subject} and d.url = {url} and +d.receiver = {receiver}), 0)))
    on conflict do nothing";

    add_disabled(delivery: One<'_, DeliveryColumns>, now: i64) = "insert into deliveries ({delivery}, created_at, waiting_since, state,
        finished_at, last_error)
    values ({values delivery}, {now}, {now}, 'failed', {now}, 'disabled') on conflict do nothing";

    /// One that is left alone for a while is not asked before that.
    ask(delivery: One<'_, DeliveryColumns>, now: i64) = "insert into receivers (id, owner_kind, owner_id, next_at)
    values ({receiver}, {owner_kind}, {owner_id}, {now})
    on conflict (id) do update set next_at = min(coalesce(next_at, excluded.next_at), excluded.next_at)
        where receivers.next_at is null or receivers.failures = 0";

    /// A receiver is looked at when something of it is due, the one first that was looked at longest ago; and also where all is being
    /// sent, because who sends it may be gone.
    due_receivers(full: &str, limit: i64, now: i64) = "select id from receivers
    where next_at <= {now} and id not in (select unhex(value) from json_each({full})) order by next_at limit +{limit}";

    due(receiver_id: Uuid, open: &str, most: i64, now: i64) = "select d.*, r.is_proven, r.failures, {signing_secrets}, {own_url}
    from deliveries d
    join receivers r on r.id = d.receiver
    left join callbacks c on c.owner_kind = d.owner_kind and c.owner_id = d.owner_id
    where d.receiver = {receiver_id} and d.state = 'waiting' and d.due_at <= {now} and {is_first_of_subject}
        and d.id not in (select unhex(value) from json_each({open}))
    order by d.due_at limit +{most}";

    looked(receiver_id: Uuid, open: &str, is_any: bool, now: i64) = "update receivers set next_at = case when {is_any} then {now}
        else (select min(case when d.id in (select unhex(value) from json_each({open})) then {now} + 30000000 else due_at end)
            from deliveries d where d.receiver = {receiver_id} and d.state = 'waiting') end
    where id = {receiver_id}";

    called_job(id: Uuid, most: i64) = "select {called_job}, case when octet_length(result) <= {most} then result end as result,
        case when octet_length(result) > {most} then octet_length(result) end as left_out
    from jobs where id = {id}";

    note(tried: One<'_, TriedColumns>, now: i64) = "update deliveries set state = {state}, due_at = {now} + {after}, tries = tries + {is_sent},
        last_status = {last_status}, last_error = {last_error}, tried_at = {now},
        finished_at = case when {state} <> 'waiting' then {now} end
    where id = {id} and state = 'waiting' and tries = {was_tried}
    returning subject, url, receiver, position, due_at";

    put_off(subject: Uuid, url: &str, receiver_id: Uuid, position: i64, due_at: i64) = "update deliveries set due_at = {due_at}
    where state = 'waiting' and subject = {subject} and url = {url} and +receiver = {receiver_id} and position > {position} and due_at < {due_at}";

    ask_for_retry(receiver_id: Uuid, due_at: i64) = "update receivers set next_at = {due_at}
    where id = {receiver_id} and failures = 0 and coalesce(next_at > {due_at}, 1)";

    /// One that fails is asked again after a second, then two, four and so on, up to five minutes.
    note_receiver(receiver_id: Uuid, is_taken: bool, now: i64) = "update receivers set is_proven = is_proven or {is_taken},
        failures = case when {is_taken} then 0 else failures + 1 end,
        next_at = case when {is_taken} then {now} else {now} + min(300, 1 << min(failures, 9)) * 1000000 end
    where id = {receiver_id}";

    note_callback(owner_kind: &str, owner_id: &str, url: &str, taken: bool, gone: bool, patience: i64, now: i64) = "update callbacks
    set failing_since = case when not {taken} then coalesce(failing_since, {now}) end,
        disabled_at = case when {is_given_up} then {now} end,
        disabled_why = case when {is_given_up} then case when {gone} then 'gone' else 'failing' end end,
        events = events + {is_given_up}
    where owner_kind = {owner_kind} and owner_id = {owner_id} and url = {url} and disabled_at is null
    returning disabled_at is not null as is_disabled";

    record_disabled(owner_kind: &str, owner_id: &str, kind: &str, now: i64) = "insert into events (at, kind, sequence, owner_kind, owner_id)
    select {now}, {kind}, events, owner_kind, owner_id from callbacks where owner_kind = {owner_kind} and owner_id = {owner_id}";

    deliveries(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and {in_order} and ({wanted_state} is null or state = {wanted_state})
    order by created_at desc, id desc limit +{limit}";

    deliveries_of_owner(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, wanted_state: Option<&str>, limit: i64) = "select * from deliveries
    where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order} and ({wanted_state} is null or state = {wanted_state})
    order by created_at desc, id desc limit +{limit}";

    to_recover(principal: One<'_, PrincipalColumns>, stretch: One<'_, StretchColumns>, owner_kind: &str, owner_id: &str, delivered: bool, limit: i64) = "select id, created_at,
        count(*) over () as deliveries from (
        select id, created_at from deliveries
        where {may_see} and owner_kind = {owner_kind} and owner_id = {owner_id} and {in_order}
            and (state = 'failed' or {delivered} and state = 'delivered')
        order by created_at desc, id desc limit +{limit}) order by created_at, id";

    recover(delivery_id: Uuid, now: i64) = "update deliveries set state = 'waiting', waiting_since = {now}, due_at = {now}, tries = 0,
        finished_at = null
    where id = {delivery_id}";

    ask_again(delivery_id: Uuid, now: i64) = "update receivers set next_at = {now}, failures = 0
    where id = (select receiver from deliveries where id = {delivery_id})";

    expire(waited: i64, limit: i64, now: i64) = "update deliveries set state = 'failed', due_at = null, finished_at = {now}, last_error = 'expired'
    where id in (select id from deliveries where state = 'waiting' and waiting_since < {now} - {waited} order by waiting_since limit +{limit})";

    remove_receivers(owner_kind: &str, owner_id: &str) =
    "delete from receivers where owner_kind = {owner_kind} and owner_id = {owner_id}";

    /// Of those whose deliveries are removed next.
    remove_unasked(ended_for: i64, limit: i64, now: i64) = "delete from receivers where next_at is null and id in (
        select receiver from deliveries where finished_at < {now} - {ended_for} order by finished_at limit +{limit})";

    remove(ended_for: i64, limit: i64, now: i64) = "delete from deliveries where id in (
        select id from deliveries where finished_at < {now} - {ended_for} order by finished_at limit +{limit})";

    remove_of(owner_kind: &str, owner_id: &str, limit: i64) = "delete from deliveries where id in (
        select id from deliveries where owner_kind = {owner_kind} and owner_id = {owner_id} order by created_at limit +{limit})";

    remove_callback(owner_kind: &str, owner_id: &str) =
    "delete from callbacks where owner_kind = {owner_kind} and owner_id = {owner_id}";
}

#[async_trait]
impl Callbacks for SqliteStore {
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
        let (principal, owner, by) = (principal.clone(), owner.clone(), by.clone());
        let secret = fresh.expose_bytes().to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                let (kind, id) = (owner.kind().as_str(), owner.id());
                let text = url.as_ref().map(CallbackUrl::as_str);
                let was = sql::was(One(&principal), kind, id, text).fetch_optional(&mut *db).await?;
                let set = sql::set(kind, id, text, secret, now).fetch_one(&mut *db).await?;
                let is_same = was.map_or(Ok(text.is_none()), |was| was.read("is_same"))?;
                if !is_same {
                    let change = NewChange::new(ChangeKind::CallbackSet, &principal, &by);
                    log_callback(db, now, &change, &owner, Some(&told(url.as_ref()))).await?;
                }
                callback(&set).map(Some)
            })
        })
        .await
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
        let (principal, owner, fresh, by) = (principal.clone(), owner.clone(), fresh.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let (kind, id) = (owner.kind().as_str(), owner.id());
                let secret = fresh.expose_bytes().to_vec();
                sql::ensure(kind, id, secret.clone(), now).execute(&mut *db).await?;
                let is_replaced = match replaced {
                    Some(overlap) => {
                        let replace = sql::replace(One(&principal), kind, id, secret, micros(overlap), now);
                        replace.execute(&mut *db).await?.rows_affected() > 0
                    }
                    None => false,
                };
                let found = sql::secrets(One(&principal), kind, id, now).fetch_optional(&mut *db).await?;
                let Some(found) = found.as_ref().map(secrets).transpose()? else { return Ok(None) };
                let (what, after) = match replaced {
                    Some(overlap) if is_replaced => (ChangeKind::CallbackRotated, Some(rotated(overlap))),
                    // Whoever wanted another one is not told this one.
                    Some(_) if found.secret.expose_bytes() != fresh.expose_bytes() => return Ok(Some(found)),
                    _ => (ChangeKind::CallbackSecretRead, None),
                };
                let change = NewChange::new(what, &principal, &by);
                log_callback(db, now, &change, &owner, after.as_deref()).await?;
                Ok(Some(found))
            })
        })
        .await
    }

    async fn callbacks(
        &self,
        principal: &Principal,
        behind: Option<Owner>,
        limit: usize,
    ) -> Result<Vec<Callback>> {
        let (kind, id) = behind.as_ref().map_or(("", ""), |owner| (owner.kind().as_str(), owner.id()));
        let query = sql::callbacks(One(principal), kind, id, to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, callback))
    }

    async fn called_events(&self, after: u64, limit: usize) -> Result<EventsAfter<CalledEvent>> {
        let before = self.positions().await?;
        let next = before.page(after, limit);
        let rows = self.reader.fetch(sql::called(to_position(after), to_position(next))).await?;
        Ok(before.behind(Some(after), self.positions().await?, called(&rows), next))
    }

    async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<()> {
        let deliveries = deliveries.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for delivery in &deliveries {
                    let (kind, id) = (delivery.owner.kind().as_str(), delivery.owner.id());
                    let secret = delivery.fresh.expose_bytes().to_vec();
                    sql::ensure(kind, id, secret, now).execute(&mut *db).await?;
                    let is_disabled = sql::is_disabled(kind, id, &delivery.url);
                    if is_disabled.fetch_optional(&mut *db).await?.is_some() {
                        sql::add_disabled(One(delivery), now).execute(&mut *db).await?;
                    } else if sql::add(One(delivery), now).execute(&mut *db).await?.rows_affected() > 0 {
                        sql::ask(One(delivery), now).execute(&mut *db).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }

    async fn due_deliveries(
        &self,
        full: &[Uuid],
        open: &[Uuid],
        most: usize,
        limit: usize,
    ) -> Result<Vec<DueDelivery>> {
        let list = |ids: &[Uuid]| {
            let ids: Vec<_> = ids.iter().map(|id| id.simple().to_string()).collect();
            serde_json::to_string(&ids).unwrap_or_default()
        };
        let (full, open) = (list(full), list(open));
        self.write(move |db, now| {
            Box::pin(async move {
                let page = sql::due_receivers(&full, to_limit(limit), now).fetch_all(&mut *db).await?;
                let mut found = Vec::new();
                for receiver in &page {
                    let id: Uuid = receiver.read("id")?;
                    let rows = sql::due(id, &open, to_limit(most), now).fetch_all(&mut *db).await?;
                    sql::looked(id, &open, !rows.is_empty(), now).execute(&mut *db).await?;
                    found.extend(readable(&rows, due).into_iter().enumerate());
                }
                // Of each receiver one, then of each the next.
                found.sort_by_key(|(place, _)| *place);
                Ok(found.into_iter().take(limit).map(|(_, delivery)| delivery).collect())
            })
        })
        .await
    }

    async fn called_jobs(&self, jobs: &[JobId], most: usize) -> Result<Vec<CalledJob>> {
        let mut found = Vec::with_capacity(jobs.len());
        for job in jobs {
            found.extend(self.reader.fetch_first(sql::called_job(job.0, to_limit(most))).await?);
        }
        Ok(readable(&found, called_job))
    }

    async fn note_deliveries(&self, tried: &[TriedDelivery]) -> Result<()> {
        let tried = tried.to_vec();
        self.write(move |db, now| {
            Box::pin(async move {
                for tried in &tried {
                    let Some(noted) = sql::note(One(tried), now).fetch_optional(&mut *db).await? else {
                        continue;
                    };
                    let Some(due_at) = noted.read::<Option<i64>>("due_at")? else { continue };
                    let (subject, url) = (noted.read("subject")?, noted.read::<String>("url")?);
                    let (receiver, position): (Uuid, i64) =
                        (noted.read("receiver")?, noted.read("position")?);
                    sql::put_off(subject, &url, receiver, position, due_at).execute(&mut *db).await?;
                    sql::ask_for_retry(receiver, due_at).execute(&mut *db).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn note_receivers(&self, answers: &[(Uuid, bool)]) -> Result<()> {
        let answers = answers.to_vec();
        self.write_each(answers, |(id, is_taken), now| sql::note_receiver(*id, *is_taken, now))
            .await
            .map(drop)
    }

    async fn note_callback(
        &self,
        owner: &Owner,
        url: &str,
        answer: CallbackAnswer,
        patience: Duration,
    ) -> Result<bool> {
        let (owner, url, patience) = (owner.clone(), url.to_owned(), micros(patience));
        let (taken, gone) = (answer == CallbackAnswer::Taken, answer == CallbackAnswer::Gone);
        let records = self.recorder.0;
        self.write(move |db, now| {
            Box::pin(async move {
                let (kind, id) = (owner.kind().as_str(), owner.id());
                let note = sql::note_callback(kind, id, &url, taken, gone, patience, now);
                let noted = note.fetch_optional(&mut *db).await?;
                let is_disabled = noted.map_or(Ok(false), |noted| noted.read("is_disabled"))?;
                if is_disabled && records {
                    let event = EventKind::CallbackDisabled.as_str();
                    sql::record_disabled(kind, id, event, now).execute(&mut *db).await?;
                }
                Ok(is_disabled)
            })
        })
        .await
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
        Ok(readable(&self.reader.fetch(query).await?, delivery))
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
        let (principal, owner, recovery, by) =
            (principal.clone(), owner.clone(), recovery.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let stretch = Stretch::between(Some(recovery.since), None, recovery.before);
                let (kind, id) = (owner.kind().as_str(), owner.id());
                let (one, stretch) = (One(&principal), One(&stretch));
                let query = sql::to_recover(one, stretch, kind, id, recovery.delivered, to_limit(limit));
                let found = query.fetch_all(&mut *db).await?;
                let Some(oldest) = found.first() else { return Ok((0, None)) };
                for row in &found {
                    let id: Uuid = row.read("id")?;
                    sql::recover(id, now).execute(&mut *db).await?;
                    sql::ask_again(id, now).execute(&mut *db).await?;
                }
                let recovered = recovered(oldest, limit)?;
                let change = NewChange::new(ChangeKind::CallbackRecovered, &principal, &by);
                let after = serde_json::json!({ "deliveries": recovered.0 }).to_string();
                log_callback(db, now, &change, &owner, Some(&after)).await?;
                Ok(recovered)
            })
        })
        .await
    }

    async fn expire_deliveries(&self, waited: Duration, limit: usize) -> Result<u64> {
        let (waited, limit) = (micros(waited), to_limit(limit));
        self.write_one(move |now| sql::expire(waited, limit, now)).await
    }

    async fn remove_deliveries(&self, ended_for: Duration, limit: usize) -> Result<u64> {
        let (ended_for, limit) = (micros(ended_for), to_limit(limit));
        self.write(move |db, now| {
            Box::pin(async move {
                sql::remove_unasked(ended_for, limit, now).execute(&mut *db).await?;
                Ok(sql::remove(ended_for, limit, now).execute(&mut *db).await?.rows_affected())
            })
        })
        .await
    }

    async fn remove_deliveries_of(&self, owner: &Owner, limit: usize) -> Result<u64> {
        let query = sql::remove_of(owner.kind().as_str(), owner.id(), to_limit(limit));
        self.write_one(|_| query).await
    }

    async fn remove_callback_of(&self, owner: &Owner) -> Result<bool> {
        let owner = owner.clone();
        self.write(move |db, _| {
            Box::pin(async move {
                let (kind, id) = (owner.kind().as_str(), owner.id());
                sql::remove_receivers(kind, id).execute(&mut *db).await?;
                Ok(sql::remove_callback(kind, id).execute(&mut *db).await?.rows_affected() > 0)
            })
        })
        .await
    }
}

async fn log_callback(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    owner: &Owner,
    after: Option<&str>,
) -> Result<()> {
    let about = About {
        owner_kind: Some(owner.kind().as_str()),
        owner_id: Some(owner.id()),
        object: Some(owner.id()),
        before: None,
        after,
    };
    log(db, now, change, about).await
}
