//! Access keys, by which apps use the HTTP API.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    access::{AccessKey, NewKey, RANDOM_BYTES, Shown},
    bounds::MAX_KEYS,
    failure::chain,
    job::{Owner, Principal},
    store::{
        AccessKeys, AddedKey, ChangeKind, Decider, Result, StoreError, UsedKey,
        access_keys::{
            LISTED_AFTER_END, REMOVED_TOGETHER, USED_AGAIN_AFTER, access_key, created, may_make,
            most_rotated, rotated, used_key,
        },
        changes::NewChange,
        columns::{Key, PrincipalColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        read::{StoreRow as _, readable},
        sql::{One, statements},
    },
};

statements! { Sqlite:
    add(key: One<'_, Key>, valid_for: Option<i64>, most: i64, now: i64) = "insert into access_keys ({key}, created_at, expires_at)
    select {values key}, {now}, {now} + {valid_for}
    where (select count(*) from access_keys k where k.owner_kind is {owner_kind} and k.owner_id is {owner_id} and {is_valid}) < {most}
    returning *";

    require(now: i64) = "insert into access_keys_required (only_row, since) values (1, {now}) on conflict do nothing";

    remove_ended(ended: i64, most: i64, now: i64) = "delete from access_keys where id in (
        select id from access_keys
        where min(coalesce(expires_at, revoked_at), coalesce(revoked_at, expires_at)) < {now} - {ended} limit +{most})";

    keys(principal: One<'_, PrincipalColumns>, before: Uuid, limit: i64) =
    "select * from access_keys where {may_see} and id < {before} order by id desc limit +{limit}";

    key(principal: One<'_, PrincipalColumns>, id: Uuid) = "select * from access_keys where {may_see} and id = {id}";

    replace(principal: One<'_, PrincipalColumns>, key: One<'_, Key>, old: Uuid, overlap: i64, most: i64, now: i64) = "update access_keys as k
    set replaced_by = {id}, expires_at = min(coalesce(expires_at, {now} + {overlap}), {now} + {overlap})
    where {may_see} and k.id = {old} and {is_valid} and k.replaced_by is null
        and (select count(*) from access_keys k where k.owner_kind is {owner_kind} and k.owner_id is {owner_id} and {is_valid}) < {most}";

    revoke(principal: One<'_, PrincipalColumns>, id: Uuid, now: i64) =
    "update access_keys set revoked_at = coalesce(revoked_at, {now}) where {may_see} and id = {id} returning *";

    was_revoked(principal: One<'_, PrincipalColumns>, id: Uuid) =
    "select revoked_at is not null as was_revoked from access_keys where {may_see} and id = {id}";

    remove(owner_kind: &str, owner_id: &str) =
    "delete from access_keys where owner_kind = {owner_kind} and owner_id = {owner_id}";

    shown(id: Uuid, used_again_after: i64, now: i64) = "select *, {is_valid} as is_valid,
        coalesce(last_used_at < {now} - {used_again_after}, 1) as is_used_again
    from access_keys k where id = {id}";

    valid(id: Uuid, now: i64) = "select * from access_keys k where id = {id} and {is_valid}";

    secret() = "select secret from sealing_secret";

    make_secret(secret: Vec<u8>) = "insert into sealing_secret (only_row, secret) values (1, {secret}) on conflict do nothing";

    used(id: Uuid, used_again_after: i64, now: i64) = "update access_keys set last_used_at = {now} where id = {id}
    and coalesce(last_used_at < {now} - {used_again_after}, 1)";

    required() = "select 1 from access_keys_required";
}

#[async_trait]
impl AccessKeys for SqliteStore {
    async fn add_key(&self, principal: &Principal, key: &NewKey, by: &Decider) -> Result<AddedKey> {
        if !may_make(principal, key) {
            return Ok(AddedKey::Foreign);
        }
        refuse_decider(by)?;
        let (principal, key, by) = (principal.clone(), key.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                sql::remove_ended(micros(LISTED_AFTER_END), REMOVED_TOGETHER, now).execute(&mut *db).await?;
                sql::require(now).execute(&mut *db).await?;
                let query = sql::add(One(&key), key.valid_for.map(micros), to_limit(MAX_KEYS), now);
                let Some(added) = query.fetch_optional(&mut *db).await? else {
                    return Ok(AddedKey::TooMany);
                };
                let change = NewChange::new(ChangeKind::KeyCreated, &principal, &by);
                log_key(db, now, &change, &key.principal, key.id, Some(&created(&key))).await?;
                access_key(&added).map(AddedKey::Added)
            })
        })
        .await
    }

    async fn keys(
        &self,
        principal: &Principal,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<AccessKey>> {
        let query = sql::keys(One(principal), before.unwrap_or(Uuid::max()), to_limit(limit));
        Ok(readable(&self.reader.fetch(query).await?, access_key))
    }

    async fn key(&self, principal: &Principal, id: Uuid) -> Result<Option<AccessKey>> {
        self.reader.fetch_first(sql::key(One(principal), id)).await?.as_ref().map(access_key).transpose()
    }

    async fn rotate_key(
        &self,
        principal: &Principal,
        id: Uuid,
        key: &NewKey,
        overlap: Duration,
        by: &Decider,
    ) -> Result<Option<AccessKey>> {
        if !may_make(principal, key) {
            return Ok(None);
        }
        refuse_decider(by)?;
        let (principal, key, by) = (principal.clone(), key.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                sql::remove_ended(micros(LISTED_AFTER_END), REMOVED_TOGETHER, now).execute(&mut *db).await?;
                let replace =
                    sql::replace(One(&principal), One(&key), id, micros(overlap), most_rotated(), now);
                if replace.execute(&mut *db).await?.rows_affected() == 0 {
                    return Ok(None);
                }
                // The old one makes room for it.
                let query = sql::add(One(&key), key.valid_for.map(micros), i64::MAX, now);
                let added = query.fetch_one(&mut *db).await?;
                let change = NewChange::new(ChangeKind::KeyRotated, &principal, &by);
                log_key(db, now, &change, &key.principal, id, Some(&rotated(&key, overlap))).await?;
                access_key(&added).map(Some)
            })
        })
        .await
    }

    async fn revoke_key(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<AccessKey>> {
        refuse_decider(by)?;
        let (principal, by) = (principal.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let was = sql::was_revoked(One(&principal), id).fetch_optional(&mut *db).await?;
                let Some(revoked) = sql::revoke(One(&principal), id, now).fetch_optional(&mut *db).await?
                else {
                    return Ok(None);
                };
                let key = access_key(&revoked)?;
                if was.is_some_and(|was| was.read("was_revoked").is_ok_and(|was: bool| !was)) {
                    let change = NewChange::new(ChangeKind::KeyRevoked, &principal, &by);
                    log_key(db, now, &change, &key.principal, id, None).await?;
                }
                Ok(Some(key))
            })
        })
        .await
    }

    async fn remove_keys(&self, owner: &Owner) -> Result<u64> {
        let query = sql::remove(owner.kind().as_str(), owner.id());
        self.write_one(|_| query).await
    }

    async fn use_key(&self, shown: &Shown) -> Result<UsedKey> {
        let query = sql::shown(shown.id, micros(USED_AGAIN_AFTER), self.now_micros());
        let row = self.reader.fetch_first(query).await?;
        let used = used_key(row.as_ref(), shown)?;
        if let (UsedKey::Valid(_), Some(row)) = (&used, &row)
            && row.read("is_used_again")?
        {
            let id = shown.id;
            // The writer may be busy. Then the request is served all the same.
            if let Err(error) = self.write_one(move |now| sql::used(id, micros(USED_AGAIN_AFTER), now)).await
            {
                tracing::debug!(error = %chain(&error), "the use of an access key is not noted");
            }
        }
        Ok(used)
    }

    async fn valid_key(&self, id: Uuid) -> Result<Option<AccessKey>> {
        let found = self.reader.fetch_first(sql::valid(id, self.now_micros())).await?;
        found.as_ref().map(access_key).transpose()
    }

    async fn sealing_secret(&self, new: [u8; RANDOM_BYTES]) -> Result<Vec<u8>> {
        let mut found = self.reader.fetch_first(sql::secret()).await?;
        if found.is_none() {
            self.write_one(move |_| sql::make_secret(new.into())).await?;
            found = self.reader.fetch_first(sql::secret()).await?;
        }
        found.ok_or_else(|| StoreError::corrupt("sealing_secret"))?.read("secret")
    }

    async fn has_keys(&self) -> Result<bool> {
        Ok(self.reader.fetch_first(sql::required()).await?.is_some())
    }
}

async fn log_key(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    whose: &Principal,
    key: Uuid,
    after: Option<&str>,
) -> Result<()> {
    let key = key.to_string();
    let about = About {
        owner_kind: whose.owner().map(|owner| owner.kind().as_str()),
        owner_id: whose.owner().map(Owner::id),
        object: Some(&key),
        before: None,
        after,
    };
    log(db, now, change, about).await
}
