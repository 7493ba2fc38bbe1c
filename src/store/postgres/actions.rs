//! Actions: one decision about all jobs that a filter means.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    bounds::{MAX_ENDED_ACTIONS, MAX_OPEN_ACTIONS},
    job::{Owner, Principal},
    store::{
        Action, ActionKind, ActionStatus, Actions, ChangeKind, Confirmed, Decider, MadeAction, NewAction,
        Place, Progress, Result, Step, TakenAction,
        actions::{RECENTLY_TAKEN, REMOVED_TOGETHER, action, json, taken},
        changes::NewChange,
        columns::{ChangeColumns, NewActionColumns, PrincipalColumns, StepColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        read::{StoreRow as _, if_readable, readable},
        sql::{One, statements},
    },
};

statements! { Postgres:
    make(principal: One<'_, PrincipalColumns>, new: One<'_, NewActionColumns>, progress: &str, until: Option<i64>, valid_for: i64, most: i64) =
    "insert into actions ({new_action}, progress, owner_kind, owner_id, created_before, created_at, status, expires_at)
    select {values new_action}, {progress}, {principal_kind}, {principal_id},
        least(now(), timestamptz 'epoch' + {until}::bigint * interval '1 microsecond'), now(), 'previewed',
        now() + {valid_for}::bigint * interval '1 microsecond'
    where (select count(*) from actions where {is_of_principal} and (status = 'confirmed' or expires_at > now())) < {most}
    on conflict (id) do nothing
    returning *";

    remove_ended(principal: One<'_, PrincipalColumns>, kept: i64, most: i64) = "delete from actions where id in (
        select id from actions where {is_of_principal} and finished_at is not null
        order by created_at desc, id desc offset {kept} limit {most})";

    confirm(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid, force: bool) = "with confirmed as (
        update actions set status = 'confirmed', force = {force}, confirmed_by = {decider}, confirmed_at = now(), expires_at = null
        where {may_see} and id = {id} and status = 'previewed' and expires_at > now() returning *),
    logged as ({log}, owner_kind, owner_id, id::text, null, jsonb_build_object('action', kind, 'force', force,
            'filter', jsonb_strip_nulls(filter::jsonb - 'tag'))::text
        from confirmed)
    select * from confirmed";

    abort(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid) = "with aborted as (
        update actions set status = 'aborted', aborted_by = {decider}, finished_at = now(), expires_at = null
        where {may_see} and id = {id} and status in ('previewed', 'confirmed') returning *),
    logged as ({log}, owner_kind, owner_id, id::text, null, jsonb_build_object('action', kind)::text from aborted)
    select * from aborted";

    action(principal: One<'_, PrincipalColumns>, id: Uuid) = "select * from actions where {may_see} and id = {id}";

    open(ids: Vec<Uuid>) = "select id from actions where id = any({ids}) and finished_at is null";

    actions(principal: One<'_, PrincipalColumns>, at: i64, id: Uuid, limit: i64) = "select * from actions
    where {may_see} and (created_at, id) < ({instant}, {id}) order by created_at desc, id desc limit {limit}";

    /// First the owner whose turn is longest ago, then the action.
    take(only: Option<Uuid>, lease: i64, recently: i64) = "with turns as (
        select id, taken_at, max(taken_at) over (partition by owner_kind, owner_id) as owner_taken_at from actions
        where status = 'confirmed' or taken_at > now() - {recently}::bigint * interval '1 microsecond'),
    next as (
        select a.id as next_id from turns join actions a on a.id = turns.id
        where a.status = 'confirmed' and (a.leased_until is null or a.leased_until <= now())
            and ({only}::uuid is null or a.id = {only})
        order by turns.owner_taken_at nulls first, turns.taken_at nulls first, a.id limit 1 for update of a skip locked)
    update actions set fence = fence + 1, taken_at = now(), leased_until = now() + {lease}::bigint * interval '1 microsecond'
    from next where id = next_id returning actions.*";

    give_back(id: Uuid, fence: i64) = "update actions set leased_until = null where id = {id} and fence = {fence}";

    keep(id: Uuid, fence: i64, lease: i64) = "update actions set leased_until = now() + {lease}::bigint * interval '1 microsecond'
    where id = {id} and fence = {fence} and status = 'confirmed' returning id";

    record(step: One<'_, StepColumns>, id: Uuid, fence: i64) = "update actions
    set {each step: @ = {@}}, deciding_since = case when {lease}::bigint is not null then now() end,
        leased_until = now() + {lease}::bigint * interval '1 microsecond',
        status = case when {ends} and status = 'confirmed' then 'done' else status end,
        finished_at = case when {ends} and status = 'confirmed' then now() else finished_at end
    where id = {id} and fence = {fence} returning status";

    under_way() = "select kind, count(*) as actions from actions where status = 'confirmed' group by kind";

    prune(ended_for: i64, most: i64) = "delete from actions where id in (
        select id from actions
        where expires_at <= now() or finished_at <= now() - {ended_for}::bigint * interval '1 microsecond'
        limit {most} for update skip locked)
    returning id";

    remove(owner_kind: &str, owner_id: &str, owner: &str) = "delete from actions
    where owner_kind = {owner_kind} and owner_id = {owner_id}
        or owner_kind is null and finished_at is not null and filter::json ->> 'owner' = {owner}
    returning id";
}

