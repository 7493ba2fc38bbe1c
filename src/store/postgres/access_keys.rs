//! Access keys, by which apps use the HTTP API.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::PostgresStore;
use crate::{
    access::{AccessKey, NewKey, RANDOM_BYTES, Shown},
    bounds::MAX_KEYS,
    job::{Owner, Principal},
    store::{
        AccessKeys, AddedKey, ChangeKind, Decider, Result, StoreError, UsedKey,
        access_keys::{
            LISTED_AFTER_END, REMOVED_TOGETHER, USED_AGAIN_AFTER, access_key, created, may_make,
            most_rotated, used_key,
        },
        changes::NewChange,
        columns::{ChangeColumns, Key, PrincipalColumns},
        convert::{micros, to_limit},
        history::refuse_decider,
        read::{StoreRow as _, readable},
        sql::{One, statements},
    },
};

statements! { Postgres:
    add(key: One<'_, Key>, change: One<'_, ChangeColumns>, valid_for: Option<i64>, most: i64, after: &str) = "with required as (
        insert into access_keys_required (only_row, since) values (true, now()) on conflict do nothing),
    added as (insert into access_keys ({key}, created_at, expires_at)
    select {values key}, now(), now() + {valid_for}::bigint * interval '1 microsecond'
    where (select count(*) from access_keys k where k.owner_kind is not distinct from {owner_kind}
        and k.owner_id is not distinct from {owner_id} and {is_valid}) < {most}
    returning *),
    logged as ({log}, owner_kind, owner_id, id::text, null, {after}::text from added)
    select * from added";

    remove_ended(ended: i64, most: i64) = "delete from access_keys where id in (
        select id from access_keys where least(expires_at, revoked_at) < now() - {ended}::bigint * interval '1 microsecond' limit {most})";

    keys(principal: One<'_, PrincipalColumns>, before: Uuid, limit: i64) =
    "select * from access_keys where {may_see} and id < {before} order by id desc limit {limit}";

    key(principal: One<'_, PrincipalColumns>, id: Uuid) = "select * from access_keys where {may_see} and id = {id}";

    rotate(principal: One<'_, PrincipalColumns>, key: One<'_, Key>, change: One<'_, ChangeColumns>, old: Uuid, valid_for: Option<i64>, overlap: i64, most: i64) = "with old as (
        update access_keys k set replaced_by = {id},
            expires_at = least(expires_at, now() + {overlap}::bigint * interval '1 microsecond')
        where {may_see} and k.id = {old} and {is_valid} and k.replaced_by is null
            and (select count(*) from access_keys k where k.owner_kind is not distinct from {owner_kind}
                and k.owner_id is not distinct from {owner_id} and {is_valid}) < {most}
        returning k.id as old_id),
    added as (insert into access_keys ({key}, created_at, expires_at)
        select {values key}, now(), now() + {valid_for}::bigint * interval '1 microsecond' from old
        returning *),
    logged as ({log}, owner_kind, owner_id, old_id::text, null,
        jsonb_build_object('replaced_by', id, 'overlap_secs', {overlap}::bigint / 1000000)::text from added, old)
    select * from added";

    revoke(principal: One<'_, PrincipalColumns>, change: One<'_, ChangeColumns>, id: Uuid) = "with was as (
        select id as was_id, revoked_at as was_revoked_at from access_keys where {may_see} and id = {id} for update),
    revoked as (update access_keys set revoked_at = coalesce(revoked_at, now()) from was where id = was_id
        returning access_keys.*, was_revoked_at),
    logged as ({log}, owner_kind, owner_id, id::text, null, null from revoked where was_revoked_at is null)
    select * from revoked";

    remove(owner_kind: &str, owner_id: &str) =
    "delete from access_keys where owner_kind = {owner_kind} and owner_id = {owner_id} returning id";

    shown(id: Uuid, used_again_after: i64) = "select *, {is_valid} as is_valid,
        coalesce(last_used_at < now() - {used_again_after}::bigint * interval '1 microsecond', true) as is_used_again
    from access_keys k where id = {id}";

    valid(id: Uuid) = "select * from access_keys k where id = {id} and {is_valid}";

    secret() = "select secret from sealing_secret";

    make_secret(secret: Vec<u8>) = "insert into sealing_secret (secret) values ({secret}) on conflict do nothing";

    used(id: Uuid, used_again_after: i64) = "update access_keys set last_used_at = now() where id = {id}
    and coalesce(last_used_at < now() - {used_again_after}::bigint * interval '1 microsecond', true)";

    required() = "select 1 from access_keys_required";
}

