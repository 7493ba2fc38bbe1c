//! Pins: toolkit versions that are pinned at run time.

use std::fmt;

use async_trait::async_trait;
use serde_json::json;

use super::{Decider, Result, StoreError, StoreErrorKind};
use crate::job::{Owner, Pin, Principal};

pub(super) const PINS: &str = "select owner_kind, owner_id, toolkit, version from pins
    order by owner_kind <> 'global', owner_kind, owner_id, toolkit";

/// What the audit log says of a pinned version.
pub(super) fn pinned(version: &str) -> String {
    json!({ "version": version }).to_string()
}

/// Whether pins for this owner, or for everybody, are the principal's to change.
pub(super) fn may_pin(principal: &Principal, owner: Option<&Owner>) -> bool {
    principal.owner().is_none_or(|own| owner == Some(own))
}

pub(super) fn refuse_foreign_pin(principal: &Principal, pin: &Pin) -> Result<()> {
    if may_pin(principal, pin.owner.as_ref()) {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Data, "a pin of another owner is not this principal's to change"))
}

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

    /// The [audit log](super::Changes) tells of it, where another version or none was pinned before. An owner pins for itself
    /// only; for others it is refused as data.
    async fn set_pin(&self, principal: &Principal, pin: &Pin, by: &Decider) -> Result<()>;

    /// Removes a pin; `false` when there was none that is the principal's.
    async fn unset_pin(
        &self,
        principal: &Principal,
        owner: Option<&Owner>,
        toolkit: &str,
        by: &Decider,
    ) -> Result<bool>;
}
