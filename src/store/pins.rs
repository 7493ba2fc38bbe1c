//! Pins: toolkit versions that are pinned at run time.

use std::fmt;

use async_trait::async_trait;
use serde_json::json;

use super::{Decider, Result};
use crate::job::{Owner, Pin, Principal};

pub(super) const PINS: &str = "select owner_kind, owner_id, toolkit, version from pins
    order by owner_kind <> 'global', owner_kind, owner_id, toolkit";

/// What the audit log says of a pinned version.
pub(super) fn pinned(version: &str) -> String {
    json!({ "version": version }).to_string()
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

    /// The [audit log](super::Changes) tells of it, where another version or none was pinned before. Whether the principal may
    /// pin for this owner is the caller's to judge.
    async fn set_pin(&self, principal: &Principal, pin: &Pin, by: &Decider) -> Result<()>;

    /// Removes a pin; `false` when there was none.
    async fn unset_pin(
        &self,
        principal: &Principal,
        owner: Option<&Owner>,
        toolkit: &str,
        by: &Decider,
    ) -> Result<bool>;
}
