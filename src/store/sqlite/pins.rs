//! Toolkit versions that are pinned at run time.

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, refuse_nul};
use crate::{
    job::{Owner, Pin},
    store::{Pins, StoreError, convert::pin_owner, rows::PinColumns},
};

const PINS: &str = "select owner_kind, owner_id, toolkit, version from pins
    order by owner_kind <> 'global', owner_kind, owner_id, toolkit";

const SET: &str = "insert into pins (owner_kind, owner_id, toolkit, version) values (?1, ?2, ?3, ?4)
    on conflict (owner_kind, owner_id, toolkit) do update set version = excluded.version";

const UNSET: &str = "delete from pins where owner_kind = ?1 and owner_id = ?2 and toolkit = ?3";

#[async_trait]
impl Pins for SqliteStore {
    async fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        let rows = sqlx::query(PINS).fetch_all(&self.reader).await?;
        rows.iter()
            .map(|row| {
                PinColumns {
                    owner_kind: row.try_get("owner_kind")?,
                    owner_id: row.try_get("owner_id")?,
                    toolkit: row.try_get("toolkit")?,
                    version: row.try_get("version")?,
                }
                .pin()
            })
            .collect()
    }

    async fn set_pin(&self, pin: &Pin) -> Result<(), StoreError> {
        refuse_nul([Some(&*pin.toolkit), Some(&*pin.version)])?;
        let (owner_kind, owner_id) = pin_owner(pin.owner.as_ref());
        let query = sqlx::query(SET).bind(owner_kind).bind(owner_id).bind(&*pin.toolkit).bind(&*pin.version);
        self.write(move |db, _| {
            Box::pin(async move {
                query.execute(db).await?;
                Ok(())
            })
        })
        .await
    }

    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool, StoreError> {
        let (owner_kind, owner_id) = pin_owner(owner);
        let query = sqlx::query(UNSET).bind(owner_kind).bind(owner_id).bind(toolkit);
        self.write(move |db, _| Box::pin(async move { Ok(query.execute(db).await?.rows_affected() > 0) }))
            .await
    }
}
