//! The audit log.

use std::time::Duration;

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    job::{Owner, Principal},
    store::{
        Change, ChangeFilter, ChangeKind, Changes, Decider, Place, Result,
        changes::{NewChange, change},
        columns::{ChangeColumns, ChangesWanted, PrincipalColumns, StretchColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        job_filter::Stretch,
        read::readable,
        sql::{One, statements},
    },
};

statements! { Postgres:
    changes(principal: One<'_, PrincipalColumns>, wanted: One<'_, ChangesWanted>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select * from changes where (at, change_id) < (timestamptz 'epoch' + {before_at}::bigint * interval '1 microsecond', {before_id}::uuid)
        and (at, change_id) >= (timestamptz 'epoch' + {end_at}::bigint * interval '1 microsecond', {end_id}::uuid)
        and {may_see} and {wanted_changes}
    order by at desc, change_id desc limit {limit}";

    note_erasure(change: One<'_, ChangeColumns>, kind: &str) =
    "{log}, {kind}::text, null, null, null, null";

    forget_owner(owner_kind: &str, owner_id: &str, named: &str, what: &str, limit: i64) = "update changes
    set owner_id = null, object = null, origin = case when as_operator then origin else '' end,
        after_value = case when what = {what} then (after_value::jsonb - 'filter')::text else after_value end
    where change_id in (
        select change_id from changes where owner_kind = {owner_kind} and owner_id = {owner_id}
        union all
        select change_id from changes where what = {what} and after_value::jsonb -> 'filter' ->> 'owner' = {named}
        limit {limit})
    returning 1";

    remove(age: i64, limit: i64) = "delete from changes where change_id in (
        select change_id from changes where at < now() - {age}::bigint * interval '1 microsecond' order by at limit {limit})
    returning 1";
}

#[async_trait]
impl Changes for PostgresStore {
    async fn changes(
        &self,
        principal: &Principal,
        filter: &ChangeFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Change>> {
        let stretch = Stretch::between(filter.since, filter.until, before);
        let query = sql::changes(One(principal), One(filter), One(&stretch), to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, change))
    }

    async fn note_erasure(&self, owner: &Owner, by: &Decider) -> Result<()> {
        refuse_decider(by)?;
        let new = NewChange::new(ChangeKind::OwnerErased, &Principal::Operator, by);
        self.other.fetch(sql::note_erasure(One(&new), owner.kind().as_str())).await.map(drop)
    }

    async fn forget_owner(&self, owner: &Owner, limit: usize) -> Result<u64> {
        let (named, what) = (owner.to_string(), ChangeKind::ActionConfirmed.as_str());
        let query = sql::forget_owner(owner.kind().as_str(), owner.id(), &named, what, to_limit(limit));
        Ok(self.other.fetch(query).await?.len() as u64)
    }

    async fn remove_changes(&self, age: Duration, limit: usize) -> Result<u64> {
        Ok(self.other.fetch(sql::remove(micros(age), to_limit(limit))).await?.len() as u64)
    }
}
