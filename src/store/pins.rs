//! Pins: toolkit versions that are pinned at run time.

use std::fmt;

use async_trait::async_trait;

use super::Result;
use crate::job::{Owner, Pin, Principal};

pub(super) const PINS: &str = "select owner_kind, owner_id, toolkit, version from pins
    order by owner_kind <> 'global', owner_kind, owner_id, toolkit";

pub(super) const SET: &str = "insert into pins (owner_kind, owner_id, toolkit, version)
    values ({owner_kind}, {owner_id}, {toolkit}, {version})
    on conflict (owner_kind, owner_id, toolkit) do update set version = excluded.version";

pub(super) const UNSET: &str = "delete from pins
    where owner_kind = {owner_kind} and owner_id = {owner_id} and toolkit = {toolkit}
    returning version";

#[async_trait]
pub trait Pins: fmt::Debug + Send + Sync {
    /// All pins, global ones first.
    async fn pins(&self) -> Result<Vec<Pin>>;

    /// The pins that a principal may see: of an owner its own.
    async fn pins_of(&self, principal: &Principal) -> Result<Vec<Pin>> {
        let mut pins = self.pins().await?;
        if let Principal::Owner(owner) = principal {
            pins.retain(|pin| pin.owner.as_ref() == Some(owner));
        }
        Ok(pins)
    }

    async fn set_pin(&self, pin: &Pin) -> Result<()>;

    /// Removes a pin; `false` when there was none.
    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool>;
}
