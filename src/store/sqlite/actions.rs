//! Actions: one decision about all jobs that a filter means.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use serde_json::json as value;
use sqlx::Sqlite;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    bounds::{MAX_ENDED_ACTIONS, MAX_OPEN_ACTIONS},
    job::{Owner, Principal},
    store::{
        Action, ActionKind, ActionStatus, Actions, ChangeKind, Confirmed, Decider, MadeAction, NewAction,
        Place, Progress, Result, Step, TakenAction,
        actions::{RECENTLY_TAKEN, REMOVED_TOGETHER, action, asked_for, json, taken},
        changes::NewChange,
        columns::{NewActionColumns, PrincipalColumns, StepColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        read::{StoreRow as _, if_readable, readable},
        sql::{Bound, One, statements},
    },
};

statements! { Sqlite:
    make(principal: One<'_, PrincipalColumns>, new: One<'_, NewActionColumns>, progress: &str, until: Option<i64>, valid_for: i64, most: i64, now: i64) =
    "insert into actions ({new_action}, progress, owner_kind, owner_id, created_before, created_at, status, expires_at)
    select {values new_action}, {progress}, {principal_kind}, {principal_id}, coalesce(min({now}, {until}), {now}), {now}, 'previewed',
        {now} + {valid_for}
    where (select count(*) from actions where {is_of_principal} and (status = 'confirmed' or expires_at > {now})) < {most}
    on conflict (id) do nothing
    returning *";

    remove_ended(principal: One<'_, PrincipalColumns>, kept: i64, most: i64) = "delete from actions where id in (
        select id from actions where {is_of_principal} and finished_at is not null
        order by created_at desc, id desc limit +{most} offset +{kept})";

    confirm(principal: One<'_, PrincipalColumns>, id: Uuid, by: &str, force: bool, now: i64) = "update actions
    set status = 'confirmed', force = {force}, confirmed_by = {by}, confirmed_at = {now}, expires_at = null
    where {may_see} and id = {id} and status = 'previewed' and expires_at > {now} returning *";

    abort(principal: One<'_, PrincipalColumns>, id: Uuid, by: &str, now: i64) = "update actions
    set status = 'aborted', aborted_by = {by}, finished_at = {now}, expires_at = null
    where {may_see} and id = {id} and status in ('previewed', 'confirmed') returning *";

    action(principal: One<'_, PrincipalColumns>, id: Uuid) = "select * from actions where {may_see} and id = {id}";

    open(id: Uuid) = "select 1 from actions where id = {id} and finished_at is null";

    actions(principal: One<'_, PrincipalColumns>, at: i64, id: Uuid, limit: i64) = "select * from actions
    where {may_see} and (created_at, id) < ({at}, {id}) order by created_at desc, id desc limit +{limit}";

    /// A look that finds nothing to carry out, as most do, takes no lock.
    has_next(now: i64) = "select 1 from actions
    where status = 'confirmed' and (leased_until is null or leased_until <= {now}) limit 1";

    /// First the owner whose turn is longest ago, then the action.
    take(only: Option<Uuid>, lease: i64, recently: i64, now: i64) = "with turns as (
        select id, taken_at, max(taken_at) over (partition by owner_kind, owner_id) as owner_taken_at from actions
        where status = 'confirmed' or taken_at > {now} - {recently})
    update actions set fence = fence + 1, taken_at = {now}, leased_until = {now} + {lease}
    where id = (
        select a.id from turns join actions a on a.id = turns.id
        where a.status = 'confirmed' and (a.leased_until is null or a.leased_until <= {now})
            and ({only} is null or a.id = {only})
        order by turns.owner_taken_at nulls first, turns.taken_at nulls first, a.id limit 1)
    returning *";

    give_back(id: Uuid, fence: i64) = "update actions set leased_until = null where id = {id} and fence = {fence}";

    keep(id: Uuid, fence: i64, lease: i64, now: i64) = "update actions set leased_until = {now} + {lease}
    where id = {id} and fence = {fence} and status = 'confirmed'";

    record(step: One<'_, StepColumns>, id: Uuid, fence: i64, now: i64) = "update actions
    set {each step: @ = {@}}, deciding_since = case when {lease} is not null then {now} end,
        leased_until = {now} + {lease},
        status = case when {ends} and status = 'confirmed' then 'done' else status end,
        finished_at = case when {ends} and status = 'confirmed' then {now} else finished_at end
    where id = {id} and fence = {fence} returning status";

    under_way() = "select kind, count(*) as actions from actions where status = 'confirmed' group by kind";

    prune(ended_for: i64, most: i64, now: i64) = "delete from actions where id in (
        select id from actions where expires_at <= {now} or finished_at <= {now} - {ended_for} limit +{most})";

    remove(owner_kind: &str, owner_id: &str, owner: &str) = "delete from actions
    where owner_kind = {owner_kind} and owner_id = {owner_id}
        or owner_kind is null and finished_at is not null and filter ->> 'owner' = {owner}";
}

#[async_trait]
impl Actions for SqliteStore {
    async fn make_action(
        &self,
        principal: &Principal,
        new: &NewAction,
        valid_for: Duration,
    ) -> Result<MadeAction> {
        new.check()?;
        let (who, made) = (principal.clone(), new.clone());
        let added = self.write(move |db, now| {
            Box::pin(async move {
                let kept = to_limit(MAX_ENDED_ACTIONS);
                sql::remove_ended(One(&who), kept, REMOVED_TOGETHER).execute(&mut *db).await?;
                let until = made.until.map(jiff::Timestamp::as_microsecond);
                let (most, progress) = (to_limit(MAX_OPEN_ACTIONS), json(&Progress::default()));
                let query = sql::make(One(&who), One(&made), &progress, until, micros(valid_for), most, now);
                query.fetch_optional(&mut *db).await?.as_ref().map(action).transpose()
            })
        });
        if let Some(added) = added.await? {
            return Ok(MadeAction::New(added));
        }
        match self.action(&Principal::Operator, new.id).await? {
            Some(found) => Ok(new.known(principal, found)),
            None => Ok(MadeAction::TooMany),
        }
    }

    async fn confirm_action(
        &self,
        principal: &Principal,
        id: Uuid,
        by: &Decider,
        force: bool,
    ) -> Result<Confirmed> {
        refuse_decider(by)?;
        let Some(found) = self.action(principal, id).await? else { return Ok(Confirmed::Unknown) };
        if found.status == ActionStatus::Previewed {
            if found.asks_for_force() && !force {
                return Ok(Confirmed::NeedsForce);
            }
            let (own, name) = (principal.clone(), by.by.clone());
            let confirm = move |now| sql::confirm(One(&own), id, &name, force, now);
            self.change_action(principal, ChangeKind::ActionConfirmed, by, confirm).await?;
        }
        Ok(self.action(principal, id).await?.map_or(Confirmed::Unknown, Action::confirmed))
    }

    async fn abort_action(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<Action>> {
        refuse_decider(by)?;
        let (own, name) = (principal.clone(), by.by.clone());
        let abort = move |now| sql::abort(One(&own), id, &name, now);
        self.change_action(principal, ChangeKind::ActionAborted, by, abort).await?;
        self.action(principal, id).await
    }

    async fn action(&self, principal: &Principal, id: Uuid) -> Result<Option<Action>> {
        self.reader.fetch_first(sql::action(One(principal), id)).await?.as_ref().map(action).transpose()
    }

    async fn ended_actions(&self, ids: &[Uuid]) -> Result<Vec<Uuid>> {
        let mut ended = Vec::new();
        for id in ids {
            if self.reader.fetch_first(sql::open(*id)).await?.is_none() {
                ended.push(*id);
            }
        }
        Ok(ended)
    }

    async fn actions(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Action>> {
        let Place { at, id } = before.unwrap_or(Place::LAST);
        let query = sql::actions(One(principal), at, id, to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, action))
    }

    async fn take_action(&self, only: Option<Uuid>, lease: Duration) -> Result<Option<TakenAction>> {
        if self.reader.fetch_first(sql::has_next(self.now_micros())).await?.is_none() {
            return Ok(None);
        }
        self.write(move |db, now| {
            Box::pin(async move {
                let query = sql::take(only, micros(lease), micros(RECENTLY_TAKEN), now);
                let Some(row) = query.fetch_optional(&mut *db).await? else { return Ok(None) };
                let found = if_readable(&row, taken(&row));
                if found.is_none() {
                    sql::give_back(row.read("id")?, row.read("fence")?).execute(&mut *db).await?;
                }
                Ok(found)
            })
        })
        .await
    }

    async fn keep_action(&self, id: Uuid, fence: i64, lease: Duration) -> Result<bool> {
        Ok(self.write_one(move |now| sql::keep(id, fence, micros(lease), now)).await? > 0)
    }

    async fn record_action(&self, id: Uuid, fence: i64, step: &Step) -> Result<bool> {
        let step = step.clone();
        self.write(move |db, now| {
            Box::pin(async move {
                let row = sql::record(One(&step), id, fence, now).fetch_optional(&mut *db).await?;
                row.map_or(Ok(false), |row| {
                    Ok(row.parse::<ActionStatus>("status")? == ActionStatus::Confirmed)
                })
            })
        })
        .await
    }

    async fn actions_under_way(&self) -> Result<BTreeMap<ActionKind, u64>> {
        let rows = self.reader.fetch(sql::under_way()).await?;
        Ok(readable(&rows, |row| Ok((row.parse("kind")?, row.total("actions")?))).into_iter().collect())
    }

    async fn prune_actions(&self, ended_for: Duration, limit: usize) -> Result<u64> {
        self.write_one(move |now| sql::prune(micros(ended_for), to_limit(limit), now)).await
    }

    async fn remove_actions(&self, owner: &Owner) -> Result<u64> {
        let owner = owner.clone();
        self.write_one(move |_| sql::remove(owner.kind().as_str(), owner.id(), &owner.to_string())).await
    }
}

impl SqliteStore {
    /// Changes an action that the statement returns, and notes it in the audit log.
    async fn change_action(
        &self,
        principal: &Principal,
        what: ChangeKind,
        by: &Decider,
        statement: impl FnOnce(i64) -> Bound<Sqlite> + Send + 'static,
    ) -> Result<()> {
        let (principal, by) = (principal.clone(), by.clone());
        self.write(move |db, now| {
            let statement = statement(now);
            Box::pin(async move {
                let Some(row) = statement.fetch_optional(&mut *db).await? else { return Ok(()) };
                let action = action(&row)?;
                let kind = action.decision.kind();
                let after = match what {
                    ChangeKind::ActionConfirmed => {
                        value!({"action": kind, "force": action.force.effect, "filter": asked_for(&action.filter)})
                    }
                    _ => value!({"action": kind}),
                };
                let owner = action.principal.owner();
                let about = About {
                    owner_kind: owner.map(|owner| owner.kind().as_str()),
                    owner_id: owner.map(Owner::id),
                    object: Some(&action.id.to_string()),
                    before: None,
                    after: Some(&after.to_string()),
                };
                log(db, now, &NewChange::new(what, &principal, &by), about).await
            })
        })
        .await
    }
}
