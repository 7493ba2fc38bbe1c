//! Toolkit versions that are pinned at run time.

use async_trait::async_trait;

use super::PostgresStore;
use crate::{
    job::{Owner, Pin},
    store::{
        Pins, Result,
        convert::pin_owner,
        pins::{PINS, SET, UNSET},
        read::readable,
        rows,
        sql::statements,
    },
};

statements! { Postgres:
    pins() = PINS;
    set(owner_kind: &str, owner_id: &str, toolkit: &str, version: &str) = SET;
    unset(owner_kind: &str, owner_id: &str, toolkit: &str) = UNSET;
}

#[async_trait]
impl Pins for PostgresStore {
    async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(readable(&self.other.fetch(sql::pins()).await?, rows::pin))
    }

    async fn set_pin(&self, pin: &Pin) -> Result<()> {
        let (owner_kind, owner_id) = pin_owner(pin.owner.as_ref());
        self.other.fetch(sql::set(owner_kind, owner_id, &pin.toolkit, &pin.version)).await.map(drop)
    }

    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool> {
        let (owner_kind, owner_id) = pin_owner(owner);
        Ok(self.other.fetch_first(sql::unset(owner_kind, owner_id, toolkit)).await?.is_some())
    }
}