#[async_trait]
impl Actions for PostgresStore {
    async fn make_action(
        &self,
        principal: &Principal,
        new: &NewAction,
        valid_for: Duration,
    ) -> Result<MadeAction> {
        new.check()?;
        let surplus = sql::remove_ended(One(principal), to_limit(MAX_ENDED_ACTIONS), REMOVED_TOGETHER);
        self.other.fetch(surplus).await?;
        let until = new.until.map(jiff::Timestamp::as_microsecond);
        let (most, progress) = (to_limit(MAX_OPEN_ACTIONS), json(&Progress::default()));
        let query = sql::make(One(principal), One(new), &progress, until, micros(valid_for), most);
        if let Some(row) = self.other.fetch_first(query).await? {
            return action(&row).map(MadeAction::New);
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
        let change = NewChange::new(ChangeKind::ActionConfirmed, principal, by);
        let Some(found) = self.action(principal, id).await? else { return Ok(Confirmed::Unknown) };
        if found.status == ActionStatus::Previewed {
            if found.asks_for_force() && !force {
                return Ok(Confirmed::NeedsForce);
            }
            if let Some(row) =
                self.other.fetch_first(sql::confirm(One(principal), One(&change), id, force)).await?
            {
                return Ok(action(&row)?.confirmed());
            }
        }
        Ok(self.action(principal, id).await?.map_or(Confirmed::Unknown, Action::confirmed))
    }

    async fn abort_action(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<Action>> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::ActionAborted, principal, by);
        match self.other.fetch_first(sql::abort(One(principal), One(&change), id)).await? {
            Some(row) => action(&row).map(Some),
            None => self.action(principal, id).await,
        }
    }

    async fn action(&self, principal: &Principal, id: Uuid) -> Result<Option<Action>> {
        self.other.fetch_first(sql::action(One(principal), id)).await?.as_ref().map(action).transpose()
    }

    async fn ended_actions(&self, ids: &[Uuid]) -> Result<Vec<Uuid>> {
        let open = self.other.fetch(sql::open(ids.to_vec())).await?;
        let open = open.iter().map(|row| row.read("id")).collect::<Result<HashSet<Uuid>>>()?;
        Ok(ids.iter().filter(|id| !open.contains(id)).copied().collect())
    }

    async fn actions(
        &self,
        principal: &Principal,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Action>> {
        let Place { at, id } = before.unwrap_or(Place::LAST);
        Ok(readable(&self.other.fetch(sql::actions(One(principal), at, id, to_limit(limit))).await?, action))
    }

    async fn take_action(&self, only: Option<Uuid>, lease: Duration) -> Result<Option<TakenAction>> {
        let query = sql::take(only, micros(lease), micros(RECENTLY_TAKEN));
        let Some(row) = self.other.fetch_first(query).await? else { return Ok(None) };
        let found = if_readable(&row, taken(&row));
        if found.is_none() {
            self.other.fetch(sql::give_back(row.read("id")?, row.read("fence")?)).await?;
        }
        Ok(found)
    }

    async fn keep_action(&self, id: Uuid, fence: i64, lease: Duration) -> Result<bool> {
        Ok(self.other.fetch_first(sql::keep(id, fence, micros(lease))).await?.is_some())
    }

    async fn record_action(&self, id: Uuid, fence: i64, step: &Step) -> Result<bool> {
        let row = self.other.fetch_first(sql::record(One(step), id, fence)).await?;
        row.map_or(Ok(false), |row| Ok(row.parse::<ActionStatus>("status")? == ActionStatus::Confirmed))
    }

    async fn actions_under_way(&self) -> Result<BTreeMap<ActionKind, u64>> {
        let rows = self.other.fetch(sql::under_way()).await?;
        Ok(readable(&rows, |row| Ok((row.parse("kind")?, row.total("actions")?))).into_iter().collect())
    }

    async fn prune_actions(&self, ended_for: Duration, limit: usize) -> Result<u64> {
        Ok(self.other.fetch(sql::prune(micros(ended_for), to_limit(limit))).await?.len() as u64)
    }

    async fn remove_actions(&self, owner: &Owner) -> Result<u64> {
        let query = sql::remove(owner.kind().as_str(), owner.id(), &owner.to_string());
        Ok(self.other.fetch(query).await?.len() as u64)
    }
}