#[async_trait]
impl AccessKeys for PostgresStore {
    async fn add_key(&self, principal: &Principal, key: &NewKey, by: &Decider) -> Result<AddedKey> {
        if !may_make(principal, key) {
            return Ok(AddedKey::Foreign);
        }
        refuse_decider(by)?;
        self.remove_ended_keys().await?;
        let change = NewChange::new(ChangeKind::KeyCreated, principal, by);
        let query =
            sql::add(One(key), One(&change), key.valid_for.map(micros), to_limit(MAX_KEYS), &created(key));
        let added = self.other.fetch_first(query).await?;
        added.map_or(Ok(AddedKey::TooMany), |row| access_key(&row).map(AddedKey::Added))
    }

    async fn keys(
        &self,
        principal: &Principal,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<AccessKey>> {
        let query = sql::keys(One(principal), before.unwrap_or(Uuid::max()), to_limit(limit));
        Ok(readable(&self.other.fetch(query).await?, access_key))
    }

    async fn key(&self, principal: &Principal, id: Uuid) -> Result<Option<AccessKey>> {
        self.other.fetch_first(sql::key(One(principal), id)).await?.as_ref().map(access_key).transpose()
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
        self.remove_ended_keys().await?;
        let change = NewChange::new(ChangeKind::KeyRotated, principal, by);
        let query = sql::rotate(
            One(principal),
            One(key),
            One(&change),
            id,
            key.valid_for.map(micros),
            micros(overlap),
            most_rotated(),
        );
        self.other.fetch_first(query).await?.as_ref().map(access_key).transpose()
    }

    async fn revoke_key(&self, principal: &Principal, id: Uuid, by: &Decider) -> Result<Option<AccessKey>> {
        refuse_decider(by)?;
        let change = NewChange::new(ChangeKind::KeyRevoked, principal, by);
        self.other
            .fetch_first(sql::revoke(One(principal), One(&change), id))
            .await?
            .as_ref()
            .map(access_key)
            .transpose()
    }

    async fn remove_keys(&self, owner: &Owner) -> Result<u64> {
        Ok(self.other.fetch(sql::remove(owner.kind().as_str(), owner.id())).await?.len() as u64)
    }

    async fn use_key(&self, shown: &Shown) -> Result<UsedKey> {
        let row = self.other.fetch_first(sql::shown(shown.id, micros(USED_AGAIN_AFTER))).await?;
        let used = used_key(row.as_ref(), shown)?;
        if let (UsedKey::Valid(_), Some(row)) = (&used, &row)
            && row.read("is_used_again")?
        {
            self.other.fetch(sql::used(shown.id, micros(USED_AGAIN_AFTER))).await?;
        }
        Ok(used)
    }

    async fn valid_key(&self, id: Uuid) -> Result<Option<AccessKey>> {
        self.other.fetch_first(sql::valid(id)).await?.as_ref().map(access_key).transpose()
    }

    async fn sealing_secret(&self, new: [u8; RANDOM_BYTES]) -> Result<Vec<u8>> {
        let mut found = self.other.fetch_first(sql::secret()).await?;
        if found.is_none() {
            self.other.fetch(sql::make_secret(new.into())).await?;
            found = self.other.fetch_first(sql::secret()).await?;
        }
        found.ok_or_else(|| StoreError::corrupt("sealing_secret"))?.read("secret")
    }

    async fn has_keys(&self) -> Result<bool> {
        Ok(self.other.fetch_first(sql::required()).await?.is_some())
    }
}

impl PostgresStore {
    async fn remove_ended_keys(&self) -> Result<()> {
        self.other.fetch(sql::remove_ended(micros(LISTED_AFTER_END), REMOVED_TOGETHER)).await.map(drop)
    }
}
