//! Toolkit versions that are pinned at run time.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{
    SqliteStore,
    changes::{About, log},
};
use crate::{
    job::{Owner, Pin, Principal},
    store::{
        ChangeKind, Decider, Pins, Result,
        changes::NewChange,
        convert::pin_owner,
        history::refuse_decider,
        pins::{PINS, may_pin, pinned, refuse_foreign_pin},
        read::{StoreRow as _, readable},
        rows,
        sql::statements,
    },
};

statements! { Sqlite:
    pins() = PINS;
    set(owner_kind: &str, owner_id: &str, toolkit: &str, version: &str) = "insert into pins (owner_kind, owner_id, toolkit, version)
    values ({owner_kind}, {owner_id}, {toolkit}, {version})
    on conflict (owner_kind, owner_id, toolkit) do update set version = excluded.version";
    was(owner_kind: &str, owner_id: &str, toolkit: &str) =
    "select version from pins where owner_kind = {owner_kind} and owner_id = {owner_id} and toolkit = {toolkit}";
    unset(owner_kind: &str, owner_id: &str, toolkit: &str) = "delete from pins
    where owner_kind = {owner_kind} and owner_id = {owner_id} and toolkit = {toolkit}
    returning version";
}

#[async_trait]
impl Pins for SqliteStore {
    async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(readable(&self.reader.fetch(sql::pins()).await?, rows::pin))
    }

    async fn set_pin(&self, principal: &Principal, pin: &Pin, by: &Decider) -> Result<()> {
        refuse_decider(by)?;
        refuse_foreign_pin(principal, pin)?;
        let (principal, pin, by) = (principal.clone(), pin.clone(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let (owner_kind, owner_id) = pin_owner(pin.owner.as_ref());
                let was = sql::was(owner_kind, owner_id, &pin.toolkit).fetch_optional(&mut *db).await?;
                let was: Option<String> = was.map(|row| row.read("version")).transpose()?;
                sql::set(owner_kind, owner_id, &pin.toolkit, &pin.version).execute(&mut *db).await?;
                if was.as_ref() == Some(&pin.version) {
                    return Ok(());
                }
                let change = NewChange::new(ChangeKind::PinSet, &principal, &by);
                let (before, after) = (was.as_deref().map(pinned), pinned(&pin.version));
                log_pin(db, now, &change, pin.owner.as_ref(), &pin.toolkit, [before.as_deref(), Some(&after)])
                    .await
            })
        })
        .await
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
        let (principal, owner, toolkit, by) =
            (principal.clone(), owner.cloned(), toolkit.to_owned(), by.clone());
        self.write(move |db, now| {
            Box::pin(async move {
                let (owner_kind, owner_id) = pin_owner(owner.as_ref());
                let unset = sql::unset(owner_kind, owner_id, &toolkit).fetch_optional(&mut *db).await?;
                let Some(unset) = unset else { return Ok(false) };
                let was = pinned(&unset.read::<String>("version")?);
                let change = NewChange::new(ChangeKind::PinRemoved, &principal, &by);
                log_pin(db, now, &change, owner.as_ref(), &toolkit, [Some(&was), None]).await?;
                Ok(true)
            })
        })
        .await
    }
}

async fn log_pin(
    db: &mut SqliteConnection,
    now: i64,
    change: &NewChange<'_>,
    owner: Option<&Owner>,
    toolkit: &str,
    [before, after]: [Option<&str>; 2],
) -> Result<()> {
    let about = About {
        owner_kind: owner.map(|owner| owner.kind().as_str()),
        owner_id: owner.map(Owner::id),
        object: Some(toolkit),
        before,
        after,
    };
    log(db, now, change, about).await
}
