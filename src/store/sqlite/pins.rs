//! Toolkit versions that are pinned at run time.

use async_trait::async_trait;

use super::SqliteStore;
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

statements! { Sqlite:
    pins() = PINS;
    set(owner_kind: &str, owner_id: &str, toolkit: &str, version: &str) = SET;
    unset(owner_kind: &str, owner_id: &str, toolkit: &str) = UNSET;
}

#[async_trait]
impl Pins for SqliteStore {
    async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(readable(&self.reader.fetch(sql::pins()).await?, rows::pin))
    }

    async fn set_pin(&self, pin: &Pin) -> Result<()> {
        let (owner_kind, owner_id) = pin_owner(pin.owner.as_ref());
        let query = sql::set(owner_kind, owner_id, &pin.toolkit, &pin.version);
        self.write_one(|_| query).await.map(drop)
    }

    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool> {
        let (owner_kind, owner_id) = pin_owner(owner);
        let query = sql::unset(owner_kind, owner_id, toolkit);
        Ok(self.write_one(|_| query).await? > 0)
    }
}
