//! The audit log.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::SqliteStore;
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

statements! { Sqlite:
    changes(principal: One<'_, PrincipalColumns>, wanted: One<'_, ChangesWanted>, stretch: One<'_, StretchColumns>, limit: i64) =
    "select * from changes where (at, change_id) < ({before_at}, {before_id}) and (at, change_id) >= ({end_at}, {end_id})
        and {may_see} and {wanted_changes}
    order by at desc, change_id desc limit +{limit}";

    log(change: One<'_, ChangeColumns>, owner_kind: Option<&str>, owner_id: Option<&str>, object: Option<&str>,
        before_value: Option<&str>, after_value: Option<&str>, now: i64) =
    "insert into changes ({change}, at, owner_kind, owner_id, object, before_value, after_value)
    values ({values change}, {now}, {owner_kind}, {owner_id}, {object}, {before_value}, {after_value})";

    forget_owner(owner_kind: &str, owner_id: &str, named: &str, what: &str, limit: i64) = "update changes
    set owner_id = null, object = null, origin = case when as_operator then origin else '' end,
        after_value = case when what = {what} then json_remove(after_value, '$.filter') else after_value end
    where change_id in (
        select change_id from changes where owner_kind = {owner_kind} and owner_id = {owner_id}
        union all
        select change_id from changes where what = {what} and after_value ->> '$.filter.owner' = {named}
        limit +{limit})";

    remove(age: i64, limit: i64, now: i64) = "delete from changes where change_id in (
        select change_id from changes where at < {now} - {age} order by at limit +{limit})";
}

/// What an entry is about, and what changed, as far as its statement does not know it.
#[derive(Debug, Default)]
pub(super) struct About<'a> {
    pub(super) owner_kind: Option<&'a str>,
    pub(super) owner_id: Option<&'a str>,
    pub(super) object: Option<&'a str>,
    pub(super) before: Option<&'a str>,
    pub(super) after: Option<&'a str>,
}

/// Adds an entry in the transaction of the change that it tells of.
pub(super) async fn log(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    about: About<'_>,
) -> Result<()> {
    let About { owner_kind, owner_id, object, before, after } = about;
    sql::log(One(change), owner_kind, owner_id, object, before, after, now).execute(db).await?;
    Ok(())
}

#[async_trait]
impl Changes for SqliteStore {
    async fn changes(
        &self,
        principal: &Principal,
        filter: &ChangeFilter,
        before: Option<Place>,
        limit: usize,
    ) -> Result<Vec<Change>> {
        let stretch = Stretch::between(filter.since, filter.until, before);
        let query = sql::changes(One(principal), One(filter), One(&stretch), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, change))
    }

    async fn note_erasure(&self, owner: &Owner, by: &Decider) -> Result<()> {
        refuse_decider(by)?;
        let (kind, by) = (owner.kind().as_str().to_owned(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let new = NewChange::new(ChangeKind::OwnerErased, &Principal::Operator, &by);
                log(db, now, &new, About { owner_kind: Some(&kind), ..About::default() }).await
            })
        })
        .await
    }

    async fn forget_owner(&self, owner: &Owner, limit: usize) -> Result<u64> {
        let (named, what) = (owner.to_string(), ChangeKind::ActionConfirmed.as_str());
        let query = sql::forget_owner(owner.kind().as_str(), owner.id(), &named, what, to_limit(limit));
        self.write_one(|_| query).await
    }

    async fn remove_changes(&self, age: Duration, limit: usize) -> Result<u64> {
        self.write_one(move |now| sql::remove(micros(age), to_limit(limit), now)).await
    }
}
