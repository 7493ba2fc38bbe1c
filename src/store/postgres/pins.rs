//! Toolkit versions that are pinned at run time.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    job::{Owner, Pin, Principal},
    store::{
        ChangeKind, Decider, Pins, Result,
        changes::NewChange,
        columns::ChangeColumns,
        convert::pin_owner,
        history::refuse_decider,
        pins::{PINS, may_pin, refuse_foreign_pin},
        read::readable,
        rows,
        sql::{One, statements},
    },
};

statements! { Postgres:
    pins() = PINS;
    set(change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, toolkit: &str, version: &str) = "with was as (
        select version as was_version from pins
        where owner_kind = {owner_kind} and owner_id = {owner_id} and toolkit = {toolkit} for update),
    pinned as (insert into pins (owner_kind, owner_id, toolkit, version)
        select {owner_kind}, {owner_id}, {toolkit}, {version} from (select count(*) from was) as locked
        on conflict (owner_kind, owner_id, toolkit) do update set version = excluded.version
        returning *)
    {log}, nullif(owner_kind, 'global'), nullif(owner_id, ''), toolkit,
        (select jsonb_build_object('version', was_version)::text from was), jsonb_build_object('version', version)::text
    from pinned where not exists (select 1 from was where was_version = version)";
    unset(change: One<'_, ChangeColumns>, owner_kind: &str, owner_id: &str, toolkit: &str) = "with unset as (delete from pins
        where owner_kind = {owner_kind} and owner_id = {owner_id} and toolkit = {toolkit}
        returning *)
    {log}, nullif(owner_kind, 'global'), nullif(owner_id, ''), toolkit, jsonb_build_object('version', version)::text, null
    from unset returning 1";
}

#[async_trait]
impl Pins for PostgresStore {
    async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(readable(&self.other.fetch(sql::pins()).await?, rows::pin))
    }

    async fn set_pin(&self, principal: &Principal, pin: &Pin, by: &Decider) -> Result<()> {
        refuse_decider(by)?;
        refuse_foreign_pin(principal, pin)?;
        let (owner_kind, owner_id) = pin_owner(pin.owner.as_ref());
        let change = NewChange::new(ChangeKind::PinSet, principal, by);
        let query = sql::set(One(&change), owner_kind, owner_id, &pin.toolkit, &pin.version);
        self.other.fetch(query).await.map(drop)
    }

    async fn unset_pin(
        &self,
        principal: &Principal,
        owner: Option<&Owner>,
        toolkit: &str,
        by: &Decider,
    ) -> Result<bool> {
        refuse_decider(by)?;
        if !may_pin(principal, owner) {
            return Ok(false);
        }
        let (owner_kind, owner_id) = pin_owner(owner);
        let change = NewChange::new(ChangeKind::PinRemoved, principal, by);
        let query = sql::unset(One(&change), owner_kind, owner_id, toolkit);
        Ok(self.other.fetch_first(query).await?.is_some())
    }
}
