//! Pins: toolkit versions that are pinned at run time.

use std::fmt;

use async_trait::async_trait;

use super::StoreError;
use crate::job::Owner;

/// Toolkit versions that are pinned at run time.
#[async_trait]
pub trait Pins: fmt::Debug + Send + Sync {
    /// All pins, global ones first.
    async fn pins(&self) -> Result<Vec<PinRow>, StoreError>;

    /// Sets or replaces a pin.
    async fn set_pin(&self, pin: &PinRow) -> Result<(), StoreError>;

    /// Removes a pin; `false` when there was none.
    async fn unset_pin(&self, owner: Option<&Owner>, toolkit: &str) -> Result<bool, StoreError>;
}

/// One pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRow {
    /// `None` is the global pin.
    pub owner: Option<Owner>,
    /// Lower-case toolkit slug.
    pub toolkit: String,
    /// The version.
    pub version: String,
}
